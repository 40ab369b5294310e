"""What holds no picture is the very object that it was, whatever part of ours it goes through."""

from __future__ import annotations

import collections
import copy
import dataclasses
import datetime
import decimal
import enum
import io
import pathlib
import queue
import re
import threading
import uuid
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from llama_index.core.base.llms.types import (
    CacheControl,
    CachePoint,
    ChatMessage,
    ChatResponse,
    CitableBlock,
    CitationBlock,
    CompletionResponse,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.base.response.schema import Response, StreamingResponse
from llama_index.core.query_engine import CustomQueryEngine
from llama_index.core.schema import (
    Document,
    IndexNode,
    MediaResource,
    Node,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.tools import FunctionTool, QueryEngineTool, ToolOutput
from llama_index.core.workflow import Event, StopEvent
from pydantic import BaseModel

from chain_helpers import REMOTE
from sightrail.guardrails.testing import StubDetector
from sightrail.integrations.llama_index import (
    ImageRiskPostprocessor,
    ImageRiskTransform,
    ImageScreen,
    guard_tool,
)


class Colour(enum.Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    label: str


@dataclasses.dataclass
class Row:
    name: str
    cells: list[float]


class Page(BaseModel):
    title: str
    links: list[str]


class Client:
    """An object of an app's own, with whatever it needs."""

    def __init__(self) -> None:
        self.base_url = REMOTE
        self.lock = threading.Lock()
        self.rows = [1, 2, {"a": object()}]
        self.me = self

    def get(self) -> str:
        return "words"


class Slotted:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = b"\x00\x01"


class Streaming(CustomQueryEngine):
    def custom_query(self, query_str: str) -> Any:
        return StreamingResponse(response_gen=iter(["a ", "b"]), source_nodes=[])


def _tokens() -> Any:
    yield "a"


async def _atokens() -> Any:
    yield "a"


DATA: dict[str, Any] = {
    "None": None,
    "bool": True,
    "int": 3,
    "float": 2.5,
    "complex": 1j,
    "text": "plain words, 7 of them",
    "long text": "word " * 20_000,
    "address": REMOTE,
    "markdown": "![cat](https://example.org/cat.png)",
    "HTML": "<p>hello <b>you</b><img src='cat.png'></p>",
    "JSON text": '{"image": "cat.png", "id": 7}',
    "hash": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "base64 of no picture": "aGVsbG8gd29ybGQsIHRoaXMgaXMgbm8gcGljdHVyZSBhdCBhbGwsIGp1c3Qgd29yZHM=",
    "data address of text": "data:text/plain;base64,aGVsbG8gd29ybGQ=",
    "token": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmN",
    "list": ["a", 1, 2.5, ("b", "c")],
    "empty list": [],
    "tuple": (1, "b"),
    "set": {1, 2},
    "frozenset": frozenset("ab"),
    "dict": {"price": 3.5, "url": REMOTE, "nested": {"x": [1, {"y": None}]}},
    "dict with any type": {"type": "report", "source": "report.docx", "id": 7},
    "OrderedDict": collections.OrderedDict(a=1),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "Counter": collections.Counter("aab"),
    "deque": collections.deque([1, "b"], maxlen=5),
    "namedtuple": Point(1, "here"),
    "enum": Colour.RED,
    "datetime": datetime.datetime(2026, 1, 2),
    "date": datetime.date(2026, 1, 2),
    "timedelta": datetime.timedelta(1),
    "decimal": decimal.Decimal("1.10"),
    "uuid": uuid.UUID(int=7),
    "path": pathlib.Path("report.docx"),
    "pattern": re.compile("a+"),
    "bytes of no media": b"\x00\x01 plain",
    "bytearray": bytearray(b"plain bytes"),
    "memoryview": memoryview(b"plain bytes"),
    "zip bytes": b"PK\x03\x04" + bytes(40),
    "BytesIO": io.BytesIO(b"plain"),
    "StringIO": io.StringIO("plain"),
    "generator": _tokens(),
    "async generator": _atokens(),
    "iterator": iter([1, 2]),
    "range": range(4),
    "function": _tokens,
    "lambda": lambda: 1,
    "class": Client,
    "object": object(),
    "custom object": Client(),
    "slots": Slotted(),
    "exception": ValueError("no"),
    "lock": threading.Lock(),
    "queue": queue.Queue(),
    "module": io,
    "dataclass": Row("a", [0.5]),
    "pydantic": Page(title="a", links=[REMOTE]),
    "httpx.Response": httpx.Response(200, json={"a": 1}),
    "httpx.Headers": httpx.Headers({"a": "b"}),
    "vector": np.linspace(-1, 1, 512),
    "matrix": np.ones((40, 768), dtype=np.float32) * -3,
    "labels": np.array(["a", "b"]),
    "scalar": np.float32(2),
    "Response": Response("words", source_nodes=[NodeWithScore(node=TextNode(text="a"))]),
    "StreamingResponse": StreamingResponse(response_gen=iter(["a"]), source_nodes=[]),
    "CompletionResponse": CompletionResponse(text="a", raw={"id": 1}),
    "ChatResponse": ChatResponse(message=ChatMessage("a"), raw=object()),
}
"""What tools give back, and apps hold, that is no picture."""

BLOCKS: dict[str, Any] = {
    "text": TextBlock(text="words"),
    "cache point": CachePoint(cache_control=CacheControl(type="ephemeral")),
    "thinking": ThinkingBlock(content="hm", additional_information={"signature": "RXJJ" * 40}),
    "tool call": ToolCallBlock(tool_name="f", tool_kwargs={"image_url": REMOTE, "n": 1}),
    "tool call in text": ToolCallBlock(tool_name="f", tool_kwargs='{"image_url": "a.png"}'),
    "citable": CitableBlock(title="a", source="b", content=[TextBlock(text="c")]),
    "citation": CitationBlock(
        cited_content=TextBlock(text="c"), source="a", title="b", additional_location_info={"p": 1}
    ),
}
MESSAGES: dict[str, ChatMessage] = {
    **{f"{name} block": ChatMessage(blocks=[block]) for name, block in BLOCKS.items()},
    "system": ChatMessage("be kind", role=MessageRole.SYSTEM),
    "tool result": ChatMessage(
        "42", role=MessageRole.TOOL, additional_kwargs={"tool_call_id": "1"}
    ),
    "tool calls": ChatMessage(
        "", role="assistant", additional_kwargs={"tool_calls": [{"function": {"arguments": "{}"}}]}
    ),
    "empty": ChatMessage(),
}
RELATED = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="a", metadata={"page": 3})}
NODES: dict[str, Any] = {
    "text": TextNode(text="words", metadata={"page": 3, "tags": ["a"]}, relationships=RELATED),
    "embedded": TextNode(text="words", embedding=[0.1] * 300),
    "document": Document(text="words", metadata={"file_path": "a.txt", "size": 3}),
    "node": Node(text_resource=MediaResource(text="words", embeddings={"dense": [0.5] * 4})),
    "index node": IndexNode(text="words", index_id="a", obj=None),
    "metadata of dates": TextNode(
        text="a", metadata={"at": "2026-01-02", "score": 0.5, "no": None}
    ),
}
VALUES: dict[str, Any] = {
    "event": Event(step=1, words="a", at=object()),
    "stop event": StopEvent(result={"a": [1, "b"]}),
    "query": QueryBundle("what?", embedding=[0.5]),
    "tool output": ToolOutput("f", content="a", raw_input={"a": 1}, raw_output={"a": 1}),
    "response": DATA["Response"],
}


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
