"""Screening as a LangChain Runnable, in front of any chat model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, overload

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, BaseMessageChunk, convert_to_messages
from langchain_core.prompt_values import ChatPromptValue, PromptValue
from langchain_core.runnables import (
    Runnable,
    RunnableConfig,
    RunnableSequence,
    RunnableSerializable,
)
from langchain_core.runnables.base import RunnableBindingBase
from pydantic import Field

from sightrail.guardrails.carriers.conversation import Turns, answered, screen_turns
from sightrail.guardrails.carriers.loop import OnVerdict, PictureLoop, Screened
from sightrail.guardrails.carriers.walk import same_items, settled
from sightrail.guardrails.errors import ImageRefused
from sightrail.guardrails.intake import Limits
from sightrail.guardrails.policy import Policy, refusal_error
from sightrail.guardrails.strict import DetectorField, StrictModel
from sightrail.guardrails.verdict import Verdict

from .checked import Passing
from .walk import LANGCHAIN, marked_verdicts, messages_of

if TYPE_CHECKING:
    from .guarded_model import GuardedChatModel, GuardedModel


class ScreenImages(StrictModel, RunnableSerializable[Any, Any], extra="forbid"):
    """Look at every picture on its way to a model: messages in, safe messages out.

    Takes a string, a prompt value, a message, a list of messages, a document, or a dict or list of
    any of these and of pictures (PIL, bytes, arrays, paths); gives the same kind back. Pictures
    that may pass travel on with the very pixels that were screened (``policy.encoding`` says how),
    masked ones with their risky places covered, dropped ones as ``policy.note``. What cannot be
    looked at (remote addresses, files, sound, unknown block types) is never passed over in silence:
    ``policy.on_not_inspected`` decides, and refuses by default.

    The verdicts stand in ``message.additional_kwargs["sightrail"]``; see ``marker``.

    What the policy refuses does not come out: nothing that might stand behind (another runnable, a
    function, a vendor's own client) could be relied on to honour a mark on it. So ``prompt | screen
    | model`` raises ``ImageRefused``, and so does every other composition (parallel, retried, in a
    batch), instead of calling the model without the picture. To have the policy's refusal as an
    answer write ``prompt | screen.guard(model)``; ``screen | model`` is the same as
    ``screen.guard(model)``. In a conversation only what is new can refuse: a picture of a turn that
    has an answer is taken out again. A list of inputs that may fail one by one goes through
    ``batch(..., return_exceptions=True)``, or through ``screen``, where refusals are values.

    Args:
        detector: has ``screen(images) -> list[Verdict]``, such as ``RiskDetector``.
        policy: what a verdict leads to.
        limits: what intake is willing to decode.
        on_verdict: called with every verdict, in the thread that screens.
        trace_images: whether LangChain's traces and events show the pictures that come in. The
            default puts a note in their place, in the inputs of this runnable and of the guarded
            models made by ``guard``. What runs around it (the chain, the prompt) is the
            framework's own and shows what it was given; so do ``transform`` and ``generate``, which
            LangChain traces before they get here. ``hide_images`` is for these.

    Raises:
        ImageRefused: the policy refuses a picture, or says ``raise``. The message is the text of
            the policy's refusal, ``verdicts`` says why, and ``__cause__`` is what the detector
            raised, if it failed.
        RequestRefused: an earlier step of the chain refused the request as a whole.

    Example:
        ``prompt | ScreenImages(detector=detector).guard(model) | StrOutputParser()``
    """

    detector: DetectorField
    policy: Policy = Policy()
    limits: Limits = Limits()
    on_verdict: OnVerdict | None = Field(default=None, exclude=True)
    trace_images: bool = False

    def screen(self, values: list[Any], *, together: bool = False) -> list[Screened | ImageRefused]:
        """Screen values outside of any chain: all pictures of all values in one detector call.

        Args:
            values: nothing in them is changed.
            together: the limits on one request hold for all values, not for each.

        Returns:
            One outcome a value, in order: what was refused is said, not raised.
        """
        return self._loop.screen(values, together=together)

    async def ascreen(
        self, values: list[Any], *, together: bool = False
    ) -> list[Screened | ImageRefused]:
        """``screen`` in a worker thread."""
        return await asyncio.to_thread(self.screen, values, together=together)

    def screen_requests(self, requests: list[Any]) -> list[Screened | ImageRefused]:
        """``screen`` for conversations; only what is new in each can refuse it.

        A picture that was refused in an earlier turn is taken out in every later one, but does not
        refuse them. The limits on one request hold for the newest turn, and for every earlier
        message by itself. A detector that wants the words of the request gets the user's.
        """
        conversations = [_turns(request) for request in requests]
        return [
            _joined(request, turns, past, outcome)
            for request, turns, (past, outcome) in zip(
                requests, conversations, screen_turns(self._loop, conversations), strict=True
            )
        ]

    def hidden(self, value: Any) -> Any:
        """What traces may show of a value that has not been screened; see ``hide_images``."""
        if self.trace_images:
            return value
        return LANGCHAIN.hidden(value)

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
        run = partial(self._screen_one, input)
        return self._call_with_config(run, self.hidden(input), config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Screen one value in a worker thread."""
        run = partial(self._ascreen_one, input)
        return await self._acall_with_config(run, self.hidden(input), config)

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
            partial(self._screen_all, inputs),
            [self.hidden(value) for value in inputs],
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
            partial(self._ascreen_all, inputs),
            [self.hidden(value) for value in inputs],
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

    # What traces show of a value is no use here.

    def _screen_one(self, value: Any, shown: Any = None) -> Any:
        (outcome,) = self._screen_all([value])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _ascreen_one(self, value: Any, shown: Any = None) -> Any:
        return await asyncio.to_thread(self._screen_one, value)

    def _screen_all(self, values: list[Any], shown: Any = None) -> list[Any]:
        """What comes out of each: a value, or the exception that is to be raised."""
        outcomes = zip(values, self.screen_requests(values), strict=True)
        return [self._handed_on(value, outcome) for value, outcome in outcomes]

    async def _ascreen_all(self, values: list[Any], shown: Any = None) -> list[Any]:
        return await asyncio.to_thread(self._screen_all, values)

    def _handed_on(self, value: Any, outcome: Screened | ImageRefused) -> Any:
        if isinstance(outcome, ImageRefused) or not outcome.refused:
            return outcome if isinstance(outcome, ImageRefused) else outcome.value
        verdicts = told_verdicts(value, outcome)
        error = refusal_error(self.policy.refusal_for(verdicts), verdicts)
        error.__cause__ = outcome.cause
        error.add_note("ScreenImages(...).guard(model) gives the refusal as the model's answer.")
        return error

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


def told_verdicts(request: Any, outcome: Screened) -> tuple[Verdict, ...]:
    """The verdicts of this screening, or else those of the earlier step that refused."""
    return outcome.verdicts or marked_verdicts(messages_of(request))


def _turns(request: Any) -> Turns:
    """The turns that have an answer, and the rest; a request that is no conversation is the rest.

    What cannot be read as messages is the rest as well, so that everything in it can refuse.
    """
    if isinstance(request, PromptValue):
        messages = request.to_messages()
    elif isinstance(request, list | tuple):
        try:
            messages = list(convert_to_messages(request))
        except (ValueError, TypeError, KeyError, NotImplementedError):
            return Turns([], request, [request])
    else:
        return Turns([], request, [request])
    count = answered(messages, LANGCHAIN)
    return Turns(messages[:count], messages[count:] if count else request, messages)


def _joined(
    request: Any, turns: Turns, past: list[BaseMessage], outcome: Screened | ImageRefused
) -> Screened | ImageRefused:
    """The outcome of a whole request."""
    if isinstance(outcome, ImageRefused) or not past:
        return outcome
    messages = [*past, *outcome.value]
    same = same_items(messages, [*turns.past, *turns.newest])
    return replace(outcome, value=request if same else _like(request, messages))


def _like(request: Any, messages: list[BaseMessage]) -> Any:
    """Messages as the kind of request that they came in."""
    if isinstance(request, ChatPromptValue):
        return request.model_copy(update={"messages": messages})
    if isinstance(request, PromptValue):
        return ChatPromptValue(messages=messages)
    return tuple(messages) if isinstance(request, tuple) else messages


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
