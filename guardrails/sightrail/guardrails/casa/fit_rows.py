"""From examples to rows with answers, and batches of them.

After a prompt come the safety token and the answer; a row says where each counts in training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from ..datasets import Example
from ..errors import ConfigurationError
from ..fitting.examples import split_by_label
from ..fitting.run import FitRun, conversation_of
from ..model.doorway import AttentionEdit
from ..model.generation import generate
from ..model.messages import Conversation, read_options
from ..model.prompt import Prompt, tokenizer_lock
from ..prefix import SafetyPrefix
from ..prefix.safety_prefix import DEFAULT_PREFIX
from .settings import FitSettings

if TYPE_CHECKING:
    from ..model.families import Host


@dataclass(frozen=True)
class Tail:
    """Tokens after a prompt.

    Attributes:
        tokens: in their order.
        learnt: how many of the last ones the model is trained to say.
        adapted: how many of the first ones the adapter acts on: up to the safety token.
    """

    tokens: tuple[int, ...]
    learnt: int
    adapted: int


def draw_tail(
    rng: np.random.Generator,
    token: int,
    answer: Sequence[int],
    opening: Sequence[int] | None,
    settings: FitSettings,
) -> Tail:
    """One of the forms an answer is trained in.

    Args:
        rng: the generator.
        token: the safety token.
        answer: what the model is to say.
        opening: a benign answer whose beginning stands in a harmful one's way; None for a benign
            request, whose own answer may have been begun.
        settings: how often.
    """
    drawn = rng.random()
    if opening is None:
        if drawn < settings.begun and len(answer) > 2:
            cut = int(rng.integers(1, len(answer) - 1))
            return Tail((*answer[:cut], token, *answer[cut:]), len(answer) - cut, cut + 1)
        return Tail((token, *answer), len(answer), 1)
    cut = int(rng.integers(1, max(2, min(len(opening), 16))))
    if drawn < settings.begun:
        return Tail((*opening[:cut], token, *answer), len(answer), cut + 1)
    if drawn < settings.begun + settings.forced:
        return Tail((token, *opening[:cut], *answer), len(answer), 1)
    return Tail((token, *answer), len(answer), 1)


@dataclass(frozen=True)
class TrainingBatch:
    """Prompts and what follows them, [B, T + K].

    Attributes:
        inputs: for the model's forward pass.
        labels: [B, K], the tail's tokens where they are learnt, else -100.
        adapted: [B, T + K] bool, where the adapter acts.
        seen: [B, T] bool, the prompt without padding.
        length: T.
        attention: what the batch changes in the attention, by layer.
    """

    inputs: Mapping[str, torch.Tensor]
    labels: torch.Tensor
    adapted: torch.Tensor
    seen: torch.Tensor
    length: int
    attention: Mapping[int, AttentionEdit] = field(default_factory=dict)


def join(prompt: Prompt, tails: Sequence[Tail], pad: int) -> TrainingBatch:
    """Put tails behind left-padded prompts, padded at the right."""
    mask = prompt.inputs["attention_mask"]
    longest = max(len(tail.tokens) for tail in tails)
    tokens = torch.full((len(tails), longest), pad)
    labels = torch.full_like(tokens, -100)
    there = torch.zeros_like(tokens)
    adapted = torch.zeros_like(tokens, dtype=torch.bool)
    for row, tail in enumerate(tails):
        end = len(tail.tokens)
        tokens[row, :end] = torch.tensor(tail.tokens)
        labels[row, end - tail.learnt : end] = tokens[row, end - tail.learnt : end]
        there[row, :end] = 1
        adapted[row, : tail.adapted] = True
    device = mask.device
    inputs = {name: _longer(value, prompt, longest) for name, value in prompt.inputs.items()}
    inputs["input_ids"][:, prompt.length :] = tokens.to(device)
    inputs["attention_mask"][:, prompt.length :] = there.to(device)
    return TrainingBatch(
        inputs=inputs,
        labels=labels.to(device),
        adapted=torch.cat([mask.bool(), adapted.to(device)], dim=1),
        seen=mask.bool(),
        length=prompt.length,
    )


def _longer(value: torch.Tensor, prompt: Prompt, more: int) -> torch.Tensor:
    """Inputs with one entry a position get room for the tail: as the last position has it."""
    if value.ndim < 2 or value.shape[:2] != (prompt.rows, prompt.length):
        return value
    return torch.cat([value, value[:, -1:].expand(-1, more, *value.shape[2:])], dim=1)


LEAST: Final = 4
_TOGETHER: Final = 32
_TEXT_ONLY: Final = "has a picture, and the fit is on text alone"


@dataclass(frozen=True)
class Row:
    """One request to train on, and the answer's tokens with its end.

    Attributes:
        example: the request; its pictures are decoded anew each time it is drawn.
        answer: token ids.
    """

    example: Example
    answer: tuple[int, ...]

    @property
    def conversation(self) -> Conversation:
        """Pictures decoded."""
        return conversation_of(self.example)


def trainable(run: FitRun, settings: FitSettings) -> list[Example]:
    """The examples that a batch can be made of; the others are counted as left out.

    A batch holds requests with as many pictures, harmful and benign ones. Where a number of
    pictures occurs with one label alone, the number itself would be learnt.

    Raises:
        ConfigurationError: too few of a label, or no picture would be seen though some were given.
    """
    given = list(run.data.examples)
    if settings.text_only:
        kept = [example for example in given if not example.image_count]
        run.left_out[_TEXT_ONLY] += len(given) - len(kept)
        given = kept
    split_by_label(given, LEAST)
    read = run.readable(given)
    labels = {(example.image_count, example.harmful) for example in read}
    usable, dropped = [], Counter[tuple[int, bool]]()
    for example in read:
        if (example.image_count, not example.harmful) in labels:
            usable.append(example)
        else:
            dropped[example.image_count, example.harmful] += 1
    for (count, harmful), number in dropped.items():
        side = "harmful" if harmful else "benign"
        run.left_out[f"requests with {count} pictures are all {side}"] += number
    pictured = sum(example.image_count > 0 for example in given)
    if not usable or (pictured and not any(example.image_count for example in usable)):
        told = "; ".join(f"{number}: {reason}" for reason, number in run.left_out.items())
        raise ConfigurationError(
            f"No picture would be seen though {pictured} examples have some ({told}): without a "
            "harmful and a benign request of one number of pictures, the kind itself would be "
            "learnt. Give pictures with both labels, or say text_only."
        )
    split_by_label(usable, LEAST)
    return usable


def make_rows(
    host: Host, examples: Sequence[Example], settings: FitSettings, run: FitRun
) -> list[Row]:
    """Give every example its answer; where a benign one holds none, the model as it is gives one.

    That keeps what the model can do: it is trained to go on as it did.
    """
    unanswered = [i for i, e in enumerate(examples) if not e.harmful and e.answer is None]
    # Sorted, so that rows of one kind and length run together.
    unanswered.sort(key=lambda i: (examples[i].image_count, len(str([examples[i].text]))))
    made = _own_answers(host, [examples[i] for i in unanswered], settings, run)
    own = dict(zip(unanswered, made, strict=True))
    rows = []
    for index, example in enumerate(examples):
        answer = own.get(index) or _encoded(host, example.answer or settings.refusal)
        rows.append(Row(example, answer[: settings.answer_tokens]))
    return rows


def _own_answers(
    host: Host, examples: Sequence[Example], settings: FitSettings, run: FitRun
) -> list[tuple[int, ...]]:
    options = read_options(max_new_tokens=settings.answer_tokens)

    def work(part: Sequence[Example]) -> list[list[int]]:
        talks = [conversation_of(example) for example in part]
        prompt = host.prompt(talks, spans=False, prefix=None)
        made = generate(
            host.model, prompt, options, decode=host.decode, pad_token_id=host.pad_token_id
        )
        return [[*g.tokens, *(_end(host) if g.finish_reason == "stop" else [])] for g in made]

    answers = run.each(
        "the model's own answers",
        examples,
        work,
        most=_TOGETHER,
        more_tokens=settings.answer_tokens,
    )
    return [tuple(answer) for answer in answers]


def _encoded(host: Host, text: str) -> tuple[int, ...]:
    tokenizer = host.processor.tokenizer
    with tokenizer_lock(tokenizer):
        tokens = tokenizer.encode(text, add_special_tokens=False)
    return (*tokens, *_end(host))


def _end(host: Host) -> list[int]:
    """What ends an answer of this model."""
    end = host.model.generation_config.eos_token_id
    if isinstance(end, list):
        end = end[0]
    return [] if end is None else [int(end)]


def _prefixed(conversation: Conversation) -> Conversation:
    prefixed: Conversation = SafetyPrefix().apply(conversation)
    return prefixed


@dataclass(frozen=True)
class Drawn:
    """The rows of one step, before they are put into tensors.

    Attributes:
        talks: conversations, some behind the safety prefix.
        tails: what follows each of them.
        harmful: whose token is C_unsafe.
        calibrated: whether the prefix of all of them is calibrated.
    """

    talks: tuple[Conversation, ...]
    tails: tuple[Tail, ...]
    harmful: tuple[bool, ...]
    calibrated: bool

    def part(self, rows: Sequence[int]) -> Drawn:
        """Some of the rows."""
        return replace(
            self,
            talks=tuple(self.talks[row] for row in rows),
            tails=tuple(self.tails[row] for row in rows),
            harmful=tuple(self.harmful[row] for row in rows),
        )


class Batches:
    """Endless batches, half harmful and half benign, each of rows with as many pictures.

    Batch k depends on (seed, k) alone, so that a resumed run goes on as it would have.
    """

    def __init__(
        self, host: Host, rows: Sequence[Row], tokens: tuple[int, int], settings: FitSettings
    ) -> None:
        self._host, self._tokens, self._settings = host, tokens, settings
        groups: dict[int, tuple[list[Row], list[Row]]] = {}
        for row in rows:
            pair = groups.setdefault(row.example.image_count, ([], []))
            pair[row.example.harmful].append(row)
        self._groups = [pair for pair in groups.values() if all(pair)]
        sizes = np.array([len(benign) + len(harmful) for benign, harmful in self._groups])
        self._odds = sizes / sizes.sum()
        self._openings = [row.answer for row in rows if not row.example.harmful]

    def __getitem__(self, step: int) -> Drawn:
        """The rows of a step."""
        rng = np.random.default_rng([self._settings.seed, step])
        benign, harmful = self._groups[int(rng.choice(len(self._groups), p=self._odds))]
        half = self._settings.batch // 2
        rows = [harmful[i] for i in rng.integers(len(harmful), size=half)]
        rows += [benign[i] for i in rng.integers(len(benign), size=self._settings.batch - half)]
        calibrated = bool(rng.random() < self._settings.calibrated)
        share = 1.0 if calibrated else self._settings.prefixed
        drawn = rng.random(len(rows)) < share
        talks = [
            _prefixed(row.conversation) if chosen else row.conversation
            for row, chosen in zip(rows, drawn, strict=True)
        ]
        tails = []
        for row in rows:
            opening = self._openings[int(rng.integers(len(self._openings)))]
            unsafe = row.example.harmful
            tails.append(
                draw_tail(
                    rng,
                    self._tokens[unsafe],
                    row.answer,
                    opening if unsafe else None,
                    self._settings,
                )
            )
        flags = tuple(row.example.harmful for row in rows)
        return Drawn(tuple(talks), tuple(tails), flags, calibrated)

    def prompt(self, drawn: Drawn) -> Prompt:
        """The prompts of drawn rows, on the CPU."""
        prefix = DEFAULT_PREFIX if drawn.calibrated else None
        return self._host.prompts.build(drawn.talks, spans=drawn.calibrated, prefix=prefix)

    def tensors(self, drawn: Drawn, prompt: Prompt | None = None) -> TrainingBatch:
        """Drawn rows as the model takes them.

        Args:
            drawn: the rows.
            prompt: their prompts, where they were built already.
        """
        host = self._host
        prompt = (prompt or self.prompt(drawn)).to(host.model.device, host.model.dtype)
        batch = join(prompt, drawn.tails, host.pad_token_id or 0)
        if drawn.calibrated:
            guard = SafetyPrefix(calibration=self._settings.calibration)
            batch = replace(batch, attention=guard.interventions(prompt, host).attention)
        return batch
