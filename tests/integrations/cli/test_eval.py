"""`sightrail eval` and its tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmark_folders import figstep, jsonl, shared
from cli_helpers import run_cli
from judge_helpers import judging, said
from sightrail.guardrails import evaluation
from sightrail.guardrails.evaluation import EvalReport, Row
from sightrail.integrations.cli.evaluate import report_tables


def row(stack: str, metric: str, group: str, value: float) -> Row:
    return Row(
        stack=stack,
        metric=metric,
        group=group,
        value=value,
        low=value - 0.05,
        high=value + 0.05,
        n=200,
    )


def report(*rows: Row) -> EvalReport:
    return EvalReport(
        model="testbed",
        encoder="testbed",
        split="test",
        seed=0,
        version="0.1.0",
        device="cpu",
        rows=list(rows),
    )


def drawn(made: EvalReport) -> str:
    console = Console(width=160, record=True, quiet=False, force_terminal=False)
    with console.capture() as captured:
        for table in report_tables(made):
            console.print(table)
    return captured.get()


FIGURES = (
    row("bare", "attack_success", "object", 0.9),
    row("bare", "attack_success", "text", 0.05),
    row("screen", "attack_success", "object", 0.06),
    row("ot", "auroc", "objects_6", 0.9),
    row("screen", "time_ratio", "benign", 1.25),
    row("bare", "something_new", "benign", 0.5),
)


def test_every_figure_is_shown_with_its_interval() -> None:
    text = drawn(report(*FIGURES))
    for cell in (
        "90.0 [85.0, 95.0]",
        "5.0 [0.0, 10.0]",
        "6.0 [1.0, 11.0]",
        "0.900 [0.850, 0.950]",
        "1.25 [1.20, 1.30]",
        "0.50 [0.45, 0.55]",
    ):
        assert cell in text
    assert "attack success" in text
    assert "objects 6" in text


def test_stacks_are_columns_in_the_order_of_the_report() -> None:
    text = drawn(report(*FIGURES))
    header = next(line for line in text.splitlines() if "bare" in line)
    assert header.index("bare") < header.index("screen")


def test_an_empty_report_has_no_table() -> None:
    assert report_tables(report()) == []


def test_options_reach_the_evaluation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def fake(**settings: Any) -> EvalReport:
        asked.update(settings)
        settings["progress"]("bare", 1, 2)
        return report(*FIGURES)

    monkeypatch.setattr(evaluation, "evaluate", fake)
    file = tmp_path / "new" / "report.json"
    result = run_cli(
        *("eval", "--model", "m", "--encoder", "e", "--stack", "bare", "--stack", "prefix+screen"),
        *("--davsp", "folder", "--n", 7, "--seed", 3, "--split", "calibration", "--json", file),
    )
    assert result.exit_code == 0, result.output
    asked.pop("progress")
    rest = {"source": None, "judge": None, "timing": True, "max_new_tokens": 48, "folder": None}
    rest["loading"] = {}
    assert asked == rest | {
        "model": "m",
        "encoder": "e",
        "stacks": ["bare", "prefix+screen"],
        "artifacts": {"davsp": "folder"},
        "n": 7,
        "seed": 3,
        "split": "calibration",
    }
    assert EvalReport.model_validate_json(file.read_text()) == report(*FIGURES)
    assert set(json.loads(file.read_text())["rows"][0]) >= {
        *("stack", "metric", "group", "value", "low", "high", "n"),
    }
    assert "90.0 [85.0, 95.0]" in result.stdout


@pytest.mark.parametrize("wrong", [["--n", 0], ["--split", "all"], ["--seed", -1]])
def test_impossible_settings_are_wrong_usage(wrong: list[object]) -> None:
    assert run_cli("eval", *wrong).exit_code == 64


def test_an_unknown_stack_is_one_line() -> None:
    result = run_cli("eval", "--stack", "nonsense", "--n", 1)
    assert result.exit_code == 69
    assert "nonsense" in result.stderr
    assert "Traceback" not in result.output


def test_a_small_run_on_the_testbed() -> None:
    result = run_cli("eval", "--stack", "bare", "--n", 2)
    assert result.exit_code == 0, result.output
    assert "attack success" in result.stdout


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        (["--benchmark", "figstep"], 64),
        (["--benchmark", "nothing=."], 69),
        (["--benchmark", "figstep=/nowhere"], 69),
        (["--judge", "llama-guard"], 64),
        (["--judge-url", "http://127.0.0.1:1/v1"], 64),
        (["--judge", "nobody", "--judge-url", "http://127.0.0.1:1/v1", "--judge-model", "m"], 69),
    ],
)
def test_benchmarks_and_judges_that_are_none(wrong: list[str], status: int) -> None:
    result = run_cli("eval", "--n", 1, *wrong)
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output


def test_a_row_shows_what_was_not_judged() -> None:
    unsure = row("bare", "attack_success", "object", 0.9).model_copy(update={"unjudged": 3})
    assert "90.0 [85.0, 95.0] (3 unjudged)" in drawn(report(unsure))


def test_a_benchmark_is_run_kept_judged_again_and_compared(tmp_path: Path) -> None:
    """Words first; then a judge model, broken at times, finds the answers that were kept."""
    figstep(tmp_path / "figstep")
    jsonl(tmp_path / "mine")
    run = tmp_path / "run"
    asked = (
        *("eval", "--benchmark", f"figstep={tmp_path / 'figstep'}", "--run", run, "--no-timing"),
        *("--benchmark", f"jsonl={tmp_path / 'mine'}", "--stack", "screen"),
    )

    words = run_cli(*asked, "--judge", "keywords")
    assert words.exit_code == 0, words.output
    assert "On anything else their figures mean nothing" in " ".join(words.stdout.split())
    answers = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
    assert {record["item"] for record in answers} >= {"figstep/ForbidQI_1_1", "jsonl/mine/1"}
    assert "risk_map" not in (run / "answers.jsonl").read_text()

    before = (run / "answers.jsonl").read_bytes()
    broken = iter([(500, b"down"), (200, said("I would rather not say"))])
    with judging(lambda path, body: next(broken, (200, said("unsafe\nS1")))) as server:
        judge = ("--judge", "llama-guard", "--judge-url", server.url, "--judge-model", "judge")
        model = run_cli(*asked, *judge)
    assert model.exit_code == 0, model.output
    assert (run / "answers.jsonl").read_bytes() == before
    assert server.asked
    assert {body["messages"][-1]["role"] for body in server.asked} == {"assistant"}
    found = EvalReport.model_validate_json((run / "report.json").read_text())
    assert sum(r.unjudged for r in found.rows if r.group in ("figstep", "jsonl")) >= 1
    assert any("judge_unparsable" in note for note in found.notes)

    compared = run_cli(*("compare", run, "--stack", "bare", "--stack", "screen"))
    assert compared.exit_code == 0, compared.output
    assert "McNemar" in compared.stdout
    agreed = run_cli("compare", run, "--judge", "keywords", "--judge", "llama-guard judge")
    assert "kappa" in agreed.stdout
    other = run_cli(*asked, "--seed", 1)
    assert other.exit_code == 69
    assert "seed" in other.output


@pytest.mark.long
def test_figstep_and_xstest_as_they_are_published(tmp_path: Path) -> None:
    folders = [f"figstep={shared('figstep_tiny')}", f"xstest={shared('xstest')}"]
    with judging(said("no")) as server:
        result = run_cli(
            *("eval", "--benchmark", folders[0], "--benchmark", folders[1], "--stack", "screen"),
            *("--judge", "one-word", "--judge-url", server.url, "--judge-model", "judge"),
            *("--run", tmp_path / "run", "--json", tmp_path / "report.json", "--no-timing"),
        )
    assert result.exit_code == 0, result.output
    found = EvalReport.model_validate_json((tmp_path / "report.json").read_text())
    counts = {(r.stack, r.group): r.n for r in found.rows if r.metric == "attack_success"}
    assert (counts["bare", "figstep"], counts["bare", "xstest"]) == (50, 200)
