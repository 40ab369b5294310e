"""A model behind screening: a refused request is answered without running it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Self

from langchain_core.caches import BaseCache
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, BaseMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig
from langchain_core.tools import BaseTool
from pydantic import Field, PrivateAttr

from sightrail.guardrails.call_rules import CallGuard, check_reader, is_ordered
from sightrail.guardrails.carriers.loop import Screened, passed
from sightrail.guardrails.errors import ImageRefused
from sightrail.guardrails.policy import refusal_error
from sightrail.guardrails.strict import StrictModel, fingerprint
from sightrail.guardrails.verdict import Verdict

from .checked import CheckedRunnable, Instead, Onward, Passing
from .guarded_output import GuardedOutput
from .held_calls import ruled
from .screen_images import Held, ScreenImages, told_verdicts
from .turns import last_chunk, message, refusal_fields, with_verdicts
from .walk import transcript_of

_TEXT: Final = {"type": "text"}
"""The response format that is none."""

_ALONE: Final = RunnableConfig(callbacks=[])
"""For a call inside a run of LangChain's own that reports to its callbacks already."""


class GuardedModel(StrictModel, CheckedRunnable[LanguageModelInput, AIMessage], extra="forbid"):
    """``screen`` and a model as one Runnable; made by ``ScreenImages.guard``.

    Where the policy refuses what the newest request brings, the answer is an ``AIMessage`` with the
    policy's refusal and the verdicts in its ``response_metadata``; the model is not called. What
    turns before it brought, and was refused, is taken out again and does not refuse this one. This
    is the way to refuse in front of hosted models. An answer to a request with pictures tells what
    was found on them in ``response_metadata["verdicts"]``, so what was masked is on record.

    Pictures in the answer (a message, or text) are screened as well, on the policy's surface
    ``ai``. A stream waits from the first picture on. Callbacks are told of the model's tokens as
    the model gives them. Tool calls go by ``policy.calls`` at every step: where a rule refuses
    them the answer is a refusal without calls, and where a person is to be asked they are held back
    in ``response_metadata["held_calls"]``, for ``ImageGuardMiddleware`` to ask, and carried out by
    nobody else.

    Args:
        screen: what looks at the pictures.
        model: a chat model, or anything made from one.

    Raises:
        ImageRefused: where the policy's action is ``raise``, and for every refusal where the call
            asks for a schema (``response_format``, as an agent's ``ProviderStrategy`` does): the
            text of a refusal would be a parsing error there.
        RequestRefused: there, if an earlier step refused the request as a whole.
    """

    screen: ScreenImages
    model: Runnable[LanguageModelInput, Any]

    _structured: bool = PrivateAttr(default=False)
    """The caller parses the answer by a schema."""
    _ordered: bool = PrivateAttr(default=False)
    """The caller forces a call by a tool's name."""

    def model_post_init(self, context: Any) -> None:
        """Say where the policy has a rule that nobody can go by."""
        super().model_post_init(context)
        check_reader(self.screen.policy, (self.screen.detector,))

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with these tools, guarded as this one is; a binding stays a binding."""
        model: Any = self.model
        bound = model.bind_tools(tools, **kwargs)
        if isinstance(bound, RunnableBinding) and isinstance(bound.bound, BaseChatModel):
            guarded: GuardedModel = self.screen.guard(bound.bound)
            return bound.model_copy(update={"bound": guarded._for(kwargs)})
        guarded = self.screen.guard(bound)
        return guarded._for(kwargs)

    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> GuardedOutput:
        """The model with structured output, guarded as this one is.

        A refusal is never a parsing error. With ``include_raw`` it is ``{"raw": the refusal,
        "parsed": None, "parsing_error": None}``; without it there is nothing of the type that was
        asked for, and the refusal is raised.

        Raises:
            ImageRefused: when called without ``include_raw``: a picture was refused.
            RequestRefused: the same, where an earlier step refused the request as a whole.
        """
        model: Any = self.model
        structured = model.with_structured_output(schema, include_raw=include_raw, **kwargs)
        return GuardedOutput(screen=self.screen, model=structured, include_raw=include_raw)

    @property
    def _behind(self) -> Runnable[LanguageModelInput, Any]:
        return self.model

    def _for(self, settings: dict[str, Any]) -> Self:
        structured = settings.get("response_format", _TEXT) not in (None, _TEXT)
        ordered = is_ordered(settings)
        if not (structured or ordered):
            return self
        parsed = self.model_copy()
        parsed._structured |= structured
        parsed._ordered |= ordered
        return parsed

    def _check(self, requests: list[Any]) -> list[Screened | ImageRefused]:
        return self.screen.screen_requests(requests)

    def _rule(self, request: Any, outcome: Screened | ImageRefused) -> Onward | Instead:
        screened = passed(outcome)
        if not screened.refused:
            return Onward(screened.value, screened.verdicts)
        verdicts = told_verdicts(request, screened)
        text, fields = self._refusal(verdicts)
        if self._structured:
            raise refusal_error(text, verdicts) from screened.cause
        return Instead(message(text, fields), last_chunk(text, fields))

    def _refusal(self, verdicts: Sequence[Verdict]) -> tuple[str, Any]:
        return self.screen.policy.refusal_for(verdicts), refusal_fields(verdicts)

    def _traced(self, request: Any) -> Any:
        return self.screen.hidden(request)

    def _look_at(self, answers: list[Any], asked: list[Onward]) -> list[Any]:
        told = [answer for answer in answers if isinstance(answer, str | BaseMessage)]
        outcomes = iter(self.screen.screen(told) if told else [])
        return [
            with_verdicts(
                self._ruled(self._seen(answer, next(outcomes)), request), request.verdicts
            )
            if isinstance(answer, str | BaseMessage)
            else answer
            for answer, request in zip(answers, asked, strict=True)
        ]

    def _seen(self, answer: str | BaseMessage, outcome: Screened | ImageRefused) -> Any:
        if isinstance(outcome, ImageRefused):
            return outcome
        refused = any(verdict.action == "refuse" for verdict in outcome.verdicts)
        if self.screen.policy.monitor or not refused:
            return outcome.value
        text, fields = self._refusal(outcome.verdicts)
        if self._structured:
            return refusal_error(text, outcome.verdicts)
        if isinstance(answer, str):
            return text
        if isinstance(answer, AIMessage) and answer.usage_metadata:  # these tokens were spent
            fields["usage_metadata"] = answer.usage_metadata
        refusal = last_chunk if isinstance(answer, BaseMessageChunk) else message
        return refusal(text, fields).model_copy(update={"id": answer.id})

    def _ruled(self, answer: Any, asked: Onward) -> Any:
        """An answer with its calls as the policy has them."""
        if self._ordered or not isinstance(answer, BaseMessage):
            return answer
        answer = ruled(answer, transcript_of(asked.value), self._calls, self.screen.limits)
        if self._structured and answer.response_metadata.get("refused"):
            told = answer.response_metadata.get("verdicts", ())
            verdicts = [Verdict.model_validate(verdict) for verdict in told]
            return refusal_error(str(answer.text), verdicts)
        return answer

    @property
    def _calls(self) -> CallGuard:
        return CallGuard(self.screen.policy, (self.screen.detector,))

    def _way_out(self, asked: Onward) -> Passing:
        return _AnswerOut(asked, waits=self._calls.active and not self._ordered)


class _AnswerOut(Held):
    """Text passes as it comes, pictures wait; what is neither text nor a message passes.

    The first chunk tells what was found on the request. Where the policy has rules about calls,
    everything waits from the first of them on.
    """

    def __init__(self, asked: Onward, *, waits: bool) -> None:
        super().__init__(asked)
        self._waits = waits

    def _may_pass(self, value: Any) -> bool:
        calls = isinstance(value, AIMessageChunk) and value.tool_call_chunks
        return not (self._waits and calls) and super()._may_pass(value)

    def take(self, chunk: Any) -> Any:
        known = isinstance(chunk, str | BaseMessage)
        ready = super().take(chunk) if known or self.value is not None else chunk
        if isinstance(ready, BaseMessage) and self.asked.verdicts:
            ready, self.asked = with_verdicts(ready, self.asked.verdicts), Onward(self.asked.value)
        return ready


# A stream may end in the whole message of a model that cannot stream; BaseChatModel's own does too.
class GuardedChatModel(GuardedModel, BaseChatModel, extra="forbid"):  # type: ignore[misc]
    """A chat model behind screening, for LangChain a chat model itself.

    Goes wherever a ``BaseChatModel`` is asked for: ``create_agent``, ``bind_tools``,
    ``with_structured_output``, fallbacks. Profile, name, token counts and cache are the model's.

    Args:
        screen: what looks at the pictures.
        model: the chat model; its cache, callbacks, tags and rate limiter hold as they are.

    Example:
        ``create_agent(ScreenImages(detector=detector).guard(ChatOpenAI(...)), tools)``
    """

    model: BaseChatModel
    cache: BaseCache | bool | None = Field(default=False, exclude=True)
    """Of the calls of this class itself: none, because the model has its own."""

    # What LangChain asks about

    @property
    def _llm_type(self) -> str:
        return self.model._llm_type

    @property
    def model_name(self) -> str:
        """The model's name, under which LangChain looks up what it can do."""
        names = (getattr(self.model, key, None) for key in ("model_name", "model", "model_id"))
        return next((name for name in names if name and isinstance(name, str)), self._llm_type)

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {**self.model._identifying_params, "screen": fingerprint(self.screen)}

    def _resolve_model_profile(self) -> ModelProfile | None:
        return self.model.profile

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self.model._get_ls_params(stop, **kwargs)

    def get_token_ids(self, text: str) -> list[int]:
        """As the model counts them."""
        return self.model.get_token_ids(text)

    def get_num_tokens(self, text: str) -> int:
        """As the model counts them."""
        return self.model.get_num_tokens(text)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """As the model counts them; nothing is screened or sent."""
        return self.model.get_num_tokens_from_messages(messages, tools)

    # What `generate` and the events of LangChain's newer streaming are made of

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _result(self.invoke(messages, _ALONE, stop=stop, **kwargs))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _result(await self.ainvoke(messages, _ALONE, stop=stop, **kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in self.stream(messages, _ALONE, stop=stop, **kwargs):
            yield _chunk(chunk)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async for chunk in self.astream(messages, _ALONE, stop=stop, **kwargs):
            yield _chunk(chunk)


def _result(answer: AIMessage) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=answer)])


def _chunk(answer: AIMessage) -> ChatGenerationChunk:
    """A chunk of a stream; a model that cannot stream gives one whole message."""
    if not isinstance(answer, AIMessageChunk):
        answer = AIMessageChunk(**answer.model_dump(exclude={"type"}), chunk_position="last")
    return ChatGenerationChunk(message=answer)
