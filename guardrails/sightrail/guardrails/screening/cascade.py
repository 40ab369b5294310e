"""Several detectors as one: a second that looks only where the first is unsure, or all together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, Self

from ..carriers.loop import ask
from ..errors import ConfigurationError
from ..guarantees import ALARMS, CONFIDENCE, guaranteed_threshold
from ..intake import Limits, Picture, PictureSource
from ..verdict import Box, Region, Threshold, Verdict
from .asking import (
    Detector,
    categories_of,
    checked_detector,
    decoded,
    looked_again,
    shown_to,
    sound_verdicts,
    wants_request,
)
from .calibration import scores_of

__all__ = ["Band", "Cascade", "Together"]

_FINISHED: Final = ("clean", "flagged")


class Band(NamedTuple):
    """The scores at which the first detector is unsure: from `low` up to, not with, `high`.

    `source` says where they came from.
    """

    low: float = -math.inf
    high: float = math.inf
    source: str = "not calibrated: the second looks at every picture"


@dataclass(frozen=True, eq=False)
class Cascade:
    """The second detector looks only at pictures of which the first is unsure.

    Below the band a picture is clean and above it flagged, by the first detector's word; within it
    the second decides, and what the first has found within a picture that the second flags is kept
    (regions, categories). A picture that the first could not inspect stays so.

    Measures of its verdicts: `first`, the first detector's score; `escalated`, 1 where the second
    looked. The share escalated is the mean of the latter.

    Attributes:
        first: cheap, and with a score, such as RiskDetector.
        then: such as JudgeDetector. What it says stands.
        band: where the first is unsure; see `calibrate`.
        limits: what intake is willing to decode.

    Raises:
        ConfigurationError: one of them is no detector, or the band is empty.
    """

    first: Detector
    then: Detector
    band: Band | tuple[float, float] = field(default_factory=Band)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        checked_detector(self.first), checked_detector(self.then)
        band = Band(*self.band) if len(self.band) == 3 else Band(*self.band, source="given")
        object.__setattr__(self, "band", band)
        if not band.low <= band.high:
            raise ConfigurationError(f"The band {band.low} to {band.high} holds no score")

    @property
    def wants_request(self) -> bool:
        """Whether any of the two does."""
        return wants_request(self.first) or wants_request(self.then)

    @property
    def categories(self) -> frozenset[str] | None:
        """Those of both, where both say them."""
        return categories_of((self.first, self.then))

    def screen(self, images: Iterable[PictureSource | Picture]) -> list[Verdict]:
        """Look at pictures; the second detector gets the unsure ones in one call.

        Returns:
            One verdict a picture, in order.
        """
        taken = [decoded(image, self.limits) for image in images]
        found = _asked(self.first, taken)
        return self._decided(taken, found, list(map(self._is_unsure, found)))

    def screen_again(
        self, pictures: Sequence[Picture], covered: Sequence[Sequence[Box]]
    ) -> list[Verdict]:
        """Look at pictures whose risky places were covered, by the first's own second look.

        That look is exact at the first's own threshold alone. So clean is only what lies below both
        the threshold and the band; what does not reach the band's upper end is shown to the second,
        as a whole: it may never have seen the picture.

        Args:
            pictures: as they are now.
            covered: for each the boxes that were covered, in its pixels.

        Returns:
            One verdict a picture, in order.
        """
        verdicts = looked_again(self.first, pictures, covered)
        found = sound_verdicts(self.first, verdicts, len(pictures))
        return self._decided(pictures, found, list(map(self._is_open, found)))

    def _decided(
        self, taken: Sequence[Picture | Verdict], found: Sequence[Verdict], unsure: Sequence[bool]
    ) -> list[Verdict]:
        """The first detector's verdicts, and the second's on what the first is unsure of."""
        rows = [i for i, it_is in enumerate(unsure) if it_is and isinstance(taken[i], Picture)]
        shown = [picture for i in rows if isinstance(picture := taken[i], Picture)]
        seconds, _ = ask(self.then, shown)  # where it breaks, what the first was sure of stands
        decided = dict(zip(rows, seconds, strict=True))
        return [
            self._sure(verdict) if i not in decided else _second(verdict, decided[i])
            for i, verdict in enumerate(found)
        ]

    def calibrate(
        self,
        benign: Sequence[PictureSource | Picture],
        attacks: Sequence[PictureSource | Picture],
        *,
        false_alarms: float = ALARMS,
        missed: float = 0.05,
        confidence: float | None = CONFIDENCE,
        source: str,
    ) -> Self:
        """The same with a band that bounds what the first decides alone.

        Above the band the first flags at most half of `false_alarms` of benign pictures; the other
        half is the second's, whose threshold is fitted to it where it has `calibrate`. Together at
        most `false_alarms` are flagged. Below the band lie at most `missed` of attacks: those that
        the second never sees. Both hold with the confidence, or on average where it is None.

        Args:
            benign: pictures of the kind that will be screened, without unsafe content.
            attacks: labelled unsafe ones.
            false_alarms: the share of benign pictures to come that the whole may flag.
            missed: the share of attacks to come that may pass without a second look.
            confidence: of both.
            source: what the pictures are.

        Raises:
            ConfigurationError: too few pictures for this promise; the message says how many.
        """
        half = false_alarms / 2
        sure = None if confidence is None else (1 + confidence) / 2
        good = [score for score in scores_of(self.first, benign) if score is not None]
        bad = [score for score in scores_of(self.first, attacks) if score is not None]
        high = guaranteed_threshold(good, false_alarms=half, confidence=sure, source=source)
        # As many attacks lie below a score as lie above it once the scale is turned round.
        turned = guaranteed_threshold(
            [-score for score in bad], false_alarms=missed, confidence=confidence, source=source
        )
        low = min(-turned.value, high.value)
        fit = getattr(self.then, "calibrate", None)
        then = self.then
        if callable(fit):
            then = fit(benign, false_alarms=half, confidence=sure, source=source)
        note = f"{high.source}; at most {missed:.3g} of attacks below, n={len(bad)}"
        return replace(self, then=then, band=Band(low, high.value, note))

    @property
    def _band(self) -> Band:
        return self.band if isinstance(self.band, Band) else Band(*self.band)

    def _is_unsure(self, verdict: Verdict) -> bool:
        """A finished verdict within the band; one without a score is neither high nor low."""
        if verdict.status not in _FINISHED:
            return False
        band = self._band
        return verdict.score is None or band.low <= verdict.score < band.high

    def _is_open(self, verdict: Verdict) -> bool:
        """The same of a second look: what it says is certain at its own threshold alone."""
        if verdict.status not in _FINISHED or verdict.score is None or verdict.threshold is None:
            return verdict.status in _FINISHED
        band, exact = self._band, verdict.threshold.value <= self._band.low
        clean = verdict.status == "clean" and exact
        return verdict.score < band.high and not clean

    def _sure(self, verdict: Verdict) -> Verdict:
        """The first detector's verdict by the band: flagged above it, and clean below."""
        if verdict.status not in _FINISHED:
            return verdict
        band = self._band
        flagged = verdict.score is not None and verdict.score >= band.high
        return verdict.model_copy(
            update={
                "status": "flagged" if flagged else "clean",
                "threshold": Threshold(value=band.high, source=band.source),
                "regions": verdict.regions if flagged else (),
                "measures": {**verdict.measures, **_first(verdict), "escalated": 0.0},
            }
        )


@dataclass(frozen=True, eq=False)
class Together:
    """Every detector looks at every picture, and any of them may flag it.

    Scores of different detectors are on different scales, so a verdict's scores are margins: how
    far beyond its own threshold a detector's score lies; 0 and more is flagged. A picture that one
    detector flags without saying where counts as unsafe all over.

    Where all of them give p-values, the verdict's is the smallest times their number (Bonferroni),
    which holds however they depend on each other.

    Attributes:
        detectors: two or more, in order.
        limits: what intake is willing to decode.

    Raises:
        ConfigurationError: fewer than two, or one of them is no detector.
    """

    detectors: tuple[Detector, ...]
    limits: Limits = field(default_factory=Limits)

    def __init__(self, *detectors: Detector, limits: Limits | None = None) -> None:
        object.__setattr__(self, "detectors", detectors)
        object.__setattr__(self, "limits", limits or Limits())
        if len(detectors) < 2:
            raise ConfigurationError(f"Together takes two detectors or more, got {len(detectors)}")
        for detector in detectors:
            checked_detector(detector)

    @property
    def wants_request(self) -> bool:
        """Whether any of them does."""
        return any(map(wants_request, self.detectors))

    @property
    def categories(self) -> frozenset[str] | None:
        """Those of all, where all say them."""
        return categories_of(self.detectors)

    def screen(self, images: Iterable[PictureSource | Picture]) -> list[Verdict]:
        """Look at pictures with one detector after the other.

        Returns:
            One verdict a picture, in order.
        """
        taken = [decoded(image, self.limits) for image in images]
        found = [_asked(detector, taken) for detector in self.detectors]
        return [_merged(verdicts) for verdicts in zip(*found, strict=True)]

    def screen_again(
        self, pictures: Sequence[Picture], covered: Sequence[Sequence[Box]]
    ) -> list[Verdict]:
        """Look at pictures whose risky places were covered, each detector in its own way.

        Args:
            pictures: as they are now.
            covered: for each the boxes that were covered, in its pixels.

        Returns:
            One verdict a picture, in order.
        """
        found = [
            sound_verdicts(detector, looked_again(detector, pictures, covered), len(pictures))
            for detector in self.detectors
        ]
        return [_merged(verdicts) for verdicts in zip(*found, strict=True)]

    def calibrate(
        self,
        benign: Sequence[PictureSource | Picture],
        *,
        false_alarms: float = ALARMS,
        confidence: float | None = CONFIDENCE,
        source: str,
        attacks: Sequence[PictureSource | Picture] = (),
    ) -> Self:
        """The same with one promise for all of them: how many benign pictures any of them flags.

        Of m detectors each gets a threshold that keeps to an m-th of `false_alarms`, and of what
        the confidence leaves. The sums bound what any of them flags, however they depend on each
        other (Bonferroni).

        Args:
            benign: pictures of the kind that will be screened, without unsafe content.
            false_alarms: the share of benign pictures to come that the whole may flag.
            confidence: of that promise; None promises the average over calibrations alone.
            source: what the pictures are.
            attacks: labelled unsafe ones; they choose nothing, and give each a bound on how many it
                misses.

        Raises:
            ConfigurationError: too few pictures for this promise (the message says how many), or a
                detector that has no `calibrate`.
        """
        count = len(self.detectors)
        sure = None if confidence is None else 1 - (1 - confidence) / count
        fits = [getattr(detector, "calibrate", None) for detector in self.detectors]
        for detector, fit in zip(self.detectors, fits, strict=True):
            if not callable(fit):
                raise ConfigurationError(f"{type(detector).__name__} has no calibrate.")
        share = false_alarms / count
        told = {"confidence": sure, "source": source, "attacks": attacks}
        fitted = [fit(benign, false_alarms=share, **told) for fit in fits if fit]
        return type(self)(*fitted, limits=self.limits)


# What both do


def _asked(detector: Detector, taken: Sequence[Picture | Verdict]) -> list[Verdict]:
    """A detector's verdicts on the pictures, and those there are already.

    Raises:
        Exception: what the detector raised.
    """
    pictures = shown_to(detector, [item for item in taken if isinstance(item, Picture)])
    verdicts = detector.screen(pictures) if pictures else []
    found = iter(sound_verdicts(detector, verdicts, len(pictures)))
    return [item if isinstance(item, Verdict) else next(found) for item in taken]


def _first(verdict: Verdict) -> dict[str, float]:
    return {} if verdict.score is None else {"first": verdict.score}


def _second(first: Verdict, then: Verdict) -> Verdict:
    """The second detector's verdict, with what the first has found."""
    kept: dict[str, Any] = {}
    if then.status == "flagged":
        known = [region for region in first.regions if region not in then.regions]
        kept["regions"] = (*then.regions, *known)
    return then.model_copy(
        update={
            **kept,
            "risk_map": then.risk_map or first.risk_map,
            "measures": {**then.measures, **_first(first), "escalated": 1.0},
            "not_inspected": tuple(dict.fromkeys((*first.not_inspected, *then.not_inspected))),
            "timings_ms": {**first.timings_ms, **_named(then.timings_ms, "then")},
        }
    )


def _named(values: Any, name: str) -> dict[str, float]:
    return {f"{name} {key}": value for key, value in values.items()}


def _merged(verdicts: Sequence[Verdict]) -> Verdict:
    finished = [verdict for verdict in verdicts if verdict.status in _FINISHED]
    gaps = tuple(dict.fromkeys(gap for verdict in verdicts for gap in verdict.not_inspected))
    if not finished:
        return next((v for v in verdicts if v.status == "failed"), verdicts[0])
    flagged = [verdict for verdict in finished if verdict.status == "flagged"]
    failed = [verdict for verdict in verdicts if verdict.status == "failed"]
    if failed and not flagged:
        return failed[0]
    if len(finished) < len(verdicts) and not flagged:
        return next(v for v in verdicts if v.status == "not_inspected")
    worst = max(flagged or finished, key=_margin)
    scores: dict[str, float] = {}
    for verdict in finished:
        for category, margin in _margins(verdict).items():
            scores[category] = max(margin, scores.get(category, margin))
    return worst.model_copy(
        update={
            "score": max(_margin(worst), 0.0) if flagged else _margin(worst),
            "p_value": _bonferroni(verdicts),
            "threshold": _promised(finished),
            "scores": scores,
            "measures": {k: v for verdict in finished for k, v in _measures(verdict).items()},
            "regions": tuple(dict.fromkeys(r for v in flagged for r in _regions(v))),
            "risk_map": next((v.risk_map for v in (worst, *finished) if v.risk_map), None),
            "not_inspected": gaps,
            "frames": max(verdict.frames for verdict in finished),
            "timings_ms": {
                key: value
                for verdict in verdicts
                for key, value in _named(verdict.timings_ms, _name(verdict)).items()
            },
        }
    )


def _margin(verdict: Verdict) -> float:
    """How far beyond its threshold a score lies; a decision without a score counts by itself."""
    if verdict.score is None or verdict.threshold is None:
        return 0.0 if verdict.status == "flagged" else -1.0
    return verdict.score - verdict.threshold.value


def _margins(verdict: Verdict) -> dict[str, float]:
    if verdict.threshold is None:
        return {}
    return {name: score - verdict.threshold.value for name, score in verdict.scores.items()}


def _name(verdict: Verdict) -> str:
    return verdict.guardrail or verdict.encoder or "screening"


def _measures(verdict: Verdict) -> dict[str, float]:
    own = {} if verdict.score is None else {_name(verdict): verdict.score}
    return {**own, **_named(verdict.measures, _name(verdict))}


def _promised(verdicts: Sequence[Verdict]) -> Threshold:
    """The threshold on margins, with what all of the detectors together promise."""
    known = [verdict.threshold for verdict in verdicts if verdict.threshold is not None]
    parts = [
        f"{_name(verdict)} {verdict.threshold.value:.4g} ({verdict.threshold.source})"
        for verdict in verdicts
        if verdict.threshold is not None
    ]
    source = "each detector's own threshold: " + "; ".join(parts)
    alarms = [limit.false_alarms for limit in known if limit.false_alarms is not None]
    sure = [limit.confidence for limit in known if limit.confidence is not None]
    if len(alarms) < len(verdicts) or sum(alarms) >= 1 or len(sure) not in (0, len(verdicts)):
        return Threshold(value=0.0, source=source)
    confidence = 1 - sum(1 - share for share in sure) if sure else None
    return Threshold(value=0.0, source=source, false_alarms=sum(alarms), confidence=confidence)


def _regions(verdict: Verdict) -> tuple[Region, ...]:
    """Its regions; the whole picture where it says none."""
    if verdict.regions or verdict.image_size is None:
        return verdict.regions
    width, height = verdict.image_size
    return (
        Region(
            box=(0, 0, width, height),
            category=verdict.category or "unsafe",
            score=0.0 if verdict.score is None else verdict.score,
        ),
    )


def _bonferroni(verdicts: Sequence[Verdict]) -> float | None:
    values = [verdict.p_value for verdict in verdicts]
    known = [value for value in values if value is not None]
    return min(1.0, min(known) * len(known)) if len(known) == len(values) else None
