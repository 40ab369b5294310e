"""Turn `sightrail eval --json FILE` into the tables of docs/results.md.

    python tests/benchmarks/results_markdown.py docs/results.json docs/results.md README.md

rewrites what stands between `<!-- results -->` and `<!-- /results -->` in the files, and the short
table of the README between `<!-- short -->` and `<!-- /short -->`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sightrail.guardrails.evaluation import EvalReport, Row

ANSWERS = {
    ("attack_success", "object"): "attack: object",
    ("attack_success", "typographic"): "attack: words",
    ("attack_success", "picture"): "attack: picture",
    ("attack_success", "text"): "attack: text",
    ("benign_accuracy", "benign"): "benign right",
    ("over_refusal", "benign"): "benign refused",
    ("benign_accuracy", "lookalike"): "look-alike right",
    ("over_refusal", "lookalike"): "look-alike refused",
    ("time_ratio", "answer"): "time",
}
TASKS = {
    ("attack_success", "agent_object"): "attack: a tool's photo",
    ("attack_success", "agent_injection"): "attack: an order in it",
    ("task_success", "agent_benign"): "benign done",
    ("over_refusal", "agent_benign"): "benign refused",
    ("steps", "agent_benign"): "steps",
}
SHORT_STACKS = ("bare", "screen", "casa", "moras", "screen+moras", "all")
SHORT = (
    ("attack_success", "picture"),
    ("benign_accuracy", "benign"),
    ("over_refusal", "lookalike"),
    ("time_ratio", "answer"),
)
SCENES = ("objects_1", "objects_3", "objects_6", "objects_9", "typographic")
COLUMNS = {
    "whole_cosine": "whole-image cosine",
    "patch_cosine": "patch-max cosine",
    "ot_printed": "OT as printed",
    "ot": "OT as shipped",
}
SCREENING = {
    "flagged": "flagged pictures",
    "escalated": "handed on to the judge by the cascade",
    "localisation": "top region inside the unsafe object",
}


def percent(row: Row) -> str:
    """A share with its interval."""
    return f"{100 * row.value:.1f} ({100 * row.low:.1f}-{100 * row.high:.1f})"


def cell(row: Row | None) -> str:
    """One table cell."""
    if row is None:
        return ""
    if row.metric.endswith("ratio"):
        return f"{row.value:.2f}x ({row.low:.2f}-{row.high:.2f})"
    if row.metric == "steps":
        return f"{row.value:.2f} ({row.low:.2f}-{row.high:.2f})"
    return (
        f"{row.value:.3f} ({row.low:.3f}-{row.high:.3f})" if row.metric == "auroc" else percent(row)
    )


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *lines))


def asked(report: EvalReport, stack: str = "bare") -> int:
    """How many requests of a group a stack was asked."""
    found = {(row.stack, row.metric, row.group): row.n for row in report.rows}
    return found[stack, "attack_success", "object"]


def name_of(stack: str, report: EvalReport) -> str:
    """A stack in a table; with its n where that is not the bare model's."""
    n = asked(report, stack)
    return f"`{stack}`" if n == asked(report) else f"`{stack}` (n = {n})"


def render(report: EvalReport, command: str) -> str:
    """Every table of a report, with what they rest on."""
    rows = {(row.stack, row.metric, row.group): row for row in report.rows}
    stacks = list(dict.fromkeys(row.stack for row in report.rows if row.metric == "attack_success"))
    n = asked(report)
    named = {stack: name_of(stack, report) for stack in stacks}
    answers, tasks = (
        [[named[stack], *(cell(rows.get((stack, *key))) for key in columns)] for stack in stacks]
        for columns in (ANSWERS, TASKS)
    )
    detection = [
        [group.replace("_", " "), *(cell(rows.get((column, "auroc", group))) for column in COLUMNS)]
        for group in SCENES
    ]
    screening = [
        [f"{title}: {row.group.replace('_', ' ')}", cell(row), str(row.n)]
        for metric, title in SCREENING.items()
        for row in report.rows
        if row.metric == metric
    ]
    for group, what in (("one_encoding", "one encoding"), ("one_answer", "one bare answer")):
        row = rows.get(("screening", "time_ratio", group))
        if row is not None:
            screening.append([f"time of screening / {what}", cell(row), str(row.n)])
    return "\n\n".join(
        [
            f"Model `{report.model}`, encoder `{report.encoder}`, {report.split} split, seed "
            f"{report.seed}, n = {n} a cell (pictures: {2 * n}), 95 % intervals, "
            f"{report.device}. Made by `{command}`.",
            "Answers, in per cent; time as a ratio to the bare model in the same run:",
            table(["stack", *ANSWERS.values()], answers),
            "Tasks with tools, in per cent, judged by what was done; steps are answers a task:",
            table(["stack", *TASKS.values()], tasks),
            "Detection, AUROC on the same scenes:",
            table(["scenes", *COLUMNS.values()], detection),
            "Screening:",
            table(["figure", "value", "n"], screening),
        ]
    )


def short(report: EvalReport, command: str) -> str:
    """The one table of the README."""
    rows = {(row.stack, row.metric, row.group): row for row in report.rows}
    lines = [
        [name_of(stack, report), *(cell(rows.get((stack, *key))) for key in SHORT)]
        for stack in SHORT_STACKS
    ]
    header = ["stack", *(ANSWERS[key] for key in SHORT)]
    return f"{table(header, lines)}\n\nMade by `{command}`."


def main(arguments: Sequence[str]) -> None:
    """Rewrite the results section of the files."""
    source, *targets = map(Path, arguments)
    report = EvalReport.model_validate_json(source.read_text(encoding="utf-8"))
    command = f"sightrail eval --n {asked(report)} --seed {report.seed} --json {source}"
    sections = {"results": render(report, command), "short": short(report, command)}
    for target in targets:
        page = target.read_text(encoding="utf-8")
        target.write_text(with_sections(page, sections), encoding="utf-8")


def with_sections(page: str, sections: Mapping[str, str]) -> str:
    """The page with these texts between their marks."""
    for name, text in sections.items():
        section = f"<!-- {name} -->\n{text}\n<!-- /{name} -->"
        marked = rf"<!-- {name} -->.*<!-- /{name} -->"
        page = re.sub(marked, lambda _, section=section: section, page, flags=re.DOTALL)
    return page


if __name__ == "__main__":
    main(sys.argv[1:])
