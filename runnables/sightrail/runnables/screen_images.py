"""Screening as a LangChain Runnable, in front of any chat model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, overload

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessageChunk
from langchain_core.runnables import (
    Runnable,
    RunnableConfig,
    RunnableSequence,
    RunnableSerializable,
)
from langchain_core.runnables.base import RunnableBindingBase
from pydantic import Field

from sightrail.guardrails.carriers.loop import OnVerdict, PictureLoop, Screened, passed
from sightrail.guardrails.carriers.walk import settled
from sightrail.guardrails.errors import ImageRefused
from sightrail.guardrails.intake import Limits
from sightrail.guardrails.policy import Policy
from sightrail.guardrails.strict import DetectorField, StrictModel

from .checked import Passing
from .walk import LANGCHAIN

if TYPE_CHECKING:
    from .guarded_model import GuardedChatModel, GuardedModel


class ScreenImages(StrictModel, RunnableSerializable[Any, Any], extra="forbid"):
    """Look at every picture on its way to a model: messages in, safe messages out.

    Takes a string, a prompt value, a message, a list of messages, a document, or a dict or list of
    any of these and of pictures (PIL, bytes, arrays, paths); gives the same kind back. Pictures
    that may pass travel on as a lossless PNG of the very pixels that were screened, masked ones
    with their risky places covered, dropped ones as ``policy.note``. What cannot be looked at
    (remote addresses, files, sound, unknown block types) is never passed over in silence:
    ``policy.on_not_inspected`` decides, and refuses by default.

    The verdicts stand in ``message.additional_kwargs["sightrail"]``; see ``walk``. A refused
    picture is taken out and its message marked. ``ChatLVLM`` then answers with its policy's refusal
    without running the model. For any other chat model ``guard`` does the same, and so does
    ``ScreenImages(...) | model``. In ``prompt | ScreenImages(...) | model`` the first two are one
    chain already and the model is called with the note in place of the picture: write
    ``prompt | ScreenImages(...).guard(model)``. A bare string or dict has no message to carry a
    refusal, so place this after the prompt, not before it.

    Args:
        detector: has ``screen(images) -> list[Verdict]``, such as ``RiskDetector``.
        policy: what a verdict leads to.
        limits: what intake is willing to decode.
        on_verdict: called with every verdict, in the thread that screens.

    Raises:
        ImageRefused: where the policy's action is ``raise``.

    Example:
        ``prompt | ScreenImages(detector=detector) | ChatLVLM(model="testbed") | StrOutputParser()``
    """

    detector: DetectorField
    policy: Policy = Policy()
    limits: Limits = Limits()
    on_verdict: OnVerdict | None = Field(default=None, exclude=True)

    def screen(self, values: list[Any], *, together: bool = False) -> list[Screened | ImageRefused]:
        """Screen values outside of any chain: all pictures of all values in one detector call.

        Args:
            values: nothing in them is changed.
            together: the limits on one request hold for all values, not for each.
        """
        return self._loop.screen(values, together=together)

    async def ascreen(
        self, values: list[Any], *, together: bool = False
    ) -> list[Screened | ImageRefused]:
        """``screen`` in a worker thread."""
        return await asyncio.to_thread(self.screen, values, together=together)

    @property
    def _loop(self) -> PictureLoop:
        return PictureLoop(
            (self.detector,),
            self.policy,
            self.limits,
            LANGCHAIN,
            component=type(self).__name__,
            on_verdict=self.on_verdict,
        )

    @overload
    def guard(self, model: BaseChatModel) -> GuardedChatModel: ...

    @overload
    def guard(self, model: Runnable[Any, Any]) -> GuardedModel: ...

    def guard(self, model: Runnable[Any, Any]) -> GuardedModel:
        """This screening and a model as one: a refused request never reaches the model.

        A chat model stays one: it goes wherever LangChain takes a ``BaseChatModel``.
        """
        from .guarded_model import GuardedChatModel, GuardedModel

        if isinstance(model, BaseChatModel):
            return GuardedChatModel(screen=self, model=model)
        return GuardedModel(screen=self, model=model)

    def __or__(self, other: Any) -> RunnableSerializable[Any, Any]:
        """As of every Runnable, but a chat model, or what begins with one, becomes guarded."""
        first, *rest = other.steps if isinstance(other, RunnableSequence) else [other]
        if _is_model(first):
            guarded: GuardedModel = self.guard(first)
            return RunnableSequence(guarded, *rest) if rest else guarded
        return super().__or__(other)

    def pipe(self, *others: Any, name: str | None = None) -> RunnableSerializable[Any, Any]:
        """As ``self | others[0] | ...``."""
        chain: RunnableSerializable[Any, Any] = self
        for other in others:
            chain = chain | other
        if isinstance(chain, RunnableSequence) and name is not None:
            chain.name = name
        return chain

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Screen one value."""
        return self._call_with_config(self._screen_one, input, config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Screen one value in a worker thread."""
        return await self._acall_with_config(self._ascreen_one, input, config)

    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Screen several values with one call of the detector."""
        return self._batch_with_config(
            self._screen_all,
            inputs,
            config,
            return_exceptions=return_exceptions,
        )

    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """``batch`` in a worker thread."""
        return await self._abatch_with_config(
            self._ascreen_all,
            inputs,
            config,
            return_exceptions=return_exceptions,
        )

    def transform(
        self, input: Iterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[Any]:
        """Let streamed text pass as it comes; from the first picture on, wait and screen."""
        yield from self._transform_stream_with_config(input, self._screen_stream, config)

    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """``transform`` for asynchronous streams."""
        async for chunk in self._atransform_stream_with_config(input, self._ascreen_stream, config):
            yield chunk

    def _screen_one(self, value: Any) -> Any:
        (outcome,) = self.screen([value])
        return passed(outcome).value

    async def _ascreen_one(self, value: Any) -> Any:
        (outcome,) = await self.ascreen([value])
        return passed(outcome).value

    def _screen_all(self, values: list[Any]) -> list[Any]:
        outcomes = self.screen(values)
        return [one if isinstance(one, ImageRefused) else one.value for one in outcomes]

    async def _ascreen_all(self, values: list[Any]) -> list[Any]:
        return await asyncio.to_thread(self._screen_all, values)

    def _screen_stream(self, chunks: Iterator[Any]) -> Iterator[Any]:
        held = Held()
        for chunk in chunks:
            if (ready := held.take(chunk)) is not None:
                yield ready
        if held.value is not None:
            yield self._screen_one(held.value)

    async def _ascreen_stream(self, chunks: AsyncIterator[Any]) -> AsyncIterator[Any]:
        held = Held()
        async for chunk in chunks:
            if (ready := held.take(chunk)) is not None:
                yield ready
        if held.value is not None:
            yield await self._ascreen_one(held.value)


def _is_model(runnable: Any) -> bool:
    """Whether this is a chat model, or one with something bound to it, fallbacks or retries.

    What gives one only when it runs (``init_chat_model`` without a name) has ``bind_tools`` too.
    """
    while isinstance(runnable, RunnableBindingBase):
        runnable = runnable.bound
    return callable(getattr(runnable, "bind_tools", None))


class Held(Passing):
    """What of a stream has to wait: everything from the first thing that is not plain text on.

    A picture may be written into a text, so the end of a text waits as long as it could be the
    beginning of one: a word or so.
    """

    def take(self, chunk: Any) -> Any:
        """The next chunk comes in; gives what may go on, None as long as nothing may."""
        if self.value is None:
            self.value = chunk
        else:
            try:
                self.value = self.value + chunk
            except TypeError:  # as Runnable.transform does: chunks that do not add up replace
                self.value = chunk
        if not self._may_pass(self.value):
            return None
        ready, self.value = self.value, None
        return ready

    def _may_pass(self, value: Any) -> bool:
        if not isinstance(value, str | BaseMessageChunk) or LANGCHAIN.carriers(value):
            return False
        text = str(value if isinstance(value, str) else value.text)
        return settled(text) == len(text)
