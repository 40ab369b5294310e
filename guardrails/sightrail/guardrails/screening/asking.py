"""Asking a detector: whatever goes wrong is a failed verdict, never a safe one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ..deadline import run_within
from ..intake import Picture
from ..verdict import Verdict


class Detector(Protocol):
    """Anything that looks at pictures: one verdict each, in order."""

    def screen(self, images: Sequence[Picture], /) -> list[Verdict]:
        """Look at decoded pictures."""


def ask(
    detector: Detector, pictures: Sequence[Picture], timeout_s: float | None = None
) -> list[Verdict]:
    """One verdict per picture.

    A detector that raises, gives something else than one verdict each, or takes longer than
    `timeout_s` has failed on all of them.
    """
    if not pictures:
        return []
    name = type(detector).__name__
    try:
        verdicts: list[Any] = list(run_within(timeout_s, lambda: detector.screen(pictures)))
    except Exception as error:
        return [Verdict.failed(f"{name} raised {type(error).__name__}")] * len(pictures)
    if len(verdicts) != len(pictures):
        reason = f"{name} gave {len(verdicts)} verdicts for {len(pictures)} pictures"
        return [Verdict.failed(reason)] * len(pictures)
    return [
        found if isinstance(found, Verdict) else Verdict.failed(f"{name} gave no verdict")
        for found in verdicts
    ]
