"""Answers of the local model in the shapes of the API: chat completions and responses."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from sightrail.guardrails.carriers.carrier import KEY

if TYPE_CHECKING:
    from sightrail.guardrails import Answer, AnswerChunk
    from sightrail.guardrails.verdict import Verdict

FINISH: Final = {"stop": "stop", "length": "length", "refused": "content_filter"}


def extension(verdicts: Sequence[Verdict], *, refused: bool) -> dict[str, Any]:
    """What the guardrails say, for the field that the API does not know; maps are left out."""
    told = [verdict.model_dump(mode="json", exclude={"risk_map"}) for verdict in verdicts]
    return {KEY: {"refused": refused, "verdicts": told}}


def _usage(answer: Answer) -> dict[str, int]:
    read, written = answer.usage.input_tokens, answer.usage.output_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _extension(answer: Answer) -> dict[str, Any]:
    return extension(answer.verdicts, refused=answer.refused)


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
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": FINISH[answer.finish_reason],
        }
        head = {**self._head, "object": "chat.completion"}
        return {**head, "choices": [choice], "usage": _usage(answer), **_extension(answer)}

    async def pieces(
        self, chunks: AsyncIterator[AnswerChunk], *, usage: bool
    ) -> AsyncIterator[dict[str, Any]]:
        """The completion piece by piece; with ``usage`` a last piece of that alone."""
        role: dict[str, Any] = {"role": "assistant"}
        async for chunk in chunks:
            yield self._piece({**role, "content": chunk.text}, chunk.answer)
            role = {}
            if chunk.answer is not None and usage:
                yield {**self._piece({}), "choices": [], "usage": _usage(chunk.answer)}

    def _piece(self, delta: dict[str, Any], answer: Answer | None = None) -> dict[str, Any]:
        finish = None if answer is None else FINISH[answer.finish_reason]
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        head = {**self._head, "object": "chat.completion.chunk"}
        return {**head, "choices": [choice], **({} if answer is None else _extension(answer))}


class ResponsesReply:
    """One answer as a response of the Responses API.

    Args:
        id: of the request.
        model: what the model is called.
    """

    def __init__(self, id: str, model: str) -> None:
        self._id = id
        self._head = {
            "id": f"resp_{id}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "error": None,
            "instructions": None,
            "metadata": {},
            "parallel_tool_calls": False,
            "tool_choice": "none",
            "tools": [],
            "temperature": None,
            "top_p": None,
        }
        self._number = -1

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The response."""
        reason = {"length": "max_output_tokens", "refused": "content_filter"}.get(
            answer.finish_reason
        )
        return {
            **self._head,
            "status": "incomplete" if reason else "completed",
            "incomplete_details": {"reason": reason} if reason else None,
            "output": [self._item(answer.text, answer)],
            "usage": {
                "input_tokens": answer.usage.input_tokens,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": answer.usage.output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": answer.usage.input_tokens + answer.usage.output_tokens,
            },
            **_extension(answer),
        }

    async def pieces(self, chunks: AsyncIterator[AnswerChunk]) -> AsyncIterator[dict[str, Any]]:
        """The events of the response, in the API's order."""
        begun = {**self._head, "status": "in_progress", "incomplete_details": None, "output": []}
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        yield self._event("response.output_item.added", output_index=0, item=self._item(""))
        yield self._event("response.content_part.added", **self._place, part=_part(""))
        async for chunk in chunks:
            if chunk.text:
                yield self._event(
                    "response.output_text.delta", **self._place, delta=chunk.text, logprobs=[]
                )
            if chunk.answer is not None:
                for event in self._ended(chunk.answer):
                    yield event

    def _ended(self, answer: Answer) -> list[dict[str, Any]]:
        whole, text = self.whole(answer), answer.text
        end = "response.completed" if whole["status"] == "completed" else "response.incomplete"
        return [
            self._event("response.output_text.done", **self._place, text=text, logprobs=[]),
            self._event("response.content_part.done", **self._place, part=_part(text)),
            self._event("response.output_item.done", output_index=0, item=whole["output"][0]),
            self._event(end, response=whole),
        ]

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": f"msg_{self._id}", "output_index": 0, "content_index": 0}

    def _item(self, text: str, answer: Answer | None = None) -> dict[str, Any]:
        status = "in_progress"
        if answer is not None:
            status = "completed" if answer.finish_reason == "stop" else "incomplete"
        content = [] if answer is None else [_part(text)]
        item = {"type": "message", "role": "assistant", "status": status, "content": content}
        return {"id": f"msg_{self._id}", **item}

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number, **fields}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
