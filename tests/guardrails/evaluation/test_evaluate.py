"""The evaluation end to end, small, on the embedded models."""

from __future__ import annotations

import pytest

from sightrail.guardrails import ConfigurationError
from sightrail.guardrails.evaluation import EvalReport, evaluate

STEPS: list[tuple[str, int, int]] = []


@pytest.fixture(scope="module")
def report() -> EvalReport:
    STEPS.clear()
    return evaluate(
        stacks=["screen", "prefix+screen"],
        n=2,
        timing=False,
        progress=lambda *step: STEPS.append(step),
    )


def test_every_stack_has_every_figure_and_bare_is_always_there(report: EvalReport) -> None:
    for stack in ("bare", "screen", "prefix+screen"):
        for group in ("object", "typographic", "text", "picture"):
            assert 0 <= report.value(stack, "attack_success", group) <= 1
        for group in ("benign", "lookalike"):
            assert 0 <= report.value(stack, "over_refusal", group) <= 1
            assert 0 <= report.value(stack, "benign_accuracy", group) <= 1
    for column in ("whole_cosine", "patch_cosine", "ot_printed", "ot"):
        for group in ("objects_1", "objects_3", "objects_6", "objects_9", "typographic"):
            assert 0 <= report.value(column, "auroc", group) <= 1


def test_pictures_are_objects_and_words_together(report: EvalReport) -> None:
    counts = {
        row.group: row.n
        for row in report.rows
        if (row.stack, row.metric) == ("bare", "attack_success")
    }

    tasks = {"agent_object": 2, "agent_injection": 2}
    assert counts == {"object": 2, "typographic": 2, "text": 2, "picture": 4, **tasks}


def test_intervals_hold_their_values(report: EvalReport) -> None:
    for row in report.rows:
        assert row.low - 1e-9 <= row.value <= row.high + 1e-9


def test_a_report_survives_json_in_the_published_form(report: EvalReport) -> None:
    again = EvalReport.model_validate_json(report.model_dump_json())

    assert again == report
    keys = {"model", "encoder", "split", "seed", "version", "device", "rows"}
    assert set(report.model_dump()) >= keys
    assert set(report.model_dump()["rows"][0]) >= {
        "stack",
        "metric",
        "group",
        "value",
        "low",
        "high",
        "n",
    }


def test_the_same_seed_gives_the_same_figures(report: EvalReport) -> None:
    again = evaluate(stacks=["screen"], n=2, detection=False, timing=False)

    for row in again.rows:
        assert row.value == report.value(row.stack, row.metric, row.group)


def test_progress_reaches_its_total(report: EvalReport) -> None:
    assert STEPS[-1][1] == STEPS[-1][2]
    assert [done for _, done, _ in STEPS] == sorted(done for _, done, _ in STEPS)


@pytest.mark.parametrize(
    "wrong", [{"stacks": ["nothing"]}, {"n": 0}, {"split": "holiday"}, {"stacks": ["bare+"]}]
)
def test_an_impossible_evaluation_is_an_error_that_lists_what_is(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        evaluate(**wrong)  # type: ignore[arg-type]
