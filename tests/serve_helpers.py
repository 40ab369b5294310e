"""Servers on this machine for tests: ours, and one that answers as a script says."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import httpx
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sightrail.guardrails import LocalLVLM
from sightrail.integrations.server import ServerSettings, create_app
from sightrail.integrations.server.app import server_for
from sightrail.testbed.source import as_messages, draw_requests


@contextlib.contextmanager
def listening(server: uvicorn.Server) -> Iterator[str]:
    """The address of a server that runs in a thread for as long as the block."""
    thread = threading.Thread(target=server.run, name="server-under-test")
    thread.start()
    try:
        until = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < until
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@contextlib.contextmanager
def serving(**settings: Any) -> Iterator[str]:
    """The address of a sightrail server with these settings."""
    read = ServerSettings(port=0, **settings)
    with listening(server_for(create_app(read), read)) as address:
        yield address


@dataclass
class Scripted:
    """An upstream that keeps what it was sent and answers what it was told.

    Attributes:
        answer: the JSON body, for requests that do not stream.
        events: the events of a stream; a float among them is a pause in seconds, None breaks off.
        status: of every answer.
        headers: of every answer.
        bodies: what was asked.
        asked_with: the headers of each request.
        left: how many streams their reader left early.
    """

    answer: Any = None
    events: list[Any] = field(default_factory=list)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    asked_with: list[dict[str, str]] = field(default_factory=list)
    left: int = 0

    async def handle(self, request: Request) -> Response:
        self.asked_with.append(dict(request.headers))
        if request.method == "GET":
            return JSONResponse({"object": "list", "data": [{"id": "up", "object": "model"}]})
        self.bodies.append(json.loads(await request.body()))
        if self.bodies[-1].get("stream") and self.status < 400:
            return self.streaming(self.events)
        return JSONResponse(self.answer, self.status, self.headers)

    def streaming(self, events: list[Any]) -> Response:
        """The answer that streams these events."""
        return StreamingResponse(self._stream(events), media_type="text/event-stream")

    async def _stream(self, events: list[Any]) -> AsyncIterator[str]:
        import asyncio

        whole = False
        try:
            for event in events:
                if event is None:
                    raise ConnectionResetError
                if isinstance(event, float):
                    await asyncio.sleep(event)
                    continue
                yield f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n"
            whole = True
        finally:
            self.left += not whole


@contextlib.contextmanager
def scripted(upstream: Scripted) -> Iterator[str]:
    """The address of an upstream."""
    paths = ["/v1/chat/completions", "/v1/responses", "/v1/models"]
    app = Starlette(
        routes=[Route(path, upstream.handle, methods=["GET", "POST"]) for path in paths]
    )
    config = uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=2)
    with listening(uvicorn.Server(config)) as address:
        yield address


def completion(content: Any, finish: str = "stop") -> dict[str, Any]:
    """A chat completion of an upstream."""
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    head = {"id": "up-1", "object": "chat.completion", "created": 1, "model": "up"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {**head, "choices": [choice], "usage": usage}


def pieces(*texts: str) -> list[Any]:
    """The same, streamed."""
    head = {"id": "up-1", "object": "chat.completion.chunk", "created": 1, "model": "up"}
    deltas = [({"content": text}, None) for text in texts] + [({}, "stop")]
    made: list[Any] = [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        for delta, finish in deltas
    ]
    return [*made, "[DONE]"]


def data_url(image: Image.Image) -> str:
    """A picture as an address of its own."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def drawn_request(group: str, number: int = 0) -> tuple[str, str]:
    """A picture of the testbed as an address, and the question about it."""
    parts = as_messages(draw_requests(group, number + 1, "test", 7)[number])[0]["content"]
    image = next(part["image"] for part in parts if part["type"] == "image")
    return data_url(image), next(part["text"] for part in parts if part["type"] == "text")


def asked(text: str, *urls: str) -> list[dict[str, Any]]:
    """Messages with pictures before the text."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def events(response: httpx.Response) -> list[Any]:
    """What a stream of server-sent events holds."""
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


@contextlib.contextmanager
def serving_model(lvlm: LocalLVLM, **settings: Any) -> Iterator[str]:
    """The address of a sightrail server around a model that is there already."""
    read = ServerSettings(port=0, model="tiny", name="tiny", **settings)
    with patch("sightrail.integrations.server.app.load_local", lambda *_: lvlm):
        app = create_app(read)
    with listening(server_for(app, read)) as address:
        yield address
