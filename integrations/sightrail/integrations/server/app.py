"""The application: an OpenAI-compatible API in front of a local model or of another server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, TypeVar

import h11
import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sse_starlette import EventSourceResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from sightrail.guardrails.errors import Abandoned, SightrailError
from sightrail.guardrails.model.gathering import gatherer_of
from sightrail.guardrails.screening.asking import Detector

from .door import Door
from .errors import ApiError, api_error, invalid
from .gateway import Gateway
from .guards import Guards, build_guards, load_local
from .judging import TextJudge, moderate, screen
from .local import LocalEngine
from .metrics import Metrics
from .settings import ServerSettings
from .wire import Call, read_call

LOGGER = logging.getLogger("sightrail.server")
T = TypeVar("T")


class Engine(TextJudge, Protocol):
    """What answers: the local model, or another server."""

    async def models(self) -> list[dict[str, Any]]:
        """What is served."""

    async def chat(self, call: Call) -> dict[str, Any]:
        """A chat completion."""

    def chat_stream(self, call: Call) -> AsyncIterator[dict[str, Any]]:
        """Its pieces."""

    async def responses(self, call: Call) -> dict[str, Any]:
        """A response of the Responses API."""

    def responses_stream(self, call: Call) -> AsyncIterator[dict[str, Any]]:
        """Its events."""


def create_app(
    settings: ServerSettings, *, around_detector: Callable[[Detector], Detector] | None = None
) -> FastAPI:
    """Load what is served, and build the application; nothing listens yet.

    Args:
        settings: of the server.
        around_detector: wraps the detector, below its memory of verdicts.

    Raises:
        ConfigurationError, ModelLoadError, ArtifactError, UnsupportedModelError: it cannot be
            served.
    """
    metrics, guards = Metrics(), build_guards(settings, around_detector)
    if settings.upstream is None:
        lvlm = load_local(settings, guards)
        gatherer = gatherer_of(lvlm.model)
        metrics.watch("waiting", "Calls that wait for the local model.", lambda: gatherer.waiting)
        metrics.watch("runs", "Runs of the local model at work.", lambda: gatherer.lanes)
        return _application(settings, guards, LocalEngine(lvlm, settings, metrics), metrics)
    return _application(settings, guards, Gateway(guards, settings, metrics), metrics)


def _application(
    settings: ServerSettings, guards: Guards, engine: Engine, metrics: Metrics
) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        yield
        if isinstance(engine, Gateway):
            await engine.close()

    app = FastAPI(
        title="sightrail", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.add_middleware(Door, settings=settings, metrics=metrics)
    for kind in (SightrailError, ApiError, TimeoutError, Exception):
        app.add_exception_handler(kind, _error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _error)
    _add_routes(app, settings, guards, engine, metrics)
    return app


def _add_routes(
    app: FastAPI, settings: ServerSettings, guards: Guards, engine: Engine, metrics: Metrics
) -> None:
    loop, most_s = guards.loop(), settings.request_timeout_s

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        call = await read_call(request)
        if call.stream:
            return await _streamed(engine.chat_stream(call), settings, done=True)
        return JSONResponse(await _while_wanted(request, engine.chat(call), most_s))

    @app.post("/v1/responses")
    async def responses(request: Request) -> Response:
        call = await read_call(request)
        if call.stream:
            return await _streamed(engine.responses_stream(call), settings, done=False)
        return JSONResponse(await _while_wanted(request, engine.responses(call), most_s))

    @app.post("/v1/moderations")
    async def moderations(request: Request) -> Response:
        call = await read_call(request)
        return JSONResponse(await _while_wanted(request, moderate(call, loop, engine), most_s))

    @app.post("/v1/screen")
    async def screening(request: Request) -> Response:
        call = await read_call(request)
        return JSONResponse(await _while_wanted(request, screen(call, loop), most_s))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": await engine.models()}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        for known in await engine.models():
            if known.get("id") == name:
                return known
        raise ApiError(404, "There is no such model here.", code="model_not_found")

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def exposition() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")


async def _while_wanted(request: Request, work: Awaitable[T], most_s: float) -> T:
    """The result of ``work``, which is cancelled once the client hangs up or its time is over.

    Raises:
        Abandoned: the client hung up.
        ApiError: it took too long.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({task, gone}, timeout=most_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise Abandoned("The client hung up.")
        raise ApiError(504, "The answer was not there in time.", code="timeout")
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _streamed(
    events: AsyncIterator[dict[str, Any]], settings: ServerSettings, *, done: bool
) -> Response:
    """Server-sent events; what goes wrong before the first of them is still a status of its own."""
    first = await anext(events)
    return EventSourceResponse(
        _sent(first, events, done=done),
        sep="\n",
        send_timeout=settings.body_timeout_s,
        shutdown_grace_period=max(0.0, settings.shutdown_s - 1),
    )


async def _sent(
    first: dict[str, Any], events: AsyncIterator[dict[str, Any]], *, done: bool
) -> AsyncGenerator[dict[str, str], None]:
    try:
        yield _event(first)
        async for event in events:
            yield _event(event)
        if done:
            yield {"data": "[DONE]"}
    except Exception as error:
        told = api_error(error)
        if told.status >= 500:
            LOGGER.warning("a stream broke off", exc_info=error)
        yield {"data": json.dumps(told.body)}
    finally:
        if isinstance(events, AsyncGenerator):
            with contextlib.suppress(RuntimeError):
                await events.aclose()


def _event(event: dict[str, Any]) -> dict[str, str]:
    data = {"data": json.dumps(event)}
    kind = event.get("type")
    return {"event": kind, **data} if isinstance(kind, str) else data


async def _error(request: Request, error: Exception) -> Response:
    return api_error(error).response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    texts = {404: "There is no such path.", 405: "This path takes another method."}
    return ApiError(error.status_code, texts.get(error.status_code, "Refused.")).response()


_HEAD_BYTES: Final = 32 * 1024
_IDLE_S: Final = 15


def server_for(app: FastAPI, settings: ServerSettings) -> uvicorn.Server:
    """A server that listens as the settings say, once it is run."""

    class Patient(PatientProtocol):
        header_timeout_s = settings.header_timeout_s

    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=Patient,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=int(settings.shutdown_s),
        h11_max_incomplete_event_size=_HEAD_BYTES,
    )
    return uvicorn.Server(config)


def log_to_stderr() -> None:
    """One JSON line per request, and what uvicorn has to say, on stderr."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that hangs up where a request's head does not arrive in time.

    A connection that says nothing, or a byte now and then, would otherwise stay for good.
    """

    header_timeout_s: float = 10.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """The first request's head is awaited."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Part of a head, a body, or both."""
        if self._between_requests:
            self._await_head()
        super().data_received(data)
        if not self._between_requests:
            self._head_is_there()

    def send_400_response(self, msg: str) -> None:
        """Answer a head that is no HTTP, in the API's shape as well."""
        body = json.dumps(invalid(msg, code="invalid_http").body).encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is awaited any more."""
        self._head_is_there()
        super().connection_lost(exc)

    @property
    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def _head_is_there(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
