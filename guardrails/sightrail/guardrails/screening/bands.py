"""Fitting when looking coarse to fine may stop: on pictures that the full look flags."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from ..errors import ConfigurationError
from ..intake import Picture
from .detector import RiskDetector
from .looking import Look, Looker, risk_of, standing_out
from .scoring import score_patches
from .settings import Bands

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
