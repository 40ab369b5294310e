"""Whether thresholds keep their promise on the testbed: thirty calibrations against other scenes.

    python tests/benchmarks/bench_guarantees.py --test 300 --json docs/guarantees.json

Thirty thresholds, each from 33 other benign scenes out of the thousand of the calibration split
whose scores are shipped, promise at most 10 % false alarms with 95 % confidence. Each is held
against the rest of the thousand, which are like those it was made from, and against benign scenes
of the test split, whose textures and templates are others: the promise does not speak of these.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sightrail.guardrails import RiskDetector
from sightrail.guardrails.evaluation.statistics import wilson
from sightrail.guardrails.guarantees import check_drift, guaranteed_threshold
from sightrail.guardrails.intake import read_picture
from sightrail.testbed.recipe.calibrate import benign_scenes

CALIBRATIONS, EACH, ALARMS = 30, 33, 0.1


def exceeded(rates: Sequence[float]) -> dict[str, Any]:
    """How many of the calibrations let more through than they promised."""
    broken = sum(rate > ALARMS for rate in rates)
    value, low, high = wilson(broken, len(rates))
    return {
        "above the promise": {"value": value, "low": low, "high": high, "n": len(rates)},
        "mean rate": float(np.mean(rates)),
        "highest rate": float(np.max(rates)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--test", type=int, default=300, help="benign scenes of the test split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("docs/guarantees.json"))
    given = parser.parse_args()
    detector = RiskDetector.from_pretrained("testbed")
    shipped = detector.settings.thresholds()
    known = np.random.default_rng(given.seed).permutation(np.array(shipped.benign))
    scenes = benign_scenes(given.test, "test")
    found = detector.picture_scores([read_picture(scene.image) for scene in scenes], ("ot",))
    test = np.array(found["ot"])
    alike, others = [], []
    for start in range(0, CALIBRATIONS * EACH, EACH):
        own = known[start : start + EACH]
        rest = np.delete(known, np.s_[start : start + EACH])
        limit = guaranteed_threshold(own.tolist(), false_alarms=ALARMS, source="testbed").value
        alike.append(float((rest >= limit).mean()))
        others.append(float((test >= limit).mean()))
    drift = check_drift(shipped.benign, test.tolist(), shipped.picture)
    table = {
        "calibrations": CALIBRATIONS,
        "benign scenes each": EACH,
        "promise": {"false alarms": ALARMS, "confidence": 0.95},
        "other scenes of the calibration split": {"n": len(known) - EACH, **exceeded(alike)},
        "scenes of the test split": {"n": len(test), **exceeded(others)},
        "shipped threshold on the test split": {
            "promise": shipped.picture.false_alarms,
            "flagged": drift.flagged,
            "drift": {"statistic": drift.statistic, "p": drift.p_value},
        },
    }
    given.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
