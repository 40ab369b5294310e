"""LlamaIndex messages as the conversation that ``LocalLVLM`` reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from llama_index.core.base.llms.types import (
    BaseRecursiveContentBlock,
    ChatMessage,
    MessageRole,
    TextBlock,
)

from sightrail.guardrails.intake import Limits, Picture, RequestReader
from sightrail.guardrails.policy import Policy, Surface, apply_policy
from sightrail.guardrails.verdict import NotInspected, Verdict
from sightrail.runnables.screening import decode
from sightrail.runnables.turns import Conversation

from .carriers import kind_of, read_block
from .marks import is_refused, read_marker
from .walk import surface_of

Part = dict[str, Any]
Turn = dict[str, Any]

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
    turns: list[Turn] = []
    for number, message in enumerate(messages):
        role = _ROLES.get(surface_of(message), "user")
        parts = reader.parts(message, number)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = _joined(turns[-1]["content"], parts)
        else:
            turns.append({"role": role, "content": parts})
    return Conversation(turns, tuple(reader.verdicts), refused=reader.refused)


class _Reader:
    """Reads one request's messages and keeps the verdicts of what it could not look at."""

    def __init__(self, policy: Policy, limits: Limits) -> None:
        self._policy = policy
        self._pictures = RequestReader(limits)
        self._message = 0
        self._surface: Surface = "user"
        self.verdicts: list[Verdict] = []

    @property
    def refused(self) -> bool:
        """Whether the policy refuses because of something that could not be looked at."""
        if self._policy.monitor:
            return False
        return any(verdict.action == "refuse" for verdict in self.verdicts)

    def parts(self, message: ChatMessage, number: int) -> list[Part]:
        self._message, self._surface = number, surface_of(message)
        parts = [part for block in message.blocks for part in self._block(block, 0)]
        if message.role in (MessageRole.TOOL, MessageRole.FUNCTION):
            name = message.additional_kwargs.get("name")
            parts.insert(0, _text(f"Result of the tool {name}:" if name else "Result of a tool:"))
        return parts or [_text("")]

    def _block(self, block: Any, depth: int) -> list[Part]:
        if depth > _MAX_DEPTH:
            return self._unseen(NotInspected(reason="too_deep"))
        carrier = read_block(block)
        if carrier is not None:
            seen = decode(carrier, self._pictures, self._message)
            if isinstance(seen, Picture):
                return [{"type": "image", "image": seen.image, "surface": self._surface}]
            return self._unseen(seen)
        if isinstance(block, TextBlock):
            return [_text(block.text)] if block.text else []
        if isinstance(block, BaseRecursiveContentBlock):
            return [part for one in block.nested_blocks for part in self._block(one, depth + 1)]
        if kind_of(block) == "tool_call":
            return [_text(_called(block.tool_name, block.tool_kwargs))]
        return []  # a cache mark, or what a model wrote to itself

    def _unseen(self, why: NotInspected) -> list[Part]:
        verdict = Verdict(status="not_inspected", not_inspected=(why,))
        self.verdicts.append(apply_policy(None, verdict, self._policy, self._surface).verdict)
        return [_text(self._policy.note)]


def _text(text: str) -> Part:
    return {"type": "text", "text": text}


def _called(name: str, arguments: Any) -> str:
    told = arguments if isinstance(arguments, str) else json.dumps(arguments, default=str)
    return f"Called the tool {name} with {told}."


def _joined(first: list[Part], second: list[Part]) -> list[Part]:
    if first[-1]["type"] == second[0]["type"] == "text":
        between = _text(f"{first[-1]['text']}\n{second[0]['text']}")
        return [*first[:-1], between, *second[1:]]
    return [*first, *second]
