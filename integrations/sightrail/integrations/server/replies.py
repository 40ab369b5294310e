"""Answers of the local model as chat completions."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from sightrail.guardrails.carriers.carrier import KEY

if TYPE_CHECKING:
    from sightrail.guardrails import Answer, AnswerChunk
    from sightrail.guardrails.verdict import Verdict

_FINISH: Final = {"refused": "content_filter"}


def extension(verdicts: Sequence[Verdict], *, refused: bool) -> dict[str, Any]:
    """What the guardrails say, for the field that the API does not know; maps are left out."""
    told = [verdict.model_dump(mode="json", exclude={"risk_map"}) for verdict in verdicts]
    return {KEY: {"refused": refused, "verdicts": told}}


def calls_in(answer: Answer) -> list[dict[str, str]]:
    """The calls of an answer: id, name, and the arguments as JSON text.

    Those that cannot be read stand among them, so that a client hears of them. What is wrong stands
    before their text: some clients complete JSON that was cut off, and would make a call of it.
    """
    valid = [
        {"id": call.id, "name": call.name, "args": json.dumps(dict(call.arguments), default=str)}
        for call in answer.tool_calls
    ]
    invalid = [
        {"id": call.id, "name": call.name or "", "args": f"{call.error}: {call.text}"}
        for call in answer.invalid_tool_calls
    ]
    return valid + invalid


def _usage(answer: Answer) -> dict[str, int]:
    read, written = answer.usage.input_tokens, answer.usage.output_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _finish(answer: Answer) -> str:
    called = answer.finish_reason == "stop" and answer.invalid_tool_calls
    return "tool_calls" if called else _FINISH.get(answer.finish_reason, answer.finish_reason)


def _calls(answer: Answer) -> list[dict[str, Any]]:
    return [
        {
            "id": call["id"],
            "type": "function",
            "function": {"name": call["name"], "arguments": call["args"]},
        }
        for call in calls_in(answer)
    ]


def _thoughts(reasoning: str) -> dict[str, str]:
    """Where vLLM and others put them; the API itself has no field for them."""
    return {"reasoning_content": reasoning} if reasoning else {}


class ChatReply:
    """One answer as a chat completion.

    Args:
        id: of the request.
        model: what the model is called.
    """

    def __init__(self, id: str, model: str) -> None:
        self._head = {"id": f"chatcmpl-{id}", "created": int(time.time()), "model": model}

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The completion."""
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if calls := _calls(answer):
            message |= {"content": answer.text or None, "tool_calls": calls}
        choice = {
            "index": 0,
            "message": {**message, **_thoughts(answer.reasoning)},
            "logprobs": None,
            "finish_reason": _finish(answer),
        }
        head = {**self._head, "object": "chat.completion"}
        extended = extension(answer.verdicts, refused=answer.refused)
        return {**head, "choices": [choice], "usage": _usage(answer), **extended}

    async def pieces(
        self, chunks: AsyncIterator[AnswerChunk], *, usage: bool
    ) -> AsyncIterator[dict[str, Any]]:
        """The completion piece by piece; with ``usage`` a last piece of that alone."""
        begun = False
        async for chunk in chunks:
            if not begun:
                yield self._piece({"role": "assistant", "content": ""})
            begun = True
            if chunk.text or chunk.reasoning:
                said = {"content": chunk.text} if chunk.text else {}
                yield self._piece({**said, **_thoughts(chunk.reasoning)})
            if chunk.answer is not None:
                for number, call in enumerate(_calls(chunk.answer)):
                    yield self._piece({"tool_calls": [{"index": number, **call}]})
                yield self._piece({}, chunk.answer)
            if chunk.answer is not None and usage:
                yield {**self._piece({}), "choices": [], "usage": _usage(chunk.answer)}

    def _piece(self, delta: dict[str, Any], answer: Answer | None = None) -> dict[str, Any]:
        finish = None if answer is None else _finish(answer)
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        piece = {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
        if answer is None:
            return piece
        return {**piece, **extension(answer.verdicts, refused=answer.refused)}
