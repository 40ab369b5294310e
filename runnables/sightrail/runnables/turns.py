"""LangChain messages as the conversation that ``LocalLVLM`` reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
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
from sightrail.guardrails.intake import Limits, Picture, RequestReader
from sightrail.guardrails.policy import Policy, Surface, apply_policy
from sightrail.guardrails.verdict import NotInspected, Verdict

from .carriers.kinds import kind_of, text_of
from .carriers.media import read_media
from .carriers.surfaces import surface_of
from .marker import is_refused, marked_verdicts
from .screening import decode

Part = dict[str, Any]
Turn = dict[str, Any]

_MAX_DEPTH: Final = 16
_ROLES: Final = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "system": "system",
    "developer": "system",
}


@dataclass(frozen=True)
class Conversation:
    """What ``LocalLVLM`` is to be asked.

    Attributes:
        turns: for ``LocalLVLM.chat``; pictures are decoded.
        verdicts: one per thing that could not be looked at, with the policy's action on it; for
            messages that screening has refused, its verdicts.
        refused: the model is not to be asked.
    """

    turns: list[Turn]
    verdicts: tuple[Verdict, ...]
    refused: bool


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
    turns: list[Turn] = []
    for message in messages:
        turn: Turn = {"role": _role(message), "content": reader.parts(message)}
        if turns and turns[-1]["role"] == turn["role"]:
            turns[-1]["content"] = _joined(turns[-1]["content"], turn["content"])
        else:
            turns.append(turn)
    return Conversation(turns, tuple(reader.verdicts), refused=reader.refused)


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


class _Reader:
    """Reads the content of one request's messages and keeps the verdicts of what it could not."""

    def __init__(self, policy: Policy, limits: Limits) -> None:
        self._policy = policy
        self._reader = RequestReader(limits)
        self._message = 0
        self._surface: Surface = "user"
        self.verdicts: list[Verdict] = []

    @property
    def refused(self) -> bool:
        """Whether the policy refuses because of something that could not be looked at."""
        if self._policy.monitor:
            return False
        return any(verdict.action == "refuse" for verdict in self.verdicts)

    def parts(self, message: BaseMessage) -> list[Part]:
        self._message += 1
        self._surface = surface_of(message) or "user"
        parts = [part for block in _blocks(message.content) for part in self._block(block, 0)]
        if isinstance(message, ToolMessage | FunctionMessage):
            parts.insert(0, _text(f"Result of the tool {message.name or ''}:".replace(" :", ":")))
        if isinstance(message, AIMessage):
            parts += [_text(_called(call["name"], call["args"])) for call in message.tool_calls]
        return parts or [_text("")]

    def _block(self, block: Any, depth: int) -> list[Part]:
        if isinstance(block, str):
            return [_text(block)] if block else []
        if not isinstance(block, dict) or depth > _MAX_DEPTH:
            return self._unseen(NotInspected(reason="unknown_block"))
        carrier = read_media(block)
        if carrier is not None:
            seen = decode(carrier, self._reader, self._message)
            if isinstance(seen, Picture):
                return [{"type": "image", "image": seen.image, "surface": self._surface}]
            return self._unseen(seen)
        return self._known_block(block, depth)

    def _known_block(self, block: dict[str, Any], depth: int) -> list[Part]:
        kind = kind_of(block)
        if kind == "text":
            return [_text(text)] if (text := text_of(block)) else []
        if kind in ("aside", "call"):  # calls stand in AIMessage.tool_calls as well
            return []
        if kind == "wrapped":
            return self._block(block["value"], depth + 1)
        content = block.get("content")
        if kind == "result" and isinstance(content, str | list):
            outside, self._surface = self._surface, "tool"
            parts = [p for inner in _blocks(content) for p in self._block(inner, depth + 1)]
            self._surface = outside
            return parts
        return self._unseen(NotInspected(reason="unknown_block"))

    def _unseen(self, why: NotInspected) -> list[Part]:
        verdict = Verdict(status="not_inspected", not_inspected=(why,))
        self.verdicts.append(apply_policy(None, verdict, self._policy, self._surface).verdict)
        return [_text(self._policy.note)]


def _blocks(content: Any) -> list[Any]:
    return [content] if isinstance(content, str) else list(content)


def _text(text: str) -> Part:
    return {"type": "text", "text": text}


def _called(name: str, arguments: dict[str, Any]) -> str:
    return f"Called the tool {name} with {json.dumps(arguments, default=str)}."


def _joined(first: list[Part], second: list[Part]) -> list[Part]:
    if first[-1]["type"] == second[0]["type"] == "text":
        between = _text(f"{first[-1]['text']}\n{second[0]['text']}")
        return [*first[:-1], between, *second[1:]]
    return [*first, *second]
