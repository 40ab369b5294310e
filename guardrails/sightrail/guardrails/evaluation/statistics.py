"""Intervals: Wilson for shares, bootstrap for AUROC and ratios."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..roc import auroc as area
from .report import Row

Z95: Final = 1.959963984540054
_RESAMPLES: Final = 1000


def wilson(successes: int, n: int) -> tuple[float, float, float]:
    """A share and its 95 % Wilson score interval (Wilson 1927): (share, low, high).

    Raises:
        ValueError: n is not positive or successes lie outside 0..n.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is not a share")
    share, z2 = successes / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * np.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return share, max(0.0, float(centre - half)), min(1.0, float(centre + half))


def share_row(stack: str, metric: str, group: str, hits: Sequence[bool]) -> Row:
    """The share of hits as a row of the report."""
    value, low, high = wilson(sum(hits), len(hits))
    return Row(
        stack=stack, metric=metric, group=group, value=value, low=low, high=high, n=len(hits)
    )


def bounded_row(
    stack: str, metric: str, group: str, hits: int, unjudged: int, n: int, *, worst: bool
) -> Row:
    """A share of which some members are not known.

    Args:
        stack: of the row.
        metric: of the row.
        group: of the row.
        hits: how many are known to be one.
        unjudged: how many are not known.
        n: all of them.
        worst: whether those not known count as hits in the value, which is the worse reading.

    Returns:
        A row whose interval reaches from the Wilson bound with none of them to that with all.
    """
    value = (hits + unjudged * worst) / n
    low, high = wilson(hits, n)[1], wilson(hits + unjudged, n)[2]
    return Row(
        stack=stack,
        metric=metric,
        group=group,
        value=value,
        low=low,
        high=high,
        n=n,
        unjudged=unjudged,
    )


def mean_row(stack: str, metric: str, group: str, values: Sequence[float]) -> Row:
    """A mean with its normal 95 % interval."""
    found = np.asarray(values, dtype=np.float64)
    spread = 1.96 * found.std(ddof=1) / len(found) ** 0.5 if len(found) > 1 else 0.0
    mean = float(found.mean())
    return Row(
        stack=stack,
        metric=metric,
        group=group,
        value=mean,
        low=mean - spread,
        high=mean + spread,
        n=len(found),
    )


def auroc(unsafe: Sequence[float], benign: Sequence[float]) -> tuple[float, float, float]:
    """AUROC of scores (higher is riskier) with a stratified bootstrap 95 % interval.

    Raises:
        ValueError: one side is empty.
    """
    value = area(unsafe, benign)
    high, low = np.asarray(unsafe, dtype=np.float64), np.asarray(benign, dtype=np.float64)
    rng = np.random.default_rng(0)
    drawn = [
        _mann_whitney(rng.choice(high, len(high)), rng.choice(low, len(low)))
        for _ in range(_RESAMPLES)
    ]
    return value, float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


def _mann_whitney(high: NDArray[np.float64], low: NDArray[np.float64]) -> float:
    ordered = np.sort(low)
    below = np.searchsorted(ordered, high, side="left")
    ties = np.searchsorted(ordered, high, side="right") - below
    return float((below + ties / 2).mean() / len(low))


def ratio_of_medians(ours: Sequence[float], bare: Sequence[float]) -> tuple[float, float, float]:
    """How many times as long ours takes, medians over paired repetitions, bootstrap 95 % interval.

    Args:
        ours: seconds, one a repetition.
        bare: seconds of the same repetitions.
    """
    a, b = np.asarray(ours), np.asarray(bare)
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(a), (_RESAMPLES, len(a)))
    drawn = np.median(a[picks], axis=1) / np.median(b[picks], axis=1)
    value = float(np.median(a) / np.median(b))
    return value, float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))
