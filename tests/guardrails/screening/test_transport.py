"""The transport's maths against oracles: POT's own solvers, an exact LP, loops written by hand."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from sightrail.guardrails.screening.scoring import (
    anchored_risk,
    category_entropy,
    patch_weights,
    printed_distance,
    solve,
    variant_weights,
)


def unit(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


def masses(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(*shape, generator=generator) + 0.1).softmax(-1)


def sinkhorn(a: Tensor, b: Tensor, cost: Tensor, epsilon: float) -> NDArray[np.float64]:
    """POT's scalar solver in double precision, on one problem."""
    rows, columns = (v.double() / v.double().sum() for v in (a, b))
    plan = ot.sinkhorn(
        rows.numpy(),
        columns.numpy(),
        cost.double().numpy(),
        epsilon,
        numItermax=20000,
        stopThr=1e-10,
    )
    return np.asarray(plan)


@pytest.mark.parametrize("epsilon", [0.05, 0.1, 0.5])
def test_plan_is_the_one_that_pots_scalar_sinkhorn_finds(epsilon: float) -> None:
    cost, a, b = 1 - unit(0, 2, 4, 8) @ unit(1, 3, 8).T, masses(2, 2, 4), masses(3, 2, 3)

    plan = solve(cost, a, b, epsilon=epsilon, max_iter=5000, tolerance=1e-6)

    for i in range(2):
        exact = sinkhorn(a[i], b[i], cost[i], epsilon)
        np.testing.assert_allclose(plan.mass[i].numpy(), exact, atol=2e-5)
    assert plan.converged.all()


def test_small_epsilon_approaches_the_exact_linear_programme() -> None:
    cost, a, b = 1 - unit(4, 1, 3, 5) @ unit(5, 3, 5).T, masses(6, 1, 3), masses(7, 1, 3)

    plan = solve(cost, a, b, epsilon=0.005, max_iter=20000, tolerance=1e-4)

    exact = ot.emd2(a[0].double().numpy(), b[0].double().numpy(), cost[0].double().numpy())
    assert float((plan.mass * cost).sum()) == pytest.approx(exact, abs=0.01)


def test_two_by_two_plan_is_the_one_found_by_trying_them_all() -> None:
    """With marginals fixed, a 2 x 2 plan has one free entry: scan it."""
    cost = torch.tensor([[[0.1, 0.9], [0.7, 0.2]]])
    a, b, epsilon = torch.tensor([[0.6, 0.4]]), torch.tensor([[0.5, 0.5]]), 0.1

    plan = solve(cost, a, b, epsilon=epsilon, max_iter=5000, tolerance=1e-6)

    corner = np.linspace(0.1 + 1e-6, 0.5 - 1e-6, 200001)
    entries = np.stack([corner, 0.6 - corner, 0.5 - corner, corner - 0.1])
    entropy = -(entries * np.log(entries)).sum(0)
    value = (entries * cost.numpy().reshape(4, 1)).sum(0) - epsilon * entropy
    assert float(plan.mass[0, 0, 0]) == pytest.approx(corner[value.argmin()], abs=1e-4)


def test_a_plan_that_was_stopped_early_says_so() -> None:
    cost, a, b = 1 - unit(8, 1, 6, 4) @ unit(9, 5, 4).T, masses(10, 1, 6), masses(11, 1, 5)

    hasty = solve(cost, a, b, epsilon=0.005, max_iter=1, tolerance=1e-4)

    assert not hasty.converged.any()
    assert float(hasty.marginal_error) > 1e-4
    columns = hasty.mass.sum(-2) - b
    assert float(hasty.marginal_error) == pytest.approx(float(columns.abs().max()), abs=1e-6)


def test_entropy_is_highest_between_categories_and_zero_on_one() -> None:
    means = torch.eye(3)
    patches = torch.stack([means[0], F.normalize(torch.ones(3), dim=0)])[None]

    entropy = category_entropy(patches, means, scale=100.0)

    assert float(entropy[0, 0]) == pytest.approx(0.0, abs=1e-6)
    assert float(entropy[0, 1]) == pytest.approx(np.log(3), abs=1e-5)


def test_printed_and_described_weights_contradict_each_other() -> None:
    """Eq. 7 and the sentence below it: what the paper leaves to the reader."""
    entropy = torch.tensor([[0.1, 1.0]])

    printed, confident = patch_weights(entropy, "printed"), patch_weights(entropy, "confident")

    assert printed[0, 1] > printed[0, 0]
    assert confident[0, 0] > confident[0, 1]
    torch.testing.assert_close(patch_weights(entropy, "uniform"), torch.tensor([[0.5, 0.5]]))


def test_printed_distance_is_the_paper_written_as_loops() -> None:
    patches, variants = unit(12, 1, 4, 6), [unit(13, 2, 6), unit(14, 3, 6)]
    a = masses(15, 1, 4)

    distance, _ = printed_distance(patches, variants, a, epsilon=0.1)

    expected = np.zeros(4)
    for z in variants:
        cost = 1 - patches[0] @ z.T
        plan = sinkhorn(a[0], torch.full((len(z),), 1 / len(z)), cost, 0.1)
        for m in range(4):
            for n in range(len(z)):
                expected[m] += plan[m, n] * float(cost[m, n])
    np.testing.assert_allclose(distance[0].numpy(), expected, atol=1e-4)


def test_variant_weights_follow_the_best_patch() -> None:
    weights = variant_weights(torch.tensor([[[0.9, 0.1], [0.2, 0.3]]]), epsilon=0.1)

    torch.testing.assert_close(weights, (torch.tensor([[0.9, 0.3]]) / 0.1).softmax(-1))


def _scene(seed: int) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    patches = unit(seed, 2, 9, 16)
    variants = [unit(seed + 1, 2, 16), unit(seed + 2, 4, 16)]
    return patches, variants, unit(seed + 3, 5, 16), torch.full((2, 9), 1 / 9)


def test_a_patch_that_is_an_unsafe_concept_is_found_and_named() -> None:
    patches, variants, anchors, a = _scene(20)
    patches[0, 6] = variants[1][2]

    risk = anchored_risk(patches, variants, anchors, a, share=0.1, epsilon=0.02)

    assert int(risk.picture[0].argmax()) == 1
    assert int(risk.patches[0, :, 1].argmax()) == 6
    assert float(risk.picture[0, 1]) > float(risk.picture[1].max())
    assert risk.converged.all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.02, 0.5), epsilon=st.floats(0.02, 0.3))
def test_anchored_risk_is_bounded_and_never_above_its_riskiest_patch(
    seed: int, share: float, epsilon: float
) -> None:
    patches, variants, anchors, a = _scene(seed)

    risk = anchored_risk(patches, variants, anchors, a, share=share, epsilon=epsilon)

    assert torch.isfinite(risk.picture).all()
    assert (risk.patches.abs() <= 2 + 1e-5).all()
    assert (risk.picture <= risk.patches.amax(1) + 1e-4).all()
    assert (risk.picture >= risk.patches.amin(1) - 1e-4).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(9)))
def test_the_order_of_patches_does_not_matter(seed: int, order: list[int]) -> None:
    patches, variants, anchors, a = _scene(seed)

    plain = anchored_risk(patches, variants, anchors, a, share=0.1, epsilon=0.05)
    moved = anchored_risk(patches[:, order], variants, anchors, a, share=0.1, epsilon=0.05)

    torch.testing.assert_close(moved.picture, plain.picture, atol=2e-4, rtol=0)
    torch.testing.assert_close(moved.patches, plain.patches[:, order], atol=2e-3, rtol=0)


def test_a_benign_anchor_that_fits_clears_a_patch() -> None:
    patches, variants, anchors, a = _scene(20)
    patches[0, 6] = variants[1][2]

    anchored = torch.cat([anchors, patches[:1, 6]])
    risk = anchored_risk(patches, variants, anchored, a, share=0.1, epsilon=0.02)

    assert float(risk.patches[0, 6].max()) <= 1e-4


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_picture_is_scored_the_same_alone_and_in_a_batch(seed: int) -> None:
    patches, variants, anchors, a = _scene(seed)

    both = anchored_risk(patches, variants, anchors, a, share=0.1, epsilon=0.05)
    alone = anchored_risk(patches[:1], variants, anchors, a[:1], share=0.1, epsilon=0.05)

    torch.testing.assert_close(both.picture[:1], alone.picture, atol=2e-4, rtol=0)
