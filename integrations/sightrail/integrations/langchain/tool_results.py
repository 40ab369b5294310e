"""What a tool gave back: a message, or a command that updates the state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import BaseMessage, ToolMessage
from langgraph.types import Command

from .message_screen import SeenMessages

Screen = Callable[[Sequence[BaseMessage]], SeenMessages]


def screen_result(result: Any, screen: Screen) -> Any:
    """The same result with its pictures screened; ids and tool call ids stay.

    Of a command, the messages that a dict of updates holds are looked at. Whatever else brings
    messages into the state is looked at before the model is called.
    """
    if isinstance(result, ToolMessage):
        return screen([result]).messages[0]
    if isinstance(result, list):
        return [screen_result(one, screen) for one in result]
    if isinstance(result, Command) and isinstance(result.update, dict):
        update = {key: _screen_value(value, screen) for key, value in result.update.items()}
        return replace(result, update=update)
    return result


def _screen_value(value: Any, screen: Screen) -> Any:
    if isinstance(value, BaseMessage):
        return screen([value]).messages[0]
    if isinstance(value, list) and value and all(isinstance(v, BaseMessage) for v in value):
        return screen(value).messages
    return value
