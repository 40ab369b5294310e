"""From conversations to model inputs: one padded batch, with token spans where they are needed."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch

from ..errors import PromptError, SightrailError, UnsupportedModelError
from .messages import Conversation
from .template import MarkedText, Spans, TextRanges, build_spans, render, render_marked, text_ranges

# A fast tokenizer keeps padding settings inside and fails when two threads use it at once, so every
# use of one tokenizer goes through its lock, whichever LocalLVLM it is reached from.
_locks: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_locks_guard = threading.Lock()


def tokenizer_lock(tokenizer: Any) -> threading.RLock:
    """The lock that serialises the use of a tokenizer."""
    with _locks_guard:
        return _locks.setdefault(tokenizer, threading.RLock())


@dataclass(frozen=True)
class Prompt:
    """A batch of prompts, ready for the model.

    Attributes:
        inputs: what ``generate`` takes: ``input_ids`` [B, T], ``attention_mask`` [B, T], pixels.
        conversations: what the rows were made from.
        spans: token positions, when they were asked for.
        originals: the conversations before any guardrail changed their prompts.
    """

    inputs: Mapping[str, torch.Tensor]
    conversations: tuple[Conversation, ...]
    spans: Spans | None = None
    originals: tuple[Conversation, ...] = ()

    @property
    def length(self) -> int:
        """Padded prompt length T."""
        return int(self.inputs["input_ids"].shape[1])

    @property
    def rows(self) -> int:
        """Number of prompts B."""
        return int(self.inputs["input_ids"].shape[0])

    def to(self, device: torch.device, dtype: torch.dtype) -> Prompt:
        """The inputs on a device, pixels in the model's number format; spans stay on the CPU."""
        moved = {
            name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
            for name, value in self.inputs.items()
        }
        return replace(self, inputs=moved)


_CHARS_A_TOKEN: Final = 32
"""No text has more, on average; single tokens may."""


class PromptBuilder:
    """Builds prompts with the model's own processor, which it never changes.

    Args:
        processor: the model's processor.
        context_length: the longest prompt plus answer that the model was made for, None if
            unknown.
        image_token_ids: ids of picture positions; empty for a model outside the known families,
            for which spans cannot be had.
    """

    def __init__(
        self, processor: Any, *, context_length: int | None, image_token_ids: Sequence[int] = ()
    ) -> None:
        self._processor = processor
        self._context_length = context_length
        self._image_token_ids = tuple(image_token_ids)
        self._lock = tokenizer_lock(processor.tokenizer)

    def build(
        self, conversations: Sequence[Conversation], *, spans: bool = False, prefix: str | None
    ) -> Prompt:
        """Render, tokenize and pad.

        Args:
            conversations: pictures decoded; either every row has pictures or none has.
            spans: whether token positions are needed.
            prefix: the safety prefix the last user texts begin with, None when there is none.

        Raises:
            PromptError: the template or the processor refuses, the prompt is longer than the
                context, or a span is missing.
        """
        if not spans:
            texts = [render(self._processor, conversation) for conversation in conversations]
            inputs = self._process(self._processor, texts, conversations)
            self._check_length(inputs)
            return Prompt(inputs, tuple(conversations))
        return self._build_with_spans(conversations, prefix)

    def _build_with_spans(
        self, conversations: Sequence[Conversation], prefix: str | None
    ) -> Prompt:
        marked = [render_marked(self._processor, conversation) for conversation in conversations]
        recorder = _RecordingTokenizer(self._processor.tokenizer, marked, prefix)
        processor = copy.copy(self._processor)
        processor.tokenizer = recorder
        inputs = self._process(processor, [item.text for item in marked], conversations)
        self._check_length(inputs)
        spans = build_spans(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            offsets=recorder.offsets,
            ranges=recorder.ranges,
            image_token_ids=self._image_token_ids,
            images=[len(conversation.image_parts) for conversation in conversations],
            prefixed=prefix is not None,
        )
        return Prompt(inputs, tuple(conversations), spans)

    def _process(
        self, processor: Any, texts: list[str], conversations: Sequence[Conversation]
    ) -> dict[str, torch.Tensor]:
        self._check_size(texts)
        images = [conversation.images for conversation in conversations]
        arguments: dict[str, Any] = {"images": images} if any(images) else {}
        if len(texts) > 1:
            arguments |= {"padding": True, "padding_side": "left"}
        if self._begun(texts):
            arguments["add_special_tokens"] = False
        try:
            with self._lock:
                batch = processor(text=texts, return_tensors="pt", **arguments)
        except SightrailError:
            raise
        except (ValueError, TypeError, IndexError, StopIteration, RuntimeError) as error:
            raise PromptError(
                f"The model's processor cannot take this conversation "
                f"({[len(row) for row in images]} pictures per row): {error} Check that the chat "
                "template places every picture and that no text holds a picture placeholder."
            ) from error
        return dict(batch)

    def _begun(self, texts: Sequence[str]) -> bool:
        """Whether the chat template has written the token that begins a text already.

        The tokenizer would write it once more. It is left out by the rule by which
        ``apply_chat_template(tokenize=True)`` leaves it out.
        """
        begin: str | None = getattr(self._processor.tokenizer, "bos_token", None)
        return begin is not None and all(text.startswith(begin) for text in texts)

    def _check_size(self, texts: Sequence[str]) -> None:
        """Texts that cannot fit: to tokenize megabytes takes long, and holds others up."""
        longest = max(map(len, texts))
        if self._context_length is not None and longest > self._context_length * _CHARS_A_TOKEN:
            raise PromptError(
                f"The prompt has {longest} characters but the model's context is "
                f"{self._context_length} tokens; shorten the text, or pass fewer tools."
            )

    def _check_length(self, inputs: Mapping[str, torch.Tensor]) -> None:
        longest = int(inputs["attention_mask"].sum(dim=1).max())
        if self._context_length is not None and longest > self._context_length:
            raise PromptError(
                f"The prompt has {longest} tokens but the model's context is "
                f"{self._context_length}; shorten the text or the safety prefix, or pass fewer or "
                "smaller pictures."
            )


class _RecordingTokenizer:
    """A tokenizer for one call: fills the markers, and keeps the character ranges and offsets."""

    def __init__(self, tokenizer: Any, marked: Sequence[MarkedText], prefix: str | None) -> None:
        self._tokenizer = tokenizer
        self._marked = marked
        self._prefix = prefix
        self.ranges: list[TextRanges] = []
        self.offsets = torch.empty(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: Any, **kwargs: Any) -> Any:
        filled = [item.fill(row) for item, row in zip(self._marked, text, strict=True)]
        self.ranges = [
            text_ranges(item, ranges, self._prefix)
            for item, (_, ranges) in zip(self._marked, filled, strict=True)
        ]
        try:
            batch = self._tokenizer(
                [row for row, _ in filled], **{**kwargs, "return_offsets_mapping": True}
            )
        except NotImplementedError as error:
            raise UnsupportedModelError(
                "This defence needs a fast tokenizer, which reports the characters behind each "
                "token; load the processor with one."
            ) from error
        self.offsets = torch.as_tensor(batch.pop("offset_mapping"))
        return batch
