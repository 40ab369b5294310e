"""From patch embeddings to risks: the four scores, one interface, and the transport among them.

Higher is riskier, always. Optimal transport between patches and concept texts is the maths of
GuardAlign, sec. 3.1. Symbols follow the paper (arXiv 2602.24027): x^m patches, z_i^n variants of
category i, a patch weights, b variant weights, C costs, T plans, d distances. Shapes: B pictures, M
patches, I categories, N variants, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from ..verdict import Transport
from .concepts import ConceptBank
from .encoder import Encoder
from .settings import ScreeningSettings

NEGLIGIBLE: Final = 1e-9
"""The mass of a padded column; log-domain Sinkhorn needs it to be positive."""

_FAR: Final = 4.0  # the cost of a padded column: further than any two unit vectors are apart


@dataclass(frozen=True)
class Plan:
    """A batch of transport plans.

    Attributes:
        mass: T, rows summing to a.
        marginal_error: the largest deviation of a plan's marginals from a and b.
        tolerance: what `marginal_error` has to stay below to count as converged.
    """

    mass: Float[Tensor, "P M N"]
    marginal_error: Float[Tensor, " P"]
    tolerance: float

    @property
    def converged(self) -> Bool[Tensor, " P"]:
        """Whether each plan met its marginals."""
        return self.marginal_error <= self.tolerance


def solve(
    cost: Float[Tensor, "P M N"],
    a: Float[Tensor, "P M"],
    b: Float[Tensor, "P N"],
    *,
    epsilon: float,
    max_iter: int = 500,
    tolerance: float = 1e-4,
) -> Plan:
    """Entropic optimal transport, min_T <T, C> - epsilon H(T), for P problems at once.

    They are iterated until the last of them has converged, so a plan depends, within the
    tolerance, on the problems that it is solved with.

    The plan's rows are rescaled to meet `a` exactly, so that whatever error is left shows in the
    columns and is reported.

    Args:
        cost: C.
        a: rows sum to 1.
        b: rows sum to 1.
        epsilon: strength of the entropic term, in units of the cost.
        max_iter: Sinkhorn iterations at most.
        tolerance: on the marginals.
    """
    from ot.batch import solve_batch  # loads every back end of POT

    result = solve_batch(
        cost,
        reg=epsilon,
        a=a,
        b=b,
        max_iter=max_iter,
        tol=tolerance / 10,
        method="log_sinkhorn",
        grad="detach",
    )
    plan = cast(Tensor, result.plan)
    plan = plan * (a / plan.sum(-1).clamp_min(1e-30)).unsqueeze(-1)
    error = torch.maximum((plan.sum(-1) - a).abs().amax(-1), (plan.sum(-2) - b).abs().amax(-1))
    return Plan(plan, error.nan_to_num(nan=float("inf")), tolerance)


def category_entropy(
    patches: Float[Tensor, "B M D"], means: Float[Tensor, "I D"], scale: float
) -> Float[Tensor, "B M"]:
    """H(x^m) over categories of softmax(scale * cos(x^m, zbar_i)) (eq. 5 and 6), in nats.

    Args:
        patches: of length 1.
        means: of length 1: the mean embedding of every category.
        scale: CLIP's logit scale.
    """
    log_p = (scale * patches @ means.T).log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def patch_weights(
    entropy: Float[Tensor, "B M"], sign: Literal["printed", "confident", "uniform"]
) -> Float[Tensor, "B M"]:
    """a^m, rows summing to 1.

    `printed` is softmax(+H) as eq. 7 prints it; `confident` is softmax(-H), what the sentence
    below eq. 7 says; `uniform` ignores the entropy.
    """
    if sign == "uniform":
        return torch.full_like(entropy, 1 / entropy.shape[-1])
    return (entropy if sign == "printed" else -entropy).softmax(-1)


def printed_distance(
    patches: Float[Tensor, "B M D"],
    variants: list[Float[Tensor, "_ D"]],
    a: Float[Tensor, "B M"],
    *,
    epsilon: float,
    tolerance: float = 1e-4,
) -> tuple[Float[Tensor, "B M"], Float[Tensor, " B"]]:
    """d(m) = sum_i sum_n T_i(m, n) C_i(m, n), literally (eq. 9), with uniform variant weights.

    Args:
        patches: of length 1.
        variants: of length 1, N_i of category i.
        a: the weight of each patch.
        epsilon: entropic strength; the paper does not state its value.

    Returns:
        d, lower is riskier, and the largest marginal error of each picture.
    """
    total, error = torch.zeros_like(a), torch.zeros_like(a[:, 0])
    for z in variants:
        cost = 1 - patches @ z.T
        b = torch.full((len(patches), len(z)), 1 / len(z))
        plan = solve(cost, a, b, epsilon=epsilon, tolerance=tolerance)
        total = total + (plan.mass * cost).sum(-1)
        error = torch.maximum(error, plan.marginal_error)
    return total, error


def variant_weights(similarity: Float[Tensor, "*B M N"], epsilon: float) -> Float[Tensor, "*B N"]:
    """b: how well each variant fits its best patch, softmax(max_m cos / epsilon).

    A category's variants name different things; with uniform weights a plan would have to spread
    a knife over axes and swords too.

    Args:
        similarity: cosines.
        epsilon: the temperature.
    """
    return (similarity.amax(-2) / epsilon).softmax(-1)


@dataclass(frozen=True)
class AnchoredRisk:
    """What anchored transport says.

    Attributes:
        picture: the risk of each category: the mean margin, in cosine units, by which the
            transported share of the picture fits the category better than any benign anchor.
        patches: the margin of each patch under the category's plan.
        marginal_error: the largest of a picture's plans.
        converged: whether it is below the tolerance.
    """

    picture: Float[Tensor, "B I"]
    patches: Float[Tensor, "B M I"]
    marginal_error: Float[Tensor, " B"]
    converged: Bool[Tensor, " B"]


def anchored_risk(
    patches: Float[Tensor, "B M D"],
    variants: list[Float[Tensor, "_ D"]],
    anchors: Float[Tensor, "K D"],
    a: Float[Tensor, "B M"],
    *,
    share: float,
    epsilon: float,
    tolerance: float = 1e-4,
) -> AnchoredRisk:
    """Partial transport of the riskiest share of a picture, against a benign sink.

    For each category i the patches are transported to its variants, which take `share` of the
    mass, and to a sink, which takes the rest at the cost of the best benign anchor
    c(m) = min_k 1 - cos(x^m, anchor_k). The plan therefore picks the patches for which being
    unsafe is cheapest compared with being benign. The conditional margin
    r_i(m) = c(m) - E_{n ~ T_i(.|m)} C_i(m, n) does not scale with a patch's own weight, which the
    printed score does; the picture's risk is its mean over the transported share.

    Args:
        patches: of length 1.
        variants: of length 1, N_i of category i.
        anchors: of length 1, K at least 1.
        a: the weight of each patch.
        share: mass that goes to the category, in (0, 1).
        epsilon: entropic strength, in cosine units.
        tolerance: on the marginals.
    """
    count, widest = len(patches), max(len(z) for z in variants)
    benign = 1 - (patches @ anchors.T).amax(-1)
    cost = torch.full((count, len(variants), patches.shape[1], widest + 1), _FAR)
    b = torch.full((count, len(variants), widest + 1), NEGLIGIBLE)
    for i, z in enumerate(variants):
        similarity = patches @ z.T
        cost[:, i, :, : len(z)] = 1 - similarity
        b[:, i, : len(z)] = share * variant_weights(similarity, epsilon).clamp_min(NEGLIGIBLE)
    cost[..., -1] = benign[:, None]
    b[..., -1] = 1 - share
    b = b / b.sum(-1, keepdim=True)
    rows = a[:, None].expand(-1, len(variants), -1)
    plan = solve(
        cost.flatten(0, 1),
        rows.flatten(0, 1),
        b.flatten(0, 1),
        epsilon=epsilon,
        tolerance=tolerance,
    )
    unsafe = plan.mass.view_as(cost)[..., :-1] * (cost[..., :-1] < _FAR)  # without the padding
    margin = benign[:, None, :, None] - cost[..., :-1]
    given = unsafe.sum(-1)
    error = plan.marginal_error.view(count, -1).amax(-1)
    conditional = (unsafe * margin).sum(-1) / given.clamp_min(1e-30)
    return AnchoredRisk(
        picture=(unsafe * margin).sum((-1, -2)) / given.sum(-1).clamp_min(1e-30),
        patches=conditional.transpose(1, 2),
        marginal_error=error,
        converged=error <= tolerance,
    )


@dataclass(frozen=True)
class TextBank:
    """A concept bank's embeddings: the variants of each category, their means, and the anchors."""

    categories: tuple[str, ...]
    variants: list[Float[Tensor, "_ D"]]
    means: Float[Tensor, "I D"]
    anchors: Float[Tensor, "K D"]
    logit_scale: float


@dataclass(frozen=True)
class Risk:
    """One picture's risks: `picture` decides, `patches` says where.

    Attributes:
        picture: of each category.
        patches: of each patch and category.
        transport: how exact it is; None for scores without a transport.
        parts: of all patches together; lower than `picture` where `alone` is higher.
        alone: the second transport, over the whole picture's own patches, where there is one. No
            further crop changes it.
    """

    picture: Float32[np.ndarray, " I"]
    patches: Float32[np.ndarray, "M I"]
    parts: Float32[np.ndarray, " I"]
    transport: Transport | None = None
    alone: AnchoredRisk | None = None

    def stays_at(self, limit: float) -> bool:
        """Whether the risk reaches a limit whatever else of the picture is looked at."""
        return self.alone is not None and bool(self.alone.picture.max() >= limit)


def embed_bank(encoder: Encoder, bank: ConceptBank) -> TextBank:
    """Embed every text of a bank."""
    variants = [encoder.embed_texts(texts) for texts in bank.unsafe.values()]
    means = F.normalize(torch.stack([z.mean(0) for z in variants]), dim=-1)
    anchors = encoder.embed_texts(bank.benign) if bank.benign else means[:0]
    return TextBank(tuple(bank.unsafe), variants, means, anchors, encoder.logit_scale)


def score_patches(
    patches: Float[Tensor, "B M D"],
    bank: TextBank,
    settings: ScreeningSettings,
    *,
    whole: int = 1,
    alone: AnchoredRisk | None = None,
) -> list[Risk]:
    """Risks of B pictures with M patches each, by the settings' score.

    Each picture is scored by itself: transports solved together stop together, and a picture's
    risk would depend on who else was looked at.

    Args:
        patches: of length 1; those of the whole picture first.
        bank: the embedded concepts.
        settings: which score, and its constants.
        whole: how many of the patches are the whole picture's own: 1 for crops, the number of
            tokens for patch tokens.
        alone: what an earlier risk of the same picture says of these, if it is known.
    """
    return [
        risk
        for picture in patches.split(1)
        for risk in _score_alone(picture, bank, settings, whole, alone)
    ]


def _score_alone(
    patches: Tensor,
    bank: TextBank,
    settings: ScreeningSettings,
    whole: int,
    alone: AnchoredRisk | None = None,
) -> list[Risk]:
    if settings.score == "ot":
        return _anchored(patches, bank, settings, whole, alone)
    cosines = torch.stack([(patches @ z.T).amax(-1) for z in bank.variants], -1)
    if settings.score == "ot_printed":
        return _printed(patches, cosines, bank, settings)
    return _split(cosines.amax(1), cosines)  # of the whole picture alone for `whole_cosine`


def _anchored(
    patches: Tensor,
    bank: TextBank,
    settings: ScreeningSettings,
    whole: int,
    alone: AnchoredRisk | None,
) -> list[Risk]:
    risk = _transported(patches, bank, settings, settings.share)
    if settings.whole_share is None or whole == 0:
        return _split(risk.picture, risk.patches, risk.marginal_error, settings.tolerance)
    if alone is None:
        alone = _transported(patches[:, :whole], bank, settings, settings.whole_share)
    both = torch.cat(
        [torch.maximum(risk.patches[:, :whole], alone.patches), risk.patches[:, whole:]], dim=1
    )
    error = torch.maximum(risk.marginal_error, alone.marginal_error)
    found = _split(torch.maximum(risk.picture, alone.picture), both, error, settings.tolerance)
    parts = risk.picture.numpy()
    return [replace(its, parts=part, alone=alone) for its, part in zip(found, parts, strict=True)]


def _transported(
    patches: Float[Tensor, "B M D"], bank: TextBank, settings: ScreeningSettings, share: float
) -> AnchoredRisk:
    entropy = category_entropy(patches, bank.means, bank.logit_scale)
    return anchored_risk(
        patches,
        bank.variants,
        bank.anchors,
        patch_weights(entropy, settings.weights),
        share=share,
        epsilon=settings.epsilon / bank.logit_scale,
        tolerance=settings.tolerance,
    )


def _printed(
    patches: Tensor, cosines: Tensor, bank: TextBank, settings: ScreeningSettings
) -> list[Risk]:
    entropy = category_entropy(patches, bank.means, bank.logit_scale)
    distance, error = printed_distance(
        patches,
        bank.variants,
        patch_weights(entropy, "printed" if settings.weights == "uniform" else settings.weights),
        epsilon=settings.printed_epsilon,
        tolerance=settings.tolerance,
    )
    # d(m) sums over categories and so names none: a patch counts for the category it is nearest to.
    nearest = F.one_hot(cosines.argmax(-1), cosines.shape[-1]).bool()
    floor = -distance.amax(1)[:, None, None] - 1
    risk = torch.where(nearest, -distance[..., None], floor)
    return _split(risk.amax(1), risk, error, settings.tolerance)


def _split(
    picture: Tensor, patches: Tensor, error: Tensor | None = None, tolerance: float = 0.0
) -> list[Risk]:
    """Batched scores as one Risk a picture."""
    found = []
    for index in range(len(picture)):
        transport = None
        if error is not None:
            size = float(error[index].clamp_max(1.0))  # a deviation of mass cannot exceed 1
            transport = Transport(converged=size <= tolerance, marginal_error=size)
        whole, parts = picture[index].numpy(), patches[index].numpy()
        found.append(Risk(whole, parts, whole, transport))
    return found


def worst_transport(risks: Sequence[Risk]) -> Transport | None:
    """The least converged of several transports."""
    found = [risk.transport for risk in risks if risk.transport is not None]
    return max(found, key=lambda transport: transport.marginal_error, default=None)
