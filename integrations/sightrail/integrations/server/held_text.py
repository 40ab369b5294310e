"""Streamed text that may be growing into a picture is held back until it can be looked at."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Final

from sightrail.guardrails.carriers.walk import settled

_LONGEST_WORD: Final = 256
"""Characters of an open end; what waits behind more has begun like a picture."""


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


def response_text(event: dict[str, Any]) -> tuple[Hashable, str | None] | None:
    """Where a text event of the Responses API belongs, and its new text; None text at its end."""
    kind = event.get("type")
    place = (event.get("item_id"), event.get("content_index"))
    if kind == "response.output_text.delta" and isinstance(event.get("delta"), str):
        return place, event["delta"]
    return (place, None) if kind == "response.output_text.done" else None
