"""LlamaIndex messages, and pictures beside a prompt, as the conversation a local model is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from sightrail.guardrails.model.messages import Conversation, ImagePart, Part, TextPart, called
from sightrail.guardrails.policy import Surface

from .carriers import kind_of, read_block
from .walk import surface_of

_ROLES: Final[dict[Surface, str]] = {"system": "system", "ai": "assistant"}


def read_conversation(messages: Sequence[ChatMessage]) -> Conversation:
    """Turn messages into alternating turns of text and pictures; nothing is decoded here.

    Local models know three roles and no tools: what a tool gave back is told as the user's words,
    and neighbours of one role become one turn, which chat templates insist on.

    Args:
        messages: their blocks are read; whatever else a message carries is not for a local model.
    """
    return Conversation.of(_said(message, surface_of(message)) for message in messages)


def _said(message: ChatMessage, surface: Surface) -> tuple[str, list[Part]]:
    parts = [part for block in message.blocks for part in _block(block, surface, 0)]
    if message.role in (MessageRole.TOOL, MessageRole.FUNCTION):
        name = message.additional_kwargs.get("name")
        result = f"Result of the tool {name}:" if name else "Result of a tool:"
        parts.insert(0, TextPart(result))
    return _ROLES.get(surface, "user"), parts


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
    elif kind_of(block) == "tool_call":
        yield called(block.tool_name, block.tool_kwargs)
    # what is left is a cache mark, or what a model wrote to itself


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
