"""Answers that come piece by piece: what may pass already, and what has to wait."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    TextBlock,
)

from sightrail.guardrails.carriers.walk import pictures_in, settled

from .requests import answer_of
from .screening import LLAMA_INDEX


class OnItsWayOut:
    """A streamed answer, of which every piece says all that came so far.

    Text passes as far as it surely is no picture, which holds back the end of it, a word or so.
    From the first picture on everything waits.

    Attributes:
        left: the last piece, while something of it has not passed.
        holds_picture: there is a picture in it.
    """

    def __init__(self) -> None:
        self.left: Any = None
        self.holds_picture = False
        self._told = ""

    def take(self, piece: Any) -> Any:
        """The next piece comes in; gives what may go on, None as long as nothing may."""
        self.left = piece
        if self.holds_picture:
            return None
        text = _text_of(piece)
        if not text.startswith(self._told):  # an LLM that says only what is new
            self._told = ""
        new = text[len(self._told) :]
        ready = settled(new)
        self.holds_picture = bool(_holds_picture(piece) or (ready < len(new) and pictures_in(new)))
        if self.holds_picture or (new and not ready):
            return None
        if ready == len(new):
            self.left = None
        shown = _cut(piece, self._told + new[:ready], new[:ready])
        self._told += new[:ready]
        return shown

    def rest(self, answer: Any) -> Any:
        """What was waiting, after it was looked at."""
        text = _text_of(answer)
        begun = text.startswith(self._told)
        return answer.model_copy(update={"delta": text[len(self._told) :] if begun else text})


class Growing:
    """A structured answer that grows.

    Attributes:
        left: the last form of it, where that has not passed.
    """

    def __init__(self) -> None:
        self.left: Any = None

    def may_pass(self, output: Any) -> bool:
        """Whether this form of it holds no picture."""
        self.left = output if LLAMA_INDEX.carriers(answer_of(output)) else None
        return self.left is None


def with_text(answer: Any, message: ChatMessage) -> Any:
    """An answer with its message after screening; what the provider sent holds the picture."""
    if isinstance(answer, ChatResponse):
        return answer.model_copy(update={"message": message, "raw": None})
    return answer.model_copy(update={"text": message.content or "", "raw": None})


def _text_of(piece: Any) -> str:
    if isinstance(piece, CompletionResponse):
        return piece.text
    return piece.message.content or ""


def _holds_picture(piece: Any) -> bool:
    """Whether anything beside the text is a picture, or there are several texts and one in them."""
    if isinstance(piece, CompletionResponse):
        return False
    texts = [block for block in piece.message.blocks if isinstance(block, TextBlock)]
    rest = [b for b in piece.message.blocks if len(texts) > 1 or not isinstance(b, TextBlock)]
    extra = piece.message.additional_kwargs
    return bool(
        (rest or extra)
        and LLAMA_INDEX.carriers([*rest, piece.message.model_copy(update={"blocks": []})])
    )


def _cut(piece: Any, text: str, delta: str) -> Any:
    """A piece that says no more than this."""
    if _text_of(piece) == text:
        return piece if piece.delta == delta else piece.model_copy(update={"delta": delta})
    if isinstance(piece, CompletionResponse):
        return piece.model_copy(update={"text": text, "delta": delta})
    blocks: list[Any] = []
    said = False
    for block in piece.message.blocks:
        if not isinstance(block, TextBlock):
            blocks.append(block)
        elif not said:
            blocks.append(TextBlock(text=text))
            said = True
    message = piece.message.model_copy(update={"blocks": blocks})
    return piece.model_copy(update={"message": message, "delta": delta})
