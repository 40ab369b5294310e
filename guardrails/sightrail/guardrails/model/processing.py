"""All of a request's changes to the logits, as one processor; its sampling is one of them.

``generate`` looks at the signature of every custom processor for every token, so one object for all
of them costs less; and what works on the first tokens only is not called after them.

``generate`` draws from torch's global random state, which every thread shares. Taking the argmax of
``log p + g`` with Gumbel noise ``g`` draws from exactly ``p`` (the Gumbel-max trick), so the noise
can come from a generator that belongs to one row of one request, and ``generate`` itself stays
greedy.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from .doorway import RequestState
from .interventions import Interventions
from .messages import GenerationOptions


class GumbelNoise(LogitsProcessor):
    """Add standard Gumbel noise to the scores, one generator per row.

    Args:
        seeds: one per row. Rows with equal seeds get equal noise, so that a row of a batch draws
            what it would draw alone.
    """

    def __init__(self, seeds: list[int]) -> None:
        self._seeds = seeds
        self._generators: list[torch.Generator] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Perturb scores [B, V]."""
        if not self._generators:
            self._generators = [
                torch.Generator(scores.device).manual_seed(seed) for seed in self._seeds
            ]
        noise = torch.stack(
            [
                torch.empty(scores.shape[-1], device=scores.device).exponential_(generator=source)
                for source in self._generators
            ]
        )
        # An exponential draw e gives a Gumbel draw -log(e).
        return scores.float() - noise.log()


def sampling_processors(
    options: GenerationOptions, seeds: Sequence[int | None]
) -> list[LogitsProcessor]:
    """The processors that turn greedy choice into sampling; none when temperature is 0.

    Rows without a seed each get their own from torch's global state, so ``torch.manual_seed`` still
    governs.

    Args:
        options: temperature, top_k and top_p of all rows.
        seeds: each row's own.
    """
    if not options.sampled:
        return []
    out: list[LogitsProcessor] = [TemperatureLogitsWarper(float(options.temperature))]
    if options.top_k is not None:
        out.append(TopKLogitsWarper(options.top_k))
    if options.top_p is not None and options.top_p < 1:
        out.append(TopPLogitsWarper(options.top_p))
    drawn = iter(torch.randint(2**62, (sum(seed is None for seed in seeds),)).tolist())
    return [*out, GumbelNoise([next(drawn) if seed is None else seed for seed in seeds])]


@dataclass(frozen=True)
class Part:
    """One processor and what it gets to see.

    Attributes:
        processor: the processor.
        begin: it is called from sequences of this length on, and gets the tokens from there on. It
            may have an attribute ``until``: given that many tokens or more, it changes nothing.
    """

    processor: LogitsProcessor
    begin: int = 0

    @property
    def end(self) -> float:
        """The length of the sequences from which on it need not be called."""
        until: float = getattr(self.processor, "until", math.inf)
        return self.begin + until


class Together(LogitsProcessor):
    """Several processors, in order."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = tuple((part.processor, part.begin, part.end) for part in parts)
        self._end = max(part.end for part in parts)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores [B, V], processed for the sequences input_ids [B, T]."""
        length = input_ids.shape[1]
        if length >= self._end:
            return scores
        for processor, begin, end in self._parts:
            if begin <= length < end:
                scores = processor(input_ids[:, begin:] if begin else input_ids, scores)
        return scores


# `generate` asks for it at every token, and finding it out anew takes longer than the call itself.
Together.__call__.__signature__ = inspect.signature(Together.__call__)  # type: ignore[attr-defined]


class RequireEdits(LogitsProcessor):
    """Before the first token is chosen: make sure that the prompt met every edit.

    Args:
        state: of the request.
        length: of the prompt.
    """

    def __init__(self, state: RequestState, length: int) -> None:
        self._state = state
        self.until = length + 1

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores as they are."""
        self._state.require_ran()
        return scores


def processors(
    interventions: Sequence[Interventions],
    sampling: Sequence[LogitsProcessor],
    begin: int,
    *,
    checks: Sequence[LogitsProcessor] = (),
    allowed: Sequence[LogitsProcessor] = (),
) -> LogitsProcessorList:
    """Checks, the guardrails' processors, what the answer may hold, and sampling, in this order.

    Args:
        interventions: of the request.
        sampling: draws the token.
        begin: length of the sequence where the answer begins.
        checks: look at the run before anything is changed.
        allowed: leave of the answer's tokens those that it may hold.
    """
    parts = [Part(processor) for processor in checks]
    parts += [Part(processor) for one in interventions for processor in one.logits]
    parts += [Part(processor, begin) for one in interventions for processor in one.answer_logits]
    parts += [Part(processor, begin) for processor in allowed]
    parts += [Part(processor) for processor in sampling]
    return LogitsProcessorList([Together(parts)] if parts else [])
