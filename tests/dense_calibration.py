"""Attentive calibration the naive way: every row, with a dense mask, in plain eager attention.

The oracle for the exact recomputation, and the slow side of its benchmark. It shares no code with
what it checks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

NAME = "dense_calibration"


@dataclass
class Setting:
    """What to calibrate. ``prefix`` and ``rows`` are [B, T] bool, positions of the prompt."""

    prefix: torch.Tensor
    rows: torch.Tensor
    layers: Sequence[int]
    gamma: float
    rule: str
    decode: bool = False


_setting: Setting | None = None


@contextlib.contextmanager
def dense(model: Any, setting: Setting) -> Iterator[None]:
    """Run a model on the dense way. For one model and one thread at a time."""
    global _setting
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation({"text_config": NAME})
    _setting = setting
    try:
        yield
    finally:
        _setting = None
        model.set_attn_implementation({"text_config": before})


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    share = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    product = query @ key.transpose(2, 3)
    logits = product * scaling
    if _setting is not None and module.layer_idx in _setting.layers:
        target = _target(_setting, *logits.shape[::2], logits.shape[3]).to(logits.device)
        mask = product.clamp_min(0) if _setting.rule == "product" else (product > 0).to(logits)
        logits = logits + _setting.gamma * mask * target * logits
    logits = logits + attention_mask[..., : logits.shape[-1]]
    weights = logits.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), None


def _target(setting: Setting, batch: int, queries: int, keys: int) -> torch.Tensor:
    """1 where an instruction row meets a prefix column: [B, 1, Q, T]. No sliding cache."""
    beams = batch // setting.rows.shape[0]
    rows = torch.nn.functional.pad(
        setting.rows, (0, keys - setting.rows.shape[1]), value=setting.decode
    )
    columns = torch.nn.functional.pad(setting.prefix, (0, keys - setting.prefix.shape[1]))
    target = rows[:, -queries:, None] & columns[:, None, :]
    return target[:, None].repeat_interleave(beams, 0).float()


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, eager_mask)
