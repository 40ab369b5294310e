"""Requests in the form that training needs: prompts with pictures, answers to be made likely.

They are made from examples: what the model answers by itself, and what it refuses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from ..datasets import Example
from ..fitting.examples import split_by_label
from ..fitting.run import FitRun, conversation_of
from ..model import LocalLVLM
from ..model.families import context_length, image_token_ids, token_states
from ..model.messages import Conversation
from ..model.prompt import PromptBuilder
from ..prefix.safety_prefix import SafetyPrefix
from ..refusals import is_refusal

UNLABELLED = -100


@dataclass(frozen=True)
class PictureRequest:
    """A request about pictures.

    Attributes:
        example: the request; its pictures are decoded anew each time it is drawn.
        text: the safety prompt that goes before its last words, None for none.
        answer: what the model shall say.
        refused: whether the model refuses it with the safety prompt alone.
        change: what is done to every picture; None leaves them.
    """

    example: Example
    text: str | None = None
    answer: str = ""
    refused: bool = False
    change: Callable[[Image.Image], Image.Image] | None = None

    @property
    def harmful(self) -> bool:
        """Whether it ought to be refused."""
        return self.example.harmful

    def conversation(self) -> Conversation:
        """The safety prompt in its place, pictures decoded."""
        talk = conversation_of(self.example)
        if self.text is not None:
            talk = SafetyPrefix(self.text).apply(talk)
        return talk if self.change is None else with_pixels(talk, map(self.change, talk.images))


def with_pixels(talk: Conversation, images: Iterable[Image.Image]) -> Conversation:
    """The conversation with other pixels in its pictures, one for each."""
    pairs = zip(talk.image_parts, images, strict=True)
    return talk.with_images([replace(part, screened=image) for part, image in pairs])


@dataclass(frozen=True)
class Read:
    """What the model made of a batch.

    Attributes:
        states: hidden states at the last prompt token, one per decoder layer [B, L, d], in the
            model's own number format.
        answer_loss: cross-entropy of each row's answer, averaged over its tokens [B]; zeros where
            no answers were given.
    """

    states: Tensor
    answer_loss: Tensor


class Reader:
    """Runs a model over requests and gives what the losses are made of.

    Args:
        model: the transformers model; nothing on it is changed.
        processor: its processor.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self._prompts = PromptBuilder(
            processor, context_length=context_length(model), image_token_ids=image_token_ids(model)
        )

    def inputs(self, talks: Sequence[Conversation]) -> dict[str, Tensor]:
        """The model's inputs for conversations with pictures, padded on the left."""
        prompt = self._prompts.build(talks, prefix=None)
        return dict(prompt.to(self.model.device, self.model.dtype).inputs)

    def read(self, inputs: Mapping[str, Tensor], answers: Sequence[str] | None = None) -> Read:
        """One pass; with answers, each of them stands behind its prompt."""
        given = dict(inputs)
        rows, length = given["input_ids"].shape
        labels = None if answers is None else self.labels(answers)
        if labels is not None:
            given = with_answers(given, labels)
        # Of the logits no more than the answers need: at a large vocabulary they are the largest.
        kept = 1 if labels is None else labels.shape[1] + 1
        out = self.model(**given, output_hidden_states=True, use_cache=False, logits_to_keep=kept)
        config = self.model.config.get_text_config()
        last = [token_states(config, layer)[:, length - 1] for layer in out.hidden_states[1:]]
        states = torch.stack([layer.to(last[-1].device) for layer in last], dim=1)
        if labels is None:
            return Read(states, states.new_zeros(rows).float())
        return Read(states, answer_loss(out.logits[:, :-1], labels.to(out.logits.device)))

    def labels(self, answers: Sequence[str]) -> Tensor:
        """Answers as tokens with their end [B, A], UNLABELLED behind it."""
        tokenizer = self.processor.tokenizer
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        rows = [tokenizer.encode(answer, add_special_tokens=False) + end for answer in answers]
        labels = torch.full((len(rows), max(map(len, rows))), UNLABELLED)
        for row, tokens in enumerate(rows):
            labels[row, : len(tokens)] = torch.tensor(tokens)
        return labels.to(self.model.device)


def with_answers(inputs: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Prompt inputs with the answers' tokens behind them.

    Args:
        inputs: ``input_ids`` [B, T], ``attention_mask`` [B, T] and whatever else the model takes;
            what else has the shape [B, T] marks kinds of tokens, and text is kind 0.
        labels: [B, A], UNLABELLED behind the end of an answer.
    """
    spoken = labels != UNLABELLED
    more = {"input_ids": labels.clamp_min(0), "attention_mask": spoken.long()}
    kinds = torch.zeros_like(labels)
    return {
        name: torch.cat([value, more.get(name, kinds).to(value)], dim=1)
        if value.shape == inputs["input_ids"].shape
        else value
        for name, value in inputs.items()
    }


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each row's answer, averaged over its tokens: [B].

    Args:
        logits: [B, A, V], those at a place predict the label at the same place.
        labels: [B, A].
    """
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=UNLABELLED, reduction="none"
    )
    return losses.view_as(labels).sum(dim=1) / (labels != UNLABELLED).sum(dim=1).clamp_min(1)


REFUSAL: Final = "I am sorry, I cannot help with that."
"""What a harmful request is to be answered with where the model never refuses by itself."""

NO_PICTURE: Final = "has no picture"

TOGETHER: Final = 16
ANSWER_TOKENS: Final = 64


def prepare_requests(
    run: FitRun,
    examples: Sequence[Example],
    text: str | None,
    *,
    least: int,
    what: str = "examples",
) -> list[PictureRequest]:
    """Every example that has a picture, with the answer that the model is to give.

    A benign request without an answer gets the bare model's own: the border is to leave that as it
    is. A harmful one without an answer gets the model's own refusal, or the one it uses most.

    Args:
        run: the model; what has no picture, or one that cannot be read, is counted there.
        examples: harmful and benign ones.
        text: the safety prompt, None for none.
        least: how many examples of each label there have to be.
        what: these examples are called.

    Raises:
        ConfigurationError: there are fewer with pictures.
        FitMemoryError: not even one request at a time fits.
    """
    shown = [example for example in examples if example.image_count]
    run.left_out[NO_PICTURE] += len(examples) - len(shown)
    split_by_label(shown, least)
    shown = run.readable(shown, f"pictures of {what}")
    split_by_label(shown, least)
    guards = [] if text is None else [SafetyPrefix(text)]
    guarded = run.lvlm.with_guardrails(guards)
    said = _answers(run, guarded, shown, [e.harmful for e in shown], f"refusals of {what}")
    unanswered = [not e.harmful and e.answer is None for e in shown]
    own = _answers(run, run.lvlm, shown, unanswered, f"answers of {what}")
    refusals = [answer for answer in said if answer is not None and is_refusal(answer)]
    usual = Counter(refusals or [REFUSAL]).most_common(1)[0][0]
    return [
        _request(example, text, spoken, alone, usual)
        for example, spoken, alone in zip(shown, said, own, strict=True)
    ]


def _request(
    example: Example, text: str | None, said: str | None, own: str | None, usual: str
) -> PictureRequest:
    refused = said is not None and is_refusal(said)
    wished = example.answer
    if wished is None:
        wished = (said if refused else usual) if example.harmful else own
    return PictureRequest(example, text, wished or "", refused)


def _answers(
    run: FitRun, lvlm: LocalLVLM, examples: Sequence[Example], wanted: Sequence[bool], what: str
) -> list[str | None]:
    """Greedy answers to the wanted examples, None for the others."""
    places = [place for place, asked in enumerate(wanted) if asked]

    def work(part: Sequence[Example]) -> list[str]:
        asked = [conversation_of(example) for example in part]
        return [answer.text for answer in lvlm.batch(asked, max_new_tokens=ANSWER_TOKENS)]

    said = run.each(
        what,
        [examples[place] for place in places],
        work,
        most=TOGETHER,
        more_tokens=2 * ANSWER_TOKENS,
    )
    answers: list[str | None] = [None] * len(examples)
    for place, answer in zip(places, said, strict=True):
        answers[place] = answer
    return answers
