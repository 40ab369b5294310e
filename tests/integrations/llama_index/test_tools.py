"""Tools behind a screen: LlamaIndex's tool classes, and agents that use them."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, ToolCallBlock
from llama_index.core.base.response.schema import Response
from llama_index.core.llms import MockFunctionCallingLLM
from llama_index.core.query_engine import CustomQueryEngine
from llama_index.core.schema import ImageNode, NodeWithScore
from llama_index.core.tools import BaseTool, FunctionTool, QueryEngineTool, ToolMetadata, ToolOutput
from llama_index.core.workflow import Context
from pydantic import BaseModel, ConfigDict

from chain_helpers import CLEAN, REMOTE, RISKY, RedDetector, clean_picture, risky_picture, text64
from llama_helpers import pictures_in, same
from sightrail.guardrails import ConfigurationError, ImageRefused, Policy, Verdict
from sightrail.integrations.llama_index import guard_tool


def screenshot(name: str = "page") -> list[Any]:
    """Take a screenshot."""
    return [ImageBlock(image=RISKY if name == "risky" else CLEAN)]


async def ascreenshot(name: str = "page") -> list[Any]:
    """Take a screenshot."""
    return screenshot(name)


def is_covered(value: Any) -> bool:
    return not any(image.tobytes() == risky_picture().tobytes() for image in pictures_in(value))


@pytest.mark.parametrize("function", [screenshot, ascreenshot])
async def test_every_way_of_calling_a_function_tool_is_screened(
    function: Any, detector: RedDetector
) -> None:
    bare = FunctionTool.from_defaults(function)
    tool = guard_tool(bare, detector=detector)
    assert isinstance(tool, FunctionTool)
    assert tool.metadata == bare.metadata
    called = [tool(name="risky"), tool.call(name="risky"), await tool.acall(name="risky")]
    called += [tool.fn(name="risky"), await tool.async_fn(name="risky")]
    result = tool.real_fn(name="risky")
    called.append(result if isinstance(result, list) else await result)
    assert all(list(pictures_in(one)) and is_covered(one) for one in called)
    assert same(pictures_in(bare.call(name="risky")), risky_picture())
    assert same(pictures_in(await tool.acall()), clean_picture())


async def test_a_refused_output_is_an_error_that_says_so(detector: RedDetector) -> None:
    policy = Policy(on_flagged="refuse", refusal="Not this.")
    tool = guard_tool(FunctionTool.from_defaults(screenshot), detector=detector, policy=policy)
    for output in (tool.call(name="risky"), await tool.acall(name="risky")):
        assert (output.content, output.is_error, output.tool_name) == (
            "Not this.",
            True,
            "screenshot",
        )
        (verdict,) = output.raw_output["sightrail"]["verdicts"]
        assert Verdict.model_validate(verdict).action == "refuse"
        assert not list(pictures_in(output))
    assert tool.fn(name="risky") == "Not this."


def test_the_policy_may_ask_for_an_exception(detector: RedDetector) -> None:
    policy = Policy(surfaces={"tool": {"on_flagged": "raise"}})
    tool = guard_tool(FunctionTool.from_defaults(screenshot), detector=detector, policy=policy)
    with pytest.raises(ImageRefused):
        tool.call(name="risky")


class _OldTool(BaseTool):
    """A synchronous tool with nothing but a call."""

    def __init__(self) -> None:
        self.output = ToolOutput(
            "old", blocks=[ImageBlock(image=RISKY)], raw_input={}, raw_output=text64(RISKY)
        )

    @property
    def metadata(self) -> ToolMetadata:
        return ToolMetadata(name="old", description="an old tool")

    def __call__(self, input: Any) -> ToolOutput:
        return self.output


async def test_tools_of_other_kinds_are_screened_and_their_output_not_changed(
    detector: RedDetector,
) -> None:
    old = _OldTool()
    before = copy.deepcopy(old.output)
    tool = guard_tool(old, detector=detector)
    for output in (tool("a"), await tool.acall("a")):
        assert len(list(pictures_in(output))) == 2
        assert is_covered(output)
    assert old.output == before


class _Engine(CustomQueryEngine):
    """A query engine whose answer names a poisoned source."""

    def custom_query(self, query_str: str) -> Response:
        return Response("hi", source_nodes=[NodeWithScore(node=ImageNode(image=text64(RISKY)))])


def test_the_sources_of_a_query_engine_are_screened(detector: RedDetector) -> None:
    engine = QueryEngineTool.from_defaults(_Engine(), name="album")
    output = guard_tool(engine, detector=detector).call(input="what?")
    assert output.content == "hi"
    assert list(pictures_in(output.raw_output))
    assert is_covered(output.raw_output)


@dataclasses.dataclass(frozen=True)
class _Page:
    title: str
    shot: Any


class _Model(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    shot: Any


RAW: dict[str, Any] = {
    "bytes": RISKY,
    "PIL": risky_picture(),
    "text": text64(RISKY),
    "list of nodes": [ImageNode(image=text64(RISKY))],
    "JSON block": {"type": "image", "data": text64(RISKY), "mimeType": "image/png"},
    "dataclass": _Page("a", RISKY),
    "pydantic": _Model(shot=[risky_picture()]),
    "message": ChatMessage(blocks=[ImageBlock(image=RISKY)]),
}


@pytest.mark.parametrize("form", RAW)
def test_raw_outputs_of_every_form_are_looked_into(form: str, detector: RedDetector) -> None:
    tool = FunctionTool.from_defaults(lambda: RAW[form], name="raw", description="raw")
    output = guard_tool(tool, detector=detector).call()
    assert same(detector.seen[:1], risky_picture())
    assert is_covered([output.blocks, getattr(output.raw_output, "shot", output.raw_output)])
    assert type(output.raw_output) is type(RAW[form])


@pytest.mark.parametrize("raw", [object(), iter([RISKY]), REMOTE.join, [{"a": object()}]])
def test_a_raw_output_that_nobody_can_look_into_is_refused(raw: Any, detector: RedDetector) -> None:
    tool = FunctionTool.from_defaults(lambda: raw, name="raw", description="raw")
    assert guard_tool(tool, detector=detector).call().is_error
    allowing = Policy(on_not_inspected="allow")
    assert guard_tool(tool, detector=detector, policy=allowing).call().raw_output is raw


@pytest.mark.parametrize("raw", [None, 3, "words", {"price": 3.5, "url": REMOTE}, [1, [2, "a"]]])
def test_plain_outputs_pass_untouched(raw: Any, detector: RedDetector) -> None:
    tool = FunctionTool.from_defaults(lambda: raw, name="raw", description="raw")
    output = guard_tool(tool, detector=detector).call()
    assert output.raw_output is raw
    assert not detector.calls


def test_what_is_no_detector_is_said_at_once() -> None:
    with pytest.raises(ConfigurationError, match="has no method screen"):
        guard_tool(FunctionTool.from_defaults(screenshot), detector="testbed")  # type: ignore


# Workflow looks through every attribute of an agent, deprecated ones of pydantic included.
@pytest.mark.filterwarnings("ignore:The `__fields.*:pydantic.PydanticDeprecatedSince20")
@pytest.mark.filterwarnings("ignore:Accessing the .* attribute on the instance:DeprecationWarning")
async def test_an_agent_hands_its_context_over_and_its_model_sees_the_covered_picture(
    detector: RedDetector,
) -> None:
    contexts: list[Any] = []
    heard: list[list[ChatMessage]] = []

    async def look(ctx: Context) -> list[Any]:
        """Take a screenshot."""
        contexts.append(ctx)
        return [ImageBlock(image=RISKY)]

    look.__annotations__["ctx"] = Context  # FunctionTool does not resolve postponed annotations

    def brain(messages: Any, **_: Any) -> ChatMessage:
        heard.append(list(messages))
        if len(heard) > 1:
            return ChatMessage("done", role=MessageRole.ASSISTANT)
        call = ToolCallBlock(tool_call_id="1", tool_name="look", tool_kwargs={})
        return ChatMessage(role=MessageRole.ASSISTANT, blocks=[call])

    tool = guard_tool(FunctionTool.from_defaults(look), detector=detector)
    llm = MockFunctionCallingLLM(response_generator=brain, is_chat_model=True)
    answer = await FunctionAgent(tools=[tool], llm=llm, streaming=False).run("what is there?")
    assert str(answer) == "done"
    assert isinstance(contexts[0], Context)
    (result,) = [m for m in heard[-1] if m.role == MessageRole.TOOL]
    assert list(pictures_in(result))
    assert is_covered(result)
