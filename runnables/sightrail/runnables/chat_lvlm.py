"""The guarded local model as a LangChain chat model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import AliasChoices, Field, PrivateAttr

from sightrail.guardrails.carriers.conversation import answered, refused_for_good
from sightrail.guardrails.errors import ConfigurationError
from sightrail.guardrails.intake import Limits
from sightrail.guardrails.model.screening_step import ScreenedConversation
from sightrail.guardrails.policy import Policy
from sightrail.guardrails.strict import LocalModelFields, fingerprint
from sightrail.guardrails.verdict import Verdict

from .held_calls import brings_unsafe, held_fields
from .shared_batch import SharedBatch
from .structured import named, structured
from .turns import (
    Fields,
    answer_fields,
    chunk_of,
    last_chunk,
    message,
    read_conversation,
    refusal_fields,
)
from .walk import LANGCHAIN, is_refused, marked_verdicts

if TYPE_CHECKING:
    from sightrail.guardrails import Answer, AnswerChunk, LocalLVLM

_ASKED: Final = ("tools", "tool_choice", "parallel_tool_calls", "response_format")
_OLD: Final = ("functions", "function_call")
#: How LangChain routes a call and names it in traces; a grammar is always strict.
_NOT_FOR_MODEL: Final = ("stream", "model", "strict")

Method = Literal["function_calling", "json_schema", "json_mode"]


class ChatLVLM(LocalModelFields, BaseChatModel, extra="forbid"):
    """A vision-language model on this machine, guardrails inside, as a LangChain chat model.

    Takes text and picture blocks in every form that ``ScreenImages`` knows. What cannot be looked
    at (remote addresses, files, sound, unknown block types) goes by ``policy.on_not_inspected``:
    refused by default, and never handed to the model.

    A refusal is an ``AIMessage`` with the policy's refusal as its text and, in
    ``response_metadata``, ``finish_reason="refused"``, ``refused=True`` and the ``verdicts``.
    Messages that ``ScreenImages`` marked as refused are answered so without running the model.

    Tools, where the model's chat template knows them: ``bind_tools``, agents. Calls that cannot be
    read are ``invalid_tool_calls``, thoughts are ``additional_kwargs["reasoning_content"]``. Where
    it knows none, results of tools are told as the user's words, and ``bind_tools`` is answered by
    an ``UnsupportedModelError`` when the model is asked. A refused answer holds no calls. What
    ``policy.calls`` holds back for a person stands in ``response_metadata["held_calls"]``, where
    ``ImageGuardMiddleware`` finds it and asks; nobody else carries it out.

    Structured output: ``with_structured_output`` works with every model, because a grammar holds
    the answer to the schema (extra ``structured``); a refusal keeps its type, see there.

    Args:
        model: a ``LocalLVLM``, or the name or folder of one, loaded when it is first needed.
        guardrails: put on the model in place of its own; None leaves those it has.
        policy: in place of the model's own.
        limits: what intake is willing to decode, in place of the model's own.
        device: where a model given by name is loaded.
        dtype: in which precision.
        temperature: 0 is greedy.
        max_tokens: at most this many new tokens; ``max_new_tokens`` is understood as well.
        top_p: nucleus sampling.
        top_k: sample among this many tokens.
        seed: makes sampling repeatable.
        stop: end before the first of these texts.
        streaming: whether ``invoke`` streams to callbacks, as LangChain has it for every model.

    All settings from ``temperature`` on, and any field of transformers' ``GenerationConfig``, may
    be given to ``invoke`` or ``bind`` as well.

    Example:
        ``ChatLVLM(model="testbed", guardrails=[SafetyPrefix()]).invoke("what is in the image?")``
    """

    stop: list[str] | None = Field(
        default=None, validation_alias=AliasChoices("stop", "stop_sequences")
    )

    streaming: bool = False

    _reply: Callable[[], ChatResult] | None = PrivateAttr(default=None)
    """Set on the copy that answers one row of a batch; see ``batch``."""

    # What LangChain asks about

    @property
    def _llm_type(self) -> str:
        return "sightrail-lvlm"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """Everything that an answer depends on: LangChain's answer caches go by it."""
        local = None if isinstance(self.model, str | Path) else self.model
        guardrails = self.guardrails
        if guardrails is None:
            guardrails = () if local is None else local.guardrails
        policy = self.policy or (Policy() if local is None else local.policy)
        limits = self.limits or (Limits() if local is None else local.limits)
        evidence = getattr(local, "evidence", None)
        return {
            "model_name": self._model_name,
            "guardrails": [fingerprint(guardrail) for guardrail in guardrails],
            "evidence": None if evidence is None else fingerprint(evidence),
            "policy": policy.model_dump(mode="json"),
            "limits": limits.model_dump(mode="json"),
            "device": str(self.device),
            "dtype": str(self.dtype),
            **self._settings(None, {}),
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        settings = self._settings(stop, {k: v for k, v in kwargs.items() if k not in _ASKED})
        params = LangSmithParams(
            ls_provider="sightrail",
            ls_model_name=str(kwargs.get("model", self._model_name)),
            ls_model_type="chat",
            ls_temperature=settings["temperature"],
            ls_max_tokens=settings["max_new_tokens"],
        )
        if settings["stop"]:
            params["ls_stop"] = settings["stop"]
        return params

    @property
    def model_name(self) -> str:
        """What the model is called; agents look for it."""
        return self._model_name

    def _resolve_model_profile(self) -> ModelProfile:
        """What agents may ask of it; a grammar makes every model follow a schema."""
        return ModelProfile(image_inputs=True, structured_output=True)

    def get_token_ids(self, text: str) -> list[int]:
        """The tokens of a text, as the model's own tokenizer makes them."""
        return self._local().token_ids(text)

    # Tools and structured output

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This model with tools that it may call.

        Args:
            tools: everything that LangChain takes for a tool.
            tool_choice: ``"auto"`` (also None), ``"none"``, ``"any"`` (also ``"required"`` and
                True), or the name of the one that has to be called. What has to be called is held
                to its schema by a grammar.
            parallel_tool_calls: whether several calls may be made at once where one has to be.
            kwargs: bound as well.
        """
        declared = [convert_to_openai_tool(tool) for tool in tools]
        asked = {"tool_choice": tool_choice, "parallel_tool_calls": parallel_tool_calls}
        given = {name: value for name, value in asked.items() if value is not None}
        return self.bind(tools=declared, **given, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Method = "json_schema",
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """This model, answering in the form of a schema.

        A refusal is no parsing error. With ``include_raw`` it is the raw message, ``parsed`` and
        ``parsing_error`` are None; without, it is an exception, as nothing else fits the type.

        Args:
            schema: a pydantic model, a TypedDict, or a JSON schema with a title.
            include_raw: give ``{"raw", "parsed", "parsing_error"}``.
            method: ``json_schema`` and ``json_mode`` hold the answer to the schema, or to any JSON
                object, and work with every model; ``function_calling`` makes the model call the
                schema as a tool, which its chat template has to know.
            kwargs: ``strict`` and ``tools`` as LangChain passes them.

        Raises:
            ConfigurationError: there is no such method, or json_mode has nothing to parse with.
            ImageRefused, RequestRefused: when asked, without ``include_raw``.
        """
        tools = kwargs.pop("tools", None)
        kwargs.pop("strict", None)
        if kwargs or method not in get_args(Method):
            raise ConfigurationError(
                f"with_structured_output does not know {', '.join(kwargs) or method}; method is "
                f"one of {', '.join(get_args(Method))}."
            )
        name, form = named(schema, method)
        traced = {"kwargs": {"method": method}, "schema": schema}
        if method == "function_calling":
            model = self.bind_tools(
                [schema, *(tools or ())], tool_choice=name, ls_structured_output_format=traced
            )
        else:
            given = {"tools": [convert_to_openai_tool(tool) for tool in tools]} if tools else {}
            asked = {"response_format": form, "ls_structured_output_format": traced}
            model = self.bind(**given, **asked)
        return structured(model, schema, name, method, include_raw=include_raw)

    # One request

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        if self._reply is not None:
            return self._reply()
        settings, local = self._settings(stop, kwargs), self._local()
        return self._answer_all([self._read(messages)], settings, local)[0]

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        from sightrail.guardrails.model.stopping import in_thread  # loads torch

        # asyncio's own threads are few: calls that wait for one could not share a run.
        return await in_thread(partial(self._generate, messages, stop, None, **kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        settings, local = self._settings(stop, kwargs), self._local()
        asked = self._read(messages)
        if asked.conversation is None:
            yield _last(*self._refusal(asked.verdicts, local))
            return
        calls = 0
        for piece in local.stream(asked.conversation, **settings):
            yield self._chunk(piece, calls)
            calls += len(piece.tool_calls)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        settings, local = self._settings(stop, kwargs), await asyncio.to_thread(self._local)
        asked = self._read(messages)
        if asked.conversation is None:
            yield _last(*self._refusal(asked.verdicts, local))
            return
        calls = 0
        async for piece in local.astream(asked.conversation, **settings):
            yield self._chunk(piece, calls)
            calls += len(piece.tool_calls)

    # Several requests

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer several requests with padded runs of the model.

        Each request keeps its own callbacks, tags and cache. ``max_concurrency`` in the config
        bounds how many run together.
        """
        configs = get_config_list(config, len(inputs)) if inputs else []
        members = self._members(inputs, configs, kwargs)
        outputs: list[Any] = []
        for member, request, own in zip(members, inputs, configs, strict=True):
            try:
                outputs.append(member.invoke(request, own, **kwargs))
            except Exception as error:
                if not return_exceptions:
                    raise
                outputs.append(error)
        return outputs

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """``batch``, with the model in worker threads."""
        configs = get_config_list(config, len(inputs)) if inputs else []
        members = self._members(inputs, configs, kwargs)
        outputs: list[Any] = []
        for member, request, own in zip(members, inputs, configs, strict=True):
            try:
                outputs.append(await member.ainvoke(request, own, **kwargs))
            except Exception as error:
                if not return_exceptions:
                    raise
                outputs.append(error)
        return outputs

    def _members(
        self,
        inputs: list[LanguageModelInput],
        configs: list[RunnableConfig],
        kwargs: dict[str, Any],
    ) -> list[ChatLVLM]:
        """One copy of this model per request, each with its share of one common answer."""
        settings = {k: v for k, v in kwargs.items() if k != "stop"}

        def read(row: int) -> ScreenedConversation:
            return self._read(self._convert_input(inputs[row]).to_messages())

        def answer(asked: list[ScreenedConversation]) -> list[ChatResult]:
            options = self._settings(kwargs.get("stop"), settings)
            return self._answer_all(asked, options, self._local())

        size = configs[0].get("max_concurrency") if configs else None
        shared = SharedBatch(len(inputs), size or len(inputs), read, answer)
        members = []
        for row in range(len(inputs)):
            member = self.model_copy(update={"disable_streaming": True})
            member._reply = partial(shared.result, row)
            members.append(member)
        return members

    # The parts

    def _settings(self, stop: list[str] | None, given: dict[str, Any]) -> dict[str, Any]:
        """The settings of one call, by the names that ``LocalLVLM.chat`` knows."""
        if old := sorted(set(given) & set(_OLD)):
            raise ConfigurationError(
                f"{', '.join(old)}: use bind_tools(tools, tool_choice=...) in place of it."
            )
        given = {k: v for k, v in given.items() if k not in _NOT_FOR_MODEL}
        return {**self._call_settings(given), "stop": stop or self.stop or []}

    def _read(self, messages: Sequence[BaseMessage]) -> ScreenedConversation:
        """What the model is asked; nothing where an earlier step of the chain has refused."""
        count = answered(messages, LANGCHAIN)
        if is_refused(messages[count:]) or refused_for_good(messages[:count], LANGCHAIN):
            return ScreenedConversation(None, marked_verdicts(messages))
        return ScreenedConversation(
            replace(read_conversation(messages), unsafe=brings_unsafe(messages))
        )

    def _answer_all(
        self, asked: Sequence[ScreenedConversation], settings: dict[str, Any], local: LocalLVLM
    ) -> list[ChatResult]:
        open_ones = [item.conversation for item in asked if item.conversation is not None]
        answers = iter(local.batch(open_ones, **settings) if open_ones else [])
        return [
            _result(*self._refusal(item.verdicts, local))
            if item.conversation is None
            else self._answered(next(answers))
            for item in asked
        ]

    def _answered(self, answer: Answer) -> ChatResult:
        fields = self._fields(answer)
        return _whole(message(answer.text, fields, answer))

    def _chunk(self, piece: AnswerChunk, calls: int) -> ChatGenerationChunk:
        if piece.answer is None:
            return ChatGenerationChunk(message=chunk_of(piece, calls))
        fields = self._fields(piece.answer)
        return ChatGenerationChunk(message=last_chunk(piece.text, fields, piece.reasoning))

    def _fields(self, answer: Answer) -> Fields:
        fields = answer_fields(answer, self._model_name)
        review = self._local().policy.calls.review
        fields["response_metadata"].update(held_fields(answer, review))
        return fields

    def _refusal(self, verdicts: Sequence[Verdict], local: LocalLVLM) -> tuple[str, Fields]:
        return local.policy.refusal_for(verdicts), refusal_fields(verdicts, self._model_name)


def _result(text: str, fields: Fields) -> ChatResult:
    return _whole(message(text, fields))


def _whole(answer: AIMessage) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=answer)])


def _last(text: str, fields: Fields) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=last_chunk(text, fields))
