"""Refusals inside a transcript that stays valid for every provider: no tool call unanswered."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from sightrail.guardrails.policy import Policy
from sightrail.guardrails.verdict import Verdict
from sightrail.runnables.turns import message, refusal_fields


def refusal(policy: Policy, verdicts: Sequence[Verdict]) -> AIMessage:
    """The answer that a user gets in place of the model's."""
    return message(policy.refusal_for(verdicts), refusal_fields(verdicts))


def refused_output(
    answer: AIMessage, policy: Policy, verdicts: Sequence[Verdict]
) -> list[BaseMessage]:
    """What follows when a model's own answer is refused.

    Without tool calls the answer itself becomes the refusal. With tool calls it stays as it was
    screened, each call gets a result that says it was not run, and the refusal comes after.

    Args:
        answer: already screened, so that its pictures are notes.
        policy: has the texts.
        verdicts: what was found in it.
    """
    ending = refusal(policy, verdicts)
    if answer.tool_calls:
        return [answer, *(_not_run(call["id"], call["name"]) for call in answer.tool_calls), ending]
    metadata = {**answer.response_metadata, **ending.response_metadata}
    return [answer.model_copy(update={"content": ending.content, "response_metadata": metadata})]


def _not_run(call: str | None, name: str) -> ToolMessage:
    return ToolMessage(
        "Not run: the message that asked for it was refused by the safety policy.",
        tool_call_id=call or "",
        name=name,
        status="error",
    )
