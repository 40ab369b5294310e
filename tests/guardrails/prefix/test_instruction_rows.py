"""The recomputed rows against attention written out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sightrail.guardrails.model.doorway import AttentionCall
from sightrail.guardrails.model.template import Spans
from sightrail.guardrails.prefix import AttentiveCalibration
from sightrail.guardrails.prefix.instruction_rows import CalibratedRows, calibrate_logits

B, H, G, T, D = 2, 4, 2, 12, 8
PADDING = [0, 3]
SCALING = D**-0.5


def spans() -> Spans:
    """Prefix at padding + 2 ... + 4, instruction at padding + 5 ... + 7, then the template."""
    at = torch.arange(T) - torch.tensor(PADDING)[:, None]
    return Spans(
        image=at == 1,
        prefix=(at >= 2) & (at < 5),
        instruction=(at >= 5) & (at < 8),
        padding=torch.tensor(PADDING),
        answer=T - 1,
    )


def allowed(length: int = T) -> torch.Tensor:
    """Causal and not padding: [B, 1, T, T]."""
    real = torch.arange(length) >= torch.tensor(PADDING)[:, None]
    return torch.ones(length, length).tril().bool()[None, None] & real[:, None, None, :]


def tensors(seed: int, length: int = T) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return (
        torch.randn(B, H, length, D),
        torch.randn(B, G, length, D),
        torch.randn(B, G, length, D),
    )


def by_hand(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: AttentiveCalibration
) -> torch.Tensor:
    """Element by element, [B, T, H, D]; rows of padding are left at zero."""
    where = spans()
    out = torch.zeros(B, q.shape[2], H, D)
    for b in range(B):
        for h in range(H):
            keys, values = k[b, h // (H // G)], v[b, h // (H // G)]
            for i in range(PADDING[b], q.shape[2]):
                in_rows = i < T and bool(where.instruction[b, i])
                if options.decode and i > int(where.instruction[b].nonzero()[0]):
                    in_rows = True
                logits = torch.full((q.shape[2],), -torch.inf)
                for j in range(PADDING[b], i + 1):
                    product = float(q[b, h, i] @ keys[j])
                    z = product * SCALING
                    if in_rows and j < T and bool(where.prefix[b, j]):
                        m = max(0.0, product) if options.rule == "product" else float(product > 0)
                        z += options.gamma * m * z
                    logits[j] = z
                out[b, i, h] = logits.softmax(0) @ values
    return out


def stock(call: AttentionCall) -> torch.Tensor:
    out = torch.nn.functional.scaled_dot_product_attention(
        call.query, call.key, call.value, attn_mask=call.mask, enable_gqa=True
    )
    return out.transpose(1, 2).contiguous()


def real_rows(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[b, PADDING[b] :] for b in range(B)])


@pytest.mark.parametrize("rule", ["product", "indicator"])
@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("additive", [False, True])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), gamma=st.floats(0, 2), past_prompt=st.integers(0, 3))
def test_whole_sequence_equals_attention_by_hand(
    rule: str, decode: bool, additive: bool, seed: int, gamma: float, past_prompt: int
) -> None:
    options = AttentiveCalibration(gamma=gamma, rule=rule, decode=decode)
    q, k, v = tensors(seed, T + past_prompt)
    mask = allowed(T + past_prompt)
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    call = AttentionCall(0, q, k, v, mask, SCALING, past=0)
    got = CalibratedRows(options, spans())(call, stock(call))
    torch.testing.assert_close(
        real_rows(got), real_rows(by_hand(q, k, v, options)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("sizes", [[5, 1, 6, 1, 1], [8, 4, 2], [6, 7, 1], [1] * 14])
def test_pieces_equal_the_whole(decode: bool, sizes: list[int]) -> None:
    """Prefill in pieces and cached decoding, whatever the borders."""
    options = AttentiveCalibration(gamma=1.0, rule="indicator", decode=decode)
    length = sum(sizes)
    q, k, v = tensors(1, length)
    whole = AttentionCall(0, q, k, v, allowed(length), SCALING, past=0)
    edit = CalibratedRows(options, spans())
    pieces, past = [], 0
    for size in sizes:
        end = past + size
        mask = allowed(length)[:, :, past:end, :end]
        call = AttentionCall(
            0, q[:, :, past:end], k[:, :, :end], v[:, :, :end], mask, SCALING, past
        )
        pieces.append(edit(call, stock(call)))
        past = end
    torch.testing.assert_close(
        real_rows(torch.cat(pieces, dim=1)),
        real_rows(CalibratedRows(options, spans())(whole, stock(whole))),
        rtol=1e-5,
        atol=1e-5,
    )


def test_no_mask_means_causal() -> None:
    unpadded = replace(spans(), prefix=spans().prefix[:1], instruction=spans().instruction[:1])
    q, k, v = (x[:1] for x in tensors(2))
    options = AttentiveCalibration(gamma=1.0)
    masked = AttentionCall(0, q, k, v, allowed()[:1], SCALING, past=0)
    expected = CalibratedRows(options, unpadded)(masked, stock(masked))
    got = CalibratedRows(options, unpadded)(replace(masked, mask=None), stock(masked))
    torch.testing.assert_close(got, expected)


def test_only_calibrated_rows_change() -> None:
    q, k, v = tensors(3)
    call = AttentionCall(0, q, k, v, allowed(), SCALING, past=0)
    before = stock(call)
    kept = before.clone()
    after = CalibratedRows(AttentiveCalibration(gamma=2.0), spans())(call, before)
    assert torch.equal(before, kept), "the kernel's output is not written to"
    changed = (after != before).flatten(2).any(-1)
    assert torch.equal(changed, spans().instruction)


@pytest.mark.parametrize("rule", ["product", "indicator"])
def test_attention_to_the_prefix_grows_with_gamma(rule: str) -> None:
    q, k, v = tensors(4)
    call = AttentionCall(0, q, k, v, allowed(), SCALING, past=0)
    masses = []
    for gamma in (0.0, 0.1, 0.5, 1.0, 3.0):
        rows = CalibratedRows(AttentiveCalibration(gamma=gamma, rule=rule), spans())
        plan = rows.plan(call)
        assert plan is not None
        masses.append(float((rows.weights(call, plan) * plan.columns[:, None, None, None]).sum()))
    assert masses == sorted(masses)
    assert masses[-1] > masses[0]


def test_the_two_rules_as_printed() -> None:
    z = torch.tensor([[2.0, -2.0, 0.5]])
    target = torch.tensor([[True, True, False]])
    product = calibrate_logits(z, 0.5, target, 0.1, "product")
    # M = <Q, K> = z / 0.5 = 4, so 2 + 0.1 * 4 * 2.
    torch.testing.assert_close(product, torch.tensor([[2.8, -2.0, 0.5]]))
    indicator = calibrate_logits(z, 0.5, target, 0.1, "indicator")
    torch.testing.assert_close(indicator, torch.tensor([[2.2, -2.0, 0.5]]))
