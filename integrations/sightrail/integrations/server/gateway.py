"""In front of another server: screen the request, relay it, screen the answer on its way back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sightrail.guardrails.carriers.carrier import Carrier, Encoded
from sightrail.guardrails.carriers.loop import Screened, decode, passed
from sightrail.guardrails.intake import Picture, RequestReader
from sightrail.guardrails.model.answers import Answer, AnswerChunk, Usage
from sightrail.guardrails.model.stopping import in_thread

from .guards import FRAMEWORK, Guards
from .held_text import HeldText, rest_of_chunks, shown_chunk, shown_event
from .replies import ChatReply, extension
from .responses import ResponsesReply
from .upstream import Upstream
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
    held: HeldText = field(default_factory=HeldText)
    last: dict[Hashable, dict[str, Any]] = field(default_factory=dict)


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
        self._upstream = Upstream(settings)

    async def close(self) -> None:
        """Let the connections go."""
        await self._upstream.close()

    async def models(self) -> list[dict[str, Any]]:
        """What the upstream serves."""
        listed = (await self._upstream.get("models")).get("data")
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
            return ResponsesReply(call, relay.body["model"]).whole(self._refusal(relay))
        return await self._answer(relay)

    async def responses_stream(self, call: Call) -> AsyncIterator[dict[str, Any]]:
        """The events of a response."""
        relay = await self._relay(call, RESPONSES)
        if relay.refused:
            refusal = _only(self._refusal(relay))
            async for event in ResponsesReply(call, relay.body["model"]).pieces(refusal):
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
        relay = _Relay(call, path, seen.value, seen.verdicts, refused=seen.refused)
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
        reply = await self._upstream.post(relay.path, relay.body)
        seen = await self._judged(relay, reply)
        if relay.refused:
            model = str(relay.body["model"])
            refusal = self._refusal(relay)
            if relay.path == CHAT:
                return ChatReply(relay.call.id, model).whole(refusal)
            return ResponsesReply(relay.call, model).whole(refusal)
        return {**seen, **extension(relay.verdicts, refused=False)}

    async def _events(self, relay: _Relay) -> AsyncIterator[dict[str, Any]]:
        shown = self._shown_chat if relay.path == CHAT else self._shown_responses
        last: dict[str, Any] = {}
        async for event in self._upstream.stream(relay.path, relay.body):
            last = event
            async for seen in shown(relay, event):
                yield seen
            if relay.refused:
                return
        if relay.path == CHAT:
            judge = partial(self._judged, relay)
            if (rest := await rest_of_chunks(last, relay.held, judge)) is not None:
                yield self._told_chat(relay, rest, ended=True)

    async def _shown_chat(
        self, relay: _Relay, event: dict[str, Any]
    ) -> AsyncIterator[dict[str, Any]]:
        """A piece of a chat completion, as far as it may be shown."""
        judge = partial(self._judged, relay)
        whole = await judge(await shown_chunk(event, relay.held, judge))
        ended = any(choice.get("finish_reason") for choice in event.get("choices") or [])
        yield self._told_chat(relay, whole, ended=ended)

    def _told_chat(self, relay: _Relay, event: dict[str, Any], *, ended: bool) -> dict[str, Any]:
        if relay.refused:
            text = self._guards.policy.refusal_for(relay.verdicts)
            choice = {"index": 0, "delta": {"content": text}, "finish_reason": "content_filter"}
            event = {**event, "choices": [choice]}
        if ended or relay.refused:
            return {**event, **extension(relay.verdicts, refused=relay.refused)}
        return event

    async def _shown_responses(
        self, relay: _Relay, event: dict[str, Any]
    ) -> AsyncIterator[dict[str, Any]]:
        """An event of a response; text that was held back follows right before the text's end."""
        judge = partial(self._judged, relay)
        *before, event = await shown_event(event, relay.held, judge, relay.last)
        seen = await judge(event)
        if relay.refused:
            message = self._guards.policy.refusal_for(relay.verdicts)
            yield {"type": "error", "code": "content_filter", "message": message, "param": None}
            return
        for earlier in before:
            yield earlier
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


async def _only(answer: Answer) -> AsyncIterator[AnswerChunk]:
    yield AnswerChunk(answer.text, answer)


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
