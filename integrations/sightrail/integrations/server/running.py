"""Listening: uvicorn with a limit on how slowly a request may begin, and an end that waits."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import Any, Final

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import invalid
from .settings import ServerSettings

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
