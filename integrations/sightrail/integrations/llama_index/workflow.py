"""Screening as steps of a LlamaIndex Workflow: screen, decide, answer, refuse, or ask a person."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, Literal

from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.llms import LLM
from llama_index.core.workflow import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)

from sightrail.guardrails.carriers.conversation import Turns, answered, screen_turns
from sightrail.guardrails.carriers.loop import Screened, passed
from sightrail.guardrails.errors import ConfigurationError
from sightrail.guardrails.intake import Limits
from sightrail.guardrails.policy import Policy
from sightrail.guardrails.screening.asking import Detector, checked_detector
from sightrail.guardrails.verdict import Verdict

from .guarded_llm import GuardedLLM
from .replies import refused
from .screening import LLAMA_INDEX, ImageScreen

_MESSAGES: Final = "sightrail_messages"
_VERDICTS: Final = "sightrail_verdicts"

Ruling = Literal["approve", "edit", "reject", "respond", "mask", "allow", "refuse"]


class AskEvent(StartEvent):
    """What the workflow is asked."""

    messages: list[ChatMessage]


class ScreenedEvent(Event):
    """The messages after screening; those of a refused request hold what may pass of them."""

    messages: list[ChatMessage]
    refused: bool
    verdicts: list[Verdict]


class AnswerEvent(Event):
    """Messages that may go to the model."""

    messages: list[ChatMessage]


class AnswerStream(Event):
    """A piece of a streamed answer.

    Attributes:
        delta: what is new.
        response: all that came so far.
    """

    delta: str
    response: str


class ReviewRequestedEvent(InputRequiredEvent):
    """A person is asked. Holds verdicts and no pictures: those are the app's to show."""

    verdicts: list[Verdict]


class ReviewedEvent(HumanResponseEvent):
    """What the person says.

    Attributes:
        ruling: ``approve`` (or ``allow``) lets the messages pass as they came; ``mask`` lets them
            pass with what was found covered, and what cannot be covered taken out; ``edit`` puts
            `messages` in their place, which are screened as well; ``respond`` gives `text` as the
            answer; ``reject`` (or ``refuse``) refuses, with `text` in place of the policy's.
        messages: for ``edit``.
        text: for ``respond`` and ``reject``.
    """

    ruling: Ruling
    messages: list[ChatMessage] | None = None
    text: str | None = None


class ImageGuardWorkflow(Workflow):
    """Answers messages with any LlamaIndex LLM, after their pictures were screened.

    ``screen`` looks at all pictures. Then ``decide`` sends on what may pass, covered where the
    policy says so; what the policy refuses of the newest turn is refused, or, with `review`, put
    before a person as a ReviewRequestedEvent, which a ReviewedEvent answers; of earlier turns it
    is taken out. The result is a ChatResponse;
    a refusal says so in ``raw``, as LVLM's does. Pictures in the answer are screened too.

    A run that waits for a person can wait anywhere: ``ctx.to_dict()`` at the ReviewRequestedEvent,
    ``Context.from_dict(workflow, data)`` in another process, ``run(ctx=ctx)`` and
    ``ctx.send_event(ReviewedEvent(...))`` there. Until a person has ruled, the context holds the
    messages as they came; afterwards it holds none.

    Args:
        llm: what answers; one whose own guardrails refuse the picture refuses it after review too.
        detector: has ``screen(images) -> list[Verdict]``, such as ``RiskDetector``.
        policy: what a verdict leads to; ``Policy()`` when None.
        limits: what intake is willing to read; ``Limits()`` when None.
        review: whether a person is asked before a refusal.
        streaming: the answer's pieces are written to the run's stream as AnswerStream.
        options: of ``Workflow``, such as ``timeout`` in seconds; with `review` there is none
            unless it is given.

    Raises:
        ConfigurationError: that is no detector.

    Example:
        ``await ImageGuardWorkflow(llm=llm, detector=detector).run(messages=messages)``
    """

    def __init__(
        self,
        *,
        llm: LLM,
        detector: Detector,
        policy: Policy | None = None,
        limits: Limits | None = None,
        review: bool = False,
        streaming: bool = False,
        **options: Any,
    ) -> None:
        if review:
            options.setdefault("timeout", None)
        super().__init__(**options)
        checked_detector(detector)
        self._llm = llm
        self._policy = policy or Policy()
        self._review = review
        self._streaming = streaming
        self._limits = limits or Limits()
        self._answers = GuardedLLM(
            llm=llm, detector=detector, policy=self._policy, limits=self._limits
        )
        self._screen = ImageScreen(
            self._answers.detector, self._policy, self._limits, component="ImageGuardWorkflow"
        )

    @step
    async def screen(self, ctx: Context, ev: AskEvent) -> ScreenedEvent:
        """Look at every picture of the messages.

        Raises:
            ImageRefused: the policy's action is ``raise``.
        """
        return await self._screened(ctx, ev.messages)

    @step
    async def decide(
        self, ctx: Context, ev: ScreenedEvent
    ) -> AnswerEvent | ReviewRequestedEvent | StopEvent:
        """Send on what may pass; refuse the rest, or ask a person."""
        if not ev.refused:
            return AnswerEvent(messages=ev.messages)
        if not self._review:
            return self._refusal(ev.verdicts)
        await ctx.store.set(_VERDICTS, ev.verdicts)
        return ReviewRequestedEvent(verdicts=ev.verdicts)

    @step
    async def rule(
        self, ctx: Context, ev: ReviewedEvent
    ) -> ScreenedEvent | AnswerEvent | StopEvent:
        """Go by what the person said.

        Raises:
            ConfigurationError: ``edit`` without messages, ``respond`` without a text.
        """
        if (ev.ruling == "edit" and ev.messages is None) or (
            ev.ruling == "respond" and ev.text is None
        ):
            needed = "messages" if ev.ruling == "edit" else "text"
            raise ConfigurationError(f"A ReviewedEvent with ruling {ev.ruling!r} needs {needed}.")
        messages = await ctx.store.get(_MESSAGES)
        verdicts = await ctx.store.get(_VERDICTS)
        await ctx.store.set(_MESSAGES, None)  # they are raw
        if ev.ruling == "edit":
            return await self._screened(ctx, ev.messages or [])
        if ev.ruling in ("approve", "allow"):
            return AnswerEvent(messages=messages)
        if ev.ruling == "mask":
            return AnswerEvent(messages=(await self._masked(messages)).value)
        if ev.ruling == "respond":
            response = refused(ev.text or "", verdicts, self._llm.metadata.model_name)
            return StopEvent(result=response.model_copy(update={"raw": None}))
        return self._refusal(verdicts, ev.text)

    @step
    async def answer(self, ctx: Context, ev: AnswerEvent) -> StopEvent:
        """Let the model answer."""
        if not self._streaming:
            answer = await self._llm.achat(ev.messages)
            return StopEvent(result=await self._answers.screen_answer(answer))
        last: ChatResponse | None = None
        async for piece in self._answers.screen_stream(await self._llm.astream_chat(ev.messages)):
            last = piece
            said = piece.message.content or ""
            ctx.write_event_to_stream(AnswerStream(delta=piece.delta or "", response=said))
        return StopEvent(result=last)

    async def _screened(self, ctx: Context, messages: list[ChatMessage]) -> ScreenedEvent:
        count = answered(messages, LLAMA_INDEX)
        turns = Turns(messages[:count], messages[count:], messages)
        [(past, outcome)] = await asyncio.to_thread(screen_turns, self._screen.loop, [turns])
        screened = passed(outcome)
        if self._review and screened.refused:
            await ctx.store.set(_MESSAGES, messages)
        return ScreenedEvent(
            messages=[*past, *screened.value],
            refused=screened.refused,
            verdicts=list(screened.verdicts),
        )

    async def _masked(self, messages: list[ChatMessage]) -> Screened:
        rules = self._policy.model_dump(exclude={"categories", "surfaces"})
        policy = Policy.model_validate({**rules, "on_flagged": "mask"})
        screen = ImageScreen(
            self._answers.detector, policy, self._limits, component="ImageGuardWorkflow"
        )
        return passed((await screen.ascreen([messages]))[0])

    def _refusal(self, verdicts: Sequence[Verdict], text: str | None = None) -> StopEvent:
        name = self._llm.metadata.model_name
        text = text or self._policy.refusal_for(verdicts)
        return StopEvent(result=refused(text, verdicts, name))
