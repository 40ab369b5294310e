"""`sightrail calibrate`: a threshold from benign pictures, and what `screen` makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cli_helpers import json_verdicts, run_cli
from sightrail.guardrails import RiskDetector
from sightrail.guardrails.evidence import Evidence
from sightrail.testbed.fit_data import draw_examples
from sightrail.testbed.scenes import draw_objects, draw_words
from sightrail.testbed.splits import SPLITS


@pytest.fixture(scope="module")
def benign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benign")
    rng = np.random.default_rng(5)
    for number in range(9):
        draw_objects(rng, SPLITS["test"], ["cat", "fork"]).image.save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def settings(benign: Path) -> Path:
    out = benign.parent / "fitted.json"
    run = run_cli(
        *("calibrate", benign, "--encoder", "testbed", "--source", "cats and forks"),
        *("--false-alarms", 0.3, "--out", out),
    )
    assert run.exit_code == 0, run.output
    return out


def test_the_threshold_is_the_detectors_own_calibration(benign: Path, settings: Path) -> None:
    detector = RiskDetector.from_pretrained("testbed")
    expected = detector.calibrate(
        sorted(benign.iterdir()), false_alarms=0.3, source="cats and forks"
    ).settings.thresholds()
    found = json.loads(settings.read_text())["calibrated"]["ot"]
    assert found["picture"]["value"] == pytest.approx(expected.picture.value, abs=1e-4)
    assert found["picture"]["source"] == expected.picture.source
    assert len(found["benign"]) == 9


def test_screening_with_it_flags_the_share_that_was_asked_for(benign: Path, settings: Path) -> None:
    run = run_cli("screen", benign, "--encoder", "testbed", "--settings", settings, "--json")
    verdicts = json_verdicts(run.stdout)
    flagged = [verdict.status for verdict in verdicts.values()].count("flagged")
    assert flagged == 0
    assert {v.threshold.source for v in verdicts.values() if v.threshold} == {
        "cats and forks; n=9, at most 0.3 false alarms with 0.95 confidence"
    }


def test_too_few_pictures(benign: Path, tmp_path: Path) -> None:
    run = run_cli(
        *("calibrate", benign / "00.png", "--encoder", "testbed", "--source", "x"),
        *("--out", tmp_path / "none.json"),
    )
    assert run.exit_code == 69
    assert "at least 299" in run.output
    assert "the least that 1 can promise" in run.output
    assert not (tmp_path / "none.json").exists()


def test_what_cannot_be_read_does_not_count_and_is_named(benign: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    run = run_cli(
        *("calibrate", benign, broken, "--encoder", "testbed", "--source", "x"),
        *("--false-alarms", 0.3, "--out", tmp_path / "fitted.json"),
    )
    assert run.exit_code == 2
    assert "broken.png" in run.output
    assert "n=9" in run.output


def test_settings_that_are_none(benign: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{")
    run = run_cli("screen", benign, "--encoder", "testbed", "--settings", wrong)
    assert run.exit_code == 69
    assert "wrong.json" in run.output


def test_check_tells_like_pictures_from_others(
    benign: Path, settings: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(6)
    for number in range(9):
        draw_words(rng, SPLITS["test"], "bomb").image.save(tmp_path / f"{number:02}.png")
    asked = ("calibrate", "--encoder", "testbed", "--settings", settings, "--check")

    same, other = run_cli(*asked, benign), run_cli(*asked, tmp_path)

    assert (same.exit_code, other.exit_code) == (0, 1), same.output + other.output
    assert "Nothing speaks against" in same.stdout
    assert "calibrate anew" in other.stdout


def test_attacks_bound_what_is_missed(benign: Path, tmp_path: Path) -> None:
    run = run_cli(
        *("calibrate", benign, "--encoder", "testbed", "--source", "x", "--bound", "mean"),
        *("--false-alarms", 0.1, "--attacks", benign, "--out", tmp_path / "fitted.json"),
    )
    assert run.exit_code == 0, run.output
    assert "at most 99." in run.stdout or "at most 100" in run.stdout


def test_pictures_or_a_check_have_to_be_named() -> None:
    assert run_cli("calibrate", "--encoder", "testbed").exit_code == 64


# What decides on requests


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("requests") / "mine.jsonl"
    examples = draw_examples({"text": 4, "benign_text": 24}, split="calibration", seed=2)
    lines = [{"text": e.text, "label": "harmful" if e.harmful else "benign"} for e in examples]
    for number, line in enumerate(lines):
        line["text"] += " " * number  # every request once
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


@pytest.mark.parametrize("stack", ["casa", "moras"])
def test_the_threshold_of_a_guardrail_on_requests(
    stack: str, requests: Path, tmp_path: Path
) -> None:
    asked = ("calibrate", requests, "--model", "testbed", "--stack", stack)
    run = run_cli(
        *(*asked, "--source", "two dozen questions", "--false-alarms", 0.2, "--out", tmp_path)
    )
    assert run.exit_code == 0, run.output
    assert "two dozen questions; n=" in run.stdout
    assert "of attacks like the 4 given" in run.stdout
    again = ("calibrate", "--model", "testbed", "--stack", stack, f"--{stack}", tmp_path)
    checked = run_cli(*again, "--check", requests)
    assert checked.exit_code == 0, checked.output
    assert "Nothing speaks against" in checked.stdout


def test_one_decision_from_all_evidence_is_fitted_to_a_model(
    requests: Path, tmp_path: Path
) -> None:
    run = run_cli(
        *("calibrate", requests, "--model", "testbed", "--stack", "casa+moras"),
        *("--source", "questions", "--false-alarms", 0.3, "--bound", "mean", "--out", tmp_path),
    )
    assert run.exit_code == 0, run.output
    evidence = Evidence.from_pretrained(tmp_path)
    assert set(evidence.weights) == {"casa", "moras"}
    assert evidence.base is not None
    assert evidence.threshold.source.startswith("questions; n=")


@pytest.mark.parametrize(
    "wrong",
    [
        ("--model", "testbed"),
        ("--stack", "casa"),
        ("--model", "testbed", "--stack", "casa+moras", "--check", "x.jsonl"),
    ],
    ids=str,
)
def test_what_cannot_be_calibrated_is_wrong_usage(wrong: tuple[str, ...], requests: Path) -> None:
    run = run_cli("calibrate", requests, "--source", "x", *wrong)
    assert run.exit_code == 64, run.output
