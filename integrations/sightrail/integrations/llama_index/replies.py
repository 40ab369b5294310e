"""Answers and refusals as LlamaIndex sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms.llm import ToolSelection
from pydantic import BaseModel

from sightrail.guardrails.policy import refusal_error
from sightrail.guardrails.verdict import Verdict

if TYPE_CHECKING:
    from sightrail.guardrails import Answer, AnswerChunk
    from sightrail.guardrails.model.tools import ToolCall

Model = TypeVar("Model", bound=BaseModel)


def answered(answer: Answer, model: str, delta: str | None = None) -> ChatResponse:
    """An answer."""
    used, written = answer.usage.input_tokens, answer.usage.output_tokens
    tokens = {  # the names under which LlamaIndex's token counter looks
        "prompt_tokens": used,
        "completion_tokens": written,
        "total_tokens": used + written,
    }
    raw = _raw(model, answer.finish_reason, answer.verdicts, refused=answer.refused)
    if answer.step:
        raw["step"] = answer.step
    if answer.invalid_tool_calls:
        raw["invalid_tool_calls"] = [
            {"name": call.name, "text": call.text, "error": call.error}
            for call in answer.invalid_tool_calls
        ]
    if answer.held_calls:
        raw["held_calls"] = [
            {"tool_id": call.id, "tool_name": call.name, "tool_kwargs": dict(call.arguments)}
            for call in answer.held_calls
        ]
    response = _response(answer.text, raw, tokens, delta)
    response.message.blocks += [_block(call) for call in answer.tool_calls]
    if answer.reasoning:
        response.message.blocks.insert(0, ThinkingBlock(content=answer.reasoning))
    return response


def with_one_call(response: ChatResponse) -> ChatResponse:
    """The answer with the first of its calls alone."""
    calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
    kept = [block for block in response.message.blocks if block not in calls[1:]]
    message = response.message.model_copy(update={"blocks": kept})
    return response.model_copy(update={"message": message})


def selections(response: ChatResponse) -> list[ToolSelection]:
    """The calls of an answer as agents carry them out."""
    return [
        ToolSelection(
            tool_id=block.tool_call_id or "",
            tool_name=block.tool_name,
            tool_kwargs=block.tool_kwargs if isinstance(block.tool_kwargs, dict) else {},
        )
        for block in response.message.blocks
        if isinstance(block, ToolCallBlock)
    ]


def filled_in(output_cls: type[Model], response: ChatResponse) -> Model:
    """The answer as an ``output_cls``.

    Raises:
        ImageRefused, RequestRefused: it is a refusal.
        ValidationError: it is no such thing.
    """
    text = response.message.content or ""
    if (verdicts := is_refusal(response)) is not None:
        raise refusal_error(text, verdicts)
    return output_cls.model_validate_json(text)


def _block(call: ToolCall) -> ToolCallBlock:
    arguments = dict(call.arguments)
    return ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=arguments)


def refused(
    text: str, verdicts: Sequence[Verdict], model: str, delta: str | None = None
) -> ChatResponse:
    """A refusal for which no model ran."""
    tokens = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), 0)
    return _response(text, _raw(model, "refused", verdicts, refused=True), tokens, delta)


def is_refusal(response: ChatResponse) -> tuple[Verdict, ...] | None:
    """The verdicts behind a refusal; None for any other answer."""
    raw = response.raw
    if not isinstance(raw, dict) or raw.get("refused") is not True:
        return None
    return tuple(Verdict.model_validate(verdict) for verdict in raw.get("verdicts", ()))


def growing(text: str, piece: AnswerChunk) -> ChatResponse:
    """A streamed answer so far; its calls come whole, with its end."""
    thought = {"thinking_delta": piece.reasoning} if piece.reasoning else {}
    return ChatResponse(message=_message(text), delta=piece.text, additional_kwargs=thought)


def as_completion(response: ChatResponse) -> CompletionResponse:
    """The same answer to a prompt without roles."""
    return CompletionResponse(
        text=response.message.content or "",
        additional_kwargs=response.message.additional_kwargs | response.additional_kwargs,
        raw=response.raw,
        delta=response.delta,
    )


def _response(
    text: str, raw: dict[str, Any], tokens: dict[str, int], delta: str | None
) -> ChatResponse:
    return ChatResponse(
        message=_message(text),
        delta=delta,
        raw={**raw, "usage": tokens},
        additional_kwargs=dict(tokens),
    )


def _message(text: str) -> ChatMessage:
    """Verdicts would be told to the next model: histories are written with all that is in them."""
    return ChatMessage(role=MessageRole.ASSISTANT, content=text)


def _raw(
    model: str, finish_reason: str, verdicts: Sequence[Verdict], *, refused: bool
) -> dict[str, Any]:
    return {
        "model": model,
        "finish_reason": finish_reason,
        "refused": refused,
        "verdicts": [verdict.model_dump(mode="json") for verdict in verdicts],
    }
