"""What holds on which family of models, as the tests find it: docs/families.md.

    python tests/families_table.py docs/families.md

It takes about seven minutes of one core. What the tests said is kept beside the page until it is
written, so that a run that was ended goes on.

A test with ``@pytest.mark.shows(column)`` gives the family that it runs on a cell. ``yes``: every
such test passed. ``no`` with a number: it was skipped or is refused, for the reason told below the
table; ``in part``: others passed. ``fails``: one of them failed. ``not tried``: there is none. No
cell is written by hand.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

TESTS = Path(__file__).resolve().parent
COLUMNS = [
    *("prompt exact", "spans", "zero strength", "calibration", "CASA", "MoRAS", "DAVSP"),
    *("border survives", "tools", "fp16", "quantised", "device map"),
]
#: Asked for, and not among the families: name, and transformers' type of its config.
OTHERS = {
    "Kimi-VL": "kimi_vl",
    "Molmo": "molmo",
    "Phi-4-multimodal": "phi4_multimodal",
}
HEAD = """# Families

Written by `{command}` on {versions}: do not edit. Each cell is the outcome of tests
marked `@pytest.mark.shows` on a tiny model of the family,
made from its own config, classes and processor with random weights. So a cell says that the
mechanism holds, not how well a defence works on real weights; `sightrail doctor --model X` tries
the same on yours.

- prompt exact: token for token what `apply_chat_template(tokenize=True)` gives, one BOS, with the
  prefix and the hidden token;
- spans: picture, prefix and instruction are found; zero strength: every defence at strength 0 is
  the bare model, bit by bit;
- calibration, CASA, MoRAS, DAVSP: the contract of a defence (it acts as a plain oracle says; cached
  equals uncached; a row of a padded batch equals the row alone; beams, streams and threads keep
  apart; nothing is left behind after an error);
- border survives: each side of a border of fixed size reaches the model; tools: they are named by
  the template and calls are read back;
- fp16: all defences on a model in half precision; quantised: on 8-bit weights (bitsandbytes);
- device map: layers on two devices by accelerate. There is no second device where this was written:
  it is one that computes on the CPU and refuses to mix its tensors with another's. CASA, MoRAS and
  DAVSP are fitted over two such devices as well, with gradients through both, and give the artifact
  that one device gives (`tests/guardrails/fitting/test_memory.py`).
"""


class Cells:
    """Collects what the tests say: a plugin of pytest.

    Attributes:
        found: (family, column) -> outcomes.
        why: (family, column) -> the reason for a no.
    """

    def __init__(self, kept: Path) -> None:
        self.kept = kept
        self.found: dict[tuple[str, str], list[str]] = defaultdict(list)
        self.why: dict[tuple[str, str], str] = {}
        self._places: dict[str, list[tuple[str, str, str]]] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        lines = self.kept.read_text().splitlines() if self.kept.is_file() else []
        done = {json.loads(line)[0] for line in lines}
        for _, family, column, said, reason in map(json.loads, lines):
            self._take(family, column, said, reason)
        kept = []
        for item in items:
            places = [
                (family, *map(str.strip, f"{column}:".split(":")[:2]))
                for mark in item.iter_markers("shows")
                for column in mark.args
                for family in [_family(item)]
            ]
            if places and item.nodeid not in done:
                self._places[item.nodeid] = places
                kept.append(item)
        items[:] = kept

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" and report.passed:
            return
        for family, column, refused in self._places[report.nodeid]:
            reason = refused
            if report.skipped and isinstance(report.longrepr, tuple):
                reason = report.longrepr[2].removeprefix("Skipped: ")
            said = "no" if reason and not report.failed else report.outcome
            self._take(family, column, said, reason)
            with self.kept.open("a") as file:
                file.write(json.dumps([report.nodeid, family, column, said, reason]) + "\n")

    def _take(self, family: str, column: str, said: str, reason: str) -> None:
        self.found[family, column].append(said)
        if said == "no":
            self.why[family, column] = reason


def _family(item: Any) -> str:
    parameters = item.callspec.params
    return str(parameters["family"] if "family" in parameters else parameters["case"].family)


def table(cells: Cells) -> str:
    """The table, its notes, and whoever is not in it."""
    from sightrail.guardrails.model.families import FAMILIES as KNOWN
    from tiny_models import FAMILIES, tiny

    reasons: list[str] = []
    rows = ["| family | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for family in FAMILIES:
        said = [_cell(cells, family, column, reasons) for column in COLUMNS]
        kind = tiny(family)[0].config.model_type
        name = KNOWN[kind] if family == kind else f"{KNOWN[kind]} ({family})"
        rows.append(f"| {name} | " + " | ".join(said) + " |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    others = [f"- {name}: {_why_not(kind)}" for name, kind in OTHERS.items()]
    return "\n".join([*rows, "", *notes, "", "Not among them:", "", *others, ""])


def _cell(cells: Cells, family: str, column: str, reasons: list[str]) -> str:
    found = set(cells.found.get((family, column), []))
    if not found:
        return "not tried"
    if "failed" in found:
        return "fails"
    if "no" not in found:
        return "yes"
    reason = cells.why[family, column]
    if reason not in reasons:
        reasons.append(reason)
    return f"{'in part' if 'passed' in found else 'no'} [{reasons.index(reason) + 1}]"


def _why_not(kind: str) -> str:
    if kind not in CONFIG_MAPPING_NAMES:
        return (
            f"transformers {transformers.__version__} has no classes for `{kind}`, only code that "
            "comes with the checkpoint. Defences on pixels and prompts work through it "
            "(`trust_remote_code`); those inside the model refuse it."
        )
    return (
        f"transformers {transformers.__version__} does not count `{kind}` among its "
        "image-text-to-text models; its language model has no config of its own and its queries, "
        "keys and values are one map, which CASA's adapter does not know. Its checkpoint cannot be "
        "loaded by name here."
    )


def main() -> None:
    page = Path(sys.argv[1])
    cells = Cells(page.with_suffix(".jsonl"))
    names = (
        "test_exact_prompts",
        "test_spans",
        "test_preprocessing",
        "test_placement",
        "test_tools",
    )
    places = [TESTS / "guardrails" / "model" / f"{name}.py" for name in names]
    places.append(TESTS / "guardrails" / "test_contract.py")
    options = ["-q", "--no-header", "-m", "", "-p", "no:cacheprovider"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # what is imported above
    status = pytest.main([*options, *map(str, places)], plugins=[cells])
    versions = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"
    command = "python tests/families_table.py docs/families.md"
    text = HEAD.format(command=command, versions=versions) + "\n" + table(cells)
    page.write_text(text, encoding="utf-8")
    if status in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        cells.kept.unlink(missing_ok=True)
        return
    raise SystemExit(status)


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    main()
