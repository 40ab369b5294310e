"""Another server that speaks the API, whichever engine it is: requests, streams, errors."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

import httpx

from sightrail.guardrails.errors import ConfigurationError

from .errors import ApiError

if TYPE_CHECKING:
    from .settings import ServerSettings


class Upstream:
    """What stands behind a gateway.

    Args:
        settings: of the server.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._most = settings.max_body_bytes
        self._client = httpx.AsyncClient(
            base_url=str(settings.upstream).rstrip("/") + "/",
            headers=_key(settings),
            timeout=httpx.Timeout(settings.request_timeout_s, connect=10.0),
            limits=httpx.Limits(max_connections=settings.max_requests),
            trust_env=False,
        )

    async def close(self) -> None:
        """Let the connections go."""
        await self._client.aclose()

    async def get(self, path: str) -> dict[str, Any]:
        """What is there.

        Raises:
            ApiError: see :meth:`post`.
        """
        async with self._sent("GET", path) as response:
            return await self._answer(response)

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            ApiError: the upstream's own error, or none could be had: 502, 504.
        """
        async with self._sent("POST", path, body) as response:
            return await self._answer(response)

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The events of an answer, up to its ``[DONE]``.

        Raises:
            ApiError: as :meth:`post`; also for an error that comes as an event.
        """
        async with self._sent("POST", path, body) as response:
            async for data in _server_sent(response, self._most):
                if data == "[DONE]":
                    return
                event = _parsed(data)
                if _is_error(event):
                    raise upstream_error(_status_in(event), event)
                yield event

    @contextlib.asynccontextmanager
    async def _sent(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> AsyncIterator[httpx.Response]:
        try:
            async with contextlib.aclosing(await self._opened(method, path, body)) as response:
                if response.status_code >= 400:
                    raise await self._told(response)
                yield response
        except httpx.TimeoutException as error:
            raise ApiError(504, "The upstream did not answer in time.", code="timeout") from error
        except httpx.HTTPError as error:
            raise ApiError(
                502, "The upstream cannot be reached, or broke off.", code="upstream_failed"
            ) from error

    async def _opened(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> httpx.Response:
        """An answer whose head is there.

        Upstreams close connections that they had kept open, after some idle time or an error of
        their own; a request that was just on its way there is sent again on a new one.
        """
        fresh = False

        async def note(event: str, info: Mapping[str, Any]) -> None:
            nonlocal fresh
            fresh = fresh or event == "connection.connect_tcp.started"

        while True:
            request = self._client.build_request(
                method, path, json=body, extensions={"trace": note}
            )
            try:
                return await self._client.send(request, stream=True)
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                if fresh:
                    raise

    async def _told(self, response: httpx.Response) -> ApiError:
        try:
            body = await self._json(response)
        except ApiError:
            body = {}
        wait = response.headers.get("retry-after", "")
        retry_after_s = int(wait) if wait.isdigit() and len(wait) < 6 else None
        return upstream_error(response.status_code, body, retry_after_s)

    async def _answer(self, response: httpx.Response) -> dict[str, Any]:
        found = await self._json(response)
        if found.keys() <= {"error", "message", "type", "object", "code"} and _is_error(found):
            raise upstream_error(_status_in(found), found)
        return found

    async def _json(self, response: httpx.Response) -> dict[str, Any]:
        whole = bytearray()
        async for part in response.aiter_bytes():
            whole += part
            if len(whole) > self._most:
                raise ApiError(502, "The upstream's answer is too large.", code="upstream_error")
        return _parsed(whole)


def upstream_error(
    status: int, found: Mapping[str, Any], retry_after_s: int | None = None
) -> ApiError:
    """The upstream's own error in the API's shape, unless it is about the gateway.

    Engines write errors in many ways: ``{"error": {...}}`` with a number as code and without param
    (llama.cpp), ``{"error": "..."}`` (LM Studio, Ollama), ``{"object": "error", ...}`` (SGLang,
    older vLLM), ``{"detail": ...}`` (FastAPI).
    """
    if status in (401, 403):
        return ApiError(502, "The upstream refuses this gateway.", code="upstream_refused")
    inner = found.get("error")
    told = inner if isinstance(inner, Mapping) else found
    message = _text(told.get("message")) or _text(inner) or _text(found.get("detail"))
    own = {name: _text(told.get(name)) for name in ("code", "param", "type")} if message else {}
    return ApiError(
        status if 400 <= status < 500 else 502,
        message or f"The upstream answered with status {status}.",
        code=own.get("code") or "upstream_error",
        param=own.get("param"),
        kind=own.get("type"),
        retry_after_s=retry_after_s,
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _is_error(event: Mapping[str, Any]) -> bool:
    """Whether an event is an error, and not one of the Responses API's own events about it."""
    own = str(event.get("type", "")).startswith("response.")
    return event.get("object") == "error" or (bool(event.get("error")) and not own)


def _status_in(event: Mapping[str, Any]) -> int:
    """The status that an error would have had where it had come alone."""
    inner = event.get("error")
    code = (inner if isinstance(inner, Mapping) else event).get("code")
    return code if isinstance(code, int) and 400 <= code < 600 else 502


async def _server_sent(response: httpx.Response, most: int) -> AsyncIterator[str]:
    """The data of each event.

    Lines end at line feeds alone: texts of JSON hold other signs at which Python would split them.
    """
    rest, data = bytearray(), bytearray()
    async for part in response.aiter_bytes():
        rest += part
        *lines, rest = rest.split(b"\n") if b"\n" in part else [rest]
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                data += line[5:].strip() + b"\n"
            elif line.startswith(b"error:"):  # llama.cpp, some time ago
                data += b'{"object":"error","error":' + line[6:].strip() + b"}\n"
            elif not line and data.strip():
                yield data.decode(errors="replace").strip()
                data = bytearray()
        if len(data) + len(rest) > most:
            raise ApiError(502, "An event of the upstream is too large.", code="upstream_error")
    if data.strip():  # an engine that ends without an empty line
        yield data.decode(errors="replace").strip()


def _parsed(data: str | bytearray) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ApiError(502, "The upstream answers no JSON.", code="upstream_error") from error
    if not isinstance(found, dict):
        raise ApiError(502, "The upstream answers no JSON object.", code="upstream_error")
    return found


def _key(settings: ServerSettings) -> dict[str, str]:
    key = settings.upstream_key
    return {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}


def check_upstream(settings: ServerSettings) -> None:
    """Make sure that the upstream answers; nothing to do for a local model.

    Raises:
        ConfigurationError: it does not.
    """
    if settings.upstream is None:
        return
    address = f"{str(settings.upstream).rstrip('/')}/models"
    try:
        found = httpx.get(address, headers=_key(settings), timeout=10.0, trust_env=False)
        found.raise_for_status()
    except httpx.HTTPError as error:
        raise ConfigurationError(
            f"The upstream {settings.upstream} does not list its models "
            f"({type(error).__name__}); is it running, and is upstream_key right?"
        ) from error
