"""LangChain messages as the conversation that a local model is asked, and its answers as messages.

A refusal is an AIMessage that says so in its metadata.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypedDict

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages import InvalidToolCall as InvalidLangChainCall
from langchain_core.messages import ToolCall as LangChainCall
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import (
    ToolCallChunk,
    invalid_tool_call,
    tool_call,
    tool_call_chunk,
)
from langchain_core.utils.json import parse_partial_json

from sightrail.guardrails.carriers.carrier import MAX_DEPTH, too_deep, unknown_block
from sightrail.guardrails.carriers.kinds import kind_of, text_of
from sightrail.guardrails.carriers.media import read_media
from sightrail.guardrails.errors import PromptError
from sightrail.guardrails.model.messages import (
    Conversation,
    ImagePart,
    Part,
    TextPart,
    Turn,
    called,
)
from sightrail.guardrails.model.tools import InvalidToolCall, ToolCall, new_call_id
from sightrail.guardrails.policy import Surface
from sightrail.guardrails.verdict import Verdict

from .walk import as_json, surface_of

if TYPE_CHECKING:
    from sightrail.guardrails import Answer, AnswerChunk


_ROLES: Final = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "system": "system",
    "developer": "system",
}


def read_conversation(messages: Sequence[BaseMessage]) -> Conversation:
    """Turn messages into turns of text, pictures, calls and results; nothing is decoded here.

    Neighbours of one role become one turn, which chat templates insist on; results of tools stay
    apart, each with its call.

    Raises:
        PromptError: a message that nobody can say to a model.
    """
    names = {
        str(call["id"]): str(call["name"])
        for message in messages
        if isinstance(message, AIMessage)
        for call in message.tool_calls
    }
    return Conversation.of(_turn(message, names) for message in messages)


def _turn(message: BaseMessage, names: Mapping[str, str]) -> Turn:
    role = _role(message)
    parts = tuple(_blocks(message.content, surface_of(message) or "user", 0))
    if isinstance(message, ToolMessage | FunctionMessage):
        call = getattr(message, "tool_call_id", None)
        return Turn(role, parts, call_id=call, name=message.name or names.get(str(call), ""))
    if not isinstance(message, AIMessage):
        return Turn(role, parts)
    calls = (
        ToolCall(call["name"], call["args"], call["id"] or new_call_id())
        for call in message.tool_calls
    )
    unread = (called(str(c["name"]), str(c["args"])) for c in message.invalid_tool_calls)
    return Turn(role, (*parts, *unread), calls=tuple(calls))


def _role(message: BaseMessage) -> str:
    if isinstance(message, HumanMessage):
        return "user"
    if isinstance(message, ToolMessage | FunctionMessage):
        return "tool"
    if isinstance(message, AIMessage):
        return "assistant"
    if isinstance(message, SystemMessage):
        return "system"
    if isinstance(message, ChatMessage) and message.role.lower() in _ROLES:
        return _ROLES[message.role.lower()]
    raise PromptError(
        f"A {type(message).__name__} cannot be said to a local model; use system, human, AI and "
        "tool messages."
    )


def _blocks(content: Any, surface: Surface, depth: int) -> Iterator[Part]:
    for block in [content] if isinstance(content, str) else content:
        yield from _block(block, surface, depth)


def _block(block: Any, surface: Surface, depth: int) -> Iterator[Part]:
    if isinstance(block, str):
        yield from [TextPart(block)] if block else []
    elif depth > MAX_DEPTH:
        yield ImagePart(too_deep(block).source, surface)
    elif not isinstance(block, dict):
        yield ImagePart(unknown_block(block).source, surface)
    elif (carrier := read_media(block)) is not None:
        yield ImagePart(carrier.source, surface)
    else:
        yield from _known_block(block, surface, depth)


def _known_block(block: dict[str, Any], surface: Surface, depth: int) -> Iterator[Part]:
    kind, content = kind_of(block), block.get("content")
    if kind == "text":
        yield from [TextPart(text)] if (text := text_of(block)) else []
    elif kind == "wrapped":
        yield from _block(block["value"], surface, depth + 1)
    elif kind == "result" and isinstance(content, str | list):
        yield from _blocks(content, "tool", depth + 1)
    elif kind not in ("aside", "call"):  # calls stand in AIMessage.tool_calls as well
        yield ImagePart(unknown_block(block).source, surface)


class Fields(TypedDict):
    """What every answer's message holds beside its text."""

    response_metadata: dict[str, Any]
    usage_metadata: UsageMetadata


class Calls(TypedDict):
    """The calls that an answer proposes, and those that cannot be read."""

    tool_calls: list[LangChainCall]
    invalid_tool_calls: list[InvalidLangChainCall]


def calls_of(answer: Answer) -> Calls:
    """The calls of an answer, as a whole message has them."""
    return Calls(
        tool_calls=[
            tool_call(name=c.name, args=dict(c.arguments), id=c.id) for c in answer.tool_calls
        ],
        invalid_tool_calls=[
            invalid_tool_call(name=call.name, args=call.text, id=call.id, error=call.error)
            for call in answer.invalid_tool_calls
        ],
    )


def chunk_of(piece: AnswerChunk, at: int) -> AIMessageChunk:
    """A piece of an answer that goes on; ``at`` calls have come before it."""
    calls = [_call_chunk(call, number) for number, call in enumerate(piece.tool_calls, at)]
    return AIMessageChunk(
        content=piece.text, tool_call_chunks=calls, additional_kwargs=_thoughts(piece.reasoning)
    )


def _call_chunk(call: ToolCall | InvalidToolCall, number: int) -> ToolCallChunk:
    if isinstance(call, ToolCall):
        args = json.dumps(dict(call.arguments), default=str)
    else:
        args = call.text
        with contextlib.suppress(Exception):
            # LangChain completes what is cut off, and would make a call of it.
            args = json.dumps(args) if isinstance(parse_partial_json(args), dict) else args
    return tool_call_chunk(name=call.name, args=args, id=call.id, index=number)


def _thoughts(reasoning: str) -> dict[str, Any]:
    return {"reasoning_content": reasoning} if reasoning else {}


def answer_fields(answer: Answer, model: str) -> Fields:
    """The fields of a model's answer."""
    usage = answer.usage
    return _fields(
        answer.finish_reason,
        answer.verdicts,
        {"model_name": model, **({"step": answer.step} if answer.step else {})},
        refused=answer.refused,
        usage=UsageMetadata(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            total_tokens=usage.input_tokens + usage.output_tokens,
        ),
    )


def refusal_fields(verdicts: Sequence[Verdict], model: str | None = None) -> Fields:
    """The fields of a refusal for which no model ran."""
    return _fields(
        "refused",
        verdicts,
        {"model_name": model} if model else {},
        refused=True,
        usage=UsageMetadata(input_tokens=0, output_tokens=0, total_tokens=0),
    )


def _fields(
    finish_reason: str,
    verdicts: Sequence[Verdict],
    origin: Mapping[str, str | int],
    *,
    refused: bool,
    usage: UsageMetadata,
) -> Fields:
    metadata = {
        **origin,
        "finish_reason": finish_reason,
        "refused": refused,
        "verdicts": as_json(verdicts),
    }
    return Fields(response_metadata=metadata, usage_metadata=usage)


def with_verdicts(answer: Any, verdicts: Sequence[Verdict]) -> Any:
    """An answer that tells, before its own, the verdicts on the pictures it was asked about."""
    if not verdicts or not isinstance(answer, BaseMessage):
        return answer
    own = answer.response_metadata
    told = [*as_json(verdicts), *own.get("verdicts", [])]
    return answer.model_copy(update={"response_metadata": {**own, "verdicts": told}})


def message(text: str, fields: Fields, answer: Answer | None = None) -> AIMessage:
    """A whole answer; without the model's, a refusal."""
    if answer is None:
        return AIMessage(text, **fields)
    thoughts = _thoughts(answer.reasoning)
    return AIMessage(text, additional_kwargs=thoughts, **calls_of(answer), **fields)


def last_chunk(text: str, fields: Fields, reasoning: str = "") -> AIMessageChunk:
    """The end of a streamed answer; a refusal's only chunk."""
    return AIMessageChunk(
        content=text, chunk_position="last", additional_kwargs=_thoughts(reasoning), **fields
    )
