"""The gateway before other engines: each writes answers, streams and errors in its own way."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from serve_helpers import Scripted, asked, drawn_request, events, pieces

openai = pytest.importorskip("openai", reason="the openai client is not installed")

HEAD = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "up"}
BROKEN = "data:image/png;base64," + "AAAA" * 90


def post(address: str, path: str = "chat/completions", **body: Any) -> httpx.Response:
    return httpx.post(f"{address}/v1/{path}", json={"model": "up", **body}, timeout=60)


def chunk(finish: str | None = None, /, **delta: Any) -> dict[str, Any]:
    return {**HEAD, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def called(arguments: str, **more: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "function": {"arguments": arguments}, **more}]}


USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
STREAMS: dict[str, list[Any]] = {
    "vllm": [
        chunk(role="assistant", content=""),
        chunk(reasoning="Let me "),
        chunk(reasoning="think."),
        chunk(content="An answer"),
        chunk("stop", content="."),
        {**HEAD, "choices": [], "usage": USAGE},
        "[DONE]",
    ],
    "sglang": [
        chunk(role="assistant", content="", reasoning_content=None),
        chunk(reasoning_content="Let me think."),
        chunk(content="An answer."),
        {**HEAD, "choices": [{**chunk("stop")["choices"][0], "matched_stop": 2}]},
        {**HEAD, "choices": [], "usage": USAGE},
        "[DONE]",
    ],
    "llama.cpp": [
        chunk(role="assistant", content=None),
        chunk(reasoning_content="Let me think."),
        chunk(content="An answer."),
        {**chunk("stop"), "usage": USAGE, "timings": {"prompt_n": 5, "predicted_ms": 0.3}},
        "[DONE]",
    ],
    "ollama": [
        {**chunk(role="assistant", content="", reasoning="Let me think."), "usage": None},
        chunk(role="assistant", content="An answer."),
        chunk("stop", role="assistant", content=""),
        {**HEAD, "choices": [], "usage": USAGE},
        "[DONE]",
    ],
    "lm studio": [
        chunk(role="assistant", reasoning_content="Let me think."),
        chunk(content="An answer."),
        {**chunk("stop"), "system_fingerprint": "x", "stats": {}},
        {**HEAD, "choices": [], "usage": USAGE},
        "[DONE]",
    ],
    "no end at all": [
        chunk(reasoning="Let me think."),
        chunk(content="An answer."),
        {**HEAD, "choices": [], "usage": USAGE},
    ],
    "an empty finish_reason": [
        chunk("", reasoning="Let me think."),
        chunk("", content="An answer."),
        {**chunk("stop"), "usage": USAGE},
    ],
}


@pytest.mark.parametrize("engine", STREAMS)
def test_answers_and_thoughts_arrive_whole(gateway: str, upstream: Scripted, engine: str) -> None:
    upstream.events = STREAMS[engine]
    told = [e for e in events(post(gateway, messages=asked("hi"), stream=True)) if e != "[DONE]"]
    deltas = [choice["delta"] for event in told for choice in event["choices"]]
    joined = {
        name: "".join(delta.get(name) or "" for delta in deltas)
        for name in ("content", "reasoning", "reasoning_content")
    }
    assert joined["content"] == "An answer."
    assert joined["reasoning"] + joined["reasoning_content"] == "Let me think."
    assert [event["usage"] for event in told if event.get("usage")] == [USAGE]
    own = {key for event in STREAMS[engine] if event != "[DONE]" for key in event}
    assert {key for event in told for key in event} - {"sightrail"} == own


@pytest.mark.parametrize("end", ["tool_calls", None])
def test_calls_of_tools_arrive_whole(gateway: str, upstream: Scripted, end: str | None) -> None:
    begun = called("", id="c1", type="function")
    begun["tool_calls"][0]["function"]["name"] = "look"
    parts = ['{"pla', 'ce": "he', 're", "n": 1', "2}"]
    upstream.events = [chunk(**begun), *(chunk(**called(part)) for part in parts)]
    upstream.events += [chunk(end)] if end else []
    tools: Any = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    ours = openai.OpenAI(base_url=f"{gateway}/v1", api_key="none")
    stream = ours.chat.completions.create(
        model="up", messages=asked("hi"), tools=tools, stream=True
    )
    deltas = [d for c in stream for choice in c.choices for d in choice.delta.tool_calls or []]
    assert json.loads("".join(d.function.arguments or "" for d in deltas)) == {
        "place": "here",
        "n": 12,
    }
    assert (deltas[0].id, deltas[0].function.name) == ("c1", "look")


@pytest.mark.parametrize("field", ["content", "reasoning", "reasoning_content", "arguments"])
@pytest.mark.parametrize("end", ["stop", None])
def test_no_picture_passes_in_pieces(
    gateway: str, upstream: Scripted, field: str, end: str | None
) -> None:
    said = f"See ![x]({BROKEN}) there"
    cut = [said[i : i + 11] for i in range(0, len(said), 11)]
    texts = [called(part) if field == "arguments" else {field: part} for part in cut]
    upstream.events = [*(chunk("", **text) for text in texts), *([chunk(end)] if end else [])]
    told = events(post(gateway, messages=asked("hi"), stream=True))
    assert "AAAA" not in str(told)
    assert told[-2]["choices"][0]["finish_reason"] == "content_filter"


def test_a_clean_picture_in_thoughts_arrives(gateway: str, upstream: Scripted) -> None:
    url, _ = drawn_request("benign")
    cut = [url[i : i + 999] for i in range(0, len(url), 999)]
    upstream.events = [*(chunk(reasoning=part) for part in cut), chunk("stop"), "[DONE]"]
    told = events(post(gateway, messages=asked("hi"), stream=True))
    assert told[-2]["sightrail"]["verdicts"][0]["status"] == "clean"
    assert "".join(e["choices"][0]["delta"].get("reasoning", "") for e in told[:-1])[:5] == "data:"


def test_signs_that_python_takes_for_line_ends(gateway: str, upstream: Scripted) -> None:
    said = "one\u2028two\x85three\x0bfour\x1cfive"
    upstream.events = [
        json.dumps(event, ensure_ascii=False) if event != "[DONE]" else event
        for event in pieces(said)
    ]
    told = events(post(gateway, messages=asked("hi"), stream=True))
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in told[:-1]) == said


ERRORS: dict[str, Any] = {
    "openai": {"error": {"message": "too long", "type": "x", "param": None, "code": "c"}},
    "vllm": {
        "error": {"message": "too long", "type": "BadRequestError", "param": "m", "code": 400}
    },
    "older vllm, sglang": {"object": "error", "message": "too long", "type": "x", "code": 400},
    "llama.cpp": {"error": {"code": 400, "message": "too long", "type": "invalid_request_error"}},
    "ollama, lm studio": {"error": "too long"},
    "fastapi": {"detail": "too long"},
}


@pytest.mark.parametrize("engine", ERRORS)
def test_errors_have_the_apis_shape(gateway: str, upstream: Scripted, engine: str) -> None:
    upstream.status, upstream.answer = 400, ERRORS[engine]
    for stream in (False, True):
        response = post(gateway, messages=asked("hi"), stream=stream)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["message"] == "too long"
        assert isinstance(error["code"], str)


@pytest.mark.parametrize("engine", [name for name in ERRORS if name != "fastapi"])
def test_errors_that_come_with_status_200(gateway: str, upstream: Scripted, engine: str) -> None:
    upstream.answer, upstream.events = ERRORS[engine], [ERRORS[engine], "[DONE]"]
    for stream in (False, True):
        response = post(gateway, messages=asked("hi"), stream=stream)
        assert response.status_code in (400, 502)
        assert response.json()["error"]["message"] == "too long"
    upstream.events = [chunk(content="A beginning. And more."), ERRORS[engine], "[DONE]"]
    told = events(post(gateway, messages=asked("hi"), stream=True))
    assert told[-1]["error"]["message"] == "too long"
    ours = openai.OpenAI(base_url=f"{gateway}/v1", api_key="none")
    with pytest.raises(openai.APIError, match="too long"):
        list(ours.chat.completions.create(model="up", messages=asked("hi"), stream=True))


def test_responses_of_engines_that_leave_out_the_ends_of_texts(
    gateway: str, upstream: Scripted
) -> None:
    def delta(kind: str, text: str, number: int) -> dict[str, Any]:
        place = {"item_id": f"i{number}", "output_index": number, "content_index": 0}
        return {"type": f"response.{kind}.delta", **place, "delta": text}

    done = {"type": "response.completed", "response": {"id": "r", "output": []}}
    upstream.events = [
        delta("reasoning_text", "Let me thi", 0),
        delta("reasoning_text", "nk", 0),
        {"type": "response.output_item.done", "output_index": 0, "item": {"id": "i0"}},
        delta("output_text", "Hel", 1),
        delta("output_text", "lo", 1),
        delta("function_call_arguments", '{"a": 1', 2),
        delta("function_call_arguments", "2}", 2),
        done,
    ]
    told = events(post(gateway, "responses", input="hi", stream=True))
    texts: dict[str, str] = {}
    for event in told:
        if event["type"].endswith(".delta"):
            texts[event["type"]] = texts.get(event["type"], "") + event["delta"]
    assert [*texts.values()] == ["Let me think", "Hello", '{"a": 12}']
    assert told[-1]["type"] == "response.completed"
    for kind in ("reasoning_text", "function_call_arguments", "output_text"):
        cut = [BROKEN[i : i + 11] for i in range(0, len(BROKEN), 11)]
        upstream.events = [*(delta(kind, part, 0) for part in cut), done]
        told = events(post(gateway, "responses", input="hi", stream=True))
        assert "AAAA" not in str(told)
        assert told[-1]["code"] == "content_filter"
