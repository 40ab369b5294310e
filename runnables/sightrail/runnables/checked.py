"""A check in front of a runnable: what passes goes on to it, what does not is answered at once."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.utils import Input, Output

from sightrail.guardrails.errors import SightrailError
from sightrail.guardrails.verdict import Verdict


@dataclass(frozen=True)
class Onward:
    """A request has passed.

    Attributes:
        value: what goes on.
        verdicts: what was found on it, which its answer is to tell.
    """

    value: Any
    verdicts: tuple[Verdict, ...] = ()


@dataclass(frozen=True)
class Instead:
    """A request has not passed.

    Attributes:
        answer: what comes out in place of the runnable's answer.
        chunk: the only chunk where that is streamed.
    """

    answer: Any
    chunk: Any


class Passing:
    """What a stream goes through on its way out: here everything passes as it comes.

    Attributes:
        value: what is left at the end and has to be looked at.
        asked: what the answer has yet to tell about its request.
    """

    value: Any = None

    def __init__(self, asked: Onward | None = None) -> None:
        self.asked = asked or Onward(None)

    def take(self, chunk: Any) -> Any:
        """The next chunk comes in; gives what may go on, None as long as nothing may."""
        return chunk


class CheckedRunnable(RunnableSerializable[Input, Output]):
    """All ways of calling a runnable that has a check in front of it.

    A batch is checked as one; a request that leads to an error does not spoil its neighbours.
    """

    @abstractmethod
    def _check(self, requests: list[Any]) -> list[Any]:
        """The outcome of the check for every request; in asynchronous calls in a worker thread."""

    @abstractmethod
    def _rule(self, request: Any, outcome: Any) -> Onward | Instead:
        """What an outcome leads to.

        Raises:
            SightrailError: it led to that.
        """

    def _for(self, settings: dict[str, Any]) -> Self:
        """What a call with these settings goes through."""
        return self

    def _look_at(self, answers: list[Any], asked: list[Onward]) -> list[Any]:
        """What comes out for what the runnable behind has answered; an exception is raised."""
        return answers

    def _way_out(self, asked: Onward) -> Passing:
        """What a streamed answer goes through."""
        return Passing(asked)

    def _traced(self, request: Any) -> Any:
        """What LangChain's traces of this run show as its input."""
        return request

    @property
    @abstractmethod
    def _behind(self) -> Runnable[Any, Any] | None:
        """Where passing requests go; None where they come out as they went in."""

    def invoke(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any) -> Output:
        """Check one request, and answer it if it passes."""
        run = partial(self._for(kwargs)._one, input)
        return self._call_with_config(run, self._traced(input), config, **kwargs)

    async def ainvoke(
        self, input: Input, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Output:
        """``invoke``, the check in a worker thread."""
        run = partial(self._for(kwargs)._aone, input)
        return await self._acall_with_config(run, self._traced(input), config, **kwargs)

    def stream(
        self, input: Input, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[Output]:
        """Stream the answer; a refusal is one chunk."""
        run = partial(self._for(kwargs)._flow, input)
        shown = iter([self._traced(input)])
        yield from self._transform_stream_with_config(shown, run, config, **kwargs)

    async def astream(
        self, input: Input, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Output]:
        """``stream``, asynchronously."""
        run = partial(self._for(kwargs)._aflow, input)
        shown = _once(self._traced(input))
        async for chunk in self._atransform_stream_with_config(shown, run, config, **kwargs):
            yield chunk

    def batch(
        self,
        inputs: list[Input],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Output]:
        """Check all requests at once, and answer those that pass as one batch."""
        run = partial(self._for(kwargs)._all, inputs)
        shown = [self._traced(request) for request in inputs]
        return self._batch_with_config(
            run, shown, config, return_exceptions=return_exceptions, **kwargs
        )

    async def abatch(
        self,
        inputs: list[Input],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Output]:
        """``batch``, the check in a worker thread."""
        run = partial(self._for(kwargs)._aall, inputs)
        shown = [self._traced(request) for request in inputs]
        return await self._abatch_with_config(
            run, shown, config, return_exceptions=return_exceptions, **kwargs
        )

    # One request, several requests, a stream. What traces show of a request is no use here.

    def _one(
        self, request: Any, shown: Any, run_manager: Any, config: RunnableConfig, **kwargs: Any
    ) -> Any:
        ruling = self._rule(request, self._check([request])[0])
        if isinstance(ruling, Instead):
            return ruling.answer
        if self._behind is None:
            return ruling.value
        answer = self._behind.invoke(ruling.value, config, **kwargs)
        return _raised(self._look_at([answer], [ruling]))

    async def _aone(
        self, request: Any, shown: Any, run_manager: Any, config: RunnableConfig, **kwargs: Any
    ) -> Any:
        ruling = self._rule(request, (await asyncio.to_thread(self._check, [request]))[0])
        if isinstance(ruling, Instead):
            return ruling.answer
        if self._behind is None:
            return ruling.value
        answer = await self._behind.ainvoke(ruling.value, config, **kwargs)
        return _raised(await asyncio.to_thread(self._look_at, [answer], [ruling]))

    def _flow(
        self,
        request: Any,
        shown: Iterator[Any],
        run_manager: Any,
        config: RunnableConfig,
        **kwargs: Any,
    ) -> Iterator[Any]:
        ruling = self._rule(request, self._check([request])[0])
        if isinstance(ruling, Instead):
            yield ruling.chunk
        elif self._behind is None:
            yield ruling.value
        else:
            out = self._way_out(ruling)
            for chunk in self._behind.stream(ruling.value, config, **kwargs):
                if (ready := out.take(chunk)) is not None:
                    yield ready
            if out.value is not None:
                yield _raised(self._look_at([out.value], [out.asked]))

    async def _aflow(
        self,
        request: Any,
        shown: AsyncIterator[Any],
        run_manager: Any,
        config: RunnableConfig,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        ruling = self._rule(request, (await asyncio.to_thread(self._check, [request]))[0])
        if isinstance(ruling, Instead):
            yield ruling.chunk
        elif self._behind is None:
            yield ruling.value
        else:
            out = self._way_out(ruling)
            async for chunk in self._behind.astream(ruling.value, config, **kwargs):
                if (ready := out.take(chunk)) is not None:
                    yield ready
            if out.value is not None:
                yield _raised(await asyncio.to_thread(self._look_at, [out.value], [out.asked]))

    def _all(
        self,
        requests: list[Any],
        shown: list[Any],
        run_manager: list[Any],
        config: list[RunnableConfig],
        **kwargs: Any,
    ) -> list[Any]:
        rulings = self._rulings(requests, self._check(requests))
        onward, configs = _passing(rulings, config)
        passing = [ruling.value for ruling in onward]
        if self._behind is not None:
            answers = self._behind.batch(passing, configs, return_exceptions=True, **kwargs)
            passing = self._look_at(answers, onward)
        return _in_order(rulings, passing)

    async def _aall(
        self,
        requests: list[Any],
        shown: list[Any],
        run_manager: list[Any],
        config: list[RunnableConfig],
        **kwargs: Any,
    ) -> list[Any]:
        rulings = self._rulings(requests, await asyncio.to_thread(self._check, requests))
        onward, configs = _passing(rulings, config)
        passing = [ruling.value for ruling in onward]
        if self._behind is not None:
            answers = await self._behind.abatch(passing, configs, return_exceptions=True, **kwargs)
            passing = await asyncio.to_thread(self._look_at, answers, onward)
        return _in_order(rulings, passing)

    def _rulings(
        self, requests: list[Any], outcomes: list[Any]
    ) -> list[Onward | Instead | SightrailError]:
        rulings: list[Onward | Instead | SightrailError] = []
        for request, outcome in zip(requests, outcomes, strict=True):
            try:
                rulings.append(self._rule(request, outcome))
            except SightrailError as error:
                rulings.append(error)
        return rulings


def _passing(
    rulings: list[Onward | Instead | SightrailError], config: list[RunnableConfig]
) -> tuple[list[Onward], list[RunnableConfig]]:
    """What goes on, each with its own config."""
    kept = [(r, own) for r, own in zip(rulings, config, strict=True) if isinstance(r, Onward)]
    return [ruling for ruling, _ in kept], [own for _, own in kept]


def _in_order(rulings: list[Onward | Instead | SightrailError], passing: list[Any]) -> list[Any]:
    """What comes out for every request; ``passing`` are the answers to those that went on."""
    answers = iter(passing)
    return [
        next(answers)
        if isinstance(ruling, Onward)
        else ruling.answer
        if isinstance(ruling, Instead)
        else ruling
        for ruling in rulings
    ]


def _raised(outcomes: list[Any]) -> Any:
    """The only outcome.

    Raises:
        Exception: it is one.
    """
    (outcome,) = outcomes
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def _once(value: Any) -> AsyncIterator[Any]:
    yield value
