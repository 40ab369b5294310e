"""Thresholds with a promise: how many false alarms there will be, from benign scores alone.

Pictures and requests are flagged where their score reaches a threshold t. Let s_(1) >= ... >= s_(n)
be the scores of n benign ones, drawn like those to come, and t lie just above s_(k). Then the share
of false alarms to come, P(S > s_(k)), is at most alpha

- with confidence 1 - delta where P(Bin(n, alpha) >= k) >= 1 - delta: exactly when k of the n lie
  above the (1 - alpha) quantile is s_(k) beyond it too. Learn-then-Test (Angelopoulos et al.,
  arXiv 2110.01052) with the binomial tail as p-value; the exact tolerance limit of Wilks (1941).
- on average over calibrations where k <= alpha (n + 1): split conformal prediction (Vovk et al.
  2005; conformal risk control, arXiv 2208.02814, for a loss of 0 or 1). One calibration in two may
  lie above it.

Both are free of assumptions about the scores, and both end where the pictures change: see
:func:`check_drift`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from .errors import ConfigurationError
from .verdict import Threshold

__all__ = [
    "Drift",
    "check_drift",
    "conformal_p_value",
    "guaranteed_threshold",
    "least_promise",
    "needed",
    "upper_bound",
]

ALARMS: Final = 0.01
CONFIDENCE: Final = 0.95
SIGNIFICANCE: Final = 0.01
"""Below this p-value a check of drift says that the pictures are others."""


def guaranteed_threshold(
    benign: Sequence[float],
    *,
    false_alarms: float = ALARMS,
    confidence: float | None = CONFIDENCE,
    source: str,
    attacks: Sequence[float] = (),
    margin: float = 0.0,
) -> Threshold:
    """The lowest threshold that keeps the promise, and its provenance.

    Args:
        benign: one score each, higher is riskier; drawn like those that will be judged.
        false_alarms: the share alpha of benign ones to come that may be flagged, in (0, 1).
        confidence: 1 - delta, in (0, 1); None promises the average over calibrations alone.
        source: what the benign ones are, for the provenance.
        attacks: scores of labelled attacks; they choose nothing, and give a bound on how many are
            missed.
        margin: what a score may differ by from one computation to the next.

    Raises:
        ConfigurationError: too few scores for this promise (the message says which can be kept), a
            score that is no number, or a share that is not possible.
    """
    _check(false_alarms, confidence, [*benign, *attacks])
    allowed = _allowed(len(benign), false_alarms, confidence)
    if allowed < 1:
        raise ConfigurationError(_too_few(len(benign), false_alarms, confidence))
    last = sorted(benign, reverse=True)[allowed - 1]
    value = math.nextafter(last + margin, math.inf)
    missed = None
    if attacks:
        passed = sum(score < value for score in attacks)
        missed = upper_bound(passed, len(attacks), confidence or CONFIDENCE)
    return Threshold(
        value=value,
        source=_provenance(source, len(benign), false_alarms, confidence),
        false_alarms=false_alarms,
        confidence=confidence,
        n=len(benign),
        missed=missed,
    )


def needed(false_alarms: float, confidence: float | None) -> int:
    """How many benign scores a promise needs at least: 299 for 1 % at 95 %, 99 on average."""
    if confidence is None:
        return math.ceil(1 / false_alarms - 1e-9) - 1
    return math.ceil(math.log(1 - confidence) / math.log1p(-false_alarms) - 1e-9)


def least_promise(n: int, confidence: float | None) -> float:
    """The smallest share of false alarms that n benign scores can promise."""
    if n < 1:
        return 1.0
    return 1 / (n + 1) if confidence is None else -math.expm1(math.log(1 - confidence) / n)


def upper_bound(hits: int, n: int, confidence: float = CONFIDENCE) -> float:
    """The exact upper bound on a share of which n draws held so many hits (Clopper and Pearson)."""
    from scipy.stats import beta

    return 1.0 if hits >= n else float(beta.ppf(confidence, hits + 1, n - hits))


def conformal_p_value(score: float, benign_ascending: Sequence[float]) -> float | None:
    """The p-value of "this is a benign one": (1 + #{benign scores >= score}) / (n + 1).

    Args:
        score: of the picture or request.
        benign_ascending: of the calibration, sorted; None comes back for none.
    """
    if not benign_ascending:
        return None
    above = len(benign_ascending) - bisect_left(benign_ascending, score)
    return (1 + above) / (len(benign_ascending) + 1)


@dataclass(frozen=True)
class Drift:
    """Whether new benign pictures are like those of the calibration, by their scores.

    Attributes:
        statistic: the largest distance between the two distributions (Kolmogorov and Smirnov).
        p_value: of "they are the same".
        flagged: the share of the new ones that the threshold flags.
        alarm_p_value: of "the promised share of false alarms still holds" (exact binomial); None
            where the threshold promises none.
        n: how many new ones there are.
    """

    statistic: float
    p_value: float
    flagged: float
    alarm_p_value: float | None
    n: int

    @property
    def drifted(self) -> bool:
        """Whether either is refuted."""
        return min(self.p_value, 1.0 if self.alarm_p_value is None else self.alarm_p_value) < (
            SIGNIFICANCE
        )


def check_drift(known: Sequence[float], new: Sequence[float], threshold: Threshold | None) -> Drift:
    """Compare the scores of new benign pictures or requests with those of the calibration.

    Args:
        known: of the calibration.
        new: of the new ones.
        threshold: with its promise; None where nothing is flagged.

    Raises:
        ConfigurationError: either is empty.
    """
    from scipy.stats import binomtest, ks_2samp

    if not known or not new:
        raise ConfigurationError(
            f"A check of drift compares scores: {len(known)} are known from the calibration, and "
            f"{len(new)} are new. Calibrate with this version, and give benign pictures or "
            "requests that can be read."
        )
    found = ks_2samp(known, new)
    flagged = 0 if threshold is None else sum(score >= threshold.value for score in new)
    promised = None if threshold is None else threshold.false_alarms
    alarm = (
        None
        if promised is None
        else float(binomtest(flagged, len(new), promised, alternative="greater").pvalue)
    )
    return Drift(float(found.statistic), float(found.pvalue), flagged / len(new), alarm, len(new))


def _allowed(n: int, false_alarms: float, confidence: float | None) -> int:
    """The largest k whose s_(k) keeps the promise, 0 for none."""
    if confidence is None:
        return min(n, math.floor(false_alarms * (n + 1) + 1e-9))
    from scipy.stats import binom

    ranks = np.arange(1, n + 1)
    kept = binom.sf(ranks - 1, n, false_alarms) >= confidence
    return int(kept.sum())


def _check(false_alarms: float, confidence: float | None, scores: Sequence[float]) -> None:
    if not 0 < false_alarms < 1 or (confidence is not None and not 0 < confidence < 1):
        raise ConfigurationError(
            f"false_alarms is {false_alarms} and confidence {confidence}; both lie between 0 and "
            "1, both excluded (confidence may be None: the promise then holds on average)."
        )
    if not np.isfinite(np.asarray(scores, dtype=np.float64)).all():
        raise ConfigurationError("Some scores are no numbers; a threshold cannot rest on them.")


def _too_few(n: int, false_alarms: float, confidence: float | None) -> str:
    sure = "on average" if confidence is None else f"with {confidence:.4g} confidence"
    least = least_promise(n, confidence)
    reachable = f"the least that {n} can promise so is {least:.2%}" if n else "there are none"
    return (
        f"At most {false_alarms:.3%} false alarms {sure} need at least "
        f"{needed(false_alarms, confidence)} benign scores, and there are {n}; {reachable}."
    )


def _provenance(source: str, n: int, false_alarms: float, confidence: float | None) -> str:
    sure = "on average" if confidence is None else f"with {confidence:.4g} confidence"
    return f"{source}; n={n}, at most {false_alarms:.3g} false alarms {sure}"
