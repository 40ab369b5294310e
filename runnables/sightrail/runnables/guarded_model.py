"""A chat model behind screening: a refused request is answered without running it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForChainRun,
    CallbackManagerForChainRun,
)
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from pydantic import ConfigDict

from sightrail.guardrails.errors import ImageRefused

from .marker import marked_verdicts
from .replies import Fields, last_chunk, message, refusal_fields
from .screen_images import ScreenImages
from .screening import Screened, messages_of, passed


class GuardedModel(RunnableSerializable[LanguageModelInput, AIMessage]):
    """``screen`` and any chat model as one Runnable; made by ``ScreenImages.guard``.

    Where the policy refuses, the answer is an ``AIMessage`` with the policy's refusal and the
    verdicts in its ``response_metadata``; the model is not called. This is the way to refuse in
    front of hosted models. ``bind_tools`` and the like go on the model first.

    Args:
        screen: what looks at the pictures.
        model: a chat model, or anything made from one that gives messages.
    """

    screen: ScreenImages
    model: Runnable[LanguageModelInput, AIMessage]

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    def invoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """Answer one request, or refuse it."""
        return self._call_with_config(self._answer, input, config, **kwargs)

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """``invoke``, asynchronously."""
        return await self._acall_with_config(self._aanswer, input, config, **kwargs)

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[Any]:
        """Stream the model's answer; a refusal is one chunk."""
        yield from self._transform_stream_with_config(iter([input]), self._stream, config, **kwargs)

    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """``stream``, asynchronously."""
        async for chunk in self._atransform_stream_with_config(
            _one(input), self._astream, config, **kwargs
        ):
            yield chunk

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Screen all inputs at once, then give those that passed to the model as one batch."""
        return self._batch_with_config(
            self._answer_all, inputs, config, return_exceptions=return_exceptions, **kwargs
        )

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """``batch``, asynchronously."""
        return await self._abatch_with_config(
            self._aanswer_all, inputs, config, return_exceptions=return_exceptions, **kwargs
        )

    def _answer(
        self,
        request: LanguageModelInput,
        run_manager: CallbackManagerForChainRun,
        config: RunnableConfig,
        **kwargs: Any,
    ) -> AIMessage:
        screened = passed(self.screen.screen([request])[0])
        if screened.refused:
            return self._refusal(request, screened)
        return self.model.invoke(screened.value, config, **kwargs)

    async def _aanswer(
        self,
        request: LanguageModelInput,
        run_manager: AsyncCallbackManagerForChainRun,
        config: RunnableConfig,
        **kwargs: Any,
    ) -> AIMessage:
        screened = passed((await self.screen.ascreen([request]))[0])
        if screened.refused:
            return self._refusal(request, screened)
        return await self.model.ainvoke(screened.value, config, **kwargs)

    def _stream(
        self,
        requests: Iterator[LanguageModelInput],
        run_manager: CallbackManagerForChainRun,
        config: RunnableConfig,
        **kwargs: Any,
    ) -> Iterator[Any]:
        for request in requests:
            screened = passed(self.screen.screen([request])[0])
            if screened.refused:
                yield self._refusal_chunk(request, screened)
            else:
                yield from self.model.stream(screened.value, config, **kwargs)

    async def _astream(
        self,
        requests: AsyncIterator[LanguageModelInput],
        run_manager: AsyncCallbackManagerForChainRun,
        config: RunnableConfig,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        async for request in requests:
            screened = passed((await self.screen.ascreen([request]))[0])
            if screened.refused:
                yield self._refusal_chunk(request, screened)
            else:
                async for chunk in self.model.astream(screened.value, config, **kwargs):
                    yield chunk

    def _answer_all(
        self,
        requests: list[LanguageModelInput],
        run_manager: list[CallbackManagerForChainRun],
        config: list[RunnableConfig],
        **kwargs: Any,
    ) -> list[Exception | AIMessage]:
        outcomes = self.screen.screen(list(requests))
        rows = _rows_to_answer(outcomes)
        answers = self.model.batch(
            [passed(outcomes[row]).value for row in rows],
            [config[row] for row in rows],
            return_exceptions=True,
            **kwargs,
        )
        return self._merge(requests, outcomes, dict(zip(rows, answers, strict=True)))

    async def _aanswer_all(
        self,
        requests: list[LanguageModelInput],
        run_manager: list[AsyncCallbackManagerForChainRun],
        config: list[RunnableConfig],
        **kwargs: Any,
    ) -> list[Exception | AIMessage]:
        outcomes = await self.screen.ascreen(list(requests))
        rows = _rows_to_answer(outcomes)
        answers = await self.model.abatch(
            [passed(outcomes[row]).value for row in rows],
            [config[row] for row in rows],
            return_exceptions=True,
            **kwargs,
        )
        return self._merge(requests, outcomes, dict(zip(rows, answers, strict=True)))

    def _merge(
        self,
        requests: Sequence[LanguageModelInput],
        outcomes: Sequence[Screened | ImageRefused],
        answers: dict[int, Any],
    ) -> list[Exception | AIMessage]:
        return [
            answers[row]
            if row in answers
            else outcome
            if isinstance(outcome, ImageRefused)
            else self._refusal(requests[row], outcome)
            for row, outcome in enumerate(outcomes)
        ]

    def _refusal(self, request: LanguageModelInput, screened: Screened) -> AIMessage:
        return message(*self._refused(request, screened))

    def _refusal_chunk(self, request: LanguageModelInput, screened: Screened) -> AIMessageChunk:
        return last_chunk(*self._refused(request, screened))

    def _refused(self, request: LanguageModelInput, screened: Screened) -> tuple[str, Fields]:
        """By the verdicts of this screening, or else by those of the earlier one that refused."""
        verdicts = screened.verdicts or marked_verdicts(messages_of(request))
        return self.screen.policy.refusal_for(verdicts), refusal_fields(verdicts)


def _rows_to_answer(outcomes: Sequence[Screened | ImageRefused]) -> list[int]:
    return [
        row
        for row, outcome in enumerate(outcomes)
        if isinstance(outcome, Screened) and not outcome.refused
    ]


async def _one(value: LanguageModelInput) -> AsyncIterator[LanguageModelInput]:
    yield value
