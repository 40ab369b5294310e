"""Rendering a conversation with the model's own chat template, knowing where each text lands.

The texts of the last user turn are rendered once as they are and once as markers of the same
length. Putting the texts where the markers stand must give the first rendering exactly; so their
places are known, never searched for, and a text cannot pass for something else. From these places
come the spans: which tokens of a prompt are picture, safety prefix and instruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import PromptError
from .chat_form import apply_template, chat_of
from .messages import Conversation

# Private-use characters: no template, tokenizer or special token contains them.
_FIRST_MARK, _LAST_MARK = 0xE000, 0xF8FF


@dataclass(frozen=True)
class MarkedText:
    """A rendered prompt whose last user texts are markers: one repeated character for each.

    Attributes:
        text: the rendering with markers.
        texts: what the markers stand for, in order, as the template renders them; none is empty.
        marks: the character of each marker.
    """

    text: str
    texts: tuple[str, ...]
    marks: tuple[str, ...]

    def fill(self, marked: str) -> tuple[str, list[CharRange]]:
        """Put the texts back into ``text``, or into what a processor has made of it.

        Returns:
            The filled text, as long as the marked one, and the range of each of ``texts``.

        Raises:
            PromptError: a marker is missing, doubled or out of order.
        """
        ranges: list[CharRange] = []
        end = 0
        for text, mark in zip(self.texts, self.marks, strict=True):
            start = marked.find(mark * len(text), end)
            if start < 0 or marked.count(mark) != len(text):
                raise PromptError(
                    "The chat template leaves out, repeats or reorders a text of the last user "
                    "message, so its place in the prompt is not known; put the text in one part."
                )
            end = start + len(text)
            ranges.append((start, end))
            marked = marked[:start] + text + marked[end:]
        return marked, ranges


def render(processor: Any, conversation: Conversation) -> str:
    """The prompt text of a conversation, ready for the answer.

    A conversation that ends with an assistant turn is continued; otherwise a new assistant turn is
    opened.

    Raises:
        PromptError: there is no chat template, it refuses the conversation, or the prompt does not
            hold one placeholder for each picture.
    """
    text = apply_template(processor, chat_of(processor, conversation), conversation.tools)
    placeholder = getattr(processor, "image_token", None)
    found, expected = text.count(placeholder) if placeholder else 0, len(conversation.image_parts)
    # None at all may be a processor that calls its placeholder otherwise; it checks for itself.
    if found not in (0, expected):
        raise PromptError(
            f"The prompt has {found} picture placeholders for {expected} pictures; either the chat "
            f"template does not place every picture, or a text holds the placeholder {placeholder}."
        )
    return text


def render_marked(processor: Any, conversation: Conversation) -> MarkedText:
    """The prompt text with markers in place of the last user texts.

    What tools have given back since then belongs to the request, and is marked as well, unless the
    template rewrites it (as JSON, for example).

    Raises:
        PromptError: see :func:`render`; or the template rewrites the text, so that its place in
            the prompt is not certain.
    """
    plain = render(processor, conversation)
    last = conversation.last_user_turn
    results = [i for i, turn in enumerate(conversation.turns) if i > last and turn.role == "tool"]
    # Templates either keep a text or strip the space around it.
    for turns in ([last, *results], [last]) if results else ([last],):
        for clean in (str, str.strip):
            marked = _mark(processor, conversation, turns, plain, clean)
            if marked is not None and marked.fill(marked.text)[0] == plain:
                return marked
    raise PromptError(
        "The chat template rewrites the last user message, so its place in the prompt is not "
        "certain; attention-level defences need a template that keeps the text."
    )


def text_ranges(marked: MarkedText, ranges: list[CharRange], prefix: str | None) -> TextRanges:
    """Split the ranges of the last user texts into safety prefix and instruction.

    Args:
        marked: the prompt.
        ranges: one per text of ``marked``, in order.
        prefix: the safety prefix, which the first text begins with; None when there is none.

    Raises:
        PromptError: the first text does not begin with the prefix.
    """
    texts = list(marked.texts)
    prefix_ranges: tuple[CharRange, ...] = ()
    if prefix is not None:
        if not texts or not texts[0].startswith(prefix):
            raise PromptError("The last user message does not begin with the safety prefix.")
        (start, end), *others = ranges
        prefix_ranges = ((start, start + len(prefix)),)
        texts[0] = texts[0][len(prefix) :]
        ranges = [(start + len(prefix), end), *others]
    instruction = [
        # Space at the border belongs to neither, and space alone is no instruction.
        (end - len(text.lstrip()), end)
        for text, (_, end) in zip(texts, ranges, strict=True)
        if text.strip()
    ]
    return TextRanges(prefix_ranges, tuple(instruction))


def _mark(
    processor: Any, conversation: Conversation, turns: Sequence[int], plain: str, clean: Any
) -> MarkedText | None:
    """The marked rendering; None where the text of a result has no certain place."""
    chat = chat_of(processor, conversation)
    places = [place for index in turns for place in _texts_of(chat[index])]
    marks = _free_marks(plain, len(places))
    texts = [clean(holder[key]) for holder, key in places]
    for (holder, key), text, mark in zip(places, texts, marks, strict=True):
        holder[key] = mark * len(text)
    filled = [(text, mark) for text, mark in zip(texts, marks, strict=True) if text]
    marked = MarkedText(
        text=apply_template(processor, chat, conversation.tools),
        texts=tuple(text for text, _ in filled),
        marks=tuple(mark for _, mark in filled),
    )
    if len(turns) > 1:
        try:
            marked.fill(marked.text)
        except PromptError:
            return None
    return marked


def _texts_of(message: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Where the texts of a message stand, as (holder, key)."""
    content = message["content"]
    if isinstance(content, str):
        return [(message, "content")]
    return [(part, "text") for part in content if "text" in part]


def _free_marks(text: str, count: int) -> list[str]:
    """Characters for markers, none of which the text holds already."""
    used = set(text)
    free = (chr(code) for code in range(_FIRST_MARK, _LAST_MARK) if chr(code) not in used)
    return [mark for mark, _ in zip(free, range(count), strict=False)]


#: Where something stands in a text, as (first character, one past the last).
CharRange = tuple[int, int]


@dataclass(frozen=True)
class Spans:
    """Token positions of a batch of prompts, left padding counted.

    Attributes:
        image: [B, T] bool, the positions that picture embeddings take. For a model that reads
            pictures through cross-attention, the one token that stands for each picture.
        prefix: [B, T] bool, the safety prefix; all false when there is none.
        instruction: [B, T] bool, the user's own text in the last user turn.
        padding: [B] number of padding positions at the left of each row.
        answer: the position whose logits predict the first answer token: T - 1 in every row,
            because rows are padded at the left.
    """

    image: torch.Tensor
    prefix: torch.Tensor
    instruction: torch.Tensor
    padding: torch.Tensor
    answer: int

    @property
    def rows(self) -> int:
        """Number of prompts B."""
        return int(self.image.shape[0])


@dataclass(frozen=True)
class TextRanges:
    """Where the parts of one rendered prompt stand, in characters.

    Attributes:
        prefix: ranges of the safety prefix.
        instruction: ranges of the user's own text.
    """

    prefix: tuple[CharRange, ...]
    instruction: tuple[CharRange, ...]


def build_spans(
    *,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    offsets: torch.Tensor,
    ranges: Sequence[TextRanges],
    image_token_ids: Sequence[int],
    images: Sequence[int],
    prefixed: bool,
) -> Spans:
    """Turn character ranges into token positions, and check that nothing is missing.

    Args:
        input_ids: [B, T].
        attention_mask: [B, T], 0 at padding.
        offsets: [B, T, 2], the characters each token was made from; (0, 0) for added tokens.
        ranges: one per row.
        image_token_ids: the ids that picture positions carry.
        images: number of pictures per row.
        prefixed: whether every row must hold a safety prefix.

    Raises:
        PromptError: a row has pictures but no picture positions or the other way round, a prefix
            is expected but none found, or the instruction is empty.
    """
    offsets = offsets.to(input_ids.device)
    known = torch.tensor(list(image_token_ids), device=input_ids.device)
    instruction = _covered(offsets, [row.instruction for row in ranges])
    spans = Spans(
        image=torch.isin(input_ids, known),
        prefix=_covered(offsets, [row.prefix for row in ranges]) & ~instruction,
        instruction=instruction,
        padding=(attention_mask == 0).sum(dim=1),
        answer=input_ids.shape[1] - 1,
    )
    _check(spans, attention_mask, images, prefixed)
    return spans


def _covered(offsets: torch.Tensor, ranges: Sequence[tuple[CharRange, ...]]) -> torch.Tensor:
    """Tokens [B, T] that share at least one character with the ranges of their row."""
    mask = torch.zeros(offsets.shape[:2], dtype=torch.bool, device=offsets.device)
    start, end = offsets[..., 0], offsets[..., 1]
    for row, row_ranges in enumerate(ranges):
        for first, last in row_ranges:
            mask[row] |= (start[row] < last) & (end[row] > first) & (end[row] > start[row])
    return mask


def _check(
    spans: Spans, attention_mask: torch.Tensor, images: Sequence[int], prefixed: bool
) -> None:
    if bool((attention_mask[:, -1] == 0).any()):
        raise PromptError("The prompts are padded at the right; pad them at the left.")
    for row, count in enumerate(images):
        found = int(spans.image[row].sum())
        if (count > 0) != (found > 0):
            raise PromptError(
                f"The prompt has {count} picture(s) but {found} picture positions; the processor "
                "and the model do not belong together, or a text holds the picture placeholder."
            )
        if prefixed and not bool(spans.prefix[row].any()):
            raise PromptError("The safety prefix was not found in the prompt; is its text empty?")
        if not bool(spans.instruction[row].any()):
            raise PromptError(
                "The instruction is empty: the last user message needs text of its own besides "
                "the pictures and the safety prefix."
            )
