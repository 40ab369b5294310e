"""Tool calls put before a person, in the words of LangChain's ``HumanInTheLoopMiddleware``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage, ToolCall, ToolMessage
from langgraph.types import interrupt

from sightrail.guardrails.call_rules import CallGuard
from sightrail.guardrails.intake import Limits
from sightrail.runnables.held_calls import held_calls, released, ruled

_DECISIONS: Final = ("approve", "edit", "reject", "respond")
_WHY: Final = {
    "after_unsafe": "an unsafe picture has come in since the user spoke",
    "read_words": "the arguments may repeat what is written in an untrusted picture",
}


def rule_output(
    output: Sequence[BaseMessage], asked: Sequence[BaseMessage], guard: CallGuard, limits: Limits
) -> list[BaseMessage]:
    """A model's output with its calls as the policy has them.

    Calls that have a result beside them already, as those of structured output, are not ruled.
    """
    answered = {item.tool_call_id for item in output if isinstance(item, ToolMessage)}
    return [
        item
        if isinstance(item, AIMessage) and any(call["id"] in answered for call in item.tool_calls)
        else ruled(item, asked, guard, limits)
        for item in output
    ]


def reviewed(answer: AIMessage) -> dict[str, Any]:
    """Interrupt for a person's decisions on the calls that are held back, and carry them out."""
    calls = held_calls(answer)
    why = "; ".join(_reasons(answer))
    requests = [
        {"name": c["name"], "args": c["args"], "description": f"Tool call held back: {why}"}
        for c in calls
    ]
    configs = [
        {"action_name": name, "allowed_decisions": list(_DECISIONS)}
        for name in dict.fromkeys(call["name"] for call in calls)
    ]
    resumed = interrupt({"action_requests": requests, "review_configs": configs})
    decided = list(zip(calls, _decisions(resumed, len(calls)), strict=True))
    made = [_edited(call, decision) for call, decision in decided]
    answers = [_answer(call, decision) for call, decision in decided]
    return {"messages": [released(answer, made), *(item for item in answers if item is not None)]}


def _reasons(answer: AIMessage) -> list[str]:
    """Why calls are held back; no word of what was read."""
    told = [v for v in answer.response_metadata.get("verdicts", ()) if v["subject"] == "calls"]
    return [_WHY.get(verdict["category"], "the policy wants to ask") for verdict in told]


def _decisions(resumed: Any, count: int) -> list[Mapping[str, Any]]:
    """One decision a call; all of them reject where these are not any."""
    given = resumed.get("decisions") if isinstance(resumed, Mapping) else None
    if isinstance(given, list) and len(given) == count and all(map(_is_decision, given)):
        return given
    return [{"type": "reject"}] * count


def _is_decision(given: Any) -> bool:
    if not isinstance(given, Mapping) or given.get("type") not in _DECISIONS:
        return False
    if given["type"] == "edit":
        action = given.get("edited_action")
        return (
            isinstance(action, Mapping)
            and isinstance(action.get("name"), str)
            and isinstance(action.get("args"), dict)
        )
    message = given.get("message")
    return isinstance(message, str) or (message is None and given["type"] != "respond")


def _edited(call: ToolCall, decision: Mapping[str, Any]) -> ToolCall:
    if decision["type"] != "edit":
        return call
    action = decision["edited_action"]
    return {**call, "name": action["name"], "args": action["args"]}


def _answer(call: ToolCall, decision: Mapping[str, Any]) -> ToolMessage | None:
    """What the model gets in place of a result; None where the call is carried out."""
    said = decision.get("message")
    if decision["type"] == "respond":
        return ToolMessage(str(said), tool_call_id=str(call["id"]), name=call["name"])
    if decision["type"] != "reject":
        return None
    why = f" with reason: {said}" if said else ". It was not carried out. Do not try it again."
    return ToolMessage(
        f"The user rejected the tool call for `{call['name']}`{why}",
        tool_call_id=str(call["id"]),
        name=call["name"],
        status="error",
    )
