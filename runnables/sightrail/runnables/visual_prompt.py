"""The visual safety prompt as a LangChain Runnable, in front of any chat model."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from langchain_core.messages import BaseMessage, ChatMessage, HumanMessage
from langchain_core.prompt_values import (
    ChatPromptValue,
    ImagePromptValue,
    PromptValue,
    StringPromptValue,
)
from langchain_core.runnables import RunnableConfig, RunnableSerializable

from sightrail.guardrails.carriers.carrier import is_picture_text
from sightrail.guardrails.davsp.on_values import BorderField, put_borders
from sightrail.guardrails.intake import Limits, RequestReader
from sightrail.guardrails.prefix.safety_prefix import SafetyPrefix
from sightrail.guardrails.strict import StrictModel

from .walk import LANGCHAIN


class BorderImages(StrictModel, RunnableSerializable[Any, Any], extra="forbid"):
    """Put the border of a visual safety prompt around every picture, and its text in front.

    Takes whatever ``ScreenImages`` takes and gives the same kind back; pictures travel on as a
    lossless PNG. The text goes before the last user message's own, or before a bare string; a dict
    or a list of pictures has no place for it, so put this after the prompt. A picture that stands
    in the border already, as in a history that is sent again, stays as it is.

    Screening belongs in front: ``prompt | ScreenImages(detector=...) | BorderImages(...) | model``.

    Args:
        border: the visual safety prompt.
        limits: what intake is willing to decode.
        on_unreadable: what becomes of something that may hold a picture and cannot be read (a
            remote address, a file, an unknown block): an ImageError, or it passes without a border.
            After ``ScreenImages`` nothing of that kind is left unless its policy lets it pass.

    Raises:
        ImageError: something cannot be read, and ``on_unreadable`` is ``raise``.

    Example:
        ``prompt | BorderImages(border=VisualSafetyPrompt.from_pretrained("testbed")) | model``
    """

    border: BorderField
    limits: Limits = Limits()
    on_unreadable: Literal["raise", "pass"] = "raise"

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Border one value."""
        return self._call_with_config(self._bordered, input, config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Border one value in a worker thread."""
        return await self._acall_with_config(self._abordered, input, config)

    async def _abordered(self, value: Any) -> Any:
        return await asyncio.to_thread(self._bordered, value)

    def _bordered(self, value: Any) -> Any:
        seen = put_borders(
            value,
            self.border,
            LANGCHAIN,
            RequestReader(self.limits),
            on_unreadable=self.on_unreadable,
        )
        return seen if self.border.text is None else with_text(seen, self.border.text)


def with_text(value: Any, text: str) -> Any:
    """The value with the text before the last user message's own, or before a bare string.

    Anything that holds no user message comes back as it is.
    """
    prefix = SafetyPrefix(text)
    if isinstance(value, str):
        return value if is_picture_text(value) else prefix.apply(value)
    if isinstance(value, StringPromptValue):
        return value.model_copy(update={"text": prefix.apply(value.text)})
    if isinstance(value, BaseMessage):
        return _prefixed(value, prefix) if _speaks_for_user(value) else value
    if isinstance(value, PromptValue) and not isinstance(value, ImagePromptValue):
        messages = value.to_messages()
        changed = with_text(messages, text)
        return value if changed is messages else ChatPromptValue(messages=changed)
    if isinstance(value, list | tuple):
        return _last_prefixed(value, prefix)
    return value


def _last_prefixed(values: list[Any] | tuple[Any, ...], prefix: SafetyPrefix) -> Any:
    for place in range(len(values) - 1, -1, -1):
        if isinstance(values[place], BaseMessage) and _speaks_for_user(values[place]):
            changed = list(values)
            changed[place] = _prefixed(values[place], prefix)
            return changed if isinstance(values, list) else tuple(changed)
    return values


def _prefixed(message: BaseMessage, prefix: SafetyPrefix) -> BaseMessage:
    content = message.content
    parts = [content] if isinstance(content, str) else list(content)
    words = [place for place, part in enumerate(parts) if _is_words(part)]
    place = words[0] if words else len(parts)
    (turn,) = prefix.apply([{"role": "user", "content": parts[place : place + 1]}])
    parts[place : place + 1] = turn["content"]
    spoken = parts[0] if isinstance(content, str) and len(parts) == 1 else parts
    return message.model_copy(update={"content": spoken})


def _is_words(part: Any) -> bool:
    """Whether this is a text that is not a picture written as text."""
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part
    return isinstance(text, str) and not is_picture_text(text)


def _speaks_for_user(message: BaseMessage) -> bool:
    if isinstance(message, ChatMessage):
        return message.role.lower() in ("user", "human")
    return isinstance(message, HumanMessage)
