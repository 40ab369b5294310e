"""A threshold with a promise for detectors whose scores have a single scale."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Final, Self, cast

from pydantic import BaseModel, ConfigDict

from ..guarantees import ALARMS, CONFIDENCE, conformal_p_value, guaranteed_threshold
from ..intake import Picture, PictureSource
from ..verdict import Threshold, Verdict
from .asking import Detector

_TOGETHER: Final = 16


class Calibration(BaseModel):
    """What was learnt from benign pictures.

    Attributes:
        threshold: with its promise.
        benign: the benign scores that it came from, ascending: for p-values and checks of drift.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: Threshold
    benign: tuple[float, ...] = ()

    @classmethod
    def fit(
        cls,
        detector: Detector,
        benign: Iterable[Any],
        *,
        false_alarms: float = ALARMS,
        confidence: float | None = CONFIDENCE,
        source: str,
        attacks: Iterable[Any] = (),
    ) -> Self:
        """From what a detector says of benign pictures; see RiskDetector.calibrate.

        A picture in which there was nothing to score counts as the least risky one; one that could
        not be looked at does not count.

        Raises:
            ConfigurationError: too few for this promise, or it is not possible.
        """
        good, bad = list(scores_of(detector, benign)), list(scores_of(detector, attacks))
        lowest = min((score for score in (*good, *bad) if score is not None), default=0.0)
        scores = [lowest if score is None else score for score in good]
        threshold = guaranteed_threshold(
            scores,
            false_alarms=false_alarms,
            confidence=confidence,
            source=source,
            attacks=[lowest if score is None else score for score in bad],
        )
        return cls(threshold=threshold, benign=tuple(sorted(scores)))

    def p_value(self, score: float | None) -> float | None:
        """How often a benign picture scores this high; 1 where there was nothing to score."""
        if score is None:
            return 1.0 if self.benign else None
        return conformal_p_value(score, self.benign)


class OnOneScale:
    """A detector, as a dataclass, whose scores have a single scale that a threshold lies on."""

    calibration: Calibration | None

    def calibrate(
        self,
        benign: Iterable[PictureSource | Picture],
        *,
        false_alarms: float = ALARMS,
        confidence: float | None = CONFIDENCE,
        source: str,
        attacks: Iterable[PictureSource | Picture] = (),
    ) -> Self:
        """This detector with a threshold that promises how many benign pictures it will flag.

        As `RiskDetector.calibrate`. A picture in which there was nothing to score (no text) counts
        as the least risky one. A judge that only says yes or no has two scores, and then no
        threshold is better than its own.

        Raises:
            ConfigurationError: too few for this promise, or it is not possible.
        """
        itself = cast(Any, self)
        fitted = Calibration.fit(
            itself,
            benign,
            false_alarms=false_alarms,
            confidence=confidence,
            source=source,
            attacks=attacks,
        )
        return cast(Self, replace(itself, calibration=fitted))

    def p_value(self, score: float | None) -> float | None:
        """How often a benign picture scores this high; None where nothing was calibrated."""
        return None if self.calibration is None else self.calibration.p_value(score)


def scores_of(detector: Detector, images: Iterable[Any]) -> Iterator[float | None]:
    """The score of every picture that could be looked at; a few are in memory at once."""
    rest = iter(images)
    while part := list(islice(rest, _TOGETHER)):
        for verdict in _finished(detector.screen(part)):
            yield verdict.score


def _finished(verdicts: Sequence[Verdict]) -> list[Verdict]:
    return [verdict for verdict in verdicts if verdict.status in ("clean", "flagged")]
