"""What every request passes before anybody reads it: keys, room, size, time, and a line in the log.

Pure ASGI, so that streams stay streams and a client that hangs up is noticed.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import time
import uuid
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import SecretStr
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, api_error
from .metrics import Metrics
from .settings import ServerSettings, is_loopback

LOGGER: Final = logging.getLogger("sightrail.server")
_OPEN: Final = ("/health", "/metrics")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Door:
    """Lets requests in, one place for each.

    Args:
        app: the application behind it.
        settings: keys and limits.
        metrics: what is counted.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._keys = [_digest(key) for key in settings.api_keys]
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = _Visit(scope, send)
        try:
            await self._admit(scope, receive, visit)
        except ClientDisconnect:
            visit.status = visit.status or 499
        except Exception as error:
            if api_error(error).status >= 500 and not isinstance(error, ApiError | TimeoutError):
                LOGGER.error("request %s failed", visit.id, exc_info=error)
            if not visit.begun:
                await api_error(error).response()(scope, receive, visit.send)
        finally:
            self._metrics.request(visit.route, visit.status or 499, visit.seconds)
            LOGGER.info("%s", json.dumps(visit.told()))

    async def _admit(self, scope: Scope, receive: Receive, visit: _Visit) -> None:
        if scope["path"] in _OPEN:
            await self._app(scope, receive, visit.send)
            return
        headers = Headers(scope=scope)
        self._check_host(headers)
        scope["state"]["client"] = visit.client = self._client(headers)
        self._check_length(headers)
        if self._inside >= self._settings.max_requests:
            self._metrics.rejected.labels("busy").inc()
            raise ApiError(429, "The server is busy; try again.", code="busy", retry_after_s=1)
        self._inside += 1
        self._metrics.inside.inc()
        try:
            body = _Body(receive, self._settings)
            await self._app(scope, body.receive, visit.send)
        finally:
            self._inside -= 1
            self._metrics.inside.dec()

    def _client(self, headers: Headers) -> str | None:
        """A name for whose key it is, safe for logs; every key is compared, in constant time."""
        if not self._keys:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        mine = _digest(SecretStr(given.strip() if scheme.lower() == "bearer" else ""))
        matches = [hmac.compare_digest(mine, key) for key in self._keys]
        if not any(matches):
            self._metrics.rejected.labels("key").inc()
            raise ApiError(401, "Invalid API key.", code="invalid_api_key")
        return f"key-{matches.index(True)}"

    def _check_host(self, headers: Headers) -> None:
        """Without a key, only this machine is let in, and not the pages that its browser shows: a
        name of theirs may lead here, and a form of theirs may be sent here.
        """
        if self._keys or self._settings.anonymous:
            return
        named = [f"//{headers.get('host', '')}", *headers.getlist("origin")]
        if not all(is_loopback(_host_in(address)) for address in named):
            self._metrics.rejected.labels("host").inc()
            raise ApiError(
                403,
                "Without api_keys this server is asked as localhost, by nobody else's pages; set "
                "api_keys, or anonymous.",
                code="host_not_allowed",
            )

    def _check_length(self, headers: Headers) -> None:
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > self._settings.max_body_bytes:
            raise _too_large(self._settings.max_body_bytes)


class _Body:
    """A request's body, no larger and no slower than agreed."""

    def __init__(self, receive: Receive, settings: ServerSettings) -> None:
        self._receive = receive
        self._most = settings.max_body_bytes
        self._until = time.monotonic() + settings.body_timeout_s
        self._size = 0
        self._whole = False

    async def receive(self) -> Message:
        """The next message of ASGI."""
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._until - time.monotonic())):
                message = await self._receive()
        except TimeoutError as error:
            raise ApiError(408, "The request came too slowly.", code="slow_request") from error
        self._size += len(message.get("body", b""))
        if self._size > self._most:
            raise _too_large(self._most)
        self._whole = not message.get("more_body", False)
        return message


class _Visit:
    """What is known about one request, for headers, metrics and the log: nothing of its content."""

    def __init__(self, scope: Scope, send: Send) -> None:
        given = Headers(scope=scope).get("x-request-id", "")
        self.id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.client: str | None = None
        self.status = 0
        self._scope = scope
        self._send = send
        self._since = time.monotonic()
        scope.setdefault("state", {}).update(request_id=self.id, told={})

    @property
    def begun(self) -> bool:
        """Whether the answer has begun."""
        return self.status != 0

    @property
    def seconds(self) -> float:
        """How long it took so far."""
        return time.monotonic() - self._since

    @property
    def route(self) -> str:
        """The path as the application declares it; what nobody declared is all one."""
        route = self._scope.get("route")
        if route is not None:
            return str(route.path)
        return self._scope["path"] if self._scope["path"] in _OPEN else "other"

    async def send(self, message: Message) -> None:
        """Pass a message on, with the request's id in the head."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self.id
        await self._send(message)

    def told(self) -> dict[str, Any]:
        """The line in the log."""
        return {
            "event": "request",
            "id": self.id,
            "client": self.client,
            "method": self._scope["method"],
            "route": self.route,
            "status": self.status or 499,
            "seconds": round(self.seconds, 4),
            **self._scope["state"]["told"],
        }


def _host_in(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:  # brackets that do not match
        return ""


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"A request may have at most {most} bytes.", code="request_too_large")


def _digest(key: SecretStr) -> bytes:
    return hashlib.sha256(key.get_secret_value().encode()).digest()
