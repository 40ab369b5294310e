"""A local model's decision about a request, in front of any chain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import BaseMessage, HumanMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from pydantic import ConfigDict, Field, field_validator

from sightrail.guardrails.errors import (
    ConfigurationError,
    PromptError,
    RequestRefused,
    SightrailError,
)
from sightrail.guardrails.intake import Limits
from sightrail.guardrails.verdict import Verdict

from .marker import is_refused, write_marker
from .replies import message, refusal_fields
from .run_metadata import note_on_run
from .turns import Conversation, read_turns

if TYPE_CHECKING:
    from sightrail.guardrails import LocalLVLM

Outcome = tuple[Verdict, ...] | SightrailError


class RefusalGate(RunnableSerializable[Any, Any]):
    """Ask a guarded local model whether a request is safe, and let only safe ones through.

    Takes a string, a prompt value, a message or a list of messages, pictures included. A safe
    request comes out as it went in; an unsafe one as an ``AIMessage`` with the policy's refusal,
    whose ``response_metadata`` holds ``refused=True`` and the verdicts. With ``guard`` the gate
    stands before a chain, which then never sees an unsafe request:

        ``RefusalGate(model=lvlm).guard(prompt | hosted_model | parser)``

    The local model reads the request once and writes nothing. What it finds is decided by its
    guardrails, such as ``Casa``; pictures are screened as well if a detector is among them. Where
    the model's policy says ``raise``, an exception takes the place of the refusal; where it says
    ``allow`` or monitors, everything passes, and the verdicts are on the traced run.

    Args:
        model: a ``LocalLVLM`` with a guardrail that decides.
        refusal: a text in place of the policy's, or a function from the verdicts to whatever is to
            come out; None for the policy's text.
        limits: what intake is willing to decode.
        chain: what a safe request goes on to; see ``guard``.

    Raises:
        ConfigurationError: the model has no guardrail.
        RequestRefused: where the policy's action is ``raise``.
    """

    model: Any = Field(exclude=True)
    refusal: str | Callable[[tuple[Verdict, ...]], Any] | None = None
    limits: Limits = Limits()
    chain: Any = None

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    @field_validator("model")
    @classmethod
    def _decides(cls, model: Any) -> Any:
        if not callable(getattr(model, "assess_batch", None)) or not model.guardrails:
            raise ConfigurationError(
                f"{type(model).__name__} decides about nothing; pass a LocalLVLM with a guardrail "
                "that does, such as LocalLVLM.from_pretrained(name, guardrails=[Casa...])."
            )
        return model

    def guard(self, chain: Runnable[Any, Any]) -> RefusalGate:
        """This gate with a chain behind it, which only safe requests reach."""
        return self.model_copy(update={"chain": chain})

    def assess(self, requests: Sequence[Any]) -> list[Outcome]:
        """The verdicts on each request; the exception where one led to one."""
        read = [self._read(request) for request in requests]
        asked = [row for row, one in enumerate(read) if isinstance(one, Conversation)]
        told = dict(zip(asked, self._ask([read[row] for row in asked]), strict=True))
        return [told[row] if isinstance(one, Conversation) else one for row, one in enumerate(read)]

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Let one request through, or refuse it."""
        return self._call_with_config(self._one, input, config, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """``invoke``, the decision in a worker thread."""
        return await self._acall_with_config(self._aone, input, config, **kwargs)

    def stream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[Any]:
        """Stream the chain's answer; a refusal is one chunk."""
        yield from self._transform_stream_with_config(iter([input]), self._stream, config, **kwargs)

    async def astream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """``stream``, asynchronously."""
        async for chunk in self._atransform_stream_with_config(
            _once(input), self._astream, config, **kwargs
        ):
            yield chunk

    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Decide on all requests in as few runs as the model allows."""
        return self._batch_with_config(
            self._all, inputs, config, return_exceptions=return_exceptions, **kwargs
        )

    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """``batch``, the decisions in a worker thread."""
        return await self._abatch_with_config(
            self._aall, inputs, config, return_exceptions=return_exceptions, **kwargs
        )

    # Reading and deciding

    @property
    def _lvlm(self) -> LocalLVLM:
        return self.model  # type: ignore[no-any-return]

    def _read(self, request: Any) -> Conversation | SightrailError:
        try:
            return read_turns(_messages(request), self._lvlm.policy, self.limits)
        except SightrailError as error:
            return error

    def _ask(self, conversations: Sequence[Any]) -> list[Outcome]:
        """One run for all; each alone where one of them cannot be read."""
        ready = [one for one in conversations if not one.refused]
        try:
            found = iter(self._lvlm.assess_batch([one.turns for one in ready]) if ready else [])
        except SightrailError as error:
            if len(conversations) == 1:
                return [error]
            return [outcome for one in conversations for outcome in self._ask([one])]
        return [
            one.verdicts if one.refused else (*one.verdicts, *next(found)) for one in conversations
        ]

    def _refused(self, request: Any, outcome: Outcome) -> bool:
        """Whether this is not to go on.

        Raises:
            SightrailError: what it led to; ``RequestRefused`` where the policy says so.
        """
        if isinstance(outcome, SightrailError):
            raise outcome
        note_on_run(outcome)
        actions = {verdict.action for verdict in outcome}
        if self._lvlm.policy.monitor or not actions & {"refuse", "raise"}:
            return is_refused(_messages(request))
        if "raise" in actions:
            said = next(verdict for verdict in outcome if verdict.action == "raise")
            raise RequestRefused(
                f"The policy refuses this request: {said.summary()}", verdicts=outcome
            )
        return True

    def _refusal(self, outcome: Outcome) -> Any:
        verdicts = outcome if isinstance(outcome, tuple) else ()
        if callable(self.refusal):
            return self.refusal(verdicts)
        text = self._lvlm.policy.refusal_for(verdicts) if self.refusal is None else self.refusal
        refused = message(text, refusal_fields(verdicts, self._lvlm.name))
        return write_marker(refused, verdicts, refused=True)

    # One request, several requests, a stream

    def _one(self, request: Any, run_manager: Any, config: RunnableConfig, **kwargs: Any) -> Any:
        (outcome,) = self.assess([request])
        if self._refused(request, outcome):
            return self._refusal(outcome)
        return request if self.chain is None else self.chain.invoke(request, config, **kwargs)

    async def _aone(
        self, request: Any, run_manager: Any, config: RunnableConfig, **kwargs: Any
    ) -> Any:
        (outcome,) = await asyncio.to_thread(self.assess, [request])
        if self._refused(request, outcome):
            return self._refusal(outcome)
        if self.chain is None:
            return request
        return await self.chain.ainvoke(request, config, **kwargs)

    def _stream(
        self, requests: Iterator[Any], run_manager: Any, config: RunnableConfig, **kwargs: Any
    ) -> Iterator[Any]:
        for request in requests:
            (outcome,) = self.assess([request])
            if self._refused(request, outcome):
                yield self._refusal(outcome)
            elif self.chain is None:
                yield request
            else:
                yield from self.chain.stream(request, config, **kwargs)

    async def _astream(
        self, requests: AsyncIterator[Any], run_manager: Any, config: RunnableConfig, **kwargs: Any
    ) -> AsyncIterator[Any]:
        async for request in requests:
            (outcome,) = await asyncio.to_thread(self.assess, [request])
            if self._refused(request, outcome):
                yield self._refusal(outcome)
            elif self.chain is None:
                yield request
            else:
                async for chunk in self.chain.astream(request, config, **kwargs):
                    yield chunk

    def _all(
        self,
        requests: list[Any],
        run_manager: list[Any],
        config: list[RunnableConfig],
        **kwargs: Any,
    ) -> list[Any]:
        found = self._decided(requests, self.assess(requests))
        rows = [row for row in range(len(requests)) if row not in found]
        passing = [requests[row] for row in rows]
        if self.chain is not None:
            configs = [config[row] for row in rows]
            passing = self.chain.batch(passing, configs, return_exceptions=True, **kwargs)
        return _in_order(found, rows, passing)

    async def _aall(
        self,
        requests: list[Any],
        run_manager: list[Any],
        config: list[RunnableConfig],
        **kwargs: Any,
    ) -> list[Any]:
        found = self._decided(requests, await asyncio.to_thread(self.assess, requests))
        rows = [row for row in range(len(requests)) if row not in found]
        passing = [requests[row] for row in rows]
        if self.chain is not None:
            configs = [config[row] for row in rows]
            passing = await self.chain.abatch(passing, configs, return_exceptions=True, **kwargs)
        return _in_order(found, rows, passing)

    def _decided(self, requests: list[Any], outcomes: list[Outcome]) -> dict[int, Any]:
        """What comes out for every request that does not go on, by row."""
        found: dict[int, Any] = {}
        for row, (request, outcome) in enumerate(zip(requests, outcomes, strict=True)):
            try:
                if self._refused(request, outcome):
                    found[row] = self._refusal(outcome)
            except SightrailError as error:
                found[row] = error
        return found


def _in_order(found: dict[int, Any], rows: list[int], passing: list[Any]) -> list[Any]:
    merged = {**found, **dict(zip(rows, passing, strict=True))}
    return [merged[row] for row in range(len(merged))]


def _messages(request: Any) -> list[BaseMessage]:
    """A request as messages.

    Raises:
        PromptError: it is nothing that a chat model takes.
    """
    if isinstance(request, str):
        return [HumanMessage(request)]
    if isinstance(request, PromptValue):
        return request.to_messages()
    if isinstance(request, BaseMessage):
        return [request]
    try:
        return list(convert_to_messages(request))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise PromptError(
            f"A {type(request).__name__} is no request; pass a string, a prompt value, a message "
            "or a list of messages."
        ) from error


async def _once(value: Any) -> AsyncIterator[Any]:
    yield value
