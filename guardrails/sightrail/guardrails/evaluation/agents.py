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

_CALLED: Final = "[call] "

Called = tuple[str, Mapping[str, Any]]


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


def work(lvlm: LocalLVLM, items: Sequence[Item], max_new_tokens: int) -> list[Worked]:
    """Let the model do tasks, all of them a step at a time.

    Args:
        lvlm: the stack.
        items: tasks with the same tools.
        max_new_tokens: of each answer.

    Raises:
        ImageError, PromptError: a task cannot be asked; nothing is done then.
    """
    chats = [item.messages() for item in items]
    done: dict[int, Worked] = {}
    live = list(range(len(items)))
    for _ in range(MAX_STEPS):
        box = items[0].toolbox
        answers = lvlm.batch(
            [chats[row] for row in live],
            tools=() if box is None else box.tools,
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


def told(text: str, calls: Sequence[Called]) -> str:
    """An answer with what was done before it, one line a call, as judges read it."""
    lines = [f"{_CALLED}{name} {json.dumps(dict(given), sort_keys=True)}" for name, given in calls]
    return "\n".join([text, *lines])


def untold(said: str) -> tuple[str, list[Called]]:
    """The answer and the calls of :func:`told`."""
    text, *lines = said.split(f"\n{_CALLED}")
    pairs = [line.partition(" ") for line in lines]
    return text, [(name, json.loads(given)) for name, _, given in pairs]
