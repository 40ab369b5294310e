"""Requests as clients send them: read, checked, and walked for pictures."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.requests import Request

from sightrail.guardrails.carriers.carrier import KEY, unknown_block
from sightrail.guardrails.carriers.kinds import kind_of
from sightrail.guardrails.carriers.media import read_media
from sightrail.guardrails.carriers.walk import Walk, same_items
from sightrail.guardrails.policy import Surface

from .errors import ApiError, invalid

_SURFACES: Final[dict[str, Surface]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "ai",
    "tool": "tool",
    "function": "tool",
}
_RESULTS: Final = ("function_call_output", "custom_tool_call_output", "computer_call_output")
_MAX_MESSAGES: Final = 4096
_HALF_SIGN: Final = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Call:
    """One request of a client, read and checked.

    Attributes:
        body: what was sent.
        id: of the request.
        client: whose API key it came with.
        told: what the log says about the request beside its head; engines add to it.
    """

    body: dict[str, Any]
    id: str = ""
    client: str | None = None
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def stream(self) -> bool:
        """Whether the answer is wanted piece by piece."""
        return bool(self.body.get("stream"))


async def read_call(request: Request) -> Call:
    """The JSON object of a request.

    Raises:
        ApiError: no JSON object, or fields that pretend to be the guard's.
    """
    try:
        body = _parsed(await request.body())
    except (ValueError, RecursionError) as error:
        raise invalid("The request body is not JSON.", code="invalid_json") from error
    if not isinstance(body, dict):
        raise invalid("The request body is not a JSON object.", code="invalid_json")
    if not isinstance(body.get("stream", False), bool | None):
        raise invalid("stream is true or false.", "stream")
    if not isinstance(body.get("stream_options"), dict | None):
        raise invalid("stream_options is an object.", "stream_options")
    _check_pretence(body)
    state = request.scope["state"]
    return Call(body, state["request_id"], state.get("client"), state["told"])


def _parsed(body: bytes) -> Any:
    """The JSON of a body, as every reader understands it.

    Python would take more for JSON: other encodings, halves of a sign, which no text has, and
    numbers that are none or infinite.
    """
    found = json.loads(body.decode("utf-8-sig"), parse_constant=_finite, parse_float=_finite)
    if _HALF_SIGN.search(body):
        json.dumps(found, ensure_ascii=False).encode()
    return found


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError("a number that is none, or infinite")
    return value


def _check_pretence(body: Mapping[str, Any]) -> None:
    """What a guardrail says stands under its own key; nobody else may write there."""
    left: list[Any] = [body.get(name) for name in ("messages", "input", "metadata", "images")]
    holders = [body]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            holders.append(item)
            left += item.values()
        elif isinstance(item, list):
            left += item
    if any(str(key).startswith(KEY) for holder in holders for key in holder):
        raise invalid(f"The field {KEY} is the server's own; leave it out.", KEY)


def messages_of(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of a chat request, each with a known role and a content that can be read.

    Raises:
        ApiError: they are not.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid("messages must be a list with at least one message.", "messages")
    if len(messages) > _MAX_MESSAGES:
        raise invalid(f"At most {_MAX_MESSAGES} messages are taken.", "messages")
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or str(message.get("role")) not in _SURFACES:
            raise invalid(f"A message has a role, one of {', '.join(_SURFACES)}.", where)
        if not isinstance(message.get("content"), str | list | None):
            raise invalid("content is a text or a list of parts.", f"{where}.content")
    return messages


def text_field(body: Mapping[str, Any], name: str) -> str:
    """A field that has to be a text.

    Raises:
        ApiError: it is not.
    """
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise invalid(f"{name} must be a text.", name)
    return value


def model_of(body: Mapping[str, Any], served: str) -> str:
    """The model that a client asks for.

    Raises:
        ApiError: it is not the one that is served.
    """
    name = text_field(body, "model")
    if name != served:
        raise ApiError(
            404, f"There is no such model here; {served} is served.", code="model_not_found"
        )
    return name


class OpenAIWalk(Walk):
    """Walks requests and answers of the API: messages and items are holders, and say who speaks.

    In the content of a message every part has to be of a known kind: an unknown one could hold
    anything, and counts as not inspected.
    """

    def _known(self, value: Any, depth: int, opaque: bool) -> Any:
        if isinstance(value, dict) and _speaks(value):
            return self._holding(value, self._message, depth)
        return NotImplemented

    def _surface_of(self, holder: Any) -> Surface | None:
        if holder.get("type") in _RESULTS:
            return "tool"
        return _SURFACES.get(str(holder.get("role")))

    def _message(self, message: dict[str, Any], depth: int) -> dict[str, Any]:
        changed = {}
        for key, item in message.items():
            look = self._parts if key in ("content", "output") else self._rest
            seen = look(item, depth + 1)
            if seen is not item:
                changed[key] = seen
        return {**message, **changed} if changed else message

    def _rest(self, item: Any, depth: int) -> Any:
        return self._data(item, depth, opaque=True)

    def _parts(self, content: Any, depth: int) -> Any:
        if not isinstance(content, list):
            return self._data(content, depth)
        seen = [self._part(part, depth + 1) for part in content]
        return content if same_items(seen, content) else seen

    def _part(self, part: Any, depth: int) -> Any:
        if not isinstance(part, dict):
            return self._data(part, depth)
        if (carrier := read_media(part)) is not None:
            return self._place(carrier)
        if kind_of(part) == "unknown":
            return self._place(unknown_block(part))
        return self._entries(part, depth)


def _speaks(value: Mapping[str, Any]) -> bool:
    if value.get("type") in _RESULTS:
        return "output" in value
    return isinstance(value.get("role"), str) and isinstance(value.get("content"), str | list)
