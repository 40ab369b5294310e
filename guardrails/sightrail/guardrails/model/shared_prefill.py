"""Several calls about the same pictures: what their prompts have in common is computed once.

The first call keeps its cache. A later call takes from it the keys and values of the tokens that
its prompts begin with as well, and computes only the rest. Rows begin with different numbers of
common tokens, so a row may have a hole between the part from the cache and its own rest:

    first call    [ padding | common | rest of the first prompt ]
    later call    [ padding | common | hole | rest of this prompt ]

Holes are masked like padding and counted in no position, so every token sees what it would see
without them. Appending to a cache makes new tensors, so calls cannot reach each other's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import LogitsProcessor
from transformers.cache_utils import DynamicCache, DynamicLayer

from .families import image_token_ids
from .prompt import Prompt

#: Families whose decoder is causal over pictures and text alike and keeps every position.
#: Not here: Gemma 3 (picture tokens attend to each other both ways, layers forget what leaves
#: their window) and Mllama (pictures are read through cross-attention, which has its own cache).
#: LLaVA-NeXT is left out case by case where its text model has a sliding window.
SHARING_FAMILIES: Final = frozenset(
    {"llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"}
    | {"internvl", "idefics3", "smolvlm", "mistral3"}
)
#: What a greedy run gives to every forward pass by itself.
_GIVEN: Final = frozenset({"input_ids", "attention_mask", "position_ids"})
_PER_TOKEN: Final = frozenset(
    {"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"}
)


@dataclass(frozen=True)
class Prefilled:
    """A prompt of which the beginning is computed already.

    Attributes:
        inputs: what ``generate`` takes in place of the prompt's own inputs: ``input_ids`` [B, T],
            ``attention_mask`` [B, T], and positions where the model does not count them itself.
        cache: keys and values of the first columns; for one run only.
        spoken: how many of the last columns are the beginning of the answer already. They are what
            a greedy run of one row would say, guardrails heeded; another run takes ``silent``.
        silent: the same prompt without them.
    """

    inputs: Mapping[str, torch.Tensor]
    cache: DynamicCache
    spoken: int = 0
    silent: Prefilled | None = None

    @property
    def length(self) -> int:
        """Padded prompt length T."""
        return int(self.inputs["input_ids"].shape[1])

    @torch.no_grad()
    def greedy(
        self,
        model: Any,
        steps: int,
        *,
        end_tokens: Collection[int] = (),
        processors: Sequence[LogitsProcessor] = (),
        going_on: Callable[[], None] = lambda: None,
    ) -> torch.Tensor:
        """The likeliest tokens after the prompt, as ``generate`` would choose them.

        ``generate`` prepares a run for two forward passes' time, and a token for a third of one's;
        the short calls that a guardrail makes by itself need none of it. The model has to leave
        scores as they are (``plainly_greedy``).

        Args:
            model: whose cache this begins from; it has to share (``can_share``).
            steps: at most so many tokens; fewer once every row has ended.
            end_tokens: what ends a row.
            processors: look at the tokens so far [B, t] and the scores [B, V], and change these.
            going_on: called before every token; what it raises ends the run.

        Returns:
            [B, n]; what follows an end token in a row means nothing.
        """
        ids, mask = self.inputs["input_ids"], self.inputs["attention_mask"]
        known = self.cache.get_seq_length()
        positions = self.inputs.get("position_ids")
        if positions is None:
            positions = (mask.long().cumsum(-1) - 1).clamp_min(0)
        shown = {name: v for name, v in self.inputs.items() if name not in _GIVEN} | {
            "input_ids": ids[:, known:],
            "position_ids": positions[..., known:],
        }
        padded = not bool(mask.all())
        ends = torch.tensor(sorted(end_tokens), device=ids.device, dtype=ids.dtype)
        ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        made: list[torch.Tensor] = []
        while True:
            going_on()
            scores = model(
                **shown,
                attention_mask=mask if padded else None,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            for process in processors:
                scores = process(ids, scores)
            token = scores.argmax(-1, keepdim=True)
            made.append(token)
            ended |= torch.isin(token[:, 0], ends)
            if len(made) >= steps or bool(ended.all()):
                return torch.cat(made, 1)
            ids = torch.cat([ids, token], 1)
            mask = torch.cat([mask, torch.ones_like(token, dtype=mask.dtype)], 1)
            shown = {"input_ids": token, "position_ids": shown["position_ids"][..., -1:] + 1}

    def continued(self, row: int, tokens: Sequence[int], silent: Prefilled | None) -> Prefilled:
        """One row after a run, gone on with the first ``tokens`` that it generated there."""
        device = self.inputs["input_ids"].device
        said = torch.tensor([tokens], device=device)
        inputs = {
            "input_ids": torch.cat([self.inputs["input_ids"][row : row + 1], said], 1),
            "attention_mask": torch.cat(
                [self.inputs["attention_mask"][row : row + 1], torch.ones_like(said)], 1
            ),
        }
        if "position_ids" in self.inputs:
            before = self.inputs["position_ids"][:, row : row + 1]
            after = before[..., -1:] + 1 + torch.arange(len(tokens), device=device)
            inputs["position_ids"] = torch.cat([before, after], -1)
        # The last token is left to compute: its logits choose the next one.
        cache = _cut(self.cache, [row], self.length + len(tokens) - 1)
        return Prefilled(inputs, cache, len(tokens), silent)


def can_share(model: Any) -> bool:
    """Whether calls to this model may take the beginning of their prompts from each other."""
    if getattr(model.config, "model_type", None) not in SHARING_FAMILIES:
        return False
    layers = _empty_cache(model).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


#: Settings of generation that choose no other token where one is the likeliest.
_HARMLESS: Final = frozenset(
    {"bos_token_id", "eos_token_id", "pad_token_id", "max_length", "max_new_tokens"}
    | {"do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "num_beams"}
    | {"output_attentions", "output_hidden_states", "return_dict_in_generate"}
    | {"transformers_version", "_from_model_config"}
)


def plainly_greedy(model: Any) -> bool:
    """Whether the likeliest tokens of this checkpoint are what its scores say, and no habit of its
    own (a penalty on repetition, a list of words that may not come) is to be heeded.
    """
    habits = {"use_cache": True, **model.generation_config.to_diff_dict()}
    return bool(habits.pop("use_cache")) and not any(
        value is not None for name, value in habits.items() if name not in _HARMLESS
    )


def _empty_cache(model: Any) -> DynamicCache:
    return DynamicCache(config=model.config.get_text_config())


@dataclass(frozen=True)
class SharedPrefill:
    """The first of several calls, and its cache.

    Attributes:
        model: the model.
        prompt: the first call's.
        cache: filled once ``first`` has been run.
    """

    model: Any
    prompt: Prompt
    cache: DynamicCache

    @classmethod
    def of(cls, model: Any, prompt: Prompt) -> SharedPrefill:
        """For this first prompt; nothing is computed yet."""
        return cls(model, prompt, _empty_cache(model))

    @property
    def first(self) -> Prefilled:
        """What to run the first call with, so that its cache is kept."""
        return Prefilled(self.prompt.inputs, self.cache)

    @property
    def begun(self) -> Prefilled:
        """The same with the positions that a model would have counted, for ``Prefilled.greedy``."""
        positions = picture_positions(self.model, self.prompt)
        known = {} if positions is None else {"position_ids": positions}
        return Prefilled({**self.prompt.inputs, **known}, self.cache)

    def beside(self, prompt: Prompt, pad_token_id: int | None) -> Prompt | None:
        """The first prompt and a later one of as many rows, as one batch; both from the cache.

        Returns:
            None where :meth:`begin` would give None.
        """
        rows = list(range(self.prompt.rows))
        if not _same_pictures(self.prompt.inputs, prompt.inputs, 1):
            return None
        if self._common(prompt, rows) is None:
            return None
        return _stacked(self.prompt, prompt, pad_token_id or 0)

    def begin(self, prompt: Prompt, pad_token_id: int | None) -> Prefilled | None:
        """A later call, begun from the cache of the first.

        Args:
            prompt: the later prompt; its rows are the first prompt's in the same order, perhaps
                several times over: [R * B].
            pad_token_id: stands in holes.

        Returns:
            None where the call has to be computed from its start: a picture, or the place of one,
            is not what it was in the first call, or the model was told to keep no cache there.
        """
        if not self.cache.get_seq_length():
            return None
        repeats = prompt.rows // self.prompt.rows
        if not _same_pictures(self.prompt.inputs, prompt.inputs, repeats):
            return None
        rows = list(range(self.prompt.rows)) * repeats
        common = self._common(prompt, rows)
        if common is None:
            return None
        columns = _columns(self.prompt.inputs["attention_mask"][rows], prompt, common)
        cache = _cut(self.cache, rows, columns.cached)
        return Prefilled(_inputs(self.model, prompt, columns, pad_token_id or 0), cache)

    def _common(self, prompt: Prompt, rows: list[int]) -> torch.Tensor | None:
        """How many tokens each row has in common with the first call; None if not all pictures."""
        images = torch.tensor(image_token_ids(self.model), device=prompt.inputs["input_ids"].device)
        counts = []
        for row, mine in enumerate(rows):
            ours, theirs = _tokens(self.prompt, mine), _tokens(prompt, row)
            shorter = min(len(ours), len(theirs))
            differ = (ours[:shorter] != theirs[:shorter]).nonzero()
            # One token at least is left to compute: its logits begin the answer.
            count = min(int(differ[0]) if len(differ) else shorter, len(theirs) - 1)
            if count < 1 or bool(torch.isin(theirs[count:], images).any()):
                return None
            counts.append(count)
        return torch.tensor(counts, device=prompt.inputs["input_ids"].device)


def _stacked(first: Prompt, second: Prompt, pad_token_id: int) -> Prompt:
    """The rows of two prompts about the same pictures, padded at the left."""
    length = max(first.length, second.length)
    inputs: dict[str, torch.Tensor] = {}
    for name in first.inputs:
        parts = [first.inputs[name], second.inputs[name]]
        if name in _PER_TOKEN:
            fill = pad_token_id if name == "input_ids" else 0
            parts = [
                torch.nn.functional.pad(part, (length - part.shape[1], 0), value=fill)
                for part in parts
            ]
        inputs[name] = torch.cat(parts)
    return Prompt(inputs, first.conversations + second.conversations)


def _tokens(prompt: Prompt, row: int) -> torch.Tensor:
    return prompt.inputs["input_ids"][row][prompt.inputs["attention_mask"][row].bool()]


def _same_pictures(
    first: Mapping[str, torch.Tensor], later: Mapping[str, torch.Tensor], repeats: int
) -> bool:
    names = (first.keys() | later.keys()) - _PER_TOKEN
    return first.keys() == later.keys() and all(
        torch.equal(later[name], torch.cat([first[name]] * repeats)) for name in names
    )


@dataclass(frozen=True)
class _Columns:
    """Where a later call's columns come from.

    Attributes:
        cached: number of columns taken from the first call.
        source: [B, T'] column of the later prompt that each of its T' columns holds; -1 for none.
    """

    cached: int
    source: torch.Tensor


def _columns(first_mask: torch.Tensor, prompt: Prompt, common: torch.Tensor) -> _Columns:
    """Lay the rows of a later prompt out behind the first call's columns.

    Args:
        first_mask: [B, T1], the first call's, by row of the later one.
        prompt: the later prompt, [B, T].
        common: [B] tokens that each row takes from the cache.
    """
    mask = prompt.inputs["attention_mask"]
    first_pad, pad = (m.shape[1] - m.sum(1) for m in (first_mask, mask))
    cached = int((first_pad + common).max())
    rest = mask.shape[1] - pad - common
    total = cached + int(rest.max())
    at = torch.arange(total, device=mask.device)[None].expand(len(mask), -1)
    shared = (at >= first_pad[:, None]) & (at < (first_pad + common)[:, None])
    own = at >= total - rest[:, None]
    source = torch.where(shared, at - (first_pad - pad)[:, None], -1)
    return _Columns(cached, torch.where(own, at - (total - mask.shape[1]), source))


def _inputs(
    model: Any, prompt: Prompt, columns: _Columns, pad_token_id: int
) -> dict[str, torch.Tensor]:
    held = columns.source >= 0
    source = columns.source.clamp_min(0)
    ids = prompt.inputs["input_ids"].gather(1, source).masked_fill(~held, pad_token_id)
    inputs = {"input_ids": ids, "attention_mask": held.to(prompt.inputs["attention_mask"].dtype)}
    positions = picture_positions(model, prompt)
    if positions is not None:
        index = source[None].expand(len(positions), -1, -1)
        inputs["position_ids"] = positions.gather(2, index).masked_fill(~held[None], 0)
    return inputs


def picture_positions(model: Any, prompt: Prompt) -> torch.Tensor | None:
    """Positions [4, B, T] of a model that counts pictures in two dimensions (Qwen-VL).

    The first is the position in the text, the others are time, height and width. Without these, the
    model would take the offset of whichever request it answered last.
    """
    count = getattr(model.model, "get_rope_index", None)
    if count is None:
        return None
    mask = prompt.inputs["attention_mask"]
    inside = {name: value for name, value in prompt.inputs.items() if name != "pixel_values"}
    positions, _ = count(**inside)
    text = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
    return torch.cat([text[None], positions.to(text)])


def _cut(cache: DynamicCache, rows: list[int], columns: int) -> DynamicCache:
    """The first columns of some rows, as a cache of its own."""
    made = DynamicCache()
    for index, layer in enumerate(cache.layers):
        assert isinstance(layer, DynamicLayer)  # `can_share` lets nothing else in
        assert layer.keys is not None
        assert layer.values is not None
        keys, values = layer.keys[:, :, :columns], layer.values[:, :, :columns]
        if rows != list(range(len(keys))):
            keys, values = keys[rows], values[rows]
        made.update(keys, values, index)
    return made
