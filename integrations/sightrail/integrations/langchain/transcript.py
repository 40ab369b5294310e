"""What an agent's transcript keeps: a record of every picture, and refusals that leave it valid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypedDict

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from pydantic import ValidationError

from sightrail.guardrails.errors import ImageRefused
from sightrail.guardrails.policy import Policy
from sightrail.guardrails.verdict import Verdict
from sightrail.runnables.turns import message, refusal_fields
from sightrail.runnables.walk import as_json

STATE_KEY: Final = "image_verdicts"


class ImageRecord(TypedDict):
    """One picture's verdict, as JSON: checkpoints keep it without knowing any class.

    Attributes:
        guard: the name of the middleware or the nodes that looked at it.
        message_id: the message that the picture was found in; None for a system prompt.
        message_type: that message's type: human, tool, ai, system.
        verdict: ``Verdict`` without its risk map and timings.
    """

    guard: str
    message_id: str | None
    message_type: str
    verdict: dict[str, Any]


def records_of(guard: str, found_in: BaseMessage, verdicts: Iterable[Verdict]) -> list[ImageRecord]:
    """A record of each verdict on a message."""
    return [
        ImageRecord(
            guard=guard, message_id=found_in.id, message_type=found_in.type, verdict=verdict
        )
        for verdict in as_json(verdicts)
    ]


def refusal(policy: Policy, verdicts: Sequence[Verdict]) -> AIMessage:
    """The answer that a user gets in place of the model's."""
    return message(policy.refusal_for(verdicts), refusal_fields(verdicts))


def raised_by(ending: BaseMessage | None) -> ImageRefused | None:
    """The exception that a run is to end with: its last word is a refusal that asks for one."""
    if not isinstance(ending, AIMessage) or not ending.response_metadata.get("refused"):
        return None
    try:
        told = ending.response_metadata.get("verdicts", ())
        verdicts = [Verdict.model_validate(verdict) for verdict in told]
    except (ValidationError, TypeError):
        return None
    if not any(verdict.action == "raise" for verdict in verdicts):
        return None
    return ImageRefused(str(ending.text), verdicts=verdicts)


def refused_output(
    output: Sequence[BaseMessage], policy: Policy, verdicts: Sequence[Verdict]
) -> list[BaseMessage]:
    """What a model's own output becomes when it is refused.

    Without tool calls the answer itself becomes the refusal. With tool calls it stays as it was
    screened, each call that has no result yet gets one that says it was not run, and the refusal
    comes after: a transcript in which a call has no result is one that providers reject.

    Args:
        output: already screened, so that its pictures are notes.
        policy: has the texts.
        verdicts: what was found in it.
    """
    ending = refusal(policy, verdicts)
    answer = next((item for item in reversed(output) if isinstance(item, AIMessage)), None)
    if answer is None:
        return [*output, ending]
    if not answer.tool_calls:
        metadata = {**answer.response_metadata, **ending.response_metadata}
        changes = {"content": ending.content, "response_metadata": metadata}
        return [answer.model_copy(update=changes) if item is answer else item for item in output]
    results = {item.tool_call_id for item in output if isinstance(item, ToolMessage)}
    open_calls = [call for call in answer.tool_calls if call["id"] not in results]
    return [*output, *(_not_run(call["id"], call["name"]) for call in open_calls), ending]


def _not_run(call: str | None, name: str) -> ToolMessage:
    return ToolMessage(
        "Not run: the message that asked for it was refused by the safety policy.",
        tool_call_id=call or "",
        name=name,
        status="error",
    )
