"""One run of ``generate`` over a batch of prompts, with the interventions of its request."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from ..errors import ConfigurationError
from . import doorway
from .families import TextTower
from .interventions import Interventions
from .options import GenerationOptions
from .prompt import Prompt
from .sampling import sampling_processors
from .stopping import Cancelled, Decode, StopAtText, find_stop


@dataclass(frozen=True)
class Generation:
    """What one row produced.

    Attributes:
        tokens: the new tokens, end token and padding left out.
        input_tokens: prompt tokens without padding.
        output_tokens: produced tokens, end token included.
        finish_reason: ``"stop"`` at an end token or a stop text, else ``"length"``.
    """

    tokens: list[int]
    input_tokens: int
    output_tokens: int
    finish_reason: Literal["stop", "length"]


def generate(
    model: Any,
    prompt: Prompt,
    options: GenerationOptions,
    *,
    decode: Decode,
    pad_token_id: int | None,
    interventions: Sequence[Interventions] = (),
    tower: TextTower | None = None,
    streamer: Any = None,
    cancel: threading.Event | None = None,
) -> list[Generation]:
    """Generate for every row of a prompt.

    Args:
        model: the transformers model.
        prompt: on the model's device.
        options: how to generate.
        decode: token ids to text, for stop texts.
        pad_token_id: fills the rows that end early.
        interventions: what the request's guardrails do inside the model.
        tower: the model's text tower, where they need it.
        streamer: gets every token of a single row.
        cancel: set from another thread, it ends the run after the token at work.

    Raises:
        ConfigurationError: an unknown setting, or streaming with beams.
    """
    if streamer is not None and options.beams > 1:
        raise ConfigurationError(
            f"Streaming needs one beam, got num_beams={options.beams}; use chat instead."
        )
    config = options.config(model, pad_token_id)
    processors = [processor for one in interventions for processor in one.logits]
    processors += sampling_processors(options, prompt.rows)
    with doorway.request(request_state(interventions, tower)):
        output = model.generate(
            **prompt.inputs,
            generation_config=config,
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=StoppingCriteriaList(_criteria(options, prompt, decode, cancel)),
            streamer=streamer,
        )
    sent = prompt.inputs["attention_mask"].sum(dim=1).tolist()
    return [
        _generation(row, int(length), _end_tokens(config), options, decode)
        for row, length in zip(output[:, prompt.length :].tolist(), sent, strict=True)
    ]


def request_state(
    interventions: Sequence[Interventions], tower: TextTower | None
) -> doorway.RequestState | None:
    """The doorway's state for these interventions; None when the model runs bare."""
    attention: dict[int, tuple[doorway.AttentionEdit, ...]] = {}
    hidden: dict[int, tuple[doorway.HiddenEdit, ...]] = {}
    for one in interventions:
        for layer, attention_edit in one.attention.items():
            attention[layer] = (*attention.get(layer, ()), attention_edit)
        for layer, hidden_edit in one.hidden_states.items():
            hidden[layer] = (*hidden.get(layer, ()), hidden_edit)
    if tower is None or not (attention or hidden):
        return None
    return doorway.RequestState(tower.config, attention, hidden)


def _criteria(
    options: GenerationOptions, prompt: Prompt, decode: Decode, cancel: threading.Event | None
) -> list[StoppingCriteria]:
    criteria: list[StoppingCriteria] = []
    if options.stop:
        criteria.append(StopAtText(options.stop, prompt.length, decode))
    if cancel is not None:
        criteria.append(Cancelled(cancel))
    return criteria


def _end_tokens(config: Any) -> set[int]:
    end = config.eos_token_id
    if end is None:
        return set()
    return set(end) if isinstance(end, list | tuple) else {int(end)}


def _generation(
    row: list[int],
    input_tokens: int,
    end_tokens: set[int],
    options: GenerationOptions,
    decode: Decode,
) -> Generation:
    """Cut a row [new tokens, padding] where it ended."""
    ended = next((index for index, token in enumerate(row) if token in end_tokens), len(row))
    tokens = row[:ended]
    if find_stop(decode(tokens), options.stop) is not None:
        # A row that ended at a stop text is filled with padding; the text tells where.
        needed = bisect.bisect_left(
            range(ended),
            True,
            key=lambda count: find_stop(decode(tokens[:count]), options.stop) is not None,
        )
        return Generation(tokens[:needed], input_tokens, needed, "stop")
    if ended < len(row):
        return Generation(tokens, input_tokens, ended + 1, "stop")
    return Generation(tokens, input_tokens, len(row), "length")
