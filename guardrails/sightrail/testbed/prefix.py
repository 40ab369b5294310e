"""How strongly the mini model attends to its safety prefix."""

from __future__ import annotations

from typing import Final

from sightrail.guardrails.prefix.safety_prefix import AttentiveCalibration

CALIBRATION: Final = AttentiveCalibration(gamma=0.07, rule="product", band=(0.0, 2 / 3))
"""Chosen on the testbed's calibration split (tests/benchmarks/sweep_calibration.py): least attack
success among the settings that cost at most 2 points of over-refusal, and of right answers to
benign and to look-alike requests."""
