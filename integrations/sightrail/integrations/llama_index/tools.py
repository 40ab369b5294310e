"""Screening what tools give back, before an agent's model sees it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from llama_index.core.base.llms.types import TextBlock
from llama_index.core.tools import (
    AsyncBaseTool,
    BaseTool,
    FunctionTool,
    ToolMetadata,
    ToolOutput,
    adapt_to_async_tool,
)

from sightrail.guardrails.carriers.carrier import KEY, Marker
from sightrail.guardrails.carriers.loop import OnVerdict, Screened, passed
from sightrail.guardrails.errors import ConfigurationError, ImageRefused
from sightrail.guardrails.intake import Limits
from sightrail.guardrails.policy import Policy
from sightrail.guardrails.screening.asking import Detector
from sightrail.guardrails.telemetry import LOGGER

from .screening import ImageScreen


def guard_tool(
    tool: BaseTool | Callable[..., Any],
    *,
    detector: Detector,
    policy: Policy | None = None,
    limits: Limits | None = None,
    on_verdict: OnVerdict | None = None,
) -> AsyncBaseTool:
    """The same tool, with every picture in its output screened.

    Pictures are looked for in the blocks, which a model sees, and in ``raw_output``, which the app
    and some agents read: nodes, responses, JSON, dataclasses, pydantic models, objects. Where a
    text is how LlamaIndex tells of the raw output, it tells of the screened one. What holds no
    picture is passed on as the very object that it is. A refused output is an error whose text is
    the policy's refusal, with the verdicts in ``raw_output["sightrail"]``; those on an output that
    passes are read by ``read_marker``.

    Where the policy's action is ``raise``, the call raises ImageRefused. LlamaIndex's agents make
    an error output of whatever a tool raises, with the error as its ``exception``, and go on: a
    warning is logged, so that this is seen, and ``refuse`` does the same without the detour.

    Args:
        tool: any LlamaIndex tool, or a function, which becomes a FunctionTool; it is not changed. A
            FunctionTool stays one, so agents go on passing it their context.
        detector: has ``screen(images) -> list[Verdict]``, such as ``RiskDetector``.
        policy: what a verdict leads to; ``Policy()`` when None.
        limits: what intake is willing to decode; ``Limits()`` when None.
        on_verdict: called with every verdict, in the thread that screens.

    Raises:
        ConfigurationError: that is no tool, or no detector.

    Example:
        ``FunctionAgent(tools=[guard_tool(take_screenshot, detector=detector)], llm=llm)``
    """
    screen = ImageScreen(
        detector,
        policy or Policy(),
        limits or Limits(),
        "tool",
        "guard_tool",
        on_verdict,
    )
    if isinstance(tool, FunctionTool):
        return _GuardedFunctionTool(tool, screen)
    if isinstance(tool, BaseTool):
        return _GuardedTool(adapt_to_async_tool(tool), screen)
    if inspect.isfunction(tool) or inspect.ismethod(tool):
        return _GuardedFunctionTool(FunctionTool.from_defaults(tool), screen)
    raise ConfigurationError(
        f"guard_tool takes a tool of LlamaIndex or a function, got {type(tool).__name__}; "
        "FunctionTool.from_defaults and QueryEngineTool.from_defaults make tools."
    )


class _GuardedTool(AsyncBaseTool):
    """A tool behind a screen."""

    def __init__(self, tool: AsyncBaseTool, screen: ImageScreen) -> None:
        self._tool = tool
        self._screen = screen

    @property
    def metadata(self) -> ToolMetadata:
        return self._tool.metadata

    def call(self, *args: Any, **kwargs: Any) -> ToolOutput:
        return _screened(self._tool.call(*args, **kwargs), self._screen)

    async def acall(self, *args: Any, **kwargs: Any) -> ToolOutput:
        return await _ascreened(await self._tool.acall(*args, **kwargs), self._screen)


class _GuardedFunctionTool(FunctionTool):
    """A FunctionTool behind a screen.

    Some agents and bridges take the function out of a FunctionTool (``fn``, ``async_fn``,
    ``real_fn``) and call it themselves, so these are screened as well.
    """

    def __init__(self, tool: FunctionTool, screen: ImageScreen) -> None:
        name = tool.metadata.get_name()
        coroutine = inspect.iscoroutinefunction(tool.real_fn)
        super().__init__(
            fn=_guarded(tool.real_fn, name, screen),
            async_fn=None if coroutine else _guarded(tool.async_fn, name, screen),
            metadata=tool.metadata,
            partial_params=tool.partial_params,
        )
        self._tool = tool
        self._screen = screen

    def call(self, *args: Any, **kwargs: Any) -> ToolOutput:
        return _screened(self._tool.call(*args, **kwargs), self._screen)

    async def acall(self, *args: Any, **kwargs: Any) -> ToolOutput:
        return await _ascreened(await self._tool.acall(*args, **kwargs), self._screen)


def _screened(output: ToolOutput, screen: ImageScreen) -> ToolOutput:
    return _told(output, screen.screen([output])[0], screen.policy)


async def _ascreened(output: ToolOutput, screen: ImageScreen) -> ToolOutput:
    (outcome,) = await screen.ascreen([output])
    return _told(output, outcome, screen.policy)


def _passed(name: str, outcome: Screened | ImageRefused) -> Screened:
    if isinstance(outcome, ImageRefused):
        LOGGER.warning(
            "guard_tool: %s raises ImageRefused; LlamaIndex's agents make an error of it and go on",
            name,
        )
    return passed(outcome)


def _told(output: ToolOutput, outcome: Screened | ImageRefused, policy: Policy) -> ToolOutput:
    screened = _passed(output.tool_name, outcome)
    if not screened.refused:
        seen: ToolOutput = screened.value
        return seen
    return ToolOutput(
        blocks=[TextBlock(text=policy.refusal_for(screened.verdicts))],
        tool_name=output.tool_name,
        raw_input=output.raw_input,
        raw_output={KEY: Marker(refused=True, verdicts=screened.verdicts).to_json()},
        is_error=True,
    )


def _guarded(function: Callable[..., Any], name: str, screen: ImageScreen) -> Callable[..., Any]:
    """The function with its result screened; a refused result is the policy's refusal text."""

    def told(outcome: Screened | ImageRefused) -> Any:
        screened = _passed(name, outcome)
        if screened.refused:
            return screen.policy.refusal_for(screened.verdicts)
        return screened.value.raw_output

    def output(result: Any) -> ToolOutput:
        return ToolOutput(name, raw_input={}, raw_output=result)

    if inspect.iscoroutinefunction(function):

        @wraps(function)
        async def arun(*args: Any, **kwargs: Any) -> Any:
            result = await function(*args, **kwargs)
            return told((await screen.ascreen([output(result)]))[0])

        return arun

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return told(screen.screen([output(function(*args, **kwargs))])[0])

    return run
