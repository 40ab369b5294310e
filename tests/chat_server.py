"""A server of chat completions that calls tools and follows schemas, as a model would."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve_helpers import Scripted

USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
_EXPECTED: dict[str, dict[str, Any]] = {
    "magic_function": {"input": 3},
    "unicode_customer": {"customer_name": "\u4f60\u597d \u3053\u3093"},
}
"""What the tools of LangChain's suite are to be called with."""


class Answering(Scripted):
    """An upstream that calls the first tool as long as no result is there, or follows a schema."""

    async def handle(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.bodies.append(body)
        said = {"role": "assistant", **answer(body)}
        why = "tool_calls" if said.get("tool_calls") else "stop"
        head = {"id": "c", "created": 1, "model": body["model"]}
        if not body.get("stream"):
            choice = {"index": 0, "message": said, "finish_reason": why}
            whole = {**head, "object": "chat.completion", "choices": [choice], "usage": USAGE}
            return JSONResponse(whole)
        choices: list[Any] = [
            [{"index": 0, "delta": delta, "finish_reason": None}] for delta in _deltas(said)
        ]
        choices += [[{"index": 0, "delta": {}, "finish_reason": why}]]
        head["object"] = "chat.completion.chunk"
        told = [{**head, "choices": part} for part in choices]
        if (body.get("stream_options") or {}).get("include_usage"):
            told.append({**head, "choices": [], "usage": USAGE})
        return self.streaming([*told, "[DONE]"])


def answer(body: dict[str, Any]) -> dict[str, Any]:
    """The message that a body is answered with."""
    form = body.get("response_format") or {}
    if form.get("type") == "json_schema":
        schema = form["json_schema"]["schema"]
        return {"content": json.dumps(filled(schema, schema))}
    if form.get("type") == "json_object":
        return {"content": json.dumps({"setup": "a", "punchline": "b"})}
    if body.get("tools") and body["messages"][-1]["role"] != "tool":
        function = body["tools"][0]["function"]
        schema = function.get("parameters", {"type": "object"})
        arguments = {**filled(schema, schema), **_EXPECTED.get(function["name"], {})}
        called = {"name": function["name"], "arguments": json.dumps(arguments)}
        return {
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": called}],
        }
    stop = body.get("stop") or []
    text = "hello there"
    for end in [stop] if isinstance(stop, str) else stop:
        text = text.split(end)[0]
    return {"content": text}


def filled(schema: dict[str, Any], root: dict[str, Any]) -> Any:
    """Something that a schema takes."""
    if "$ref" in schema:
        return filled(root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    for choice in schema.get("anyOf", []):
        return filled(choice, root)
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "string")
    if kind == "object":
        fields = schema.get("properties", {})
        return {name: filled(field, root) for name, field in fields.items()}
    return {"integer": 3, "number": 3, "boolean": True, "array": [], "null": None}.get(kind, "cat")


def _deltas(said: dict[str, Any]) -> list[dict[str, Any]]:
    """A call in three pieces, a text in pieces of three signs or more."""
    if said.get("tool_calls"):
        (call,) = said["tool_calls"]
        text, name = call["function"]["arguments"], call["function"]["name"]
        begun = {**call, "index": 0, "function": {"name": name, "arguments": ""}}
        rest = [text[: len(text) // 2], text[len(text) // 2 :]]
        grown = [{"index": 0, "function": {"arguments": part}} for part in rest]
        return [{"role": "assistant", "tool_calls": [part]} for part in (begun, *grown)]
    text = said["content"]
    size = max(3, len(text) // 40)
    return [{"role": "assistant", "content": text[i : i + size]} for i in range(0, len(text), size)]
