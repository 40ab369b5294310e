"""Stacks of defences by name: what stands in front of and inside the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from ..errors import ConfigurationError
from ..prompting import AttentiveCalibration, SafetyPrefix
from ..screening.asking import Detector

BARE: Final = "bare"

CALIBRATION: Final = AttentiveCalibration(gamma=2.0, rule="indicator", band=(0.0, 2 / 3))
"""Chosen on the testbed's calibration split (tests/benchmarks/sweep_calibration.py): least attack
success among the settings that cost at most 2 points of over-refusal and of benign accuracy."""

_PARTS: Final[dict[str, Callable[[Detector], list[Any]]]] = {
    BARE: lambda detector: [],
    "prefix": lambda detector: [SafetyPrefix()],
    "calibration": lambda detector: [SafetyPrefix(calibration=CALIBRATION)],
    "screen": lambda detector: [detector],
    "guardalign": lambda detector: [detector, SafetyPrefix(calibration=CALIBRATION)],
}

DEFAULT_STACKS: Final = ("bare", "prefix", "prefix+calibration", "screen", "guardalign")


def build_stack(name: str, detector: Detector) -> list[Any]:
    """The guardrails of `a+b`, in the order of the data: screening, then prompt, then model.

    Raises:
        ConfigurationError: a part that does not exist; the message lists those that do.
    """
    guards: list[Any] = []
    for part in name.split("+"):
        if part not in _PARTS:
            raise ConfigurationError(
                f"There is no defence {part!r} (in stack {name!r}); there are: {', '.join(_PARTS)}"
            )
        guards += _PARTS[part](detector)
    return _merged(guards)


def _merged(guards: Sequence[Any]) -> list[Any]:
    """One of each kind: `prefix+calibration` is the calibrated prefix, not two prefixes."""
    kept: dict[type[Any], Any] = {}
    for guard in guards:
        calibrated = getattr(guard, "calibration", None) is not None
        if type(guard) not in kept or calibrated:
            kept[type(guard)] = guard
    return sorted(kept.values(), key=lambda guard: not hasattr(guard, "screen"))
