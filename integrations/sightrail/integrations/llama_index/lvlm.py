"""The guarded local model as a LlamaIndex LLM."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import TYPE_CHECKING, Any, Final

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
from llama_index.core.llms import LLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.schema import BaseNode

from sightrail.guardrails.errors import ConfigurationError
from sightrail.guardrails.model.pipeline import ScreenedConversation
from sightrail.guardrails.model.wrapper import LocalModelFields
from sightrail.guardrails.verdict import Verdict

from .events import report
from .marks import is_refused, marked_verdicts
from .replies import answered, as_completion, growing, refused
from .turns import picture_blocks, read_conversation

if TYPE_CHECKING:
    from sightrail.guardrails import Answer, AnswerChunk, LocalLVLM

_NO_TOOLS: Final = ("tools", "tool_choice", "tool_required", "functions", "response_format")


class LVLM(LocalModelFields, LLM, extra="forbid"):
    """A vision-language model on this machine, guardrails inside, as a LlamaIndex LLM.

    Takes text and picture blocks (data, path, data address). What cannot be looked at (remote
    addresses unless ``limits.remote`` allows them, documents, sound, film, unknown blocks) goes by
    ``policy.on_not_inspected``: refused by default, and never handed to the model.

    A refusal is an answer with the policy's refusal as its text, ``refused`` and the ``verdicts``
    in ``raw``. Messages that ``ImageScreen`` marked as
    refused are answered so without running the model.

    Tools: results of tools are read as the user's words; the model itself calls none.

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
            is_function_calling_model=False,
            model_name=self._model_name,
        )

    # Conversations

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer one conversation."""
        settings, local = self._settings(kwargs), self._local()
        asked = self._read(messages)
        if asked.conversation is None:
            return self._refusal(asked.verdicts, local)
        return self._answer(local.chat(asked.conversation, **settings))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """``chat``, with the model in a worker thread."""
        settings, local = self._settings(kwargs), await asyncio.to_thread(self._local)
        asked = self._read(messages)
        if asked.conversation is None:
            return self._refusal(asked.verdicts, local)
        return self._answer(await local.achat(asked.conversation, **settings))

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

    # Prompts without roles

    @llm_completion_callback()
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

    @llm_completion_callback()
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

    @llm_completion_callback()
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

    @llm_completion_callback()
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
        asked = self._read(messages)
        if asked.conversation is None:
            yield self._refusal(asked.verdicts, local, stream=True)
            return
        text = ""
        for piece in local.stream(asked.conversation, **settings):
            text += piece.text
            yield self._piece(piece, text)

    async def _astream(
        self, messages: Sequence[ChatMessage], settings: dict[str, Any]
    ) -> AsyncGenerator[ChatResponse, None]:
        local = await asyncio.to_thread(self._local)
        asked = self._read(messages)
        if asked.conversation is None:
            yield self._refusal(asked.verdicts, local, stream=True)
            return
        text = ""
        async for piece in local.astream(asked.conversation, **settings):
            text += piece.text
            yield self._piece(piece, text)

    def _settings(self, given: dict[str, Any]) -> dict[str, Any]:
        """The settings of one call, by the names that ``LocalLVLM.chat`` knows."""
        given = dict(given)
        if unknown := sorted(name for name in _NO_TOOLS if given.pop(name, None)):
            raise ConfigurationError(
                f"{', '.join(unknown)}: local models behind LVLM call no tools and follow no "
                "schema; use a ReActAgent, or a model that does."
            )
        return {"stop": self.stop or [], **self._call_settings(given)}

    def _read(self, messages: Sequence[ChatMessage]) -> ScreenedConversation:
        """What the model is asked; nothing where an earlier step has refused."""
        if is_refused(messages):
            return ScreenedConversation(None, marked_verdicts(messages))
        return ScreenedConversation(read_conversation(messages))

    def _answer(self, answer: Answer, delta: str | None = None) -> ChatResponse:
        self._report(answer.verdicts, refuses=answer.refused)
        return answered(answer, self._model_name, delta)

    def _piece(self, piece: AnswerChunk, text: str) -> ChatResponse:
        if piece.answer is None:
            return growing(text, piece.text)
        return self._answer(piece.answer, piece.text)

    def _refusal(
        self, verdicts: Sequence[Verdict], local: LocalLVLM, *, stream: bool = False
    ) -> ChatResponse:
        self._report(verdicts, refuses=True)
        text = local.policy.refusal_for(verdicts)
        return refused(text, verdicts, self._model_name, text if stream else None)

    def _report(self, verdicts: Sequence[Verdict], *, refuses: bool) -> None:
        report("LVLM", verdicts, refused=refuses)
