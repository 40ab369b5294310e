"""What detectors learn from pictures: a threshold with a promise, where scores have a single scale,
and when the risk detector may stop looking closer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Final, Self, cast

import numpy as np
from pydantic import BaseModel, ConfigDict

from ..errors import ConfigurationError
from ..guarantees import ALARMS, CONFIDENCE, conformal_p_value, guaranteed_threshold
from ..intake import Picture, PictureSource
from ..verdict import Threshold, Verdict
from .asking import Detector
from .detector import RiskDetector
from .looking import Look, Looker, risk_of, standing_out
from .scoring import score_patches
from .settings import Bands

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


_SLACK: Final = 0.02
"""Cosines by which the bands lie beyond what was seen, since few pictures were."""

_KEPT: Final = 0.01
"""The share of flagged pictures whose riskiest crop may lie in a place that did not stand out: the
crops beside it show the same thing."""

_FEWEST: Final = 100


def fit_bands(detector: RiskDetector, unsafe: Iterable[Picture], source: str) -> Bands:
    """The bands that would have settled none of these pictures as clean.

    A picture's risk after a level is below `clean_below` for no picture that the full look flags.
    `look_closer` is where all but a hundredth of their riskiest crops stood out a level before.

    Args:
        detector: with its thresholds; looks at everything.
        unsafe: unsafe pictures of the calibration split.
        source: what they are.

    Raises:
        ConfigurationError: fewer than 100 of them are flagged.
    """
    limit = detector.settings.thresholds().picture.value
    settings = detector.settings.model_copy(update={"look": "all"})
    looker = Looker(detector.encoder, detector.texts, settings)
    risks: list[list[float]] = []
    stood_out: list[list[float]] = []
    for picture in unsafe:
        for look in looker.look(detector.views([picture])):
            levels = max(look.view.levels)
            if levels == len(settings.scales) and risk_of(look).picture.max() >= limit:
                risks.append([_risk_until(looker, look, level, limit) for level in range(levels)])
                stood_out.append([_riskiest(looker, look, level + 1) for level in range(levels)])
    if len(risks) < _FEWEST:
        raise ConfigurationError(f"{len(risks)} pictures were flagged; {_FEWEST} are needed")
    return Bands(
        clean_below=tuple(round(float(r) - _SLACK, 4) for r in np.min(risks, axis=0)),
        look_closer=tuple(
            round(float(r) - _SLACK, 4) for r in np.quantile(stood_out, _KEPT, axis=0)
        ),
        source=f"{source}; n={len(risks)} flagged",
    )


def _until(look: Look, level: int) -> Look:
    """The look as it was after a level."""
    assert look.patches is not None
    crops = [n for n in look.seen if look.view.levels[n] <= level]
    per_crop = len(look.view.patches[0])
    return Look(look.view, look.wanted, seen=crops, patches=look.patches[: len(crops) * per_crop])


def _risk_until(looker: Looker, look: Look, level: int, limit: float) -> float:
    """What `clean_below` is compared with: what is certain by then is not settled by it."""
    part = _until(look, level)
    assert part.patches is not None
    whole = len(look.view.patches[0])
    (risk,) = score_patches(part.patches[None], looker.texts, looker.settings, whole=whole)
    return float((risk.picture if risk.stays_at(limit) else risk.parts).max())


def _riskiest(looker: Looker, look: Look, level: int) -> float:
    """How far the place of a level's riskiest crop stood out before."""
    crops = [n for n in look.seen if look.view.levels[n] == level]
    per_crop = len(look.view.patches[0])
    risk = risk_of(look).patches.max(1).reshape(-1, per_crop).max(1)
    riskiest = max(crops, key=lambda n: float(risk[n]))
    return standing_out(_until(look, level - 1), looker.texts, [riskiest])[0]
