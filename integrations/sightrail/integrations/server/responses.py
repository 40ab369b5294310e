"""The Responses API in front of a local model: what is asked in it, and answers in its shape."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from .errors import ApiError, invalid
from .replies import calls_in, extension

if TYPE_CHECKING:
    from sightrail.guardrails import Answer, AnswerChunk

    from .wire import Call

_ECHOED: Final[dict[str, Any]] = {
    "instructions": None,
    "metadata": {},
    "temperature": None,
    "top_p": None,
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
}
"""What a response says about its request, with what stands there where the client said nothing."""


def chat_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request of the Responses API as one of chat completions.

    Raises:
        ApiError: something that a local model cannot be told.
    """
    text = body.get("text") or {}
    if not isinstance(text, dict) or not text.keys() <= {"format", "verbosity"}:
        raise invalid("text is an object with a format.", "text")
    asked = {name: body[name] for name in body if name not in ("input", "instructions", "text")}
    return {**asked, "messages": _messages(body), "response_format": text.get("format")}


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    given, instructions = body.get("input"), body.get("instructions")
    if not isinstance(instructions, str | None):
        raise invalid("instructions is a text.", "instructions")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise invalid("input must be a text or a list of messages.", "input")
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    for number, item in enumerate(given):
        for message in _said(item, f"input[{number}]"):
            if messages and _same_turn(messages[-1], message):
                calls = [*messages[-1].get("tool_calls", ()), *message["tool_calls"]]
                messages[-1] = {**messages[-1], "tool_calls": calls}
            else:
                messages.append(message)
    return messages


def _same_turn(last: Mapping[str, Any], message: Mapping[str, Any]) -> bool:
    """Whether a call belongs to what the model said right before."""
    return last.get("role") == message.get("role") == "assistant" and "tool_calls" in message


def _said(item: Any, where: str) -> Iterator[dict[str, Any]]:
    """The message that an item is; none where it is no part of the conversation."""
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if kind == "message":
        yield {name: item[name] for name in ("role", "content") if name in item}
    elif kind == "function_call":
        name, arguments, id = (_text(item, key, where) for key in ("name", "arguments", "call_id"))
        call = {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        yield {"role": "assistant", "content": None, "tool_calls": [call]}
    elif kind == "function_call_output":
        id = _text(item, "call_id", where)
        yield {"role": "tool", "tool_call_id": id, "content": item.get("output")}
    elif kind != "reasoning":  # clients send the model's thoughts back; templates take none
        raise ApiError(400, "Only messages, calls and their results are taken.", param=where)


def _text(item: Mapping[str, Any], name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise invalid(f"{name} must be a text.", f"{where}.{name}")
    return value


_PART: Final = {"message": "output_text", "refusal": "refusal", "reasoning": "reasoning_text"}
"""What a text of an answer is called as a part of its item."""


class ResponsesReply:
    """One answer as a response of the Responses API.

    Args:
        call: the request.
        model: what the model is called.
    """

    def __init__(self, call: Call, model: str) -> None:
        self._id = call.id
        self._structured = bool((call.body.get("text") or {}).get("format"))
        given = {name: call.body.get(name) for name in _ECHOED}
        self._head = {
            "id": f"resp_{call.id}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "error": None,
            **_ECHOED,
            **{name: value for name, value in given.items() if value is not None},
        }
        self._number = -1
        self._streamed: dict[str, str] = {}

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The response."""
        reason = {"length": "max_output_tokens", "refused": "content_filter"}.get(
            answer.finish_reason
        )
        return {
            **self._head,
            "status": "incomplete" if reason else "completed",
            "incomplete_details": {"reason": reason} if reason else None,
            "output": [*self._items(answer).values()],
            "usage": {
                "input_tokens": answer.usage.input_tokens,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": answer.usage.output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": answer.usage.input_tokens + answer.usage.output_tokens,
            },
            **extension(answer.verdicts, refused=answer.refused),
        }

    async def pieces(self, chunks: AsyncIterator[AnswerChunk]) -> AsyncIterator[dict[str, Any]]:
        """The events of the response, in the API's order."""
        async for chunk in chunks:
            for event in self._told(chunk):
                yield event

    def _told(self, chunk: AnswerChunk) -> Iterator[dict[str, Any]]:
        if self._number < 0:
            begun = {**self._head, "status": "in_progress", "incomplete_details": None}
            for stage in ("created", "in_progress"):
                yield self._event(f"response.{stage}", response={**begun, "output": []})
        words = self._words(chunk.answer)
        for name, text in (("reasoning", chunk.reasoning), (words, chunk.text)):
            if text:
                yield from self._grown(name, text)
        if chunk.answer is not None:
            yield from self._ended(chunk.answer)

    def _grown(self, name: str, text: str) -> Iterator[dict[str, Any]]:
        """More of a text; its item begins with the first of it."""
        if name not in self._streamed:
            yield from self._begun(name, len(self._streamed))
        self._streamed[name] += text
        told: dict[str, Any] = {**self._place(name), "delta": text, **_logprobs(name)}
        yield self._event(f"response.{_PART[name]}.delta", **told)

    def _begun(self, name: str, index: int) -> Iterator[dict[str, Any]]:
        self._streamed[name] = ""
        item = {**self._item(name, ""), "content": [], "status": "in_progress"}
        yield self._event("response.output_item.added", output_index=index, item=item)
        yield self._event("response.content_part.added", **self._place(name), part=_part(name, ""))

    def _ended(self, answer: Answer) -> Iterator[dict[str, Any]]:
        whole = self.whole(answer)
        for index, (name, item) in enumerate(self._items(answer).items()):
            if name in _PART:
                yield from self._text_ended(name, index, item)
            else:
                yield from self._called(index, item)
            yield self._event("response.output_item.done", output_index=index, item=item)
        yield self._event(f"response.{whole['status']}", response=whole)

    def _text_ended(self, name: str, index: int, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if name not in self._streamed:
            yield from self._begun(name, index)
        (part,), place = item["content"], self._place(name)
        kind = "refusal" if name == "refusal" else "text"
        told = {**place, kind: part[kind], **_logprobs(name)}
        yield self._event(f"response.{_PART[name]}.done", **told)
        yield self._event("response.content_part.done", **place, part=part)

    def _called(self, index: int, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        begun = {**item, "arguments": "", "status": "in_progress"}
        yield self._event("response.output_item.added", output_index=index, item=begun)
        place, kind = {"item_id": item["id"], "output_index": index}, "function_call_arguments"
        told = {"name": item["name"], "arguments": item["arguments"]}
        yield self._event(f"response.{kind}.delta", **place, delta=item["arguments"])
        yield self._event(f"response.{kind}.done", **place, **told)

    # Items by name: "reasoning", "message" or "refusal", "call0"; those that were streamed first.

    def _items(self, answer: Answer) -> dict[str, dict[str, Any]]:
        items: dict[str, dict[str, Any]] = {}
        if thoughts := answer.reasoning or self._streamed.get("reasoning", ""):
            items["reasoning"] = self._item("reasoning", thoughts)
        calls = calls_in(answer)
        if answer.text or not calls:
            words = self._words(answer)
            status = "completed" if answer.finish_reason in _FINISHED else "incomplete"
            items[words] = {**self._item(words, answer.text), "status": status}
        for number, call in enumerate(calls):
            items[f"call{number}"] = _call(f"fc_{self._id}_{number}", call)
        return {name: items[name] for name in (self._streamed | items)}

    def _words(self, answer: Answer | None) -> str:
        """What the text is: a refusal has a part of its own where a client would parse the text."""
        refused = answer is not None and answer.refused and self._structured
        return "refusal" if refused and "message" not in self._streamed else "message"

    def _item(self, name: str, text: str) -> dict[str, Any]:
        content = [_part(name, text)]
        if name == "reasoning":
            return {"id": f"rs_{self._id}", "type": name, "summary": [], "content": content}
        item = {"type": "message", "role": "assistant", "content": content}
        return {"id": f"msg_{self._id}", **item}

    def _place(self, name: str) -> dict[str, Any]:
        index = [*self._streamed].index(name)
        return {"item_id": self._item(name, "")["id"], "output_index": index, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number, **fields}


_FINISHED: Final = ("stop", "tool_calls")


def _call(id: str, call: Mapping[str, str]) -> dict[str, Any]:
    told = {"call_id": call["id"], "name": call["name"], "arguments": call["args"]}
    return {"id": id, "type": "function_call", "status": "completed", **told}


def _logprobs(name: str) -> dict[str, Any]:
    return {"logprobs": []} if name == "message" else {}


def _part(name: str, text: str) -> dict[str, Any]:
    if name == "refusal":
        return {"type": "refusal", "refusal": text}
    noted: dict[str, Any] = {"annotations": []} if name == "message" else {}
    return {"type": _PART[name], "text": text, **noted, **_logprobs(name)}
