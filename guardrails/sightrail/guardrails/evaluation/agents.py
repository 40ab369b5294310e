"""Tasks with tools: the model acts step by step, and is judged by what it did."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from ..model import Answer, LocalLVLM, ToolCall
    from .items import Item

MAX_STEPS: Final = 6
"""Answers of the model in one task; who still calls tools then has not done it."""

Called = tuple[str, Mapping[str, Any]]
"""A call that was carried out: the tool's name and its arguments."""


@dataclass(frozen=True)
class Reply:
    """What judges judge: the words of the last answer, and what was done before it.

    Attributes:
        text: the model's own words.
        calls: every call that was carried out, in order; empty where there were no tools.
    """

    text: str
    calls: tuple[Called, ...] = ()

    def __str__(self) -> str:
        """As a judge model reads it: the calls as JSON, one a line, then the words."""
        done = [json.dumps({"name": name, "arguments": dict(given)}) for name, given in self.calls]
        return "\n".join([*done, self.text])


class Toolbox(Protocol):
    """The tools of a task, and what they give back: always the same for the same call."""

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        """In OpenAI's form."""

    def call(self, name: str, arguments: Mapping[str, Any]) -> str | list[dict[str, Any]]:
        """The content of the tool's message; a call that cannot be carried out is told there."""


@dataclass(frozen=True)
class Worked:
    """What became of a task.

    Attributes:
        answer: the last of the model's answers.
        calls: every call that was carried out, in order.
        steps: how often the model answered.
    """

    answer: Answer
    calls: tuple[Called, ...] = ()
    steps: int = 1


def tools_of(item: Item) -> Sequence[Mapping[str, Any]]:
    """The tools that a task is asked with; tasks with others cannot be worked together."""
    return () if item.toolbox is None else item.toolbox.tools


def work(lvlm: LocalLVLM, items: Sequence[Item], max_new_tokens: int) -> list[Worked]:
    """Let the model do tasks, all of them a step at a time.

    Args:
        lvlm: the stack.
        items: tasks with the same tools.
        max_new_tokens: of each answer.

    Raises:
        ImageError, PromptError: a task cannot be asked; nothing is done then.
    """
    tools = tools_of(items[0])
    chats = [item.messages() for item in items]
    done: dict[int, Worked] = {}
    live = list(range(len(items)))
    for _ in range(MAX_STEPS):
        answers = lvlm.batch(
            [chats[row] for row in live],
            tools=tools,
            max_new_tokens=max_new_tokens,
        )
        going = []
        for row, answer in zip(live, answers, strict=True):
            before = done.get(row, Worked(answer, steps=0))
            calls = () if answer.refused else answer.tool_calls
            carried = tuple((call.name, call.arguments) for call in calls)
            done[row] = Worked(answer, before.calls + carried, before.steps + 1)
            if calls:
                going.append(row)
                chats[row] += _carried_out(items[row], answer.text, calls)
        live = going
        if not live:
            break
    for row in live:  # what still acts after so many steps has said nothing
        done[row] = replace(done[row], answer=replace(done[row].answer, text=""))
    return [done[row] for row in range(len(items))]


def _carried_out(item: Item, text: str, calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """The messages of some calls and their results."""
    assert item.toolbox is not None
    proposed = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
        }
        for call in calls
    ]
    results = [
        {
            "role": "tool",
            "tool_call_id": call.id,
            "name": call.name,
            "content": item.toolbox.call(call.name, call.arguments),
        }
        for call in calls
    ]
    return [{"role": "assistant", "content": text, "tool_calls": proposed}, *results]
