"""An OpenAI-compatible address: chat completions with token probabilities, and moderations.

One client for everything that asks a second model: concurrency is limited, retries have a budget
of time, an answer has a limit of size, and what goes wrong is an `EndpointError` with a stable
reason, never an empty answer.
"""

from __future__ import annotations

import base64
import io
import json
import math
import random
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    SecretStr,
    field_validator,
)

from ..deadline import run_within
from ..errors import ConfigurationError, SightrailError

if TYPE_CHECKING:
    import httpx
    from PIL.Image import Image

__all__ = ["ChatReply", "Endpoint", "EndpointError", "Reason", "Token", "data_url"]

Message = Mapping[str, Any]
"""A chat message as OpenAI's API writes it: role, and content as text or a list of parts."""

Reason = Literal["unreachable", "timed_out", "http_error", "too_large", "unreadable", "refused"]

_AGAIN: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_FIRST_WAIT_S: Final = 0.25
_GRACE_S: Final = 0.1
"""So much later than httpx's own limits, which close the connection."""
_TOP_TOKENS: Final = 20  # the most that OpenAI's API gives for one position


class EndpointError(SightrailError):
    """A second model gave no usable answer.

    Attributes:
        reason: a stable code: `unreachable`, `timed_out`, `http_error`, `too_large`, `unreadable`,
            `refused`.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


class Token(NamedTuple):
    """One token of an answer: its text, and the log-probabilities of what might have stood there
    (with itself, where the server gives them).
    """

    text: str
    alternatives: Mapping[str, float]


class ChatReply(NamedTuple):
    """An answer: its text, and its tokens where the server gives them."""

    text: str
    tokens: tuple[Token, ...] = ()


class Endpoint(BaseModel):
    """An OpenAI-compatible address and how it is asked. Thread-safe; can be pickled.

    >>> Endpoint(base_url="http://127.0.0.1:8000/v1", model="llama-guard").concurrency
    8

    Attributes:
        base_url: up to and with the version, such as `http://127.0.0.1:8000/v1`.
        model: the model's name there.
        api_key: sent as a bearer token; never taken from the environment by itself.
        timeout_s: for one request, from sending it to the end of its answer.
        budget_s: for a request and all its retries together; waiting for its turn does not count.
        retries: how often a request is sent again after it could not be delivered, timed out or
            was answered by 408, 409, 425, 429 or 5xx.
        concurrency: requests under way at once, over all threads that use this object.
        max_bytes: the largest answer that is read.
        headers: sent along with every request.
        options: further fields of every chat request, such as `{"seed": 0}`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    base_url: str
    model: str
    api_key: SecretStr | None = None
    timeout_s: PositiveFloat = 30.0
    budget_s: PositiveFloat = 60.0
    retries: int = Field(default=2, ge=0)
    concurrency: PositiveInt = 8
    max_bytes: PositiveInt = 2_000_000
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("base_url")
    @classmethod
    def _is_web_address(cls, base_url: str) -> str:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(
                f"base_url is {base_url!r}; it is a web address such as http://127.0.0.1:8000/v1"
            )
        return base_url.rstrip("/")

    _wire: _Wire = PrivateAttr(default_factory=lambda: _Wire())

    def chat(
        self, messages: Sequence[Message], *, max_tokens: int = 256, probabilities: bool = False
    ) -> ChatReply:
        """The greedy answer to a conversation.

        Args:
            messages: see Message.
            max_tokens: at most this many tokens.
            probabilities: ask for the log-probabilities of every token's alternatives. A server
                that rejects the question is asked again without.

        Raises:
            EndpointError: there is no usable answer.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": 0,
            **self.options,
        }
        if not probabilities:
            return _read_chat(self._post("/chat/completions", body))
        try:
            asking = {**body, "logprobs": True, "top_logprobs": _TOP_TOKENS}
            return _read_chat(self._post("/chat/completions", asking))
        except EndpointError as error:
            if error.reason != "http_error" or "400" not in str(error):
                raise
        return _read_chat(self._post("/chat/completions", body))

    def moderate(self, parts: Sequence[Message]) -> ChatReply:
        """The first result of `/moderations` about one input, as JSON text.

        Args:
            parts: content parts of type `text` and `image_url`.

        Raises:
            EndpointError: there is no usable answer.
        """
        found = self._post("/moderations", {"model": self.model, "input": list(parts)})
        results = found.get("results")
        if not isinstance(results, list) or not results:
            raise EndpointError("unreadable", "the answer to a moderation holds no result")
        return ChatReply(json.dumps(results[0]))

    def gather(self, calls: Sequence[Callable[[], ChatReply]]) -> list[ChatReply | EndpointError]:
        """Several calls of this endpoint at once, in order; what failed is its error."""

        def outcome(call: Callable[[], ChatReply]) -> ChatReply | EndpointError:
            try:
                return call()
            except EndpointError as error:
                return error

        if len(calls) <= 1:
            return [outcome(call) for call in calls]
        with ThreadPoolExecutor(min(self.concurrency, len(calls))) as pool:
            return list(pool.map(outcome, calls))

    # The wire

    def _connected(self) -> tuple[httpx.Client, threading.BoundedSemaphore]:
        """The connections, made at the first request, and whose turn it is."""
        with self._wire.lock:
            if self._wire.client is None:
                self._wire.client = client = self._connect()
                weakref.finalize(self._wire, client.close)
                self._wire.turns = threading.BoundedSemaphore(self.concurrency)
            return self._wire.client, self._wire.turns

    def _connect(self) -> httpx.Client:
        import httpx

        key = None if self.api_key is None else self.api_key.get_secret_value()
        own = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.Client(
            headers={**own, **self.headers},
            limits=httpx.Limits(max_connections=self.concurrency),
            follow_redirects=False,  # a key is not handed on to another address
        )

    def _post(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """One request with its retries.

        Raises:
            EndpointError: of the last try.
        """
        client, turns = self._connected()
        with turns:
            ends = time.monotonic() + self.budget_s
            for attempt in range(self.retries + 1):
                seconds = max(0.01, min(self.timeout_s, ends - time.monotonic()))
                try:
                    return self._sent(client, path, body, seconds)
                except _RetriableError as error:
                    wait = error.wait_s or _FIRST_WAIT_S * 2**attempt * (0.5 + random.random())
                    if attempt == self.retries or time.monotonic() + wait >= ends:
                        raise EndpointError(error.reason, str(error)) from error
                    time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _sent(
        self, client: httpx.Client, path: str, body: Mapping[str, Any], seconds: float
    ) -> Mapping[str, Any]:
        """One request within its time: httpx knows no limit on looking up a name, nor on headers
        that come drop by drop.
        """
        send = partial(self._send, client, path, body, seconds)
        try:
            return run_within(seconds + _GRACE_S, send)
        except TimeoutError as error:
            raise _RetriableError("timed_out", f"no answer within {self.timeout_s:g} s") from error

    def _send(
        self, client: httpx.Client, path: str, body: Mapping[str, Any], seconds: float
    ) -> Mapping[str, Any]:
        import httpx

        ends = time.monotonic() + seconds
        try:
            with client.stream(
                "POST", self.base_url + path, json=body, timeout=seconds
            ) as response:
                if response.status_code in _AGAIN:
                    raise _RetriableError("http_error", _status(response), _asked_wait(response))
                if response.status_code != 200:
                    raise EndpointError("http_error", _status(response))
                return _json(self._content(response, ends))
        except httpx.TimeoutException as error:
            raise _RetriableError("timed_out", f"no answer within {self.timeout_s:g} s") from error
        except httpx.DecodingError as error:
            raise EndpointError("unreadable", "the answer's encoding is broken") from error
        except httpx.TransportError as error:
            raise _RetriableError(
                "unreachable", f"{type(error).__name__} at the endpoint"
            ) from error
        except (httpx.InvalidURL, ValueError, TypeError) as error:
            raise EndpointError(
                "unreadable", f"the request cannot be sent ({type(error).__name__})"
            ) from error

    def _content(self, response: httpx.Response, ends: float) -> bytes:
        """The body, within size and time: a single read of an answer that drips never times out."""
        content = bytearray()
        for piece in response.iter_bytes():
            content += piece
            if len(content) > self.max_bytes:
                raise EndpointError("too_large", f"more than {self.max_bytes} bytes")
            if time.monotonic() > ends:
                raise _RetriableError("timed_out", f"no answer within {self.timeout_s:g} s")
        return bytes(content)


class _Wire:
    """An endpoint's connections. A copy, or the same endpoint in another process, makes its own."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.client: httpx.Client | None = None
        self.turns = threading.BoundedSemaphore()

    def __eq__(self, other: object) -> bool:
        """Connections tell no two endpoints apart."""
        return isinstance(other, _Wire)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[_Wire], tuple[()]]:
        return _Wire, ()


class _RetriableError(EndpointError):
    """A failure that another try may mend; `wait_s` is how long the server asked to wait."""

    def __init__(self, reason: Reason, message: str, wait_s: float | None = None) -> None:
        super().__init__(reason, message)
        self.wait_s = wait_s


def _status(response: httpx.Response) -> str:
    return f"the endpoint answered with HTTP status {response.status_code}"


def _asked_wait(response: httpx.Response) -> float | None:
    try:
        wait = float(response.headers.get("Retry-After", ""))
    except ValueError:
        return None
    return wait if math.isfinite(wait) and wait > 0 else None


def _json(content: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise EndpointError("unreadable", "the answer is not JSON") from error
    if not isinstance(found, dict):
        raise EndpointError("unreadable", "the answer is not a JSON object")
    return found


def _read_chat(found: Mapping[str, Any]) -> ChatReply:
    try:
        choice = found["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise EndpointError("unreadable", "the answer holds no message") from error
    if refusal or choice.get("finish_reason") == "content_filter":
        raise EndpointError("refused", "the model behind the endpoint refused to answer")
    if isinstance(text, list):  # some servers answer in parts
        text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
    if not isinstance(text, str):
        raise EndpointError("unreadable", "the answer holds no text")
    return ChatReply(text, _read_tokens(choice.get("logprobs")))


def _read_tokens(logprobs: Any) -> tuple[Token, ...]:
    """The tokens with their alternatives; none where the server gives them in no known form."""
    try:
        return tuple(
            Token(
                str(position["token"]),
                {
                    str(other["token"]): float(other["logprob"])
                    for other in (position, *(position.get("top_logprobs") or ()))
                },
            )
            for position in logprobs["content"]
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return ()


def data_url(image: Image) -> str:
    """A picture as a `data:` address, lossless: the judge sees the pixels that were decoded."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
