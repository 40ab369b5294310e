"""The guarded local model as a LlamaIndex LLM."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    TextBlock,
)
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import BaseNode
from llama_index.core.tools import BaseTool
from pydantic import BaseModel

from sightrail.guardrails.carriers.conversation import answered as answered_turns
from sightrail.guardrails.carriers.conversation import refused_for_good
from sightrail.guardrails.errors import ConfigurationError
from sightrail.guardrails.model.screening_step import ScreenedConversation
from sightrail.guardrails.strict import LocalModelFields
from sightrail.guardrails.verdict import Verdict

from .call_review import (
    ReActCalls,
    as_proposed,
    brings_unsafe,
    for_model,
    sent_to_review,
    written_to_review,
)
from .replies import (
    answered,
    as_completion,
    filled_in,
    growing,
    refused,
    selections,
    with_one_call,
)
from .screening import LLAMA_INDEX, is_refused, marked_verdicts, report
from .turns import picture_blocks, read_conversation

if TYPE_CHECKING:
    from sightrail.guardrails import Answer, AnswerChunk, LocalLVLM

Model = TypeVar("Model", bound=BaseModel)

_NOTHING: Final = ("functions", "function_call", "verbose", "tool_required")


class LVLM(LocalModelFields, FunctionCallingLLM, extra="forbid"):
    """A vision-language model on this machine, guardrails inside, as a LlamaIndex LLM.

    Takes text and picture blocks (data, path, data address). What cannot be looked at (remote
    addresses unless ``limits.remote`` allows them, documents, sound, film, unknown blocks) goes by
    ``policy.on_not_inspected``: refused by default, and never handed to the model.

    A refusal is an answer with the policy's refusal as its text, ``refused`` and the ``verdicts``
    in ``raw``. Messages that ``ImageScreen`` marked as
    refused are answered so without running the model.

    Tools, where the model's chat template knows them: ``chat_with_tools``, ``predict_and_call``,
    ``FunctionAgent``, ``AgentWorkflow``. Where it knows none, results of tools are told as the
    user's words, and ``ReActAgent`` works; ``policy.calls`` sees the calls in its texts too. A
    refused answer holds no calls. What ``policy.calls`` holds back for a person goes to
    ``review_tool``, if the agent has it; it is told in ``raw["held_calls"]``, and carried out by
    nobody else.

    Structured prediction works with every model, because a grammar holds the answer to the schema
    (extra ``structured``); a refusal raises ``ImageRefused`` or ``RequestRefused`` there.

    Args:
        model: a ``LocalLVLM``, or the name or folder of one, loaded when it is first needed.
        guardrails: put on the model in place of its own; None leaves those it has.
        policy: in place of the model's own.
        limits: what intake is willing to read, in place of the model's own.
        device: where a model given by name is loaded.
        dtype: in which precision.
        temperature: 0 is greedy.
        max_tokens: at most this many new tokens; ``max_new_tokens`` is understood as well.
        top_p: nucleus sampling.
        top_k: sample among this many tokens.
        seed: makes sampling repeatable.
        stop: end before the first of these texts.

    All settings from ``temperature`` on, and any field of transformers' ``GenerationConfig``, may
    be given to a call as well.

    Example:
        ``LVLM(model="testbed", guardrails=[SafetyPrefix()]).complete("what is in the image?")``
    """

    # What LlamaIndex asks about

    @classmethod
    def class_name(cls) -> str:
        """The name in LlamaIndex's serialised form."""
        return "SightrailLVLM"

    @property
    def metadata(self) -> LLMMetadata:
        """The model's context window, at most ``max_tokens`` of it for the answer."""
        from sightrail.guardrails.model.families import context_length

        window = context_length(self._local().model) or DEFAULT_CONTEXT_WINDOW
        return LLMMetadata(
            context_window=window,
            num_output=min(self.max_tokens, window),
            is_chat_model=True,
            is_function_calling_model=self._local().calls_tools,
            model_name=self._model_name,
        )

    # Conversations

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer one conversation."""
        settings, local = self._settings(kwargs), self._local()
        asked = self._read(messages, settings)
        if asked.conversation is None:
            return self._refusal(asked.verdicts, local)
        return self._answer(local.chat(asked.conversation, **settings), messages)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """``chat``, with the model in a worker thread."""
        settings, local = self._settings(kwargs), await asyncio.to_thread(self._local)
        asked = self._read(messages, settings)
        if asked.conversation is None:
            return self._refusal(asked.verdicts, local)
        return self._answer(await local.achat(asked.conversation, **settings), messages)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """``chat``, piece by piece."""
        return self._stream(messages, self._settings(kwargs))

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """``stream_chat``, with the model in a worker thread."""
        return self._astream(messages, self._settings(kwargs))

    # Prompts without roles, which LlamaIndex's callbacks hear of as the conversations they become

    def complete(
        self,
        prompt: str,
        formatted: bool = False,
        image_documents: Sequence[BaseNode] = (),
        **kwargs: Any,
    ) -> CompletionResponse:
        """Answer one prompt, about the pictures of these documents or nodes where there are any."""
        asked = self._asked(prompt, formatted, image_documents)
        return as_completion(self.chat(asked, **kwargs))

    async def acomplete(
        self,
        prompt: str,
        formatted: bool = False,
        image_documents: Sequence[BaseNode] = (),
        **kwargs: Any,
    ) -> CompletionResponse:
        """``complete``, with the model in a worker thread."""
        asked = self._asked(prompt, formatted, image_documents)
        return as_completion(await self.achat(asked, **kwargs))

    def stream_complete(
        self,
        prompt: str,
        formatted: bool = False,
        image_documents: Sequence[BaseNode] = (),
        **kwargs: Any,
    ) -> CompletionResponseGen:
        """``complete``, piece by piece."""
        asked = self._asked(prompt, formatted, image_documents)
        pieces = self.stream_chat(asked, **kwargs)
        return (as_completion(piece) for piece in pieces)

    async def astream_complete(
        self,
        prompt: str,
        formatted: bool = False,
        image_documents: Sequence[BaseNode] = (),
        **kwargs: Any,
    ) -> CompletionResponseAsyncGen:
        """``stream_complete``, with the model in a worker thread."""
        asked = self._asked(prompt, formatted, image_documents)
        pieces = await self.astream_chat(asked, **kwargs)
        return (as_completion(piece) async for piece in pieces)

    # Tools and structures

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: str | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        asked = list(chat_history or [])
        if user_msg is not None:
            message = ChatMessage(role=MessageRole.USER, content=user_msg)
            asked.append(message if isinstance(user_msg, str) else user_msg)
        known = for_model(tools)
        declared = [tool.metadata.to_openai_tool(skip_length_check=True) for tool in known]
        choice = tool_choice or ("required" if tool_required and declared else None)
        return {
            "messages": asked,
            "tools": declared,
            "tool_choice": choice,
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def _validate_chat_with_tools_response(
        self,
        response: ChatResponse,
        tools: Sequence[BaseTool],
        allow_parallel_tool_calls: bool = False,
        **kwargs: Any,
    ) -> ChatResponse:
        sent = sent_to_review(response, tools)
        return sent if allow_parallel_tool_calls else with_one_call(sent)

    def stream_chat_with_tools(
        self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any
    ) -> ChatResponseGen:
        """``chat_with_tools``, piece by piece; calls come with the last."""
        pieces = super().stream_chat_with_tools(tools, *args, **kwargs)
        return (sent_to_review(piece, tools) for piece in pieces)

    async def astream_chat_with_tools(
        self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """``stream_chat_with_tools``, with the model in a worker thread."""
        pieces = await super().astream_chat_with_tools(tools, *args, **kwargs)
        return (sent_to_review(piece, tools) async for piece in pieces)

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls of an answer; those that could not be read are in ``raw``.

        Raises:
            ValueError: there is none, and that is to be an error.
        """
        calls = selections(response)
        if not calls and error_on_no_tool_call:
            raise ValueError(
                "Expected a tool call, but the model made none; pass tool_required=True."
            )
        return calls

    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """An ``output_cls`` that the model fills in; a grammar sees to it that it can be read.

        Raises:
            ImageRefused, RequestRefused: the answer was refused.
            ValidationError: it was cut off, or breaks a rule that no schema tells.
        """
        asked = self._extend_messages(prompt.format_messages(**prompt_args))
        answer = self.chat(asked, response_format=output_cls, **(llm_kwargs or {}))
        return filled_in(output_cls, answer)

    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """``structured_predict``, with the model in a worker thread."""
        asked = self._extend_messages(prompt.format_messages(**prompt_args))
        answer = await self.achat(asked, response_format=output_cls, **(llm_kwargs or {}))
        return filled_in(output_cls, answer)

    def stream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Model, None, None]:
        """``structured_predict``; a refusal may come at the end, so nothing is shown before."""
        yield self.structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)

    async def astream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Model, None]:
        """``stream_structured_predict``, with the model in a worker thread."""

        async def once() -> AsyncGenerator[Model, None]:
            yield await self.astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)

        return once()

    # The parts

    def _asked(
        self, prompt: str, formatted: bool, image_documents: Sequence[BaseNode]
    ) -> list[ChatMessage]:
        text = prompt
        if not formatted and self.completion_to_prompt is not None:
            text = self.completion_to_prompt(prompt)
        blocks = [*picture_blocks(image_documents), TextBlock(text=text)]
        return [ChatMessage(role=MessageRole.USER, blocks=blocks)]

    def _stream(
        self, messages: Sequence[ChatMessage], settings: dict[str, Any]
    ) -> Generator[ChatResponse, None, None]:
        local = self._local()
        asked = self._read(messages, settings)
        if asked.conversation is None:
            yield self._refusal(asked.verdicts, local, stream=True)
            return
        text = ""
        for piece in local.stream(asked.conversation, **settings):
            text += piece.text
            yield self._piece(piece, text, messages)

    async def _astream(
        self, messages: Sequence[ChatMessage], settings: dict[str, Any]
    ) -> AsyncGenerator[ChatResponse, None]:
        local = await asyncio.to_thread(self._local)
        asked = self._read(messages, settings)
        if asked.conversation is None:
            yield self._refusal(asked.verdicts, local, stream=True)
            return
        text = ""
        async for piece in local.astream(asked.conversation, **settings):
            text += piece.text
            yield self._piece(piece, text, messages)

    def _settings(self, given: dict[str, Any]) -> dict[str, Any]:
        """The settings of one call, by the names that ``LocalLVLM.chat`` knows."""
        given = dict(given)
        if unknown := sorted(name for name in _NOTHING if given.pop(name, None)):
            raise ConfigurationError(
                f"{', '.join(unknown)}: use chat_with_tools(tools, tool_required=...)."
            )
        return {"stop": self.stop or [], **self._call_settings(given)}

    def _read(
        self, messages: Sequence[ChatMessage], settings: dict[str, Any]
    ) -> ScreenedConversation:
        """What the model is asked; nothing where an earlier step has refused."""
        count = answered_turns(messages, LLAMA_INDEX)
        if is_refused(messages[count:]) or refused_for_good(messages[:count], LLAMA_INDEX):
            return ScreenedConversation(None, marked_verdicts(messages))
        unsafe = brings_unsafe(messages)
        conversation = read_conversation(as_proposed(messages))
        written = None if settings.get("tools") else ReActCalls()
        return ScreenedConversation(replace(conversation, unsafe=unsafe, written=written))

    def _answer(
        self, answer: Answer, asked: Sequence[ChatMessage], delta: str | None = None
    ) -> ChatResponse:
        self._report(answer.verdicts, refuses=answer.refused)
        if answer.refused and ReActCalls().find(answer.text):  # what was shown before it broke
            answer = replace(answer, text=self._local().policy.refusal_for(answer.verdicts))
        return written_to_review(answered(answer, self._model_name, delta), asked)

    def _piece(self, piece: AnswerChunk, text: str, asked: Sequence[ChatMessage]) -> ChatResponse:
        if piece.answer is None:
            return growing(text, piece)
        return self._answer(piece.answer, asked, piece.text)

    def _refusal(
        self, verdicts: Sequence[Verdict], local: LocalLVLM, *, stream: bool = False
    ) -> ChatResponse:
        self._report(verdicts, refuses=True)
        text = local.policy.refusal_for(verdicts)
        return refused(text, verdicts, self._model_name, text if stream else None)

    def _report(self, verdicts: Sequence[Verdict], *, refuses: bool) -> None:
        report("LVLM", verdicts, refused=refuses)
