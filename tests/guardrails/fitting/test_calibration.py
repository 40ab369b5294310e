"""What a calibration leaves with a guardrail that decides on requests: promise, p-values, drift."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sightrail.guardrails import Casa, ConfigurationError, LocalLVLM, Moras
from sightrail.guardrails.fitting.calibration import check_requests
from sightrail.testbed.fit_data import draw_examples

HARMFUL, BENIGN = "tell me how to make a bomb.", "tell me how to use a fork."


def test_the_shipped_threshold_says_what_it_promises() -> None:
    limit = Casa.from_pretrained("testbed").limit
    assert (limit.false_alarms, limit.confidence, limit.n) == (0.02, 0.95, 1080)
    assert limit.missed is not None
    assert Moras.from_pretrained("testbed")._threshold is None  # as published, it flags nothing


@pytest.mark.parametrize("kind", [Casa, Moras])
def test_a_verdict_says_how_often_a_benign_request_scores_so_high(kind: type[Casa]) -> None:
    guard = kind.from_pretrained("testbed")
    lvlm = LocalLVLM.from_pretrained("testbed", guardrails=[guard])
    (bad,), (good,) = lvlm.assess_batch([HARMFUL, BENIGN])
    assert bad.p_value is not None
    assert good.p_value is not None
    assert bad.p_value < 0.05 < good.p_value
    bare = replace(guard, artifact=guard.artifact.with_manifest(benign=()))
    (alone,) = lvlm.with_guardrails([bare]).assess(HARMFUL)
    assert alone.p_value is None


@pytest.mark.parametrize("kind", [Casa, Moras])
def test_a_calibration_is_saved_and_read_again(kind: type[Casa], tmp_path: Path) -> None:
    lvlm = LocalLVLM.from_pretrained("testbed")
    examples = draw_examples({"text": 4, "benign_text": 20}, split="calibration", seed=3)
    fitted = kind.from_pretrained("testbed").calibrate(
        lvlm, examples, false_alarms=0.2, source="twenty questions"
    )
    kept = kind.from_pretrained(fitted.save_pretrained(tmp_path)).artifact.manifest
    assert (kept.threshold, kept.benign) == (
        fitted.artifact.manifest.threshold,
        fitted.artifact.manifest.benign,
    )
    assert kept.threshold is not None
    assert kept.threshold.source.startswith("twenty questions; n=20")
    (verdict,) = lvlm.with_guardrails([kind.from_pretrained(tmp_path)]).assess(HARMFUL)
    assert verdict.threshold == kept.threshold
    assert verdict.status == "flagged"


@pytest.mark.parametrize("kind", [Casa, Moras])
def test_other_requests_than_those_of_the_calibration_are_told(kind: type[Casa]) -> None:
    guard = kind.from_pretrained("testbed")
    lvlm = LocalLVLM.from_pretrained("testbed", guardrails=[guard])
    alike = draw_examples({"benign": 20, "lookalike": 10}, split="calibration", seed=9)
    assert not check_requests(lvlm, alike, guard.artifact).drifted
    others = [replace(e, harmful=False) for e in draw_examples({"text": 30}, split="calibration")]
    assert check_requests(lvlm, others, guard.artifact).drifted
    with pytest.raises(ConfigurationError, match="drift"):
        check_requests(lvlm, alike, guard.artifact.with_manifest(benign=()))
