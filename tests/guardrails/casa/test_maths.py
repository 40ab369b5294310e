"""The decision rule and the safety attention against oracles."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightrail.guardrails.casa.safety_attention import SafetyAttention, attend, unsafe_logit

FINITE = st.floats(-20, 20)
SHARE = st.floats(0.01, 0.99)


@given(safe=FINITE, unsafe=FINITE, v=SHARE)
def test_the_rule_is_the_normalised_product_of_both_experts(
    safe: float, unsafe: float, v: float
) -> None:
    said = math.exp(unsafe) / (math.exp(unsafe) + math.exp(safe))
    expected = v * said / (v * said + (1 - v) * (1 - said))
    logit = unsafe_logit(torch.tensor([[safe, unsafe]]), torch.tensor([v]).logit())
    assert float(logit.sigmoid()) == pytest.approx(expected, abs=1e-5)


@given(safe=FINITE, unsafe=FINITE, v=SHARE, more=st.floats(0.01, 5))
def test_a_larger_v_never_makes_a_request_safer(
    safe: float, unsafe: float, v: float, more: float
) -> None:
    """With raw logits multiplied, as printed, it would where z_unsafe is negative."""
    logits = torch.tensor([[safe, unsafe]])
    low, high = (unsafe_logit(logits, torch.tensor([v]).logit() + add) for add in (0.0, more))
    assert float(high) > float(low)


def test_half_is_no_say_and_certainty_stays_finite() -> None:
    logits = torch.tensor([[1.0, 3.0]])
    torch.testing.assert_close(unsafe_logit(logits, torch.zeros(1)), unsafe_logit(logits, None))
    assert unsafe_logit(logits, torch.tensor([torch.inf])).isfinite()
    assert unsafe_logit(logits.half(), torch.tensor([-torch.inf])).isfinite()


def test_attention_equals_a_loop_over_heads_and_positions() -> None:
    torch.manual_seed(0)
    states, seen = torch.randn(2, 5, 6), torch.tensor([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()
    queries, to_key, to_value = torch.randn(2, 3, 4), torch.randn(12, 6), torch.randn(12, 6)
    found = attend(states, seen, queries, to_key, to_value)
    for row in range(2):
        kept = [
            (h - h.mean()) / (h.var(unbiased=False) + 1e-5).sqrt() for h in states[row][seen[row]]
        ]
        for query in range(2):
            for head in range(3):
                rows = slice(4 * head, 4 * head + 4)
                scores = torch.stack([queries[query, head] @ (to_key[rows] @ h) / 2 for h in kept])
                weights = scores.exp() / scores.exp().sum()
                pooled = sum(w * (to_value[rows] @ h) for w, h in zip(weights, kept, strict=True))
                torch.testing.assert_close(found[row, query, rows], pooled)


def test_what_is_not_seen_does_not_count_and_no_gradient_reaches_the_states() -> None:
    torch.manual_seed(0)
    module = SafetyAttention(6, 2, 4)
    torch.nn.init.normal_(module.score)
    states = torch.randn(1, 4, 6, requires_grad=True)
    padded = torch.cat([torch.full((1, 3, 6), 1e4), states], dim=1)
    seen = torch.tensor([[0, 0, 0, 1, 1, 1, 1]]).bool()
    alone = module(states, torch.ones(1, 4).bool())
    torch.testing.assert_close(module(padded, seen), alone)
    alone.sum().backward()
    assert states.grad is None
    assert module.queries.grad is not None
