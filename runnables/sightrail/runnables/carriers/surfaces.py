"""Whose word a picture comes with: policies may be stricter with tools than with users."""

from __future__ import annotations

from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    SystemMessage,
    ToolMessage,
)

from sightrail.guardrails.policy import Surface

_BY_ROLE: Final[dict[str, Surface]] = {
    "system": "system",
    "developer": "system",
    "assistant": "ai",
    "ai": "ai",
    "tool": "tool",
    "function": "tool",
}


def surface_of(holder: Any) -> Surface | None:
    """The surface of a message or a retrieved document; None for what has none of its own."""
    if isinstance(holder, Document):
        return "retrieval"
    if isinstance(holder, ToolMessage | FunctionMessage):
        return "tool"
    if isinstance(holder, AIMessage):
        return "ai"
    if isinstance(holder, SystemMessage):
        return "system"
    if isinstance(holder, ChatMessage):
        return _BY_ROLE.get(holder.role.lower(), "user")
    return "user" if isinstance(holder, BaseMessage) else None
