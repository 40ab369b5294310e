"""Answers and refusals as LlamaIndex sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
)

from sightrail.guardrails.verdict import Verdict

if TYPE_CHECKING:
    from sightrail.guardrails import Answer


def answered(answer: Answer, model: str, delta: str | None = None) -> ChatResponse:
    """An answer."""
    used, written = answer.usage.input_tokens, answer.usage.output_tokens
    tokens = {  # the names under which LlamaIndex's token counter looks
        "prompt_tokens": used,
        "completion_tokens": written,
        "total_tokens": used + written,
    }
    raw = _raw(model, answer.finish_reason, answer.verdicts, refused=answer.refused)
    return _response(answer.text, raw, tokens, delta)


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


def growing(text: str, delta: str) -> ChatResponse:
    """A streamed answer so far."""
    return ChatResponse(message=_message(text), delta=delta)


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
