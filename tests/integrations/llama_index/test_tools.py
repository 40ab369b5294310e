"""Tools behind a screen: LlamaIndex's tool classes, and agents that use them."""

from __future__ import annotations

import collections
import copy
import dataclasses
import json
from typing import Any, NamedTuple

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, ToolCallBlock
from llama_index.core.base.response.schema import Response
from llama_index.core.llms import MockFunctionCallingLLM
from llama_index.core.query_engine import CustomQueryEngine
from llama_index.core.schema import ImageNode, NodeWithScore, TextNode
from llama_index.core.tools import BaseTool, FunctionTool, QueryEngineTool, ToolMetadata, ToolOutput
from llama_index.core.tools.calling import acall_tool
from llama_index.core.workflow import Context
from pydantic import BaseModel, ConfigDict

from chain_helpers import (
    CLEAN,
    RISKY,
    RedDetector,
    clean_picture,
    data_url,
    risky_picture,
    text64,
)
from llama_helpers import pictures_in, same
from sightrail.guardrails import ConfigurationError, ImageRefused, Policy, Verdict
from sightrail.integrations.llama_index import guard_tool, read_marker


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


class _Shot(NamedTuple):
    title: str
    image: Any


class _Camera:
    """An object of a tool's own."""

    def __init__(self) -> None:
        self.last = RISKY
        self.client = object()


IN_TEXT: dict[str, Any] = {
    "dict": lambda: {"id": 7, "image": text64(RISKY)},
    "bytes in a dict": lambda: {"id": 7, "image": RISKY},
    "list": lambda: ["a", text64(RISKY)],
    "namedtuple": lambda: _Shot("a", text64(RISKY)),
    "namedtuple of bytes": lambda: _Shot("a", RISKY),
    "JSON": lambda: json.dumps({"image": text64(RISKY), "id": 7}),
    "markdown": lambda: f"see ![it]({data_url(RISKY)}) there",
    "deque": lambda: collections.deque([data_url(RISKY)], maxlen=3),
    "nodes": lambda: [TextNode(text=f"<img src={data_url(RISKY)}>")],
    "pydantic": lambda: _Model(shot={"image": data_url(RISKY)}),
}


@pytest.mark.parametrize("form", IN_TEXT)
@pytest.mark.parametrize("policy", [Policy(), Policy(on_flagged="drop")])
def test_the_text_that_a_model_gets_holds_no_risky_picture(
    form: str, policy: Policy, detector: RedDetector
) -> None:
    tool = guard_tool(
        FunctionTool.from_defaults(IN_TEXT[form], name="f", description="f"),
        detector=detector,
        policy=policy,
    )
    output = tool.call()
    assert detector.seen
    for told in (output.content, str(output.raw_output), str(tool.fn())):
        assert text64(RISKY) not in told
        assert repr(RISKY)[2:-1] not in told
    assert type(output.raw_output) is type(IN_TEXT[form]())
    marker = read_marker(output)
    assert marker is None or {v.status for v in marker.verdicts} == {"flagged"}


def test_an_object_is_looked_into_and_stays_one(detector: RedDetector) -> None:
    camera = _Camera()
    output = guard_tool(lambda: camera, detector=detector).call()
    assert type(output.raw_output) is _Camera
    assert (camera.last, output.raw_output.client) == (RISKY, camera.client)
    assert is_covered([output.raw_output.last])


def test_a_function_becomes_a_tool_and_what_is_none_is_said(detector: RedDetector) -> None:
    tool = guard_tool(screenshot, detector=detector)
    assert tool.metadata.name == "screenshot"
    assert is_covered(tool.call(name="risky").blocks)
    with pytest.raises(ConfigurationError, match="takes a tool"):
        guard_tool("screenshot", detector=detector)  # type: ignore[arg-type]


async def test_an_exception_in_an_agent_leaves_a_trace(
    detector: RedDetector, caplog: pytest.LogCaptureFixture
) -> None:
    tool = guard_tool(screenshot, detector=detector, policy=Policy(on_flagged="raise"))
    with caplog.at_level("WARNING", logger="sightrail"):
        output = await acall_tool(tool, {"name": "risky"})
    assert output.is_error
    assert isinstance(output.exception, ImageRefused)
    assert "screenshot raises ImageRefused" in caplog.text
    assert not list(pictures_in(output))


def test_verdicts_are_told_and_stand_on_what_passed(detector: RedDetector) -> None:
    told: list[Verdict] = []
    output = guard_tool(screenshot, detector=detector, on_verdict=told.append).call(name="risky")
    marker = read_marker(output)
    assert marker is not None
    assert [(v.status, v.action) for v in marker.verdicts] == [("flagged", "mask")]
    assert [verdict.action for verdict in told] == ["mask"]
    assert "sightrail" not in output.model_dump_json()


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
