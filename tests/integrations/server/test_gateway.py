"""In front of another server."""

from __future__ import annotations

import http.server
import json
import threading
import time
from typing import Any

import httpx
import pytest

from serve_helpers import (
    Scripted,
    asked,
    completion,
    drawn_request,
    events,
    pieces,
    scripted,
    serving,
)
from sightrail.guardrails import SafetyPrefix
from sightrail.guardrails.errors import ConfigurationError
from sightrail.integrations.server import ServerSettings, create_app


def post(address: str, path: str = "chat/completions", **body: Any) -> httpx.Response:
    return httpx.post(f"{address}/v1/{path}", json={"model": "up", **body}, timeout=60)


def texts(streamed: list[Any]) -> str:
    return "".join(
        choice["delta"].get("content") or ""
        for event in streamed
        if event != "[DONE]"
        for choice in event["choices"]
    )


def test_a_clean_request_goes_on_with_the_prefix_and_everything_else_untouched(
    gateway: str, upstream: Scripted
) -> None:
    upstream.answer = completion("fine")
    url, question = drawn_request("benign")
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    own = {"tools": tools, "response_format": {"type": "json_object"}, "vendor": {"x": [1, None]}}
    reply = post(gateway, messages=asked(question, url), **own).json()
    assert reply["choices"] == completion("fine")["choices"]
    assert [verdict["status"] for verdict in reply["sightrail"]["verdicts"]] == ["clean"]
    (sent,) = upstream.bodies
    assert {name: sent[name] for name in own} == own
    image, text = sent["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/")
    assert text["text"] == f"{SafetyPrefix().text} {question}"
    assert upstream.asked_with[0]["authorization"] == "Bearer upstream-key"


def test_what_is_unsafe_does_not_reach_the_upstream(gateway: str, upstream: Scripted) -> None:
    upstream.answer = completion("never")
    for address in ("data:image/png;base64,AAAA", "/etc/passwd", "file:///etc/passwd"):
        reply = post(gateway, messages=asked("what?", address)).json()
        assert reply["choices"][0]["finish_reason"] == "content_filter"
        assert reply["choices"][0]["message"]["content"].startswith("I am sorry")
    url, question = drawn_request("object")
    post(gateway, messages=asked(question, url))
    (masked,) = upstream.bodies
    assert masked["messages"][0]["content"][0]["image_url"]["url"] != url


def test_a_tools_picture_is_screened_too(gateway: str, upstream: Scripted) -> None:
    upstream.answer = completion("ok")
    told = [
        *asked("look it up"),
        {"role": "tool", "tool_call_id": "1", "content": "data:image/png;base64," + "AAAA" * 20},
    ]
    reply = post(gateway, messages=told).json()
    assert reply["sightrail"]["refused"] is True
    parts = [{"type": "no_such_part", "blob": "?"}]
    unknown = post(gateway, messages=[{"role": "user", "content": parts}]).json()
    assert unknown["sightrail"]["refused"] is True
    assert upstream.bodies == []


def test_streams_go_through_piece_by_piece(gateway: str, upstream: Scripted) -> None:
    upstream.events = pieces("Hel", "lo ", "data:", " is a word.")
    streamed = events(post(gateway, messages=asked("hi"), stream=True))
    assert texts(streamed) == "Hello data: is a word."
    assert streamed[-1] == "[DONE]"
    assert streamed[-2]["sightrail"] == {"refused": False, "verdicts": []}


def test_pictures_in_answers_are_screened(gateway: str, upstream: Scripted) -> None:
    broken = "data:image/png;base64," + "AAAA" * 20
    part = {"type": "image_url", "image_url": {"url": broken}}
    upstream.answer = completion([part])
    reply = post(gateway, messages=asked("draw")).json()
    assert reply["choices"][0]["finish_reason"] == "content_filter"
    assert broken not in str(reply)
    spelt = ["Here: ", "![x](da", "ta:ima", "ge/png;base64," + "AAAA" * 20, ") ok"]
    upstream.events = pieces(*spelt)
    streamed = events(post(gateway, messages=asked("draw"), stream=True))
    assert "AAAA" not in str(streamed)
    assert texts(streamed).startswith("Here: ")
    assert streamed[-2]["choices"][0]["finish_reason"] == "content_filter"


def test_a_clean_picture_in_an_answer_arrives(gateway: str, upstream: Scripted) -> None:
    url, _ = drawn_request("benign")
    upstream.events = pieces(*[url[i : i + 3000] for i in range(0, len(url), 3000)])
    streamed = events(post(gateway, messages=asked("draw"), stream=True))
    assert texts(streamed).startswith("data:image/png;base64,")
    assert streamed[-2]["sightrail"]["verdicts"][0]["status"] == "clean"


def test_the_responses_api_is_relayed(gateway: str, upstream: Scripted) -> None:
    upstream.answer = {"id": "r", "object": "response", "output": [], "status": "completed"}
    assert post(gateway, "responses", input="hello").json()["id"] == "r"
    assert upstream.bodies[0]["input"] == f"{SafetyPrefix().text} hello"
    url = "data:image/png;base64," + "AAAA" * 20
    item = {"type": "function_call_output", "call_id": "1", "output": url}
    reply = post(gateway, "responses", input=[item, {"role": "user", "content": "x"}]).json()
    assert reply["incomplete_details"] == {"reason": "content_filter"}
    place = {"item_id": "m", "content_index": 0, "output_index": 0}
    upstream.events = [
        {"type": "response.created", "response": {}},
        {"type": "response.output_text.delta", **place, "delta": "Hel"},
        {"type": "response.output_text.delta", **place, "delta": "lo"},
        {"type": "response.output_text.done", **place, "text": "Hello"},
        {"type": "response.completed", "response": {"output": []}},
    ]
    streamed = events(post(gateway, "responses", input="hi", stream=True))
    deltas = [e["delta"] for e in streamed if e["type"] == "response.output_text.delta"]
    assert "".join(deltas) == "Hello"
    assert streamed[-1]["type"] == "response.completed"


@pytest.mark.parametrize(
    ("status", "told", "expected"),
    [(400, "own", 400), (429, "own", 429), (401, "own", 502), (500, "other", 502)],
)
def test_upstream_errors_keep_the_apis_shape(
    gateway: str, upstream: Scripted, status: int, told: str, expected: int
) -> None:
    error = {"error": {"message": "theirs", "type": "x", "param": None, "code": None}}
    upstream.status, upstream.headers = status, {"Retry-After": "7"}
    upstream.answer = error if told == "own" else ["?"]
    for stream in (False, True):
        response = post(gateway, messages=asked("hi"), stream=stream)
        assert response.status_code == expected
        message = response.json()["error"]["message"]
        assert (message == "theirs") == (told == "own" and expected != 502)
    assert (response.headers.get("retry-after") == "7") == (expected != 502 or told == "other")


def test_an_upstream_that_breaks_off_is_an_error_in_the_stream(
    gateway: str, upstream: Scripted
) -> None:
    upstream.events = [*pieces("begun")[:1], None]
    streamed = events(post(gateway, messages=asked("hi"), stream=True))
    assert streamed[-1]["error"]["code"] == "upstream_failed"
    upstream.answer = ["no object"]
    assert post(gateway, messages=asked("hi")).status_code == 502


def test_a_client_that_hangs_up_ends_the_work_upstream(gateway: str, upstream: Scripted) -> None:
    upstream.events = [*pieces("begun")[:1], *([0.05, *pieces("x")[:1]] * 400)]
    body = {"model": "up", "messages": asked("hi"), "stream": True}
    with httpx.stream("POST", f"{gateway}/v1/chat/completions", json=body) as response:
        assert next(response.iter_lines()).startswith("data:")
    until = time.monotonic() + 15
    while not upstream.left and time.monotonic() < until:
        time.sleep(0.02)
    assert upstream.left == 1


def test_a_connection_that_the_upstream_closes_loses_no_request() -> None:
    """As it may while the request is on its way: only the first of a connection is answered."""

    class Closing(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if self.close_connection or getattr(self, "answered", False):
                self.close_connection = True
                return
            self.answered = True
            body = json.dumps(completion("here")).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Closing) as behind:
        threading.Thread(target=behind.serve_forever, daemon=True).start()
        with serving(upstream=f"http://127.0.0.1:{behind.server_port}/v1", stack="bare") as address:
            replies = [post(address, messages=asked("hi")) for _ in range(3)]
        behind.shutdown()
    assert [reply.status_code for reply in replies] == [200] * 3


def test_nobody_behind_the_gateway() -> None:
    with serving(upstream="http://127.0.0.1:9/v1", stack="bare") as address:
        response = post(address, messages=asked("hi"))
    assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_failed")


def test_a_gateway_puts_the_border_around_pictures() -> None:
    upstream = Scripted(answer=completion("ok"))
    url, question = drawn_request("benign")
    with (
        scripted(upstream) as behind,
        serving(upstream=f"{behind}/v1", stack="davsp", artifacts={"davsp": "testbed"}) as address,
    ):
        post(address, messages=asked(question, url))
    (sent,) = upstream.bodies
    assert sent["messages"][0]["content"][0]["image_url"]["url"] != url


def test_a_gateway_cannot_act_inside_the_model() -> None:
    settings = ServerSettings(
        upstream="http://127.0.0.1:9/v1", stack="casa", artifacts={"casa": "testbed"}
    )
    with pytest.raises(ConfigurationError, match="gateway cannot reach"):
        create_app(settings)
