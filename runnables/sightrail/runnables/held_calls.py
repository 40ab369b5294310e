"""The tool calls of a LangChain message as a policy has them: as they are, held back, or refused.

Calls that wait for a person are in no ``tool_calls``: whoever does not know of them carries none
out, and the transcript can go on. They stand with all that was said in
``response_metadata["held_calls"]`` until ``released`` puts them back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolCall,
)
from langchain_core.messages.tool import tool_call
from pydantic import TypeAdapter, ValidationError

from sightrail.guardrails.call_rules import CallContext, CallGuard, came_in_unsafe
from sightrail.guardrails.carriers.loop import decode
from sightrail.guardrails.intake import Limits, Picture, RequestReader
from sightrail.guardrails.policy import Policy

from .turns import refusal_fields
from .walk import LANGCHAIN, as_json, marked_verdicts

if TYPE_CHECKING:
    from sightrail.guardrails import Answer

KEY: Final = "held_calls"
_CALLS: Final = TypeAdapter(list[ToolCall])
_RAW: Final = ("tool_calls", "function_call")


def ruled(
    answer: BaseMessage, asked: Sequence[BaseMessage], guard: CallGuard, limits: Limits
) -> BaseMessage:
    """An answer as it may go on.

    Args:
        answer: of a model.
        asked: the transcript that it answers, after screening.
        guard: has the policy's rules.
        limits: what intake is willing to decode.
    """
    if not isinstance(answer, AIMessage) or not answer.tool_calls or not guard.active:
        return answer
    ruling = guard.rule([c["args"] for c in answer.tool_calls], _context(asked, guard, limits))
    if not ruling.verdicts:
        return answer
    verdicts = as_json(ruling.verdicts)
    if ruling.action == "refuse":
        fields = refusal_fields(ruling.verdicts)["response_metadata"]
        return _without_calls(answer, guard.policy.calls.refusal, fields)
    if ruling.action == "ask":
        return held(answer, guard.policy, verdicts)
    known = answer.response_metadata.get("verdicts", [])
    metadata = {**answer.response_metadata, "verdicts": [*known, *verdicts]}
    return answer.model_copy(update={"response_metadata": metadata})


def held(answer: AIMessage, policy: Policy, verdicts: Sequence[dict[str, Any]] = ()) -> AIMessage:
    """An answer with its calls held back for a person.

    Args:
        answer: with calls.
        policy: has the text that is said in their place.
        verdicts: why, as JSON, where the answer does not tell yet.
    """
    raw = {key: answer.additional_kwargs[key] for key in _RAW if key in answer.additional_kwargs}
    kept = {"content": answer.content, "tool_calls": answer.tool_calls, "raw": raw}
    known = answer.response_metadata.get("verdicts", [])
    fields = {KEY: kept, "verdicts": [*known, *verdicts]}
    return _without_calls(answer, str(answer.text) or policy.calls.review, fields)


def held_calls(message: BaseMessage) -> list[ToolCall]:
    """The calls of an answer that wait for a person."""
    kept = message.response_metadata.get(KEY) if isinstance(message, AIMessage) else None
    if not isinstance(kept, Mapping):
        return []
    try:
        return _CALLS.validate_python(kept.get("tool_calls"))
    except ValidationError:
        return []


def released(message: AIMessage, calls: Sequence[ToolCall]) -> AIMessage:
    """The answer as the model gave it, with these calls."""
    kept = message.response_metadata[KEY]
    metadata = {k: v for k, v in message.response_metadata.items() if k != KEY}
    raw = kept.get("raw") if list(calls) == held_calls(message) else None
    return message.model_copy(
        update={
            "content": kept.get("content", ""),
            "tool_calls": list(calls),
            "additional_kwargs": {**message.additional_kwargs, **(raw or {})},
            "response_metadata": metadata,
        }
    )


def held_fields(answer: Answer, review: str) -> dict[str, Any]:
    """What a message tells of calls that the local model's policy holds back; nothing for none."""
    if not answer.held_calls:
        return {}
    calls = [tool_call(name=c.name, args=dict(c.arguments), id=c.id) for c in answer.held_calls]
    said = "" if answer.text == review else answer.text
    return {KEY: {"content": said, "tool_calls": calls, "raw": {}}}


def brings_unsafe(messages: Sequence[BaseMessage]) -> bool:
    """Whether marks say that an unsafe picture has come in since the user last spoke."""
    spoken = [number for number, item in enumerate(messages) if isinstance(item, HumanMessage)]
    return any(map(came_in_unsafe, marked_verdicts(messages[spoken[-1] if spoken else 0 :])))


def _without_calls(answer: AIMessage, text: str, fields: Mapping[str, Any]) -> AIMessage:
    extra = {key: value for key, value in answer.additional_kwargs.items() if key not in _RAW}
    update: dict[str, Any] = {
        "content": text,
        "tool_calls": [],
        "invalid_tool_calls": [],
        "additional_kwargs": extra,
        "response_metadata": {**answer.response_metadata, **fields},
    }
    if isinstance(answer, AIMessageChunk):
        update["tool_call_chunks"] = []
    return answer.model_copy(update=update)


def _context(asked: Sequence[BaseMessage], guard: CallGuard, limits: Limits) -> CallContext:
    orders = [str(m.text) for m in asked if isinstance(m, HumanMessage | SystemMessage)]

    def pictures() -> list[Picture | None]:
        untrusted = guard.policy.calls.untrusted
        carriers = [c for c in LANGCHAIN.carriers(list(asked)) if c.surface in untrusted]
        read = (decode(carrier, RequestReader(limits)) for carrier in carriers)
        return [picture if isinstance(picture, Picture) else None for picture in read]

    return CallContext(brings_unsafe(asked), pictures, "\n".join(orders))
