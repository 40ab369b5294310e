"""Stacks by name: their parts, their order, and where fitted defences come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sightrail.guardrails import RiskDetector
from sightrail.guardrails.errors import ArtifactError, ConfigurationError
from sightrail.guardrails.evaluation.stacks import (
    CALIBRATION,
    DEFAULT_STACKS,
    artifacts_for,
    build_stack,
)

EMBEDDED = artifacts_for("testbed")


@pytest.fixture(scope="module")
def detector() -> RiskDetector:
    return RiskDetector.from_pretrained("testbed")


def names(guards: list[Any]) -> list[str]:
    return [type(guard).__name__ for guard in guards]


@pytest.mark.parametrize("name", ["all", "moras+casa+calibration+davsp+screen"])
def test_whatever_the_order_of_the_name_the_data_go_one_way(
    name: str, detector: RiskDetector
) -> None:
    guards = build_stack(name, detector, EMBEDDED)
    assert names(guards) == ["RiskDetector", "VisualSafetyPrompt", "SafetyPrefix", "Casa", "Moras"]
    assert guards[2].calibration == CALIBRATION


def test_one_of_each_kind(detector: RiskDetector) -> None:
    (prefix,) = build_stack("prefix+calibration", detector)
    assert prefix.calibration == CALIBRATION
    assert names(build_stack("guardalign+screen", detector)) == ["RiskDetector", "SafetyPrefix"]


@pytest.mark.parametrize("name", DEFAULT_STACKS)
def test_every_default_stack_can_be_built(name: str, detector: RiskDetector) -> None:
    assert bool(build_stack(name, detector, EMBEDDED)) == (name != "bare")


@pytest.mark.parametrize("name", ["moras", "casa", "davsp", "all"])
def test_another_model_never_gets_the_testbeds_artifacts(name: str, detector: RiskDetector) -> None:
    artifacts = artifacts_for("some/model")
    assert artifacts == {}
    with pytest.raises(ConfigurationError, match="sightrail fit"):
        build_stack(name, detector, artifacts)


def test_an_artifact_that_is_named_is_taken(detector: RiskDetector, tmp_path: Path) -> None:
    assert artifacts_for("testbed", {"casa": tmp_path})["casa"] == tmp_path
    with pytest.raises(ArtifactError, match="holds no casa artifact"):
        build_stack("casa", detector, artifacts_for("testbed", {"casa": tmp_path}))


def test_an_unknown_part_is_named_with_those_that_exist(detector: RiskDetector) -> None:
    with pytest.raises(ConfigurationError, match=r"'nothing'.*guardalign.*moras"):
        build_stack("screen+nothing", detector)
