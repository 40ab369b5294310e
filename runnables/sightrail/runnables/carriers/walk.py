"""Finding every carrier in a value, and putting something else in its place.

A value is walked in one of two ways. In the *content* of a message every block has to be of a known
kind; an unknown one could hold anything and counts as not inspected. In *data* (tool artifacts,
extra arguments, dict inputs) any JSON may stand: there, whatever is recognisably a picture is taken
as one, and an object that nobody can look into counts as not inspected.

Nothing that was passed in is changed, and a value without carriers comes back as the same object.
"""

from __future__ import annotations

import copy
import datetime
import decimal
import enum
import uuid
from collections.abc import Collection
from pathlib import PurePath
from typing import Any, Final

import numpy as np
from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, ToolMessage, convert_to_messages
from langchain_core.prompt_values import (
    ChatPromptValue,
    ImagePromptValue,
    PromptValue,
    StringPromptValue,
)

from sightrail.guardrails.policy import Surface

from .addresses import from_address
from .carrier import Carrier, png_url, unseen
from .kinds import CALL_ARGUMENTS, kind_of
from .media import read_media, read_media_in_data
from .surfaces import surface_of
from .tracked_walk import MAX_DEPTH, TrackedWalk, rebuilt, same_items

_SCALARS: Final = (
    *(type(None), bool, int, float, complex, decimal.Decimal, enum.Enum, uuid.UUID),
    *(datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, np.generic),
)
_ROLES: Final = frozenset(
    {"human", "user", "ai", "assistant", "system", "developer", "tool", "function"}
)


class Walk(TrackedWalk):
    """One pass over one value of LangChain's; see ``TrackedWalk``."""

    def __call__(self, value: Any) -> Any:
        """The value with every carrier replaced."""
        if not isinstance(value, dict):
            return self._data(value, 0)
        if _is_message_like(value):  # a list of one, because there it becomes a real message
            (seen,) = self._data_list([value], 0)
            return seen
        carrier = read_media_in_data(value)
        if carrier is not None:
            return self._place(carrier)
        return self._holding(value, self._data_items, 0)

    def _surface_of(self, holder: Any) -> Surface | None:
        return surface_of(holder)

    # What may stand anywhere

    def _data(self, value: Any, depth: int, opaque: bool = False) -> Any:
        """Look into any value; with `opaque`, objects that are no pictures may pass."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, _SCALARS):
            return value
        if depth > MAX_DEPTH:
            return self._too_deep(value)
        if isinstance(value, BaseMessage):
            return self._holding(value, self._message, depth)
        if isinstance(value, Document):
            return self._holding(value, self._document, depth)
        if isinstance(value, PromptValue):
            return self._prompt(value, depth)
        if isinstance(value, dict):
            return self._data_dict(value, depth, opaque)
        if isinstance(value, list | tuple | set | frozenset):
            return self._data_list(value, depth, opaque)
        return self._object(value, depth, opaque)

    def _other(self, value: Any, depth: int, opaque: bool) -> Any:
        if isinstance(value, PurePath):  # no message from outside can hold one: a caller's own file
            return self._own(value)
        return super()._other(value, depth, opaque)

    def _data_dict(self, value: dict[Any, Any], depth: int, opaque: bool) -> Any:
        carrier = read_media_in_data(value)
        if carrier is not None:
            return self._place(carrier)
        return self._data_items(value, depth, opaque)

    def _data_items(
        self,
        value: dict[Any, Any],
        depth: int,
        opaque: bool = False,
        skipping: Collection[str] = (),
    ) -> Any:
        changed = {}
        for key, item in value.items():
            if key in skipping:
                continue
            look = self._blocks if _holds_blocks(key, item) else self._data
            seen = look(item, depth + 1, opaque)
            if seen is not item:
                changed[key] = seen
        return _with_items(value, changed)

    def _data_list(self, value: Collection[Any], depth: int, opaque: bool = False) -> Any:
        items = _as_messages(value) if isinstance(value, list) else list(value)
        seen = [self._data(item, depth + 1, opaque) for item in items]
        if same_items(seen, items):
            return value
        return rebuilt(value, seen)

    # Messages, documents, prompt values

    def _message(self, message: BaseMessage, depth: int) -> BaseMessage:
        fields: dict[str, Any] = {
            "content": self._content(message.content, depth + 1),
            "additional_kwargs": self._data(message.additional_kwargs, depth + 1, opaque=True),
        }
        if isinstance(message, ToolMessage):
            fields["artifact"] = self._data(message.artifact, depth + 1)
        changed = {name: new for name, new in fields.items() if new is not getattr(message, name)}
        return message.model_copy(update=changed) if changed else message

    def _document(self, document: Document, depth: int) -> Document:
        text = self._text(document.page_content)
        metadata = self._data(document.metadata, depth + 1)
        if text is document.page_content and metadata is document.metadata:
            return document
        return document.model_copy(update={"page_content": text, "metadata": metadata})

    def _prompt(self, prompt: PromptValue, depth: int) -> PromptValue:
        if isinstance(prompt, StringPromptValue):
            text = self._text(prompt.text)
            return prompt if text is prompt.text else prompt.model_copy(update={"text": text})
        if isinstance(prompt, ImagePromptValue):
            replaced: PromptValue = self._place(_image_prompt(prompt))
            return replaced
        messages = prompt.to_messages()
        seen = [self._data(message, depth + 1) for message in messages]
        if same_items(seen, messages):
            return prompt
        if isinstance(prompt, ChatPromptValue):
            return prompt.model_copy(update={"messages": seen})
        return ChatPromptValue(messages=seen)

    # The content of a message

    def _content(self, content: Any, depth: int) -> Any:
        return self._text(content) if isinstance(content, str) else self._blocks(content, depth)

    def _blocks(self, blocks: Any, depth: int, opaque: bool = False) -> Any:
        seen = [self._block(block, depth + 1) for block in blocks]
        if same_items(seen, blocks):
            return blocks
        return rebuilt(blocks, seen)

    def _block(self, block: Any, depth: int) -> Any:
        if isinstance(block, str):
            return self._text(block)
        if depth > MAX_DEPTH:
            return self._place(unseen(block, "too_deep", f"more than {MAX_DEPTH} levels"))
        if isinstance(block, list | tuple):
            return self._blocks(block, depth)
        if not isinstance(block, dict):
            detail = f"nobody can look into a {type(block).__name__}"
            return self._place(unseen(block, "unknown_block", detail))
        carrier = read_media(block)
        return self._place(carrier) if carrier is not None else self._known_block(block, depth)

    def _known_block(self, block: dict[str, Any], depth: int) -> Any:
        kind = kind_of(block)
        if kind == "unknown":
            detail = "a content block of a kind that this version does not know"
            return self._place(unseen(block, "unknown_block", detail))
        if kind == "wrapped":
            inner = self._block(block["value"], depth + 1)
            return _with_items(block, {} if inner is block["value"] else {"value": inner})
        if kind == "result":
            with self._on("tool"):
                return self._result(block, depth)
        return self._data_items(block, depth, skipping=CALL_ARGUMENTS if kind == "call" else ())

    def _result(self, block: dict[str, Any], depth: int) -> Any:
        if isinstance(block.get("content"), list | tuple):
            content = self._blocks(block["content"], depth + 1)
            block = _with_items(block, {} if content is block["content"] else {"content": content})
            return self._data_items(block, depth, skipping={"content"})
        return self._data_items(block, depth)


def _holds_blocks(key: Any, item: Any) -> bool:
    """Lists of typed dicts under these names are blocks, wherever they stand."""
    return (
        key in ("content", "content_blocks")
        and isinstance(item, list | tuple)
        and bool(item)
        and all(_is_block(part) for part in item)
    )


def _is_block(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, dict) and "type" in part)


def _is_message_like(value: Any) -> bool:
    """A message as people may write it: ("human", ...) or {"role": ..., "content": ...}."""
    if isinstance(value, dict):
        role, content = value.get("role", value.get("type")), value.get("content")
    elif isinstance(value, tuple | list) and len(value) == 2:
        role, content = value
    else:
        return False
    return isinstance(role, str) and role in _ROLES and isinstance(content, str | list)


def _as_messages(values: list[Any]) -> list[Any]:
    """Real messages in place of message-likes: they alone can carry a verdict.

    LangChain takes both alike, and a list without pictures goes on as it came.
    """
    alike = [_is_message_like(value) for value in values]
    if not any(alike) or not all(
        like or isinstance(value, str | BaseMessage)
        for like, value in zip(alike, values, strict=True)
    ):
        return values
    try:
        return list(convert_to_messages(values))
    except (ValueError, TypeError, KeyError, NotImplementedError):
        return values  # a tool message without its call, say: looked into as data


def _image_prompt(prompt: ImagePromptValue) -> Carrier:
    labels = {"detail": detail} if (detail := prompt.image_url.get("detail")) else {}
    return Carrier(
        from_address(prompt.image_url.get("url")),
        prompt,
        lambda image: ImagePromptValue(image_url={**labels, "url": png_url(image)}),
        lambda text: StringPromptValue(text=text),
    )


def _with_items(value: dict[Any, Any], changed: dict[Any, Any]) -> dict[Any, Any]:
    if not changed:
        return value
    other = copy.copy(value)  # a copy of the caller's own kind of dict
    other.update(changed)
    return other
