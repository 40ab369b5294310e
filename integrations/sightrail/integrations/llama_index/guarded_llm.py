"""Any LlamaIndex LLM behind screening: a refused request is answered without running it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Final, Literal

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.llms import LLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.tools import BaseTool
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from sightrail.guardrails.call_rules import CallGuard, check_reader, is_ordered
from sightrail.guardrails.carriers.loop import OnVerdict, Screened, passed
from sightrail.guardrails.errors import ConfigurationError, ImageRefused
from sightrail.guardrails.intake import Limits
from sightrail.guardrails.policy import Policy, refusal_error
from sightrail.guardrails.screening.asking import Detector, checked_detector
from sightrail.guardrails.screening.cache import CachedDetector
from sightrail.guardrails.strict import DetectorField, StrictModel

from .call_review import (
    CallsWait,
    as_proposed,
    for_model,
    review_calls,
    rule_calls,
    ruled,
    sent_to_review,
    written_calls,
    written_to_review,
)
from .growing import Growing, OnItsWayOut, with_text
from .replies import as_completion, is_refusal, refused, selections
from .requests import (
    Request,
    answer_of,
    as_prompt,
    as_request,
    as_turn,
    screen_request,
    template_of,
)
from .screening import ImageScreen

_SHARED: Final = frozenset(
    {"callback_manager", "rate_limiter", "system_prompt", "messages_to_prompt", "output_parser"}
    | {"completion_to_prompt", "pydantic_program_mode", "query_wrapper_prompt"}
)
"""What LlamaIndex sets on an LLM, and its guard and itself both read."""


def guard_llm(
    llm: LLM,
    *,
    detector: Detector,
    policy: Policy | None = None,
    limits: Limits | None = None,
    on_refusal: Literal["answer", "raise"] = "answer",
    on_verdict: OnVerdict | None = None,
) -> LLM:
    """The same LLM with every picture looked at, of what it is asked and of what it answers.

    To LlamaIndex it is an LLM as the other is: a ``FunctionCallingLLM`` stays one, so that it goes
    wherever the other went (``Settings.llm``, FunctionAgent, AgentWorkflow, chat and query engines,
    programs), and a ``StructuredLLM`` stays one. Fields that are read from it (``model``,
    ``temperature``) are the LLM's own.

    Looked at are messages, prompts, ``image_documents``, results of tools, and pictures written
    into any text of these. The newest turn can refuse a request; what was refused in an earlier
    turn is taken out of every later one and does not refuse it. A distinct picture is looked at
    once, however often an agent sends its history.

    A refusal is of the type that was asked for: a ``ChatResponse`` or ``CompletionResponse`` with
    the policy's refusal as text and ``{"refused": True, "verdicts": [...]}`` as ``raw``; from
    structured prediction the ``output_cls`` where that can be made of a field ``refusal`` alone,
    else ImageRefused. Its message holds no verdicts: agents send it on as it is. A picture in an
    answer goes by the policy's rules for the surface ``ai``; of a stream, what follows a picture
    waits until it was looked at.

    Calls that a function calling LLM proposes go by ``policy.calls``, at every step anew. Where a
    rule refuses them the answer is a refusal without calls; where a person is to be asked they go
    to ``review_tool``, and without that are carried out by nobody and told in
    ``raw["held_calls"]``. So do the calls that a ReActAgent reads out of an answer's text with the
    parser it comes with; a parser of your own reads what these rules do not see.

    LlamaIndex's own events and callbacks about calls of the LLM show what the LLM was given,
    after screening. Events of the parts in front of it (``AgentInput``, retrieval, and those of a
    ``StructuredLLM``) come before it and show what came.

    Args:
        llm: not changed.
        detector: has ``screen(images) -> list[Verdict]``, such as ``RiskDetector``. Give a
            ``CachedDetector`` to share its memory with other parts; any other is put into one.
        policy: what a verdict leads to; ``Policy()`` when None.
        limits: what intake is willing to read; ``Limits()`` when None. Those on a request hold for
            the newest turn, and for every earlier message by itself.
        on_refusal: whether a refusal is an answer, or ImageRefused wherever it happens. Choose the
            latter where answers are parsed by other means than structured prediction, as an
            ``LLMTextCompletionProgram`` does.
        on_verdict: called with every verdict, in the thread that screens.

    Raises:
        ConfigurationError: that is no LLM, or no detector.

    Example:
        ``Settings.llm = guard_llm(OpenAI(model="gpt-4o"), detector=detector)``
    """
    if isinstance(llm, StructuredLLM):
        inner = guard_llm(
            llm.llm,
            detector=detector,
            policy=policy,
            limits=limits,
            on_refusal=on_refusal,
            on_verdict=on_verdict,
        )
        return llm.model_copy(update={"llm": inner})
    if not isinstance(llm, LLM):
        raise ConfigurationError(
            f"guard_llm takes an LLM of LlamaIndex, got {type(llm).__name__}; a model with "
            "pictures is an LLM there as well (OpenAI, OpenAILike, LVLM ...), no MultiModalLLM."
        )
    checked_detector(detector)
    kind = GuardedFunctionCallingLLM if isinstance(llm, FunctionCallingLLM) else GuardedLLM
    return kind(
        llm=llm,
        detector=detector,
        policy=policy or Policy(),
        limits=limits or Limits(),
        on_refusal=on_refusal,
        on_verdict=on_verdict,
        **{name: getattr(llm, name) for name in _SHARED},
    )


def _an_llm(llm: Any) -> Any:
    if isinstance(llm, LLM):
        return llm
    raise ConfigurationError(
        "The serialised form of a guarded LLM holds no client; make the LLM anew and pass it: "
        "from_dict(data, llm=llm, detector=detector)."
    )


class GuardedLLM(StrictModel, LLM, extra="forbid"):
    """An LLM behind screening; made by ``guard_llm``, where everything is said.

    Args:
        llm: answers what passes.
        detector: looks at pictures.
        policy: what a verdict leads to.
        limits: what intake is willing to read.
        on_refusal: whether a refusal is an answer or raised.
        on_verdict: called with every verdict.

    Raises:
        ImageRefused: the policy's action is ``raise``, or nothing else fits what was asked for.
    """

    llm: Annotated[LLM, BeforeValidator(_an_llm)]
    detector: DetectorField
    policy: Policy = Policy()
    limits: Limits = Limits()
    on_refusal: Literal["answer", "raise"] = "answer"
    on_verdict: OnVerdict | None = Field(default=None, exclude=True)

    def model_post_init(self, context: Any) -> None:
        """A picture that comes again with every turn is looked at once."""
        super().model_post_init(context)
        if not isinstance(self.detector, CachedDetector):
            self.__dict__["detector"] = CachedDetector(self.detector)
        check_reader(self.policy, (self.detector,))

    def __getattr__(self, name: str) -> Any:
        """The LLM's own fields can be read, its methods cannot: those know no guard."""
        llm = self.__dict__.get("llm")
        if llm is not None and name in type(llm).model_fields:
            return getattr(llm, name)
        return super().__getattr__(name)  # type: ignore[misc]

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _SHARED:
            setattr(self.llm, name, value)

    # What LlamaIndex asks about

    @classmethod
    def class_name(cls) -> str:
        """The name in LlamaIndex's serialised form."""
        return "SightrailGuardedLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """The LLM's."""
        return self.llm.metadata

    def convert_chat_messages(self, messages: Sequence[ChatMessage]) -> list[Any]:
        """As the LLM does it; nothing is sent."""
        return self.llm.convert_chat_messages(messages)

    # Conversations

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer one conversation."""
        asked = self._asked(as_request(messages, kwargs))
        if asked.refused:
            return self._refusal(asked)
        seen: ChatResponse = self._seen(self.llm.chat(asked.messages, **asked.settings))
        return self._ruled(seen, asked)

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """``chat``; pictures are looked at in a worker thread."""
        asked = await self._aasked(as_request(messages, kwargs))
        if asked.refused:
            return self._refusal(asked)
        answer = await self.llm.achat(asked.messages, **asked.settings)
        seen: ChatResponse = await self.screen_answer(answer)
        return await asyncio.to_thread(self._ruled, seen, asked)

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """``chat``, piece by piece; the request is checked at once."""
        asked = self._asked(as_request(messages, kwargs))
        if asked.refused:
            return _only(self._refusal(asked, stream=True))
        pieces = self._flow(self.llm.stream_chat(asked.messages, **asked.settings))
        return self._ruled_flow(pieces, asked)

    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """``stream_chat``; pictures are looked at in a worker thread."""
        asked = await self._aasked(as_request(messages, kwargs))
        if asked.refused:
            return _aonly(self._refusal(asked, stream=True))
        pieces = await self.llm.astream_chat(asked.messages, **asked.settings)
        return self._aruled_flow(self.screen_stream(pieces), asked)

    # Prompts without roles

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer one prompt, with the pictures of ``image_documents`` where the LLM takes any."""
        asked = self._asked(as_prompt(prompt, kwargs))
        if asked.refused:
            return as_completion(self._refusal(asked))
        answer = self.llm.complete(asked.prompt, formatted, **asked.settings)
        seen: CompletionResponse = self._seen(answer)
        return seen

    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """``complete``; pictures are looked at in a worker thread."""
        asked = await self._aasked(as_prompt(prompt, kwargs))
        if asked.refused:
            return as_completion(self._refusal(asked))
        answer = await self.llm.acomplete(asked.prompt, formatted, **asked.settings)
        seen: CompletionResponse = await self.screen_answer(answer)
        return seen

    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """``complete``, piece by piece."""
        asked = self._asked(as_prompt(prompt, kwargs))
        if asked.refused:
            return _only(as_completion(self._refusal(asked, stream=True)))
        return self._flow(self.llm.stream_complete(asked.prompt, formatted, **asked.settings))

    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """``stream_complete``; pictures are looked at in a worker thread."""
        asked = await self._aasked(as_prompt(prompt, kwargs))
        if asked.refused:
            return _aonly(as_completion(self._refusal(asked, stream=True)))
        answer = await self.llm.astream_complete(asked.prompt, formatted, **asked.settings)
        return self.screen_stream(answer)

    # Structured prediction

    def structured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """An ``output_cls``, as the LLM itself makes one.

        Raises:
            ImageRefused: the request or the answer was refused, and ``output_cls`` has no
                ``refusal`` to say so.
        """
        asked = self._asked(self._formatted(prompt, llm_kwargs, prompt_args))
        if asked.refused:
            return self._structured_refusal(output_cls, asked)
        template = template_of(asked.messages)
        output = self.llm.structured_predict(output_cls, template, asked.settings)
        return self._structured(output_cls, output)

    async def astructured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """``structured_predict``; pictures are looked at in a worker thread."""
        asked = await self._aasked(self._formatted(prompt, llm_kwargs, prompt_args))
        if asked.refused:
            return self._structured_refusal(output_cls, asked)
        template = template_of(asked.messages)
        output = await self.llm.astructured_predict(output_cls, template, asked.settings)
        return await asyncio.to_thread(self._structured, output_cls, output)

    def stream_structured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        """``structured_predict``, growing; a picture in it is looked at when it is whole."""
        asked = self._asked(self._formatted(prompt, llm_kwargs, prompt_args))
        if asked.refused:
            yield self._structured_refusal(output_cls, asked)
            return
        template = template_of(asked.messages)
        growing = Growing()
        for output in self.llm.stream_structured_predict(output_cls, template, asked.settings):
            if growing.may_pass(output):
                yield output
        if growing.left is not None:
            yield self._structured(output_cls, growing.left)

    async def astream_structured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        """``stream_structured_predict``; pictures are looked at in a worker thread."""
        asked = await self._aasked(self._formatted(prompt, llm_kwargs, prompt_args))
        if asked.refused:
            return _aonly(self._structured_refusal(output_cls, asked))
        template = template_of(asked.messages)
        outputs = await self.llm.astream_structured_predict(output_cls, template, asked.settings)

        async def flow() -> AsyncGenerator[Any, None]:
            growing = Growing()
            async for output in outputs:
                if growing.may_pass(output):
                    yield output
            if growing.left is not None:
                yield await asyncio.to_thread(self._structured, output_cls, growing.left)

        return flow()

    # The parts

    def _formatted(
        self,
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None,
        prompt_args: dict[str, Any],
    ) -> Request:
        return as_request(prompt.format_messages(llm=self.llm, **prompt_args), llm_kwargs or {})

    def _asked(self, request: Request) -> Request:
        return screen_request(self._screen, request)

    async def _aasked(self, request: Request) -> Request:
        return await asyncio.to_thread(screen_request, self._screen, request)

    @property
    def _screen(self) -> ImageScreen:
        return ImageScreen(
            self.detector,
            self.policy,
            self.limits,
            component="guard_llm",
            on_verdict=self.on_verdict,
        )

    def _refusal(self, outcome: Request | Screened, *, stream: bool = False) -> ChatResponse:
        text = self.policy.refusal_for(outcome.verdicts)
        if self.on_refusal == "raise":
            raise ImageRefused(text, verdicts=outcome.verdicts) from outcome.cause
        name = self.metadata.model_name
        return refused(text, outcome.verdicts, name, text if stream else None)

    def _structured_refusal(self, output_cls: type[BaseModel], outcome: Request | Screened) -> Any:
        text = self.policy.refusal_for(outcome.verdicts)
        if self.on_refusal == "answer" and "refusal" in output_cls.model_fields:
            try:
                return output_cls.model_validate({"refusal": text})
            except ValidationError:
                pass  # the rest of it cannot be left empty
        raise ImageRefused(text, verdicts=outcome.verdicts) from outcome.cause

    def _look_at(self, answer: Any) -> Screened:
        return passed(self._screen.screen([answer_of(answer)])[0])

    def _seen(self, answer: Any, delta: str | None = None) -> Any:
        """An answer after its pictures were looked at."""
        seen = self._look_at(answer)
        if self.policy.monitor or all(verdict.action == "allow" for verdict in seen.verdicts):
            return answer
        if any(verdict.action == "refuse" for verdict in seen.verdicts):
            refusal = self._refusal(seen, stream=delta is not None)
            return refusal if isinstance(answer, ChatResponse) else as_completion(refusal)
        return with_text(answer, seen.value)

    async def screen_answer(self, answer: Any, delta: str | None = None) -> Any:
        """What may be told of an answer."""
        return await asyncio.to_thread(self._seen, answer, delta)

    def _structured(self, output_cls: type[BaseModel], output: Any) -> Any:
        """A structure is what the model said or it is not: no part of it can be masked."""
        seen = self._look_at(output)
        if self.policy.monitor or all(verdict.action == "allow" for verdict in seen.verdicts):
            return output
        return self._structured_refusal(output_cls, seen)

    def _flow(self, pieces: Any) -> Generator[Any, None, None]:
        out = OnItsWayOut()
        for piece in pieces:
            if (ready := out.take(piece)) is not None:
                yield ready
        if out.left is not None:
            yield out.rest(self._seen(out.left, "")) if out.holds_picture else out.rest(out.left)

    async def screen_stream(self, pieces: Any) -> AsyncGenerator[Any, None]:
        """What may be told of an answer that comes in pieces."""
        out = OnItsWayOut()
        async for piece in pieces:
            if (ready := out.take(piece)) is not None:
                yield ready
        if out.left is not None:
            seen = await self.screen_answer(out.left, "") if out.holds_picture else out.left
            yield out.rest(seen)

    # Calls

    @property
    def _calls(self) -> CallGuard:
        return CallGuard(self.policy, (self.detector,))

    def _ruled(
        self, answer: ChatResponse, asked: Request, tools: Sequence[BaseTool] | None = None
    ) -> ChatResponse:
        """An answer with its calls as the policy has them."""
        if not self._calls.active or is_ordered(asked.settings):
            return answer
        calls = self._proposed(answer, tools)
        ruling = rule_calls(calls, asked.messages, self._calls, self.limits)
        if ruling.action == "refuse" and self.on_refusal == "raise":
            raise refusal_error(self.policy.refusal_for(ruling.verdicts), ruling.verdicts)
        response = ruled(answer, calls, ruling, self.policy, self.metadata.model_name)
        if tools is None:
            return written_to_review(response, asked.messages)
        return sent_to_review(response, tools)

    def _proposed(
        self, answer: ChatResponse, tools: Sequence[BaseTool] | None
    ) -> list[ToolSelection]:
        """The calls of an answer; where no tools were given, an agent may read one in its text."""
        return [*selections(answer), *written_calls(answer)]

    def _ruled_flow(
        self, pieces: ChatResponseGen, asked: Request, tools: Sequence[BaseTool] | None = None
    ) -> ChatResponseGen:
        wait = CallsWait(self._calls.active, written=tools is None)
        for piece in pieces:
            if (ready := wait.take(piece)) is not None:
                yield ready
        if wait.left is not None:
            yield self._ruled(wait.left, asked, tools)

    async def _aruled_flow(
        self, pieces: ChatResponseAsyncGen, asked: Request, tools: Sequence[BaseTool] | None = None
    ) -> ChatResponseAsyncGen:
        wait = CallsWait(self._calls.active, written=tools is None)
        async for piece in pieces:
            if (ready := wait.take(piece)) is not None:
                yield ready
        if wait.left is not None:
            yield await asyncio.to_thread(self._ruled, wait.left, asked, tools)


class GuardedFunctionCallingLLM(GuardedLLM, FunctionCallingLLM, extra="forbid"):
    """A function calling LLM behind screening; made by ``guard_llm``."""

    llm: Annotated[FunctionCallingLLM, BeforeValidator(_an_llm)]

    def chat_with_tools(self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any) -> ChatResponse:
        """Answer, or call tools; a refusal calls none."""
        asked = self._asked(as_turn(*args, **kwargs))
        if asked.refused:
            return self._refusal(asked)
        answer = self.llm.chat_with_tools(for_model(tools), *asked.turn, **asked.settings)
        return self._ruled(self._seen(answer), asked, tools)

    async def achat_with_tools(
        self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any
    ) -> ChatResponse:
        """``chat_with_tools``; pictures are looked at in a worker thread."""
        asked = await self._aasked(as_turn(*args, **kwargs))
        if asked.refused:
            return self._refusal(asked)
        answer = await self.llm.achat_with_tools(for_model(tools), *asked.turn, **asked.settings)
        seen: ChatResponse = await self.screen_answer(answer)
        return await asyncio.to_thread(self._ruled, seen, asked, tools)

    def stream_chat_with_tools(
        self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any
    ) -> ChatResponseGen:
        """``chat_with_tools``, piece by piece."""
        asked = self._asked(as_turn(*args, **kwargs))
        if asked.refused:
            return _only(self._refusal(asked, stream=True))
        given = for_model(tools)
        pieces = self.llm.stream_chat_with_tools(given, *asked.turn, **asked.settings)
        return self._ruled_flow(self._flow(pieces), asked, tools)

    async def astream_chat_with_tools(
        self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """``stream_chat_with_tools``; pictures are looked at in a worker thread."""
        asked = await self._aasked(as_turn(*args, **kwargs))
        if asked.refused:
            return _aonly(self._refusal(asked, stream=True))
        given = for_model(tools)
        pieces = await self.llm.astream_chat_with_tools(given, *asked.turn, **asked.settings)
        return self._aruled_flow(self.screen_stream(pieces), asked, tools)

    # Calls

    def _asked(self, request: Request) -> Request:
        return super()._asked(replace(request, messages=as_proposed(request.messages)))

    async def _aasked(self, request: Request) -> Request:
        return await super()._aasked(replace(request, messages=as_proposed(request.messages)))

    def _proposed(
        self, answer: ChatResponse, tools: Sequence[BaseTool] | None
    ) -> list[ToolSelection]:
        if tools is None:
            return super()._proposed(answer, tools)
        return self.llm.get_tool_calls_from_response(answer, error_on_no_tool_call=False)

    def _prepare_chat_with_tools(
        self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """As the LLM does it; nothing is sent."""
        return self.llm._prepare_chat_with_tools_compat(for_model(tools), *args, **kwargs)

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls in an answer.

        Raises:
            ImageRefused: it is a refusal, and one without calls is to be an error.
        """
        if (calls := review_calls(response)) is not None:
            return calls
        if error_on_no_tool_call and (verdicts := is_refusal(response)) is not None:
            raise ImageRefused(self.policy.refusal_for(verdicts), verdicts=verdicts)
        return self.llm.get_tool_calls_from_response(
            response, error_on_no_tool_call=error_on_no_tool_call, **kwargs
        )


def _only(answer: Any) -> Generator[Any, None, None]:
    yield answer


async def _aonly(answer: Any) -> AsyncGenerator[Any, None]:
    yield answer
