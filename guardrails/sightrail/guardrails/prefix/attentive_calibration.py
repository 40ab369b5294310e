"""Attentive calibration: make the instruction attend more to the safety prefix.

Before the softmax, in some middle layers and in all heads (GuardAlign, arXiv 2602.24027, sec. 3.2):

    Z = Q K^T / sqrt(d_k),    Zhat = Z + gamma * (M o Z)

where M(i, j) is not zero only for i in the instruction and j in the prefix. Two readings of M:

- ``product``, as printed: M(i, j) = max(0, <Q_i, K_j>), quadratic in the logits and scaled by
  sqrt(d_k), so that gamma has to be small and depends on the head size;
- ``indicator``: M(i, j) = 1[<Q_i, K_j> > 0], so that a positive logit is multiplied by 1 + gamma.
  Our reading of the intent; VAF (CVPR 2025) multiplies by 1.15 in layers 9-14 of LLaVA-1.5-7B.

Only instruction rows change; ``instruction_rows`` computes these few again and leaves the rest to
the model's own kernel. What follows the prompt attends to changed keys and values, so decoding
needs nothing more, unless ``decode`` asks for its rows as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from ..errors import ConfigurationError
from ..published import Source

if TYPE_CHECKING:
    from torch import Tensor

Rule = Literal["product", "indicator"]


@dataclass(frozen=True)
class AttentiveCalibration:
    """Settings of the calibration.

    Attributes:
        gamma: strength; 0 is off, and gives the bare model's tokens exactly.
        rule: which reading of the printed mask, see the module's head. The right gamma for
            ``product`` is smaller than for ``indicator``, by about the size of a logit times
            sqrt(d_k).
        band: the layers, as a part of the depth [from, to); the paper says "middle" and no more.
        layers: decoder layer indices instead of the band.
        decode: change also the rows after the instruction: the template's opening of the answer
            and every generated token. The paper does not.

    Raises:
        ConfigurationError: a value is out of range.
    """

    gamma: float = 0.15
    rule: Rule = "indicator"
    band: tuple[float, float] = (1 / 3, 2 / 3)
    layers: tuple[int, ...] | None = None
    decode: bool = False

    SOURCES: ClassVar[Mapping[str, Source]] = {
        "gamma": "related code",
        "rule": "our reading",
        "band": "related code",
        "layers": "related code",
        "decode": "paper",
    }

    @classmethod
    def published(cls, rule: Rule = "indicator") -> AttentiveCalibration:
        """What the paper leaves open, filled in from the nearest public code.

        The paper prints the product and gives neither gamma nor layers. VAF (CVPR 2025) multiplies
        by 1.15 in decoder layers 9 to 14 of the 32 of LLaVA-1.5-7B; that is ``indicator`` with
        gamma = 0.15 in the band [9/32, 15/32), and scales to other depths. For ``product`` nobody
        published a gamma: 0.01 is our reading.

        Args:
            rule: which reading of the printed mask.
        """
        return cls(gamma=0.15 if rule == "indicator" else 0.01, rule=rule, band=(9 / 32, 15 / 32))

    def __post_init__(self) -> None:
        """Check every value."""
        if not isinstance(self.gamma, int | float) or not math.isfinite(self.gamma):
            raise ConfigurationError(f"gamma must be a finite number, got {self.gamma!r}.")
        if self.gamma < 0:
            raise ConfigurationError(f"gamma must be 0 (off) or more, got {self.gamma}.")
        if self.rule not in get_args(Rule):
            raise ConfigurationError(
                f"Unknown rule {self.rule!r}; use one of {', '.join(get_args(Rule))}."
            )
        low, high = self.band
        if not 0 <= low < high <= 1:
            raise ConfigurationError(
                f"band must be two fractions with 0 <= from < to <= 1, got {self.band}."
            )
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))
            if not self.layers or len(set(self.layers)) < len(self.layers):
                raise ConfigurationError(
                    f"layers must be different indices, at least one, got {self.layers}."
                )


def resolve_layers(
    settings: AttentiveCalibration, depth: int, self_attention: Sequence[int]
) -> tuple[int, ...]:
    """The decoder layers to calibrate.

    Args:
        settings: a band or explicit layers.
        depth: number of decoder layers.
        self_attention: the layers in which text attends to text.

    Raises:
        ConfigurationError: an explicit layer does not exist or is a cross-attention layer, or the
            band holds no self-attention layer.
    """
    usable = set(self_attention)
    if settings.layers is not None:
        if wrong := [layer for layer in settings.layers if layer not in usable]:
            raise ConfigurationError(
                f"Layers {wrong} cannot be calibrated: the model has {depth} layers, of which "
                f"{_intervals(sorted(usable))} are self-attention."
            )
        return tuple(sorted(settings.layers))
    low, high = (round(fraction * depth) for fraction in settings.band)
    low = min(low, depth - 1)
    chosen = tuple(layer for layer in range(low, max(high, low + 1)) if layer in usable)
    if not chosen:
        raise ConfigurationError(
            f"The band {settings.band} holds no self-attention layer of {depth}; widen it or give "
            "layers."
        )
    return chosen


def calibrate_logits(
    logits: Tensor, scaling: float, target: Tensor, gamma: float, rule: Rule
) -> Tensor:
    """Zhat = Z + gamma * (M o Z) (GuardAlign, sec. 3.2).

    Args:
        logits: Z, [..., R, T], scaled.
        scaling: the factor inside Z, usually 1 / sqrt(d_k); Z / scaling = <Q_i, K_j>.
        target: bool, broadcastable to [..., R, T]: i in the instruction and j in the prefix.
        gamma: strength.
        rule: what M holds at the target.

    Returns:
        Zhat, [..., R, T].
    """
    positive = logits.clamp_min(0)
    # M o Z is zero wherever Z is negative, under both rules.
    boost = positive * positive / scaling if rule == "product" else positive
    return logits + gamma * boost * target


def _intervals(numbers: Sequence[int]) -> str:
    """Render ``[0, 1, 2, 4]`` as ``0-2, 4``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
