"""LangChain messages as the conversation that ``LocalLVLM`` reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from sightrail.guardrails.errors import PromptError
from sightrail.guardrails.intake import Limits
from sightrail.guardrails.policy import Policy
from sightrail.guardrails.verdict import NotInspected

from .carriers.kinds import kind_of, text_of
from .carriers.media import read_media
from .carriers.surfaces import surface_of
from .marker import is_refused, marked_verdicts
from .turn_reader import Conversation, Part, TurnReader, called, text_part

__all__ = ["Conversation", "read_turns"]

_MAX_DEPTH: Final = 16
_ROLES: Final = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "system": "system",
    "developer": "system",
}


def read_turns(messages: Sequence[BaseMessage], policy: Policy, limits: Limits) -> Conversation:
    """Turn messages into alternating turns of text and decoded pictures.

    Local models know three roles and no tools: what a tool gave back is told as the user's words,
    and neighbours of one role become one turn, which chat templates insist on.

    Args:
        messages: any LangChain messages.
        policy: decides on what cannot be looked at. Where it lets that pass, ``policy.note`` stands
            in its place all the same, since there is no picture to show.
        limits: what intake is willing to decode.

    Raises:
        PromptError: a message that nobody can say to a model.
        ImageRefused: the policy's action is ``raise``.
    """
    if is_refused(messages):
        return Conversation([], marked_verdicts(messages), refused=True)
    reader = _Reader(policy, limits)
    return reader.conversation(reader.said(messages))


def _role(message: BaseMessage) -> str:
    if isinstance(message, HumanMessage | ToolMessage | FunctionMessage):
        return "user"
    if isinstance(message, AIMessage):
        return "assistant"
    if isinstance(message, SystemMessage):
        return "system"
    if isinstance(message, ChatMessage) and message.role.lower() in _ROLES:
        return _ROLES[message.role.lower()]
    raise PromptError(
        f"A {type(message).__name__} cannot be said to a local model; use system, human, AI and "
        "tool messages."
    )


class _Reader(TurnReader):
    """Reads the content of LangChain's messages."""

    def said(self, messages: Sequence[BaseMessage]) -> Iterator[tuple[str, list[Part]]]:
        for number, message in enumerate(messages):
            self.message, self.surface = number, surface_of(message) or "user"
            yield _role(message), self._parts(message)

    def _parts(self, message: BaseMessage) -> list[Part]:
        parts = [part for block in _blocks(message.content) for part in self._block(block, 0)]
        if isinstance(message, ToolMessage | FunctionMessage):
            result = f"Result of the tool {message.name or ''}:".replace(" :", ":")
            parts.insert(0, text_part(result))
        if isinstance(message, AIMessage):
            parts += [called(call["name"], call["args"]) for call in message.tool_calls]
        return parts or [text_part("")]

    def _block(self, block: Any, depth: int) -> list[Part]:
        if isinstance(block, str):
            return [text_part(block)] if block else []
        if not isinstance(block, dict) or depth > _MAX_DEPTH:
            return self.unseen(NotInspected(reason="unknown_block"))
        carrier = read_media(block)
        return self._known_block(block, depth) if carrier is None else self.picture(carrier)

    def _known_block(self, block: dict[str, Any], depth: int) -> list[Part]:
        kind = kind_of(block)
        if kind == "text":
            return [text_part(text)] if (text := text_of(block)) else []
        if kind in ("aside", "call"):  # calls stand in AIMessage.tool_calls as well
            return []
        if kind == "wrapped":
            return self._block(block["value"], depth + 1)
        content = block.get("content")
        if kind == "result" and isinstance(content, str | list):
            outside, self.surface = self.surface, "tool"
            parts = [p for inner in _blocks(content) for p in self._block(inner, depth + 1)]
            self.surface = outside
            return parts
        return self.unseen(NotInspected(reason="unknown_block"))


def _blocks(content: Any) -> list[Any]:
    return [content] if isinstance(content, str) else list(content)
