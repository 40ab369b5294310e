"""What holds no picture is the very object that it was, whatever part of ours it goes through."""

from __future__ import annotations

import copy

import pytest
from llama_index.core.base.response.schema import StreamingResponse
from llama_index.core.schema import (
    NodeWithScore,
)
from llama_index.core.tools import FunctionTool, QueryEngineTool

from llama_untouched import DATA, MESSAGES, NODES, VALUES, Streaming
from sightrail.guardrails.testing import StubDetector
from sightrail.integrations.llama_index import (
    ImageRiskPostprocessor,
    ImageRiskTransform,
    ImageScreen,
    guard_tool,
)


def guards() -> tuple[ImageScreen, StubDetector]:
    detector = StubDetector(flag=True)
    return ImageScreen(detector), detector


def test_the_table_is_large() -> None:
    assert len(DATA) + len(MESSAGES) + len(NODES) + len(VALUES) >= 60


@pytest.mark.parametrize("name", DATA)
async def test_a_tools_output_is_the_same_object(name: str) -> None:
    value, detector = DATA[name], StubDetector(flag=True)
    tool = FunctionTool.from_defaults(lambda: value, name="f", description="f")
    bare, guarded = tool.call(), guard_tool(tool, detector=detector)
    for output in (guarded.call(), await guarded.acall()):
        assert output.raw_output is value
        assert output.blocks == bare.blocks
        assert not output.is_error
    assert guarded.fn() is value  # type: ignore[attr-defined]
    assert not detector.seen


def test_a_data_frame_passes() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1, 2], "b": ["x", b"y"]})
    output = guard_tool(lambda: frame, detector=StubDetector(flag=True)).call()
    assert output.raw_output is frame
    assert output.content == str(frame)


def test_a_streaming_engine_still_streams() -> None:
    engine = QueryEngineTool.from_defaults(Streaming(), name="stream", description="a stream")
    output = guard_tool(engine, detector=StubDetector(flag=True)).call(input="what?")
    assert (output.content, output.is_error) == ("a b", False)
    assert isinstance(output.raw_output, StreamingResponse)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_the_same_object(name: str) -> None:
    screen, detector = guards()
    before = copy.deepcopy(MESSAGES[name])
    [outcome] = screen.screen([[MESSAGES[name]]])
    assert outcome.value[0] is MESSAGES[name]
    assert MESSAGES[name] == before
    assert (outcome.verdicts, outcome.refused, detector.seen) == ((), False, [])


@pytest.mark.parametrize("name", NODES)
def test_a_node_is_the_same_object_on_its_way_in_and_out(name: str) -> None:
    detector = StubDetector(flag=True)
    before = NODES[name].model_dump()
    assert ImageRiskTransform(detector=detector)([NODES[name]]) == [NODES[name]]
    [kept] = ImageRiskTransform(detector=detector)([NODES[name]])
    [found] = ImageRiskPostprocessor(detector=detector).postprocess_nodes(
        [NodeWithScore(node=NODES[name], score=0.5)]
    )
    assert kept is NODES[name]
    assert found.node is NODES[name]
    assert NODES[name].model_dump() == before
    assert not detector.seen


@pytest.mark.parametrize("name", VALUES)
def test_any_other_value_is_the_same_object(name: str) -> None:
    screen, detector = guards()
    [outcome] = screen.screen([VALUES[name]])
    assert outcome.value is VALUES[name]
    assert (outcome.verdicts, outcome.refused, detector.seen) == ((), False, [])
