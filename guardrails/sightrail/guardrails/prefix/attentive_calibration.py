"""Attentive calibration: make the instruction attend more to the safety prefix.

Before the softmax, in some middle layers and in all heads (GuardAlign, arXiv 2602.24027, sec. 3.2):

    Z = Q K^T / sqrt(d_k),    Zhat = Z + gamma * (M o Z)

where M(i, j) is not zero only for i in the instruction and j in the prefix. Two readings of M:

- ``product``, as printed: M(i, j) = max(0, <Q_i, K_j>), quadratic in the logits and scaled by
  sqrt(d_k), so that gamma has to be small and depends on the head size;
- ``indicator``: M(i, j) = 1[<Q_i, K_j> > 0], so that a positive logit is multiplied by 1 + gamma.
  Our reading of the intent; VAF (CVPR 2025) multiplies by 1.15 in layers 9-14 of LLaVA-1.5-7B.

Only instruction rows change: the model's own kernel computes every row, and these few are computed
again with their changed logits. R rows over T keys cost R x T, where a changed mask for the whole
would cost T x T and the fast kernel. What follows the prompt attends to changed keys and values, so
decoding needs nothing more, unless ``decode`` asks for its rows as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch
from torch import Tensor

from ..errors import ConfigurationError
from ..model.doorway import AttentionCall, AttentionEdit
from ..model.template import Spans
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


def calibration_edits(
    settings: AttentiveCalibration, layers: Sequence[int], spans: Spans
) -> dict[int, AttentionEdit]:
    """The edit of each calibrated layer, for one batch of prompts."""
    return dict.fromkeys(layers, CalibratedRows(settings, spans))


@dataclass(frozen=True)
class RowPlan:
    """What the layers of one forward pass have in common.

    Attributes:
        rows: [B, R], the rows to compute, as indices into the queries. A row may stand in it more
            than once.
        valid: [B, R], whether a row is to be changed; false throughout a prompt that has no
            calibrated row in this call. None when every row is, as in a prefill in one piece.
        columns: [B, T], which keys are the safety prefix.
        mask: the rows' part of the attention mask, broadcastable to [B, G, H / G, R, T]; None
            where every key may be attended to.
    """

    rows: Tensor
    valid: Tensor | None
    columns: Tensor
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
            self._settings.gamma,
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


def attend(call: AttentionCall, plan: RowPlan) -> Tensor:
    """Scaled and masked attention logits Z of the planned rows.

    Returns:
        [B, G, H / G, R, T] float32, hugely negative where a row may not attend.
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


def weighted_values(weights: Tensor, value: Tensor) -> Tensor:
    """Attention output [B, R, H, D] from weights [B, G, H / G, R, T] and values [B, G, T, D]."""
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


def _padded_rows(mask: Tensor) -> Tensor:
    """Positions [B, R] of the true entries of [B, T]; short rows repeat their last one.

    A row that is computed twice gets the same result twice.
    """
    found = [row.nonzero().flatten() for row in mask]
    longest = max(len(row) for row in found)
    return torch.stack([torch.cat([row, row[-1:].expand(longest - len(row))]) for row in found])


def _per_beam(rows: Tensor, batch: int) -> Tensor:
    """Repeat the rows of each prompt for its beams, which stand next to each other."""
    return rows if len(rows) == batch else rows.repeat_interleave(batch // len(rows), dim=0)
