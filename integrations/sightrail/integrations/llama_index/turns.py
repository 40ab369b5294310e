"""LlamaIndex messages, and pictures beside a prompt, as the conversation a local model is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from llama_index.core.base.llms.types import (
    BaseContentBlock,
    BaseRecursiveContentBlock,
    ChatMessage,
    ImageBlock,
    MessageRole,
    TextBlock,
)
from llama_index.core.schema import BaseNode, ImageNode, MediaResource, NodeWithScore

from sightrail.guardrails.carriers.carrier import MAX_DEPTH, too_deep
from sightrail.guardrails.errors import PromptError
from sightrail.guardrails.model.messages import Conversation, ImagePart, Part, TextPart, Turn
from sightrail.guardrails.model.tools import ToolCall, new_call_id
from sightrail.guardrails.policy import Surface

from .call_review import as_spoken
from .carriers import kind_of, read_block
from .walk import surface_of

_ROLES: Final[dict[Surface, str]] = {"system": "system", "ai": "assistant"}


def read_conversation(messages: Sequence[ChatMessage]) -> Conversation:
    """Turn messages into turns of text, pictures, calls and results; nothing is decoded here.

    Neighbours of one role become one turn, which chat templates insist on; results of tools stay
    apart, each with its call.

    Args:
        messages: their blocks are read, and of a tool's result its name and its call; whatever
            else a message carries is not for a local model.
    """
    blocks: Iterator[Any] = (block for message in messages for block in message.blocks)
    calls = [block for block in blocks if _calls(block)]
    names = {str(block.tool_call_id): block.tool_name for block in calls}
    turns = (
        _turn(message, surface_of(spoken), names)
        for message, spoken in zip(messages, as_spoken(messages), strict=True)
    )
    return Conversation.of(turns)


def _turn(message: ChatMessage, surface: Surface, names: Mapping[str, str]) -> Turn:
    parts = tuple(part for block in message.blocks for part in _block(block, surface, 0))
    if surface == "tool" and message.role == MessageRole.USER:  # as ReActAgent tells a result
        return Turn("user", parts, name="")
    if message.role in (MessageRole.TOOL, MessageRole.FUNCTION):
        call = message.additional_kwargs.get("tool_call_id")
        name = message.additional_kwargs.get("name") or names.get(str(call), "")
        return Turn("tool", parts, call_id=call, name=str(name))
    calls = tuple(_call(block) for block in message.blocks if _calls(block))
    return Turn(_ROLES.get(surface, "user"), parts, calls=calls)


def _calls(block: Any) -> bool:
    return kind_of(block) == "tool_call"


def _call(block: Any) -> ToolCall:
    given = block.tool_kwargs
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            given = {"arguments": given}
    arguments = given if isinstance(given, Mapping) else {"arguments": given}
    return ToolCall(block.tool_name, arguments, str(block.tool_call_id or new_call_id()))


def _block(block: Any, surface: Surface, depth: int) -> Iterator[Part]:
    if depth > MAX_DEPTH:
        yield ImagePart(too_deep(block).source, surface)
    elif (carrier := read_block(block)) is not None:
        yield ImagePart(carrier.source, surface)
    elif isinstance(block, TextBlock):
        yield from [TextPart(block.text)] if block.text else []
    elif isinstance(block, BaseRecursiveContentBlock):
        for inner in block.nested_blocks:
            yield from _block(inner, surface, depth + 1)
    # what is left is a call, a cache mark, or what a model wrote to itself


def picture_blocks(
    documents: Sequence[BaseNode | NodeWithScore | ImageBlock],
) -> list[BaseContentBlock]:
    """One block per document, node or picture; nothing is read or fetched here.

    Raises:
        PromptError: a document without a picture.
    """
    return [
        _picture_of(item.node if isinstance(item, NodeWithScore) else item) for item in documents
    ]


def _picture_of(node: BaseNode | ImageBlock) -> ImageBlock:
    if isinstance(node, ImageBlock):
        return node
    if isinstance(node, ImageNode):
        image = None if node.image is None else node.image.encode()
        return _image_block(image, node.image_path, node.image_url)
    resource = getattr(node, "image_resource", None)
    if isinstance(resource, MediaResource):
        return _image_block(resource.data, resource.path, resource.url)
    raise PromptError(
        f"A {type(node).__name__} among image_documents holds no picture; put its text into the "
        "prompt."
    )


def _image_block(image: bytes | None, path: Any, url: Any) -> ImageBlock:
    """Unchecked: LlamaIndex would raise over a missing file, where intake says what is wrong."""
    return ImageBlock.model_construct(image=image, path=path, url=url)
