"""Harmfulness vectors: the direction in which refused requests differ from benign ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Direction:
    """The vector of the layer that separates best, and the margins on it.

    Attributes:
        layer: decoder layer, from 1; the output of its block.
        vector: of length 1.
        mu_plus: where harmful requests have to come to.
        mu_minus: where benign ones have to stay.
        separation: d' of every layer, on examples that did not make the vectors.
    """

    layer: int
    vector: Float[Tensor, " d"]
    mu_plus: float
    mu_minus: float
    separation: tuple[float, ...]


def harmfulness_vectors(
    harmful: Float[Tensor, "N L d"], benign: Float[Tensor, "M L d"]
) -> Float[Tensor, "L d"]:
    """v_l = mean(h_l | harmful) - mean(h_l | benign), of length 1 at every layer.

    Args:
        harmful: hidden states of the last prompt token, at every layer.
        benign: the same of benign requests.

    Returns:
        One a layer; a layer without any difference has the zero vector.
    """
    difference = harmful.mean(dim=0) - benign.mean(dim=0)
    return torch.nn.functional.normalize(difference, dim=-1)


def projections(
    states: Float[Tensor, "N *L d"], vectors: Float[Tensor, "*L d"]
) -> Float[Tensor, "N *L"]:  # noqa: F821, UP037 - no product
    """P = <h_l, v_l>, of one layer or of all of them."""
    return (states * vectors).sum(dim=-1)


def separation(harmful: Float[Tensor, "N L"], benign: Float[Tensor, "M L"]) -> Float[Tensor, " L"]:
    """D' = (mean difference) / sqrt((var + var) / 2) of projections, at every layer."""
    spread = (harmful.var(dim=0) + benign.var(dim=0)) / 2
    return (harmful.mean(dim=0) - benign.mean(dim=0)) / spread.sqrt().clamp_min(1e-12)


def choose_direction(
    harmful: Float[Tensor, "N L d"],
    benign: Float[Tensor, "M L d"],
    *,
    margin: float,
    layer: int | None = None,
) -> Direction:
    """The layer that tells harmful from benign best, its vector and its margins.

    Separation is measured across halves: the vectors of the even examples on the odd ones, and the
    other way round. The vector and the margins come from all examples.

    Args:
        harmful: hidden states of refused harmful requests, N at least 4.
        benign: of benign ones, M at least 4.
        margin: quantile of the projections that the margins stand at.
        layer: from 1; None chooses.
    """
    scores = _cross_separation(harmful, benign)
    chosen = int(scores.argmax()) if layer is None else layer - 1
    vectors = harmfulness_vectors(harmful, benign)
    on_harmful = projections(harmful, vectors)[:, chosen]
    on_benign = projections(benign, vectors)[:, chosen]
    return Direction(
        layer=chosen + 1,
        vector=vectors[chosen],
        mu_plus=float(on_harmful.quantile(margin)),
        mu_minus=float(on_benign.quantile(1 - margin)),
        separation=tuple(round(float(score), 4) for score in scores),
    )


def _cross_separation(
    harmful: Float[Tensor, "N L d"], benign: Float[Tensor, "M L d"]
) -> Float[Tensor, " L"]:
    halves = []
    for made, held in ((0, 1), (1, 0)):
        vectors = harmfulness_vectors(harmful[made::2], benign[made::2])
        halves.append(
            separation(
                projections(harmful[held::2], vectors), projections(benign[held::2], vectors)
            )
        )
    return (halves[0] + halves[1]) / 2


def hinge(
    projected: Float[Tensor, " B"], harmful: Bool[Tensor, " B"], mu_plus: float, mu_minus: float
) -> Float[Tensor, ""]:
    """max(0, mu_plus - p) for harmful requests, max(0, p - mu_minus) for benign ones, averaged.

    Args:
        projected: p.
        harmful: which of them belong to harmful requests.
        mu_plus: where harmful ones have to come to.
        mu_minus: where benign ones have to stay.
    """
    short = (mu_plus - projected).clamp_min(0)
    beyond = (projected - mu_minus).clamp_min(0)
    return torch.where(harmful, short, beyond).mean()
