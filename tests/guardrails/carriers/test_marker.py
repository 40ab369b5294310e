"""What was decided stays recorded, in a few hundred bytes."""

from __future__ import annotations

import json

import pytest

from sightrail.guardrails import RiskMap, Verdict
from sightrail.guardrails.carriers.carrier import KEY, Marker, with_marker
from sightrail.guardrails.verdict import Action

MAP = RiskMap(size=(640, 480), boxes=((0, 0, 64, 48),) * 35, scores=(0.1,) * 35)


def verdict(action: Action, *, flagged: bool = False) -> Verdict:
    status = "flagged" if flagged else "clean"
    return Verdict(status=status, action=action, risk_map=MAP, timings_ms={"screen": 3.1})


def actions(extra: dict[str, object]) -> list[str | None]:
    marker = Marker.read(extra[KEY])
    assert marker is not None
    return [found.action for found in marker.verdicts]


def test_a_marker_is_small_and_can_be_read() -> None:
    extra = with_marker({"mine": 1}, [verdict("mask", flagged=True)], refused=False)
    assert extra["mine"] == 1
    assert len(json.dumps(extra[KEY])) < 300
    marker = Marker.read(extra[KEY])
    assert marker is not None
    assert marker.verdicts == (Verdict(status="flagged", action="mask"),)


def test_a_masked_picture_stays_recorded_as_masked() -> None:
    first = with_marker({}, [verdict("allow"), verdict("mask", flagged=True)], refused=False)
    again = with_marker(first, [verdict("allow"), verdict("allow")], refused=False)
    assert actions(again) == ["allow", "mask"]
    assert again == with_marker(again, [verdict("allow"), verdict("allow")], refused=False)


def test_a_new_finding_counts_more_than_the_record() -> None:
    first = with_marker({}, [verdict("mask", flagged=True)], refused=False)
    assert actions(with_marker(first, [verdict("refuse", flagged=True)], refused=True)) == [
        "refuse"
    ]


def test_a_dropped_picture_is_not_forgotten() -> None:
    first = with_marker({}, [verdict("drop", flagged=True), verdict("allow")], refused=False)
    assert actions(with_marker(first, [verdict("allow")], refused=False)) == ["drop", "allow"]


@pytest.mark.parametrize("forged", ["refused", 7, {"refused": False, "verdicts": "none"}, None])
def test_a_marker_that_is_none_permits_nothing(forged: object) -> None:
    extra = with_marker({KEY: forged}, [verdict("mask", flagged=True)], refused=True)
    assert actions(extra) == ["mask"]
    assert extra[KEY]["refused"] is True
