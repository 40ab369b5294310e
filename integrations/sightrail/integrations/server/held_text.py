"""Streamed text that may be growing into a picture is held back until it can be looked at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Final

from sightrail.guardrails.carriers.media import read_media
from sightrail.guardrails.carriers.walk import settled

_LONGEST_WORD: Final = 256
"""Characters of an open end; what waits behind more has begun like a picture."""

_GROWING: Final = frozenset(
    {"content", "reasoning", "reasoning_content", "thinking", "refusal", "text", "summary"}
    | {"arguments", "input", "transcript"}
)
"""Fields of a delta that come in pieces: answers, thoughts by every engine's name, calls of tools.
What stands in another field comes whole."""

Judge = Callable[[Any], Awaitable[Any]]
Path = tuple[str | int, ...]


@dataclass
class HeldText:
    """The texts of one stream, by where they stand in it.

    What surely is no picture goes on at once; from the beginning of one on, everything waits for
    the text's end.
    """

    _texts: dict[Hashable, str] = field(default_factory=dict)
    _shown: dict[Hashable, int] = field(default_factory=dict)
    _caught: set[Hashable] = field(default_factory=set)

    def push(self, place: Hashable, text: str) -> str:
        """Take new text; gives what may be shown now."""
        whole = self._texts[place] = self._texts.get(place, "") + text
        begin = self._shown.setdefault(place, 0)
        if place in self._caught:
            return ""
        fresh = whole[begin:]
        ready = settled(fresh)
        if ready < len(fresh) - _LONGEST_WORD:
            self._caught.add(place)
        self._shown[place] = begin + ready
        return fresh[:ready]

    def rest(self, place: Hashable) -> str:
        """What was held back of a text that has ended."""
        self._caught.discard(place)
        return self._texts.pop(place, "")[self._shown.pop(place, 0) :]

    def places(self) -> list[Any]:
        """Where texts have begun that have not ended, in the order in which they began."""
        return list(self._texts)


# Chat completions: a place is the number of a choice, and the path of a field in its delta.


async def shown_chunk(event: dict[str, Any], held: HeldText, judge: Judge) -> dict[str, Any]:
    """A piece of a chat completion with as much of its texts as may be shown now.

    Args:
        event: as it came.
        held: of this stream.
        judge: gives a text that has ended as it may be shown.
    """
    choices = []
    for choice in event.get("choices") or []:
        delta = choice.get("delta")
        if isinstance(delta, dict):
            number = choice.get("index", 0)
            delta = _pushed(delta, (number,), held)
            if choice.get("finish_reason"):
                delta = await _with_rests(delta, number, held, judge)
            choice = {**choice, "delta": delta}
        choices.append(choice)
    return {**event, "choices": choices} if choices else event


async def rest_of_chunks(
    event: dict[str, Any], held: HeldText, judge: Judge
) -> dict[str, Any] | None:
    """What is left of a stream that ended without saying so, in the shape of its last event."""
    numbers = dict.fromkeys(place[0] for place in held.places())
    deltas = {number: await _with_rests({}, number, held, judge) for number in numbers}
    choices = [
        {"index": number, "delta": delta, "finish_reason": None}
        for number, delta in deltas.items()
        if delta
    ]
    return {**event, "choices": choices} if choices else None


def _pushed(value: Any, place: Path, held: HeldText) -> Any:
    """A delta with what may be shown of it; a picture that came whole stays as it is."""
    if isinstance(value, str):
        return held.push(place, value) if place[-1] in _GROWING else value
    if isinstance(value, list):
        return [_pushed(item, (*place, _number(item, at)), held) for at, item in enumerate(value)]
    if isinstance(value, dict) and read_media(value) is None:
        return {key: _pushed(item, (*place, key), held) for key, item in value.items()}
    return value


def _number(item: Any, at: int) -> int:
    number = item.get("index") if isinstance(item, dict) else None
    return number if isinstance(number, int) else at


async def _with_rests(
    delta: dict[str, Any], number: Hashable, held: HeldText, judge: Judge
) -> dict[str, Any]:
    for place in held.places():
        if place[0] == number and (rest := held.rest(place)):
            delta = _appended(delta, place[1:], str(await judge(rest)))
    return delta


def _appended(value: Any, path: Path, text: str) -> Any:
    """A delta with a text at the end of the one at a path, whether that is there or not."""
    if not path:
        return f"{value or ''}{text}"
    step, *left = path
    if isinstance(step, str):
        holder = value if isinstance(value, dict) else {}
        return {**holder, step: _appended(holder.get(step), tuple(left), text)}
    items = list(value or [])
    for at, item in enumerate(items):
        if _number(item, at) == step:
            items[at] = _appended(item, tuple(left), text)
            return items
    return [*items, {"index": step, **_appended({}, tuple(left), text)}]


# The Responses API: a place is the kind of an event, and the item that it is about.


async def shown_event(
    event: dict[str, Any], held: HeldText, judge: Judge, last: dict[Hashable, dict[str, Any]]
) -> list[dict[str, Any]]:
    """An event with as much of its text as may be shown now; before it, text that has ended.

    Args:
        event: as it came.
        held: of this stream.
        judge: gives a text that has ended as it may be shown.
        last: of the stream: the last event of each text.
    """
    kind, _, stage = str(event.get("type")).rpartition(".")
    place = (kind, event.get("item_id"), event.get("output_index"))
    delta = event.get("delta")
    if stage == "delta" and isinstance(delta, str):
        last[place] = event
        return [{**event, "delta": held.push(place, delta)}]
    # Engines may leave out the end of a text; its item's end, or that of all, is then its own.
    ended = {
        text: held.rest(text)
        for text in held.places()
        if kind == "response" or (stage == "done" and text[2] == place[2])
    }
    told = [{**last[text], "delta": await judge(rest)} for text, rest in ended.items() if rest]
    return [*told, event]
