"""The local model behind the API, guardrails inside."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from langchain_core.messages import convert_to_messages

from sightrail.guardrails.model.stopping import in_thread
from sightrail.runnables.turns import read_conversation

from .errors import invalid
from .replies import ChatReply
from .responses import ResponsesReply, chat_body
from .wire import Call, messages_of, model_of

if TYPE_CHECKING:
    from sightrail.guardrails import Answer, LocalLVLM, Verdict
    from sightrail.guardrails.model import AnswerChunk
    from sightrail.guardrails.model.messages import Conversation

    from .metrics import Metrics
    from .settings import ServerSettings

_MESSAGE_FIELDS: Final = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})
_SENT_BACK: Final = frozenset({"refusal", "annotations", "reasoning", "reasoning_content"})
"""Fields of an answer that clients send back with it, and that no chat template is told."""

_IGNORED: Final = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
    | {"stream", "stream_options", "model", "messages", "verbosity"}
    | {"include", "truncation", "background", "reasoning_effort", "reasoning"}
)
"""Fields without a meaning for a local model that change nothing about its answer."""

_UNREADABLE: Final = (
    *(ValueError, TypeError, KeyError, AttributeError),
    *(NotImplementedError, RecursionError),
)
"""What LangChain raises about a message that is none."""

_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "previous_response_id": (),
}
"""Fields that this model cannot serve, and the values of them that ask for nothing."""

_NUMBERS: Final = ("temperature", "top_p", "top_k", "seed", "repetition_penalty")
_ASKED: Final[dict[str, tuple[type, ...]]] = {
    "tools": (list,),
    "tool_choice": (str, dict),
    "parallel_tool_calls": (bool,),
    "response_format": (dict,),
}
"""What ``LocalLVLM.chat`` reads and judges by itself, once it is of such a type."""

_LIMITS: Final = ("max_completion_tokens", "max_output_tokens", "max_tokens")


class LocalEngine:
    """Answers from a ``LocalLVLM``.

    Args:
        lvlm: the model, guardrails inside.
        settings: of the server.
        metrics: what is counted.
    """

    def __init__(self, lvlm: LocalLVLM, settings: ServerSettings, metrics: Metrics) -> None:
        self._lvlm = lvlm
        self._settings = settings
        self._metrics = metrics
        self.name = settings.name or lvlm.name

    async def models(self) -> list[dict[str, Any]]:
        """What is served."""
        return [{"id": self.name, "object": "model", "created": 0, "owned_by": "sightrail"}]

    async def chat(self, call: Call) -> dict[str, Any]:
        """A chat completion."""
        answer = await self._answer(call, call.body)
        return ChatReply(call.id, self.name).whole(answer)

    def chat_stream(self, call: Call) -> AsyncIterator[dict[str, Any]]:
        """A chat completion piece by piece."""
        usage = (call.body.get("stream_options") or {}).get("include_usage") is True
        pieces = self._stream(call, call.body)
        return ChatReply(call.id, self.name).pieces(pieces, usage=usage)

    async def responses(self, call: Call) -> dict[str, Any]:
        """A response of the Responses API."""
        answer = await self._answer(call, chat_body(call.body))
        return ResponsesReply(call, self.name).whole(answer)

    def responses_stream(self, call: Call) -> AsyncIterator[dict[str, Any]]:
        """The events of a response."""
        pieces = self._stream(call, chat_body(call.body))
        return ResponsesReply(call, self.name).pieces(pieces)

    async def judge_text(self, text: str) -> list[Verdict] | None:
        """What the guardrails inside say about a text; None where none of them judges requests."""
        verdicts = await in_thread(lambda: self._lvlm.assess(text))
        return [v for v in verdicts if v.subject == "request"] or None

    async def _answer(self, call: Call, body: Mapping[str, Any]) -> Answer:
        conversation, options = self._asked(body)
        answer = await self._lvlm.achat(conversation, place=self._place(call), **options)
        self._count(call, answer)
        return answer

    async def _stream(
        self, call: Call, body: Mapping[str, Any]
    ) -> AsyncGenerator[AnswerChunk, None]:
        conversation, options = self._asked(body)
        pieces = self._lvlm.astream(conversation, place=self._place(call), **options)
        async with contextlib.aclosing(pieces):
            async for chunk in pieces:
                if chunk.answer is not None:
                    self._count(call, chunk.answer)
                yield chunk

    def _place(self, call: Call) -> Any:
        from sightrail.guardrails import Place

        return Place(client=call.client, deadline_s=self._settings.request_timeout_s)

    def _asked(self, body: Mapping[str, Any]) -> tuple[Conversation, dict[str, Any]]:
        model_of(body, self.name)
        return conversation_of(messages_of(body)), options_of(body, self._settings)

    def _count(self, call: Call, answer: Answer) -> None:
        self._metrics.judged(answer.verdicts, refused=answer.refused)
        self._metrics.used(answer.usage.input_tokens, answer.usage.output_tokens)
        call.told.update(refused=answer.refused, finish=answer.finish_reason)


def conversation_of(messages: Sequence[Mapping[str, Any]]) -> Conversation:
    """Messages as the local model is asked them.

    Raises:
        ApiError: a field or a message that cannot be said to it.
    """
    shown = []
    for number, message in enumerate(messages):
        said = {name: value for name, value in message.items() if value is not None}
        if unknown := sorted(map(str, {*said} - _MESSAGE_FIELDS - _SENT_BACK)):
            raise invalid(f"Unknown fields: {', '.join(unknown)[:200]}.", f"messages[{number}]")
        kept = {name: value for name, value in said.items() if name in _MESSAGE_FIELDS}
        shown.append({"content": None, **kept})
    try:
        read = convert_to_messages(shown)
    except _UNREADABLE as error:
        raise invalid("A message cannot be read.", "messages") from error
    return read_conversation(read)


def options_of(body: Mapping[str, Any], settings: ServerSettings) -> dict[str, Any]:
    """The settings of one request, by the names that ``LocalLVLM.chat`` knows.

    Raises:
        ApiError: a setting of the wrong type, or one that this model cannot serve.
    """
    options: dict[str, Any] = {"max_new_tokens": _limit(body, settings), "stop": _stop(body)}
    for name, value in body.items():
        if value is None or name in _IGNORED or name in _LIMITS or name == "stop":
            continue
        if name in _NUMBERS:
            options[name] = _number(name, value)
        elif name in _ASKED:
            options[name] = _asked(name, value)
        elif name not in _NEUTRAL:
            raise invalid(f"Unknown field {name[:60]!r}.", name[:60])
        elif value not in _NEUTRAL[name]:
            raise invalid(f"{name} is not served by this model; leave it out.", name)
    return options


def _number(name: str, value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or abs(value) > sys.float_info.max:
        raise invalid(f"{name} is a number.", name)
    if name == "repetition_penalty" and value <= 0:
        raise invalid(f"{name} is a number above 0.", name)
    if name not in ("seed", "top_k"):
        return float(value)  # to transformers, 1 is no temperature
    if not isinstance(value, int) or not 0 <= value < 2**63:
        raise invalid(f"{name} is a whole number from 0 on, below 2 ** 63.", name)
    return value


def _asked(name: str, value: Any) -> Any:
    if not isinstance(value, _ASKED[name]):
        raise invalid(f"{name} is a {' or '.join(k.__name__ for k in _ASKED[name])}.", name)
    for number, tool in enumerate(value if isinstance(value, list) else ()):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise invalid("Only tools of type function can be called.", f"tools[{number}]")
    return value


def _limit(body: Mapping[str, Any], settings: ServerSettings) -> int:
    for name in _LIMITS:
        if (value := body.get(name)) is not None:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise invalid(f"{name} is a number above 0.", name)
            if value > settings.max_tokens:
                raise invalid(f"At most {settings.max_tokens} new tokens are served.", name)
            return value
    return min(settings.default_tokens, settings.max_tokens)


def _stop(body: Mapping[str, Any]) -> list[str]:
    stop = body.get("stop") or []
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise invalid("stop is a text or a list of texts.", "stop")
    if len(texts) > 16:
        raise invalid("At most 16 stop texts are taken.", "stop")
    return texts
