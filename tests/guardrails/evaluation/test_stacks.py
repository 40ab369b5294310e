"""Stacks by name: their parts, their order, and where fitted defences come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sightrail.guardrails import RiskDetector
from sightrail.guardrails.errors import ArtifactError, ConfigurationError
from sightrail.guardrails.evaluation.items import Item
from sightrail.guardrails.evaluation.stacks import (
    DEFAULT_STACKS,
    Supplies,
    artifacts_for,
    build_stack,
    calibration_for,
)
from sightrail.guardrails.evaluation.tally import Tally
from sightrail.guardrails.prefix import AttentiveCalibration
from sightrail.testbed.prefix import CALIBRATION


@pytest.fixture(scope="module")
def detector() -> RiskDetector:
    return RiskDetector.from_pretrained("testbed")


@pytest.fixture(scope="module")
def embedded(detector: RiskDetector) -> Supplies:
    return Supplies(detector, artifacts_for("testbed"), calibration_for("testbed"), "testbed")


def names(guards: list[Any]) -> list[str]:
    return [type(guard).__name__ for guard in guards]


@pytest.mark.parametrize(
    "name", ["guardalign+davsp+casa+moras", "moras+casa+calibration+davsp+screen"]
)
def test_whatever_the_order_of_the_name_the_data_go_one_way(name: str, embedded: Supplies) -> None:
    guards = build_stack(name, embedded)
    assert names(guards) == ["RiskDetector", "VisualSafetyPrompt", "SafetyPrefix", "Casa", "Moras"]
    assert guards[2].calibration == CALIBRATION


def test_one_of_each_kind(embedded: Supplies) -> None:
    (prefix,) = build_stack("prefix+calibration", embedded)
    assert prefix.calibration == CALIBRATION
    assert names(build_stack("guardalign+screen", embedded)) == ["RiskDetector", "SafetyPrefix"]


@pytest.mark.parametrize("name", [name for name in DEFAULT_STACKS if name != "all"])
def test_every_default_stack_can_be_built(name: str, embedded: Supplies) -> None:
    assert bool(build_stack(name, embedded)) == (name != "bare")


def test_all_is_one_decision_and_never_a_list_of_parts_that_decide(embedded: Supplies) -> None:
    with pytest.raises(ConfigurationError, match="one decision from all evidence"):
        build_stack("all", embedded)
    with pytest.raises(ConfigurationError, match="one decision from all evidence"):
        build_stack("screen+all", embedded)


@pytest.mark.parametrize("name", ["moras", "casa", "davsp"])
def test_another_model_never_gets_the_testbeds_artifacts(name: str, detector: RiskDetector) -> None:
    artifacts = artifacts_for("some/model")
    assert artifacts == {}
    with pytest.raises(ConfigurationError, match="sightrail fit"):
        build_stack(name, Supplies(detector, artifacts))


def test_another_model_never_gets_the_testbeds_calibration(detector: RiskDetector) -> None:
    assert calibration_for("testbed") == CALIBRATION
    (prefix,) = build_stack("calibration", Supplies(detector, calibration=calibration_for("a/b")))
    assert prefix.calibration == AttentiveCalibration.published() != CALIBRATION


def test_an_artifact_that_is_named_is_taken(detector: RiskDetector, tmp_path: Path) -> None:
    assert artifacts_for("testbed", {"casa": tmp_path})["casa"] == tmp_path
    with pytest.raises(ArtifactError, match="holds no casa artifact"):
        build_stack("casa", Supplies(detector, artifacts_for("testbed", {"casa": tmp_path})))


def test_an_unknown_part_is_named_with_those_that_exist(detector: RiskDetector) -> None:
    with pytest.raises(ConfigurationError, match=r"'nothing'.*guardalign.*moras"):
        build_stack("screen+nothing", Supplies(detector))


def test_reading_and_judges_are_stacks(embedded: Supplies, detector: RiskDetector) -> None:
    assert names(build_stack("screen+read", embedded)) == ["RiskDetector", "TextInPicture"]
    assert names(build_stack("judge+moras", embedded)) == ["JudgeDetector", "Moras"]
    (cascade,) = build_stack("cascade", embedded)
    assert cascade.first is detector
    assert cascade.band.low < cascade.band.high
    elsewhere = Supplies(detector, encoder="some/encoder")
    (reading,) = build_stack("read", elsewhere)
    assert reading.reader.name == "lexicon"
    for name in ("judge", "cascade"):
        with pytest.raises(ConfigurationError, match="JudgeDetector"):
            build_stack(name, elsewhere)


def test_what_a_cascade_hands_on_is_counted() -> None:
    tally = Tally("cascade")
    for number, looked in enumerate([[0.0], [1.0], [0.0, 1.0], []]):
        item = Item(str(number), ("benign", "all"), "x", False)
        verdicts = [{"status": "clean", "measures": {"escalated": value}} for value in looked]
        tally.escalate(item, {"verdicts": verdicts})
    tally.escalate(Item("x", ("benign",), "x", False), {"verdicts": [{"status": "clean"}]})
    (row,) = tally.rows()
    assert (row.metric, row.group, row.value, row.n) == (
        "escalated",
        "benign",
        pytest.approx(2 / 3),
        3,
    )
