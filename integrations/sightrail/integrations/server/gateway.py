"""In front of another server: screen the request, relay it, screen the answer on its way back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx

from sightrail.guardrails.carriers.carrier import Carrier, Encoded
from sightrail.guardrails.carriers.loop import Screened, decode, passed
from sightrail.guardrails.errors import ConfigurationError
from sightrail.guardrails.intake import Picture, RequestReader
from sightrail.guardrails.model.answers import Answer, AnswerChunk, Usage
from sightrail.guardrails.model.stopping import in_thread

from .errors import ApiError
from .guards import FRAMEWORK, Guards
from .held_text import HeldText, response_text
from .replies import ChatReply, ResponsesReply, extension
from .wire import Call, OpenAIWalk, messages_of, text_field

if TYPE_CHECKING:
    from sightrail.guardrails.policy import Surface
    from sightrail.guardrails.verdict import Verdict

    from .metrics import Metrics
    from .settings import ServerSettings

CHAT: Final = "chat/completions"
RESPONSES: Final = "responses"


@dataclass
class _Relay:
    """One request on its way: what goes on, and what was found so far."""

    call: Call
    path: str
    body: dict[str, Any]
    verdicts: tuple[Verdict, ...] = ()
    refused: bool = False


class Gateway:
    """Answers from another server that speaks the same API.

    Args:
        guards: what stands in front of it.
        settings: of the server.
        metrics: what is counted.
    """

    def __init__(self, guards: Guards, settings: ServerSettings, metrics: Metrics) -> None:
        self._guards = guards
        self._settings = settings
        self._metrics = metrics
        self._asking, self._answering = guards.loop(), guards.loop("ai")
        key = settings.upstream_key
        timeout = httpx.Timeout(settings.request_timeout_s, connect=10.0)
        self._client = httpx.AsyncClient(
            base_url=str(settings.upstream).rstrip("/") + "/",
            headers={} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"},
            timeout=timeout,
            limits=httpx.Limits(max_connections=settings.max_requests),
            trust_env=False,
        )

    async def close(self) -> None:
        """Let the connections go."""
        await self._client.aclose()

    async def models(self) -> list[dict[str, Any]]:
        """What the upstream serves."""
        async with self._sent("GET", "models") as response:
            found = await self._json(response)
        listed = found.get("data")
        return [model for model in listed or [] if isinstance(model, dict)]

    async def chat(self, call: Call) -> dict[str, Any]:
        """A chat completion."""
        relay = await self._relay(call, CHAT)
        if relay.refused:
            return ChatReply(call.id, relay.body["model"]).whole(self._refusal(relay))
        return await self._answer(relay)

    async def chat_stream(self, call: Call) -> AsyncIterator[dict[str, Any]]:
        """A chat completion piece by piece."""
        relay = await self._relay(call, CHAT)
        if relay.refused:
            refusal = _only(self._refusal(relay))
            async for piece in ChatReply(call.id, relay.body["model"]).pieces(refusal, usage=False):
                yield piece
            return
        async for event in self._events(relay):
            yield event

    async def responses(self, call: Call) -> dict[str, Any]:
        """A response of the Responses API."""
        relay = await self._relay(call, RESPONSES)
        if relay.refused:
            return ResponsesReply(call.id, relay.body["model"]).whole(self._refusal(relay))
        return await self._answer(relay)

    async def responses_stream(self, call: Call) -> AsyncIterator[dict[str, Any]]:
        """The events of a response."""
        relay = await self._relay(call, RESPONSES)
        if relay.refused:
            refusal = _only(self._refusal(relay))
            async for event in ResponsesReply(call.id, relay.body["model"]).pieces(refusal):
                yield event
            return
        async for event in self._events(relay):
            yield event

    async def judge_text(self, text: str) -> list[Verdict] | None:
        """Nothing here judges texts."""
        return None

    # The request

    async def _relay(self, call: Call, path: str) -> _Relay:
        text_field(call.body, "model")
        if path == CHAT:
            messages_of(call.body)
        seen = await self._screened(call.body, "user")
        relay = _Relay(call, path, seen.value, seen.verdicts, seen.refused)
        self._metrics.judged(seen.verdicts, refused=seen.refused)
        call.told.update(refused=seen.refused, pictures=len(seen.verdicts))
        if not seen.refused:
            relay.body = await self._prompted(seen.value, "messages" if path == CHAT else "input")
        return relay

    async def _screened(self, value: Any, surface: Surface) -> Screened:
        """Screen a value; where it holds no picture, without a thread."""
        if not FRAMEWORK.carriers(value, surface):
            return Screened(value, False, ())
        loop = self._asking if surface == "user" else self._answering
        (outcome,) = await in_thread(lambda: loop.screen([value]))
        return passed(outcome)

    async def _prompted(self, body: dict[str, Any], field: str) -> dict[str, Any]:
        """The body with the border around its pictures and the prefix before its question."""
        guards = self._guards
        if guards.border is not None and FRAMEWORK.carriers(body):
            body = await in_thread(lambda: self._bordered(body))
        texts = [guards.prefix.text] if guards.prefix else []
        texts += [guards.border.text] if guards.border and guards.border.text else []
        for text in texts:
            body = {**body, field: prefixed(body[field], text)}
        return body

    def _bordered(self, body: dict[str, Any]) -> dict[str, Any]:
        border, reader = self._guards.border, RequestReader(self._guards.limits)
        assert border is not None

        def around(carrier: Carrier) -> Any:
            picture = decode(carrier, reader)
            if not isinstance(picture, Picture):  # the policy let it pass unseen
                return carrier.original
            return carrier.rebuild(Encoded(border.apply_to_image(picture.image)))

        bordered: dict[str, Any] = OpenAIWalk(around)(body)
        return bordered

    def _refusal(self, relay: _Relay) -> Answer:
        text = self._guards.policy.refusal_for(relay.verdicts)
        return Answer(text, True, relay.verdicts, Usage(0, 0), "refused")

    # The answer

    async def _answer(self, relay: _Relay) -> dict[str, Any]:
        async with self._sent("POST", relay.path, relay.body) as response:
            reply = await self._json(response)
        seen = await self._judged(relay, reply)
        if relay.refused:
            model = str(relay.body["model"])
            refusal = self._refusal(relay)
            if relay.path == CHAT:
                return ChatReply(relay.call.id, model).whole(refusal)
            return ResponsesReply(relay.call.id, model).whole(refusal)
        return {**seen, **extension(relay.verdicts, refused=False)}

    async def _events(self, relay: _Relay) -> AsyncIterator[dict[str, Any]]:
        held = HeldText()
        shown = self._shown_chat if relay.path == CHAT else self._shown_responses
        async with self._sent("POST", relay.path, relay.body) as response:
            async for event in _server_sent(response, self._settings.max_body_bytes):
                async for seen in shown(relay, event, held):
                    yield seen
                if relay.refused:
                    return

    async def _shown_chat(
        self, relay: _Relay, event: dict[str, Any], held: HeldText
    ) -> AsyncIterator[dict[str, Any]]:
        """A piece of a chat completion, as far as it may be shown."""
        choices, ended = [], False
        for choice in event.get("choices") or []:
            choice = {**choice, "delta": {**(choice.get("delta") or {})}}
            place, delta = choice.get("index"), choice["delta"]
            text = delta.pop("content", None)
            if isinstance(text, str):
                delta["content"] = held.push(place, text)
            if choice.get("finish_reason") is not None:
                ended = True
                if rest := held.rest(place):
                    delta["content"] = delta.get("content", "") + await self._judged(relay, rest)
            choices.append(choice)
        whole = await self._judged(relay, {**event, "choices": choices})
        if relay.refused:
            text = self._guards.policy.refusal_for(relay.verdicts)
            choice = {"index": 0, "delta": {"content": text}, "finish_reason": "content_filter"}
            whole = {**event, "choices": [choice]}
        if ended or relay.refused:
            whole = {**whole, **extension(relay.verdicts, refused=relay.refused)}
        yield whole

    async def _shown_responses(
        self, relay: _Relay, event: dict[str, Any], held: HeldText
    ) -> AsyncIterator[dict[str, Any]]:
        """An event of a response; text that was held back follows right before the text's end."""
        found = response_text(event)
        if found is not None and found[1] is not None:
            yield {**event, "delta": held.push(found[0], found[1])}
            return
        if found is not None and (rest := held.rest(found[0])):
            delta = await self._judged(relay, rest)
            if not relay.refused:
                yield {**event, "type": "response.output_text.delta", "delta": delta}
        seen = await self._judged(relay, event)
        if relay.refused:
            message = self._guards.policy.refusal_for(relay.verdicts)
            yield {"type": "error", "code": "content_filter", "message": message, "param": None}
            return
        if isinstance(seen.get("response"), dict) and seen["response"].get("output"):
            told = extension(relay.verdicts, refused=False)
            seen = {**seen, "response": {**seen["response"], **told}}
        yield seen

    async def _judged(self, relay: _Relay, value: Any) -> Any:
        """A part of the answer as it may be shown; says on the relay if none may be."""
        seen = await self._screened(value, "ai")
        if seen.verdicts:
            self._metrics.judged(seen.verdicts, refused=seen.refused)
            relay.verdicts += seen.verdicts
            relay.refused |= seen.refused
        return seen.value

    # The upstream

    @asynccontextmanager
    async def _sent(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> AsyncIterator[httpx.Response]:
        try:
            async with self._client.stream(method, path, json=body) as response:
                if response.status_code >= 400:
                    raise await self._told(response)
                yield response
        except httpx.TimeoutException as error:
            raise ApiError(504, "The upstream did not answer in time.", code="timeout") from error
        except httpx.HTTPError as error:
            raise ApiError(
                502, "The upstream cannot be reached, or broke off.", code="upstream_failed"
            ) from error

    async def _told(self, response: httpx.Response) -> ApiError:
        """The upstream's own error, unless it is about the gateway and not about the client."""
        status = response.status_code
        if status in (401, 403):
            return ApiError(502, "The upstream refuses this gateway.", code="upstream_refused")
        try:
            body = await self._json(response)
        except ApiError:
            body = {}
        wait = response.headers.get("retry-after", "")
        return ApiError(
            status if status < 500 else 502,
            f"The upstream answered with status {status}.",
            code="upstream_error",
            retry_after_s=int(wait) if wait.isdigit() and len(wait) < 6 else None,
            body=body if isinstance(body.get("error"), dict) else None,
        )

    async def _json(self, response: httpx.Response) -> dict[str, Any]:
        whole = bytearray()
        async for part in response.aiter_bytes():
            whole += part
            if len(whole) > self._settings.max_body_bytes:
                raise ApiError(502, "The upstream's answer is too large.", code="upstream_error")
        try:
            found = json.loads(whole)
        except (ValueError, RecursionError) as error:
            raise ApiError(502, "The upstream answers no JSON.", code="upstream_error") from error
        if not isinstance(found, dict):
            raise ApiError(502, "The upstream answers no JSON object.", code="upstream_error")
        return found


async def _only(answer: Answer) -> AsyncIterator[AnswerChunk]:
    yield AnswerChunk(answer.text, answer)


async def _server_sent(response: httpx.Response, most: int) -> AsyncIterator[dict[str, Any]]:
    """The JSON events of a stream, up to its ``[DONE]``."""
    data = ""
    async for line in response.aiter_lines():
        if len(data) + len(line) > most:
            raise ApiError(502, "An event of the upstream is too large.", code="upstream_error")
        if line.startswith("data:"):
            data += line[5:].strip()
        elif not line and data:
            if data == "[DONE]":
                return
            try:
                event = json.loads(data)
            except (ValueError, RecursionError) as error:
                raise ApiError(
                    502, "The upstream streams no JSON.", code="upstream_error"
                ) from error
            data = ""
            if isinstance(event, dict):
                yield event


def prefixed(said: Any, text: str) -> Any:
    """Messages, or the input of the Responses API, with a text before the user's last words."""
    from sightrail.guardrails import SafetyPrefix

    prefix = SafetyPrefix(text)
    if isinstance(said, str):
        return prefix.apply(said)
    if not isinstance(said, list):
        return said
    for index in range(len(said) - 1, -1, -1):
        message = said[index]
        if not isinstance(message, dict) or message.get("role") != "user":
            continue
        content = message.get("content")
        if isinstance(content, str):
            content = prefix.apply(content)
        elif isinstance(content, list):
            content = _before_first_text(content, prefix)
        return [*said[:index], {**message, "content": content}, *said[index + 1 :]]
    return said


def _before_first_text(parts: list[Any], prefix: Any) -> list[Any]:
    for index, part in enumerate(parts):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            changed = {**part, "text": prefix.apply(part["text"])}
            return [*parts[:index], changed, *parts[index + 1 :]]
    inputs = any(isinstance(p, dict) and str(p.get("type")).startswith("input_") for p in parts)
    return [*parts, {"type": "input_text" if inputs else "text", "text": prefix.text}]


def check_upstream(settings: ServerSettings) -> None:
    """Make sure that the upstream answers; nothing to do for a local model.

    Raises:
        ConfigurationError: it does not.
    """
    if settings.upstream is None:
        return
    key = settings.upstream_key
    headers = {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}
    address = f"{str(settings.upstream).rstrip('/')}/models"
    try:
        httpx.get(address, headers=headers, timeout=10.0, trust_env=False).raise_for_status()
    except httpx.HTTPError as error:
        raise ConfigurationError(
            f"The upstream {settings.upstream} does not list its models "
            f"({type(error).__name__}); is it running, and is upstream_key right?"
        ) from error
