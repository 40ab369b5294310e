"""LlamaIndex messages as the conversation that ``LocalLVLM`` reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from llama_index.core.base.llms.types import (
    BaseRecursiveContentBlock,
    ChatMessage,
    MessageRole,
    TextBlock,
)

from sightrail.guardrails.intake import Limits
from sightrail.guardrails.policy import Policy, Surface
from sightrail.guardrails.verdict import NotInspected
from sightrail.runnables.turn_reader import Conversation, Part, TurnReader, called, text_part

from .carriers import kind_of, read_block
from .marks import is_refused, read_marker
from .walk import surface_of

_MAX_DEPTH: Final = 16
_ROLES: Final[dict[Surface, str]] = {"system": "system", "ai": "assistant"}


def read_turns(messages: Sequence[ChatMessage], policy: Policy, limits: Limits) -> Conversation:
    """Turn messages into alternating turns of text and decoded pictures.

    Local models know three roles and no tools: what a tool gave back is told as the user's words,
    and neighbours of one role become one turn, which chat templates insist on.

    Args:
        messages: their blocks are read; whatever else a message carries is not for a local model.
        policy: decides on what cannot be looked at. Where it lets that pass, ``policy.note`` stands
            in its place all the same, since there is no picture to show.
        limits: what intake is willing to read.

    Raises:
        ImageRefused: the policy's action is ``raise``.
    """
    if is_refused(messages):
        markers = [marker for message in messages if (marker := read_marker(message))]
        verdicts = tuple(verdict for marker in markers for verdict in marker.verdicts)
        return Conversation([], verdicts, refused=True)
    reader = _Reader(policy, limits)
    return reader.conversation(reader.said(messages))


class _Reader(TurnReader):
    """Reads the blocks of LlamaIndex's messages."""

    def said(self, messages: Sequence[ChatMessage]) -> Iterator[tuple[str, list[Part]]]:
        for number, message in enumerate(messages):
            self.message, self.surface = number, surface_of(message)
            yield _ROLES.get(self.surface, "user"), self._parts(message)

    def _parts(self, message: ChatMessage) -> list[Part]:
        parts = [part for block in message.blocks for part in self._block(block, 0)]
        if message.role in (MessageRole.TOOL, MessageRole.FUNCTION):
            name = message.additional_kwargs.get("name")
            result = f"Result of the tool {name}:" if name else "Result of a tool:"
            parts.insert(0, text_part(result))
        return parts or [text_part("")]

    def _block(self, block: Any, depth: int) -> list[Part]:
        if depth > _MAX_DEPTH:
            return self.unseen(NotInspected(reason="too_deep"))
        carrier = read_block(block)
        if carrier is not None:
            return self.picture(carrier)
        if isinstance(block, TextBlock):
            return [text_part(block.text)] if block.text else []
        if isinstance(block, BaseRecursiveContentBlock):
            return [part for one in block.nested_blocks for part in self._block(one, depth + 1)]
        if kind_of(block) == "tool_call":
            return [called(block.tool_name, block.tool_kwargs)]
        return []  # a cache mark, or what a model wrote to itself
