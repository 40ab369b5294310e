"""What keeps a fit within memory: frozen weights, checkpointed layers, pieces of a batch.

A model of 7 billion parameters in bfloat16 takes 14 GB, so on a card of 24 GB some 8 GB are left
for everything else. Nothing but what is trained gets a gradient; a decoder layer keeps its input
alone and is computed again on the way back; and a batch runs in pieces of at most so many tokens,
whose gradients are added up. What that comes to is in docs/fit_memory.json.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, TypeVar

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from ..errors import ConfigurationError, FitMemoryError, UnsupportedModelError
from ..model import doorway

T = TypeVar("T")
R = TypeVar("R")

_LARGE: Final = 1_000_000_000
_SCALE: Final = 2.0**12


@dataclass(frozen=True)
class Resources:
    """How much a fit may use at once; what comes out does not depend on it, rounding aside.

    Attributes:
        tokens_at_once: at most this many, padding included, run through the model together; a
            batch of more is split, and halved again where memory runs out all the same.
        gradient_checkpointing: compute each layer again on the way back in place of keeping what it
            computed: about a third more time, and a small share of the memory. None does so for
            models of more than a billion parameters.

    Raises:
        ConfigurationError: tokens_at_once is not positive.
    """

    tokens_at_once: int = 8192
    gradient_checkpointing: bool | None = None

    def __post_init__(self) -> None:
        """Check the number."""
        if self.tokens_at_once < 1:
            raise ConfigurationError(f"tokens_at_once must be positive, got {self.tokens_at_once}.")

    def checkpoints(self, model: Any) -> bool:
        """Whether layers of this model are computed twice."""
        if self.gradient_checkpointing is not None:
            return self.gradient_checkpointing
        return bool(sum(parameter.numel() for parameter in model.parameters()) > _LARGE)


class Budget:
    """How many tokens may run together now: less after each time that memory ran out."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def rows(self, length: int) -> int:
        """How many rows of a length fit."""
        return max(1, self.tokens // max(1, length))

    def lower(self, rows: int, length: int, cause: Exception) -> None:
        """Memory ran out with so many rows: half of them from now on.

        Raises:
            FitMemoryError: it was a single row.
        """
        if rows == 1:
            raise FitMemoryError(
                f"Memory ran out with a single request of {length} tokens. Give the model less: "
                "gradient checkpointing on, smaller pictures, shorter answers, the base in "
                "bfloat16 or in 4 bits, or another device. The same call goes on from its "
                "checkpoint."
            ) from cause
        self.tokens = max(1, rows // 2) * length


def in_pieces(
    items: Sequence[T], length: int, work: Callable[[Sequence[T]], R], budget: Budget
) -> list[R]:
    """Work on items in pieces as large as memory allows.

    Args:
        items: rows of a batch.
        length: tokens of the longest, padding included.
        work: on some of them; it leaves nothing behind when it fails.
        budget: is lowered where memory runs out.

    Raises:
        FitMemoryError: not even one item fits.
    """
    results: list[R] = []
    done = 0
    while done < len(items):
        rows = min(budget.rows(length), len(items) - done)
        try:
            results.append(work(items[done : done + rows]))
        except torch.OutOfMemoryError as error:
            budget.lower(rows, length, error)
        else:
            done += rows
            continue
        gc.collect()  # outside of the handler, which keeps the failed pass alive
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return results


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes that are allocated at once, beyond what was there before.

    Args:
        work: what to watch.
        device: a GPU counts for itself; on the CPU torch's profiler counts every allocation.
    """
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        work()
    events = [e for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@contextlib.contextmanager
def frozen(model: Any) -> Iterator[None]:
    """No weight of the model wants a gradient for as long as this lasts."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def layers_computed_twice(model: Any, wanted: bool = True) -> Iterator[None]:
    """Layers keep their input alone for the way back.

    The layers' own switch is used, with a function that takes the context variables along: on a
    GPU the way back runs in a thread of its own, which would not see the request.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    layers = layers if wanted else []
    before = [(layer.gradient_checkpointing, layer.training) for layer in layers]
    try:
        for layer in layers:
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = _checkpointed  # type: ignore[assignment]
            layer.training = True  # of the layer alone: its parts drop nothing out
        yield
    finally:
        for layer, (flag, training) in zip(layers, before, strict=True):
            layer.gradient_checkpointing, layer.training = flag, training


def _checkpointed(function: Callable[..., Any], *args: Any) -> Any:
    context = copy_context()
    passes = count()

    def again(*inner: Any) -> Any:
        with doorway.computed_again():
            return function(*inner)

    def run(*inner: Any) -> Any:
        return context.copy().run(again if next(passes) else function, *inner)

    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)


def training_dtype(model: Any) -> torch.dtype:
    """What a forward pass for training computes in: float16 where the model is kept in it."""
    half: bool = model.dtype == torch.float16
    return torch.float16 if half else torch.bfloat16


class ScaledGradients:
    """Gradients of a loss; through float16 they are scaled up, where small ones would be lost.

    Args:
        dtype: what the model computes in.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._scale = _SCALE if dtype == torch.float16 else 1.0

    def __call__(self, loss: Tensor, learnt: Sequence[Tensor]) -> list[Tensor | None]:
        """The gradient for each of ``learnt``; None where the loss does not depend on it.

        Raises:
            UnsupportedModelError: the loss is no number.
        """
        while True:
            scaled = loss * self._scale
            found = torch.autograd.grad(
                scaled, list(learnt), allow_unused=True, retain_graph=self._scale > 1
            )
            if self._scale == 1 or all(g is None or bool(g.isfinite().all()) for g in found):
                break
            require_numbers(loss.detach(), "The loss")
            self._scale /= 2
        if self._scale == 1:
            return list(found)
        return [None if g is None else g / self._scale for g in found]


def added(sums: Sequence[Sequence[Tensor | None]]) -> list[Tensor | None]:
    """The gradients of several pieces of one batch, added up.

    Raises:
        UnsupportedModelError: one holds values that are no numbers; nothing was moved by it yet.
    """
    known = [[g for g in each if g is not None] for each in zip(*sums, strict=True)]
    whole = [torch.stack(each).sum(dim=0) if each else None for each in known]
    for gradient in whole:
        if gradient is not None:
            require_numbers(gradient, "A gradient")
    return whole


def require_numbers(values: Tensor, what: str) -> None:
    """Make sure that there is no NaN and no infinity.

    Raises:
        UnsupportedModelError: there is; ``what`` names the values.
    """
    if not bool(values.isfinite().all()):
        raise UnsupportedModelError(
            f"{what} is no number in this model's number format; load it with dtype='bfloat16' or "
            "'float32', and see what `sightrail doctor` says of its numbers."
        )
