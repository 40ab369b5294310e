"""What a notebook shows: outlined regions, traces of a request, the tables of a report."""

from __future__ import annotations

from PIL import Image

from sightrail.guardrails import Answer, Marker, Region, Verdict
from sightrail.guardrails.carriers.loop import Screened
from sightrail.guardrails.evaluation.report import EvalReport, Row
from sightrail.guardrails.model.answers import Usage

FLAGGED = Verdict(
    status="flagged",
    category="<weapons>",
    regions=(Region(box=(10, 12, 40, 32), category="weapons", score=0.5),),
)
REPORT = EvalReport(
    model="<b>tiny</b>",
    encoder="tiny",
    split="test",
    seed=0,
    version="1",
    device="cpu",
    rows=tuple(
        Row(stack=stack, metric=metric, group="all", value=value, low=value, high=1.0, n=9)
        for stack, rates in {"bare": (0.9, 0.0), "screen": (0.1, 0.2)}.items()
        for metric, value in zip(("attack_success", "over_refusal"), rates, strict=True)
    ),
)


def test_regions_are_outlined_on_a_copy() -> None:
    image = Image.new("L", (60, 50), 255)
    drawn = FLAGGED.draw(image)
    assert drawn.getpixel((39, 31)) == (255, 0, 0)
    assert drawn.getpixel((50, 45)) == (255, 255, 255)
    assert image.getextrema() == (255, 255)
    empty = Region(box=(5, 5, 5, 5), category="weapons", score=0.5)
    assert FLAGGED.model_copy(update={"regions": (empty,)}).draw(image).size == image.size


def test_a_trace_shows_the_outcome_and_every_verdict_and_runs_nothing() -> None:
    verdicts = (FLAGGED, Verdict(status="clean"))
    for trace in (
        Answer("no <i>", True, verdicts, Usage(1, 1), "stop"),
        Marker(refused=True, verdicts=verdicts),
        Screened("value", True, verdicts),
    ):
        shown = trace._repr_html_()
        assert shown.count("<li>") == 2
        assert "&lt;weapons&gt;" in shown or "flagged" in shown
        assert "<i>" not in shown
        assert "<weapons>" not in shown


def test_a_report_shows_its_tables_and_draws_success_against_refusals() -> None:
    shown = REPORT._repr_html_()
    assert "<td>90.0 [90.0, 100.0]</td>" in shown
    assert "<b>tiny" not in shown
    drawn, nothing = REPORT.draw(), REPORT.model_copy(update={"rows": ()}).draw()
    assert drawn.size == nothing.size
    assert drawn.tobytes() != nothing.tobytes()


def test_a_report_without_answers_draws_nothing() -> None:
    nothing = REPORT.model_copy(update={"rows": ()})
    assert nothing.tables() == []
    assert "<table>" not in nothing._repr_html_()
