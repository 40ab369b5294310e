"""What an agent's or a graph's state keeps of every picture that was looked at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypedDict

from langchain_core.messages import BaseMessage

from sightrail.guardrails.verdict import Verdict

STATE_KEY: Final = "image_verdicts"


class ImageRecord(TypedDict):
    """One picture's verdict, as JSON: checkpoints keep it without knowing any class.

    Attributes:
        message_id: the message that the picture was found in; None for a system prompt.
        message_type: that message's type: human, tool, ai, system.
        verdict: ``Verdict`` without its risk map, which the message's marker has, and timings.
    """

    message_id: str | None
    message_type: str
    verdict: dict[str, Any]


def records_of(message: BaseMessage, verdicts: Iterable[Verdict]) -> list[ImageRecord]:
    """A record of each verdict on a message."""
    return [
        ImageRecord(
            message_id=message.id,
            message_type=message.type,
            verdict=verdict.model_dump(mode="json", exclude={"risk_map", "timings_ms"}),
        )
        for verdict in verdicts
    ]
