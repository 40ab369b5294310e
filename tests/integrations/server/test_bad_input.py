"""What nobody should send: answered in the API's shape, and the server lives."""

from __future__ import annotations

import json
import logging
import socket
import time
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_helpers import Scripted, asked, completion, drawn_request, scripted, serving

PATHS = ("chat/completions", "responses", "moderations", "screen")


def alive(address: str) -> bool:
    return httpx.get(f"{address}/health").status_code == 200


def error_of(response: httpx.Response) -> Any:
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b'"text"'),
        b'{"messages": "\xed\xa0\x80"}',
        '{"messages": "\\ud800"}'.encode("utf-16"),
        *(b'{"temperature": NaN}', b'{"x": [1e999]}', b'{"seed": ' + b"9" * 5000 + b"}"),
    ],
    ids=[
        *("empty", "open", "list", "null", "no utf-8", "deep list", "deep object", "text"),
        *("half a sign", "utf-16", "no number", "infinite", "endless number"),
    ],
)
def test_no_json_object(local: str, gateway: str, path: str, body: bytes) -> None:
    for address in (local, gateway):
        response = httpx.post(f"{address}/v1/{path}", content=body, timeout=60)
        assert response.status_code == 400
        assert error_of(response)["type"] == "invalid_request_error"


WRONG: list[dict[str, Any]] = [
    {"messages": None},
    {"messages": []},
    {"messages": {"role": "user"}},
    {"messages": ["hello"]},
    {"messages": [{"role": "nobody", "content": "x"}]},
    {"messages": [{"role": ["user"], "content": "x"}]},
    {"messages": [{"role": {"user": 1}, "content": "x"}]},
    {"messages": [{"role": "user", "content": 7}]},
    {
        "messages": [
            {"role": "assistant", "tool_calls": [{"function": {"arguments": "[" * 100_000}}]},
            {"role": "user", "content": "x"},
        ]
    },
    {"messages": [{"role": "user", "content": "x", "surprise": 1}]},
    {"messages": [{"role": "assistant", "content": "x"}]},
    {"messages": [{"role": "user", "content": "x"}] * 5000},
    {"model": None},
    {"model": 7},
    {"max_tokens": "many"},
    {"max_tokens": True},
    {"max_tokens": 0},
    {"max_tokens": 10**30},
    {"temperature": "hot"},
    {"temperature": -1},
    {"temperature": float("inf")},
    {"top_p": 7},
    {"stop": [7]},
    {"stop": [""]},
    {"stop": ["x"] * 17},
    {"seed": "s"},
    {"seed": 2**70},
    {"seed": 1.5},
    {"temperature": float("nan")},
    {"temperature": 1, "top_p": float("nan")},
    {"temperature": 1, "top_k": -3},
    {"temperature": 1, "top_k": 1.5},
    {"repetition_penalty": 0},
    {"repetition_penalty": float("nan")},
    {"stream_options": [1]},
    {"messages": [{"role": "user", "content": "half \ud800 a sign"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "sightrail": 1}]}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "x": [{"sightrail.seen": 1}]}]}]},
    {"stream": "yes"},
    {"n": 2},
    {"tools": [{"type": "function"}]},
    {"response_format": {"type": "json_object", "schema": 7}},
    {"logprobs": True},
    {"no_such_field": 1},
    {"guardrails": []},
    {"sightrail": {"refused": False}},
    {"metadata": {"sightrail": {"refused": False}}},
    {"messages": [{"role": "user", "content": "x", "sightrail": {"refused": False}}]},
    {"messages": [{"role": "user", "content": "x", "additional_kwargs": {"a": 1}}]},
    {"messages": [{"role": "user", "content": "x", "response_metadata": {}}]},
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: str(wrong)[:50])
@pytest.mark.parametrize("stream", [False, True])
def test_wrong_types_and_pretence(local: str, wrong: dict[str, Any], stream: bool) -> None:
    body = {"model": "testbed", "messages": asked("hi"), "stream": stream, **wrong}
    content = json.dumps(body)
    response = httpx.post(f"{local}/v1/chat/completions", content=content, timeout=60)
    assert response.status_code in (400, 404)
    assert error_of(response)["message"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner),
    max_leaves=12,
)
FIELDS = st.sampled_from(["messages", "input", "images", "stop", "stream_options", "content"])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(path=st.sampled_from(PATHS), body=st.dictionaries(FIELDS, JSON), parts=JSON)
def test_any_json_is_answered_in_the_apis_shape(
    local: str, path: str, body: dict[str, Any], parts: Any
) -> None:
    said = {"model": "testbed", "max_tokens": 1, **body}
    for whole in (said, {**said, "messages": [{"role": "user", "content": parts}]}):
        response = httpx.post(f"{local}/v1/{path}", content=json.dumps(whole), timeout=60)
        assert response.status_code < 500
        assert "error" in response.json() or response.status_code == 200


@pytest.mark.parametrize("half", ["\ud800", "a\udc00b"])
def test_halves_of_signs_do_not_reach_an_upstream(
    gateway: str, upstream: Scripted, half: str
) -> None:
    upstream.answer = completion("ok")
    body = json.dumps({"model": "up", "messages": asked(half)})
    response = httpx.post(f"{gateway}/v1/chat/completions", content=body)
    assert (response.status_code, error_of(response)["code"]) == (400, "invalid_json")
    whole = json.dumps({"model": "up", "messages": asked("\U0001f600")})
    assert httpx.post(f"{gateway}/v1/chat/completions", content=whole).status_code == 200


HEADS = [
    b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1.evil.example\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: [::1\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\n\r\n",
    b"POST /v1/screen HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/screen HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"POST /v1/screen HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 300_000,
    b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n folded\x00: x\r\n\r\n",
    b"no http at all\r\n\r\n",
    b"POST /v1/screen HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\n"
    b"Content-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: str(head[-60:]))
def test_tricks_with_heads(local: str, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", int(local.rsplit(":", 1)[1]))) as raw:
        raw.settimeout(20)
        raw.sendall(head)
        got = b""
        while b"}" not in got and (chunk := raw.recv(4096)):
            got += chunk
    status, error = int(got.split()[1]), json.loads(got.partition(b"\r\n\r\n")[2])["error"]
    assert 400 <= status < 500
    assert error.keys() == {"message", "type", "param", "code"}
    assert alive(local)


def test_whole_numbers_and_pages_of_this_machine_are_welcome(local: str) -> None:
    body = {"model": "testbed", "messages": asked("hi"), "max_tokens": 1}
    whole = {"temperature": 1, "top_p": 1, "repetition_penalty": 2, "top_k": 2**62, "seed": 0}
    page = {"Origin": "http://localhost:3000"}
    response = httpx.post(
        f"{local}/v1/chat/completions", json={**body, **whole}, headers=page, timeout=60
    )
    assert response.status_code == 200, response.text


def test_a_key_lets_in_under_any_name() -> None:
    with (
        scripted(Scripted(answer=completion("ok"))) as behind,
        serving(upstream=f"{behind}/v1", stack="bare", api_keys=("a-first-key",)) as address,
    ):
        head = {"Host": "guard.example", "Authorization": "Bearer a-first-key"}
        assert httpx.get(f"{address}/v1/models", headers=head).status_code == 200
        for name in ("X-Api-Key", "X-Forwarded-For", "X-Sightrail-Refused"):
            told = httpx.get(f"{address}/v1/models", headers={name: "a-first-key"})
            assert told.status_code == 401


def test_unknown_paths_and_methods(local: str) -> None:
    assert error_of(httpx.get(f"{local}/v1/nothing"))["type"] == "not_found_error"
    assert httpx.get(f"{local}/v1/../../etc/passwd").status_code == 404
    assert error_of(httpx.get(f"{local}/v1/chat/completions"))["message"]
    assert httpx.get(f"{local}/v1/models/..%2f..%2fetc").status_code == 404


@pytest.mark.parametrize(
    "address",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "FILE:/etc/passwd",
        "../../etc/passwd",
        "http://127.0.0.1/x.png",
        "http://169.254.169.254/latest",
        "//host/share.png",
        "ftp://host/x.png",
    ],
)
def test_no_client_names_a_file_or_an_address(local: str, address: str) -> None:
    """Also not in a form that only a framework on this side would understand."""
    parts: list[Any] = [
        {"type": "image_url", "image_url": {"url": address}},
        {"type": "image", "image": address},
        {"type": "image", "url": address},
        {"type": "input_image", "image_url": address},
        {"type": "file", "file": {"file_data": address, "filename": "x.png"}},
        {"type": "image", "source": {"type": "url", "url": address}},
    ]
    for part in parts:
        body = {"model": "testbed", "messages": [{"role": "user", "content": [part]}]}
        reply = httpx.post(f"{local}/v1/chat/completions", json=body, timeout=60).json()
        assert reply["choices"][0]["finish_reason"] == "content_filter"
        assert reply["sightrail"]["verdicts"][0]["status"] == "not_inspected"
        assert "root:" not in json.dumps(reply)


def test_thousands_of_pictures_are_refused_and_cheap(local: str) -> None:
    url, _ = drawn_request("benign", 0)
    tiny = "data:image/png;base64,AAAA"
    body = {"model": "testbed", "messages": asked("all of them", *[tiny] * 5000, url)}
    reply = httpx.post(f"{local}/v1/chat/completions", json=body, timeout=120).json()
    assert reply["choices"][0]["finish_reason"] == "content_filter"
    assert alive(local)


def test_megabytes_of_text_are_refused_and_cheap(local: str) -> None:
    """Tokenizing them would take minutes, in which nobody else is answered."""
    for text in ("word " * 4_000_000, "a" * 20_000_000):
        body = {"model": "testbed", "messages": asked(text), "max_tokens": 1}
        response = httpx.post(f"{local}/v1/chat/completions", json=body, timeout=120)
        assert response.status_code == 400
        assert "characters but the model's context is" in error_of(response)["message"]


def test_size_slowness_and_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="sightrail.server")
    with (
        scripted(Scripted(answer=completion("secret answer"))) as behind,
        serving(
            upstream=f"{behind}/v1",
            stack="bare",
            max_body_bytes=20_000,
            header_timeout_s=0.5,
            body_timeout_s=0.5,
        ) as address,
    ):
        large = httpx.post(f"{address}/v1/chat/completions", content=b"x" * 30_000)
        assert (large.status_code, error_of(large)["code"]) == (413, "request_too_large")
        chunked = httpx.post(f"{address}/v1/screen", content=iter([b"x" * 9000] * 4))
        assert chunked.status_code == 413
        port = int(address.rsplit(":", 1)[1])
        head = b"POST /v1/screen HTTP/1.1\r\nHost: localhost\r\n"
        for begun, expected in (
            (b"", b""),
            (head, b""),
            (head + b"Content-Length: 10\r\n\r\nxx", b"408"),
        ):
            with socket.create_connection(("127.0.0.1", port)) as slow:
                slow.settimeout(10)
                slow.sendall(begun)
                since, got = time.monotonic(), b""
                while chunk := slow.recv(4096):
                    got += chunk
                    if b"408" in got:
                        break
                assert expected in got
                assert time.monotonic() - since < 9
        body = {"model": "up", "messages": asked("secret question")}
        assert httpx.post(f"{address}/v1/chat/completions", json=body).status_code == 200
        assert alive(address)
    lines = [json.loads(r.message) for r in caplog.records if r.name == "sightrail.server"]
    assert {line["status"] for line in lines} >= {200, 408, 413}
    assert "secret" not in caplog.text
    assert lines[-2]["route"] == "/v1/chat/completions"
