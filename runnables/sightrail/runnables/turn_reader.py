"""Reading a conversation for ``LocalLVLM``, whatever framework its messages come from."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from sightrail.guardrails.intake import Limits, Picture, RequestReader
from sightrail.guardrails.policy import Policy, Surface, apply_policy
from sightrail.guardrails.verdict import NotInspected, Verdict

from .carriers import Carrier
from .screening import decode

Part = dict[str, Any]
Turn = dict[str, Any]


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


class TurnReader:
    """Reads the pictures of one request's messages and keeps the verdicts of what it could not.

    A framework's own reader sets `message` and `surface` as it goes from message to message.

    Args:
        policy: decides on what cannot be looked at.
        limits: what intake is willing to read.
    """

    def __init__(self, policy: Policy, limits: Limits) -> None:
        self._policy = policy
        self._pictures = RequestReader(limits)
        self.message: Hashable = None
        self.surface: Surface = "user"
        self.verdicts: list[Verdict] = []

    def picture(self, carrier: Carrier) -> list[Part]:
        """The picture that a carrier holds, or the note in its place."""
        seen = decode(carrier, self._pictures, self.message)
        if isinstance(seen, Picture):
            return [{"type": "image", "image": seen.image, "surface": self.surface}]
        return self.unseen(seen)

    def unseen(self, why: NotInspected) -> list[Part]:
        """The note in the place of something that nobody can look at."""
        verdict = Verdict(status="not_inspected", not_inspected=(why,))
        self.verdicts.append(apply_policy(None, verdict, self._policy, self.surface).verdict)
        return [text_part(self._policy.note)]

    def conversation(self, said: Iterable[tuple[str, list[Part]]]) -> Conversation:
        """The turns of what each message says as which role; neighbours of one role are joined."""
        turns: list[Turn] = []
        for role, parts in said:
            if turns and turns[-1]["role"] == role:
                turns[-1]["content"] = _joined(turns[-1]["content"], parts)
            else:
                turns.append({"role": role, "content": parts})
        refuses = any(verdict.action == "refuse" for verdict in self.verdicts)
        return Conversation(
            turns, tuple(self.verdicts), refused=refuses and not self._policy.monitor
        )


def text_part(text: str) -> Part:
    """A text as part of a turn."""
    return {"type": "text", "text": text}


def called(name: str, arguments: Any) -> Part:
    """A model's call of a tool, in words."""
    told = arguments if isinstance(arguments, str) else json.dumps(arguments, default=str)
    return text_part(f"Called the tool {name} with {told}.")


def _joined(first: list[Part], second: list[Part]) -> list[Part]:
    if first[-1]["type"] == second[0]["type"] == "text":
        between = text_part(f"{first[-1]['text']}\n{second[0]['text']}")
        return [*first[:-1], between, *second[1:]]
    return [*first, *second]
