"""Exact attention for a few rows, put in the place of what the model's own kernel gave them.

The mechanism under :class:`AttentiveCalibration`: the model's kernel computes every row; the
calibrated rows are computed again with their changed logits. R rows over T keys cost R x T, where
a changed mask for the whole would cost T x T and the fast kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..model.doorway import AttentionCall, AttentionEdit
from ..model.template import Spans
from .safety_prefix import AttentiveCalibration, Rule


def calibration_edits(
    settings: AttentiveCalibration, layers: Sequence[int], spans: Spans
) -> dict[int, AttentionEdit]:
    """The edit of each calibrated layer, for one batch of prompts."""
    return dict.fromkeys(layers, CalibratedRows(settings, spans))


@dataclass(frozen=True)
class RowPlan:
    """What the layers of one forward pass have in common.

    Attributes:
        rows: the rows to compute, as indices into the queries. A row may stand in it more
            than once.
        valid: whether a row is to be changed; false throughout a prompt that has no
            calibrated row in this call. None when every row is, as in a prefill in one piece.
        columns: which keys are the safety prefix.
        mask: the rows' part of the attention mask, broadcastable to [B, G, H / G, R, T]; None
            where every key may be attended to.
    """

    rows: Int[Tensor, "B R"]
    valid: Bool[Tensor, "B R"] | None
    columns: Bool[Tensor, "B T"]
    mask: Tensor | None


class CalibratedRows:
    """Compute the calibrated rows of an attention call again and put them in place.

    Spans are positions in the padded prompt; a call covers the queries from ``call.past`` on, so
    they hold for a prefill in one piece or in several, and for cached decoding.

    Args:
        settings: strength, rule, and whether the rows after the instruction change as well.
        spans: token positions of the batch.
    """

    def __init__(self, settings: AttentiveCalibration, spans: Spans) -> None:
        self._settings = settings
        self._prompt_length = spans.answer + 1
        self._prefix = spans.prefix
        self._rows = _padded_rows(_row_mask(spans, decode=settings.decode))
        self._first, self._last = int(self._rows.min()), int(self._rows.max())
        #: When there is nothing left to do; see ``doorway``.
        self.until = math.inf if settings.decode else self._last + 1
        # Layers of a model may be on several devices.
        self._plans: dict[torch.device, tuple[tuple[int, ...], Tensor | None, RowPlan]] = {}

    def __call__(self, call: AttentionCall, output: Tensor) -> Tensor:
        """Change the output [B, Q, H, D] at the calibrated rows."""
        plan = self.plan(call)
        if plan is None:
            return output
        fresh = weighted_values(self.weights(call, plan), call.value)
        index = plan.rows[:, :, None, None].expand_as(fresh)
        if plan.valid is not None:
            fresh = fresh.where(plan.valid[:, :, None, None], output.gather(1, index))
        return output.scatter(1, index, fresh)

    def weights(self, call: AttentionCall, plan: RowPlan) -> Tensor:
        """Calibrated attention weights of the planned rows, [B, G, H / G, R, T]."""
        logits = calibrate_logits(
            attend(call, plan),
            call.scaling,
            plan.columns[:, None, None, None, :],
            float(self._settings.gamma),
            self._settings.rule,
        )
        return logits.softmax(dim=-1)

    def plan(self, call: AttentionCall) -> RowPlan | None:
        """What to compute in this call; None when it holds no calibrated row.

        Layers of one pass share masks and lengths, so the last plan of a device usually serves.
        """
        end = call.past + call.query.shape[2]
        in_prompt = call.past <= self._last and end > self._first
        generated = self._settings.decode and end > self._prompt_length
        if not (in_prompt or generated):
            return None
        key = (call.past, *call.query.shape[::2], call.key.shape[2])
        last = self._plans.get(call.query.device)
        if last is None or last[0] != key or last[1] is not call.mask:
            last = (key, call.mask, self._make_plan(call, in_prompt, generated))
            self._plans[call.query.device] = last
        return last[2]

    def _make_plan(self, call: AttentionCall, in_prompt: bool, generated: bool) -> RowPlan:
        batch, queries, device = call.query.shape[0], call.query.shape[2], call.query.device
        parts: list[tuple[Tensor, Tensor]] = []
        if in_prompt:
            parts.append(self._prompt_rows(call))
        if generated:
            first = max(self._prompt_length - call.past, 0)
            rows = torch.arange(first, queries, device=device).expand(batch, -1)
            parts.append((rows, torch.ones_like(rows, dtype=torch.bool)))
        chosen = torch.cat([rows for rows, _ in parts], dim=1)
        complete = call.past <= self._first and call.past + queries > self._last
        valid = None if complete else torch.cat([valid for _, valid in parts], dim=1)
        return RowPlan(chosen, valid, self._columns(call), _mask_rows(call, chosen))

    def _prompt_rows(self, call: AttentionCall) -> tuple[Tensor, Tensor]:
        """Calibrated rows of the prompt [B, R] as indices into the queries, and which are valid."""
        batch, queries = call.query.shape[0], call.query.shape[2]
        local = _per_beam(self._rows, batch).to(call.query.device) - call.past
        inside = (local >= 0) & (local < queries)
        # Rows outside this call stand in for one inside it: computed twice, changed once.
        stand_in = local.gather(1, inside.int().argmax(dim=1, keepdim=True))
        rows = local.where(inside, stand_in).clamp(0, queries - 1)
        return rows, inside.any(dim=1, keepdim=True).expand_as(local)

    def _columns(self, call: AttentionCall) -> Tensor:
        """Which keys [B, T] of this call are the prefix."""
        batch, length = call.key.shape[0], call.key.shape[2]
        prefix = _per_beam(self._prefix, batch).to(call.key.device)
        seen = prefix[:, call.first_key : call.first_key + length]
        return torch.nn.functional.pad(seen, (0, length - seen.shape[1]))


def attend(call: AttentionCall, plan: RowPlan) -> Float[Tensor, "B G share R T"]:
    """Scaled and masked attention logits Z of the planned rows.

    Returns:
        In float32, hugely negative where a row may not attend; `share` = H / G heads have one
        group of keys.
    """
    batch, heads, _, dim = call.query.shape
    groups, length = call.key.shape[1], call.key.shape[2]
    index = plan.rows[:, None, :, None].expand(-1, heads, -1, dim)
    query = call.query.gather(2, index).reshape(batch, groups, -1, dim)
    key = call.key
    if query.dtype == torch.float16:
        query, key = query.float(), key.float()  # a product above 65504 is infinite in half
    logits = (query @ key.transpose(-1, -2)).float() * call.scaling
    logits = logits.reshape(batch, groups, heads // groups, -1, length)
    if plan.mask is None:
        return logits
    if plan.mask.dtype == torch.bool:
        return logits.masked_fill(~plan.mask, -math.inf)
    return logits + plan.mask


def weighted_values(
    weights: Float[Tensor, "B G share R T"], value: Float[Tensor, "B G T D"]
) -> Float[Tensor, "B R H D"]:
    """Attention output of H = G x share heads, of which `share` have one group of values."""
    batch, groups, share, rows, length = weights.shape
    mixed = weights.to(value.dtype).reshape(batch, groups, share * rows, length) @ value
    return mixed.reshape(batch, groups * share, rows, -1).transpose(1, 2)


def _row_mask(spans: Spans, *, decode: bool) -> Tensor:
    """Calibrated rows [B, T] of the prompt: the instruction, or everything from its start on."""
    if not decode:
        return spans.instruction
    return (spans.instruction.cumsum(dim=1) > 0) & ~spans.prefix


def _mask_rows(call: AttentionCall, rows: Tensor) -> Tensor | None:
    """The part of the call's mask for some rows [B, R]; see :class:`RowPlan`."""
    batch, heads, queries, _ = call.query.shape
    groups, length = call.key.shape[1], call.key.shape[2]
    if call.mask is None:
        if queries == 1:
            return None
        # Plain causal, as sdpa means it: the first query stands at the first key.
        causal = torch.arange(length, device=rows.device) <= rows[:, :, None]
        return causal[:, None, None]
    mask = call.mask[..., :length].expand(batch, -1, -1, -1)
    mask = mask.gather(2, rows[:, None, :, None].expand(-1, mask.shape[1], -1, length))
    if mask.shape[1] == 1:
        return mask[:, :, None]
    return mask.reshape(batch, groups, heads // groups, -1, length)


def _padded_rows(mask: Bool[Tensor, "B T"]) -> Int[Tensor, "B R"]:
    """Positions of the true entries; short rows repeat their last one.

    A row that is computed twice gets the same result twice.
    """
    found = [row.nonzero().flatten() for row in mask]
    longest = max(len(row) for row in found)
    return torch.stack([torch.cat([row, row[-1:].expand(longest - len(row))]) for row in found])


def _per_beam(rows: Tensor, batch: int) -> Tensor:
    """Repeat the rows of each prompt for its beams, which stand next to each other."""
    return rows if len(rows) == batch else rows.repeat_interleave(batch // len(rows), dim=0)


def calibrate_logits(
    logits: Float[Tensor, "*batch R T"],
    scaling: float,
    target: Bool[Tensor, "*#batch #R T"],
    gamma: float,
    rule: Rule,
) -> Float[Tensor, "*batch R T"]:
    """Zhat = Z + gamma * (M o Z) (GuardAlign, sec. 3.2).

    Args:
        logits: Z, scaled.
        scaling: the factor inside Z, usually 1 / sqrt(d_k); Z / scaling = <Q_i, K_j>.
        target: whether i is in the instruction and j in the prefix.
        gamma: strength.
        rule: what M holds at the target.

    Returns:
        Zhat.
    """
    positive = logits.clamp_min(0)
    # M o Z is zero wherever Z is negative, under both rules.
    boost = positive * positive / scaling if rule == "product" else positive
    return logits + gamma * boost * target
