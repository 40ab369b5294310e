"""Finding every carrier in a LlamaIndex value, and putting something else in its place.

Messages and tool outputs hold blocks, and there every block has to be of a known kind. In nodes'
metadata, extra arguments and raw tool outputs any JSON may stand: whatever is recognisably a
picture there is taken as one. Nothing that was passed in is changed, and a value without carriers
comes back as the same object.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final

import numpy as np
from llama_index.core.base.llms.types import (
    BaseContentBlock,
    BaseRecursiveContentBlock,
    ChatMessage,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.base.response.schema import Response
from llama_index.core.schema import BaseNode, ImageNode, MediaResource, QueryBundle
from llama_index.core.tools import ToolOutput
from llama_index.core.workflow import Event
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel

from sightrail.guardrails.carriers import walk
from sightrail.guardrails.carriers.carrier import MAX_DEPTH, too_deep
from sightrail.guardrails.carriers.walk import (
    Place,
    Stamp,
    leave,
    same_items,
)
from sightrail.guardrails.errors import ImageError
from sightrail.guardrails.intake.arrays import array_size
from sightrail.guardrails.policy import Surface

from .carriers import (
    PICTURE_FIELDS,
    VECTORS,
    changed_node,
    read_block,
    read_image_node,
    read_query,
    read_resource,
)

Holder = ChatMessage | ToolOutput | BaseNode

_ROLES: Final[dict[MessageRole, Surface]] = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.ASSISTANT: "ai",
    MessageRole.CHATBOT: "ai",
    MessageRole.MODEL: "ai",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}
_NO_HOLDERS: Final = (
    *(type, ModuleType, FunctionType, MethodType, BaseModel),
    *(bytes, bytearray, memoryview, np.ndarray, Image.Image),
)
"""What was looked into already, or has attributes that are no data."""
_HELD: Final = (
    *(str, bytes, bytearray, np.ndarray, Image.Image, list, tuple, dict),
    *(BaseContentBlock, BaseNode, ChatMessage),
)


class Walk(walk.Walk):
    """One pass over one value of LlamaIndex's."""

    def __init__(self, place: Place, stamp: Stamp = leave, surface: Surface = "user") -> None:
        super().__init__(place, stamp, surface)
        self._met: dict[int, tuple[range, Any]] = {}
        self._inside = False

    def _surface_of(self, holder: Any) -> Surface:
        return surface_of(holder)

    def _words_of(self, holder: Any) -> str:
        asked = isinstance(holder, ChatMessage) and holder.role == MessageRole.USER
        return (holder.content or "") if asked else ""

    def _known(self, value: Any, depth: int, opaque: bool) -> Any:
        if isinstance(value, ChatMessage):
            return self._holding(value, self._message, depth)
        if isinstance(value, BaseNode):
            return self._holding(value, self._node, depth)
        if isinstance(value, BaseContentBlock):
            return self._block(value, depth)
        if isinstance(value, ToolOutput):
            return self._holding(value, self._tool_output, depth)
        if isinstance(value, Event):
            return self._event(value, depth)
        if isinstance(value, QueryBundle):
            return self._query(value, depth)
        return NotImplemented

    def _object(self, value: Any, depth: int, opaque: bool) -> Any:
        if opaque and isinstance(value, np.ndarray) and not _like_picture(value):
            return value
        if isinstance(value, deque):
            items = [self._data(item, depth + 1, opaque) for item in value]
            return value if same_items(items, value) else deque(items, value.maxlen)
        seen = super()._object(value, depth, opaque)
        return self._attributes(value, depth) if opaque and seen is value else seen

    def _attributes(self, value: Any, depth: int) -> Any:
        """An object of any class passes; what it holds itself that is a picture is looked at."""
        if isinstance(value, _NO_HOLDERS) or self._inside or not hasattr(value, "__dict__"):
            return value
        held = {name: item for name, item in vars(value).items() if isinstance(item, _HELD)}
        self._inside = True
        try:
            changed = self._fields(held, depth, opaque=True)
        finally:
            self._inside = False
        if not changed:
            return value
        other = copy.copy(value)
        vars(other).update(changed)
        return other

    # Events and queries

    def _event(self, event: Event, depth: int) -> Event:
        """Events hold what they were given by any name, and the result of a run, apart."""
        fields = self._fields(event.__dict__, depth, opaque=True)
        given = self._fields(event.__pydantic_private__ or {}, depth, opaque=True)
        if not fields and not given:
            return event
        other = event.model_copy(update=fields)
        (other.__pydantic_private__ or {}).update(given)
        return other

    def _query(self, query: QueryBundle, depth: int) -> QueryBundle:
        carrier = read_query(query)
        path = query.image_path if carrier is None else self._place(carrier)
        words = self._fields(
            {"query_str": query.query_str, "custom_embedding_strs": query.custom_embedding_strs},
            depth,
            opaque=True,
        )
        if path is query.image_path and not words:
            return query
        return dataclasses.replace(query, image_path=path, **words)

    # Nodes

    def _node(self, node: BaseNode, depth: int) -> BaseNode:
        changed: dict[str, Any] = {}
        if isinstance(node, ImageNode) and (carrier := read_image_node(node)) is not None:
            changed["image"] = self._place(carrier)
        for name, value in node.__dict__.items():
            if name in VECTORS or (isinstance(node, ImageNode) and name in PICTURE_FIELDS):
                continue
            seen = self._field(name, value, depth)
            if seen is not value:
                changed[name] = seen
        return changed_node(node, changed)

    def _field(self, name: str, value: Any, depth: int) -> Any:
        if name == "metadata":  # told to models as text, so as a whole it is no block
            return self._entries(value, depth + 1, opaque=True)
        if not isinstance(value, MediaResource):
            return self._data(value, depth + 1, opaque=True)
        text = None if value.text is None else self._text(value.text)
        carrier = read_resource(name, value)
        seen = value if carrier is None else self._place(carrier)
        if isinstance(seen, MediaResource) and seen.text is not text:
            return seen.model_copy(update={"text": text})
        return seen

    # Messages, tool outputs and their blocks

    def _message(self, message: ChatMessage, depth: int) -> ChatMessage:
        blocks = self._blocks(message.blocks, depth + 1)
        extra = self._entries(message.additional_kwargs, depth + 1, opaque=True)
        if blocks is message.blocks and extra is message.additional_kwargs:
            return message
        return message.model_copy(update={"blocks": blocks, "additional_kwargs": extra})

    def _tool_output(self, output: ToolOutput, depth: int) -> ToolOutput:
        raw = self._data(output.raw_output, depth + 1, opaque=True)
        same = raw is output.raw_output
        told = _told_of(output)
        blocks = [
            self._block(block, depth + 2)
            if told is None or not isinstance(block, TextBlock) or block.text != told
            else block
            if same
            else block.model_copy(update={"text": str(raw)})
            for block in output.blocks
        ]
        if same and same_items(blocks, output.blocks):
            return output
        return output.model_copy(update={"blocks": blocks, "raw_output": raw})

    def _blocks(self, blocks: list[Any], depth: int) -> list[Any]:
        seen = [self._block(block, depth + 1) for block in blocks]
        return blocks if same_items(seen, blocks) else seen

    def _block(self, block: BaseContentBlock, depth: int) -> Any:
        """A tool's blocks often are its raw output as well: the same object is looked at once."""
        if id(block) not in self._met:
            before = self._count
            seen = self._new_block(block, depth)
            self._met[id(block)] = (range(before, self._count), seen)
            return seen
        numbers, seen = self._met[id(block)]
        self._loose += [number for number in numbers if number not in self._loose]
        return seen

    def _new_block(self, block: BaseContentBlock, depth: int) -> Any:
        if depth > MAX_DEPTH:
            return self._place(too_deep(block))
        carrier = read_block(block)
        if carrier is not None:
            return self._place(carrier)
        if isinstance(block, BaseRecursiveContentBlock):
            return self._nested(block, depth)
        if isinstance(block, ToolCallBlock):
            arguments = self._texts(block.tool_kwargs, depth + 1)
            same = arguments is block.tool_kwargs
            return block if same else block.model_copy(update={"tool_kwargs": arguments})
        # Text and thoughts: words, and pictures that are written in them.
        changed = self._fields(block.__dict__, depth, opaque=True)
        return block.model_copy(update=changed) if changed else block

    def _nested(self, block: BaseRecursiveContentBlock, depth: int) -> Any:
        name = block.nested_blocks_field_name()
        inner = getattr(block, name)
        seen = (
            self._blocks(inner, depth + 1)
            if isinstance(inner, list)
            else self._block(inner, depth + 1)
        )
        return block if seen is inner else block.model_copy(update={name: seen})


def surface_of(holder: Holder) -> Surface:
    """The surface of a message, a tool's output or a node, which was retrieved."""
    if isinstance(holder, ToolOutput):
        return "tool"
    return _ROLES.get(holder.role, "user") if isinstance(holder, ChatMessage) else "retrieval"


def _told_of(output: ToolOutput) -> str | None:
    """How LlamaIndex tells a model of plain data; None where the output says it in other words."""
    raw = output.raw_output
    plain = isinstance(raw, dict | list | tuple | set | bytes | str | BaseModel | Response)
    if not plain or not any(isinstance(block, TextBlock) for block in output.blocks):
        return None
    try:
        return str(raw)
    except Exception:  # whatever a tool's own class does
        return None


def _like_picture(array: NDArray[Any]) -> bool:
    """Whether numbers that nobody called a picture are one: pixels in colour, or grey ones."""
    try:
        size = array_size(array)
    except ImageError:
        return False
    return min(size) >= 8 and (array.ndim == 3 or array.dtype in (np.bool_, np.uint8, np.uint16))
