"""Values of LlamaIndex's, and of apps built on it, that hold no picture."""

from __future__ import annotations

import collections
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
from llama_index.core.tools import ToolOutput
from llama_index.core.workflow import Event, StopEvent
from pydantic import BaseModel

from chain_helpers import REMOTE


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


def values() -> dict[str, Any]:
    """Name -> a value; what tools give back stands in a tool's output."""
    told = {
        f"{name} from a tool": ToolOutput("f", raw_input={}, raw_output=value, content="done")
        for name, value in DATA.items()
    }
    messages = {f"message: {name}": message for name, message in MESSAGES.items()}
    nodes = {f"node: {name}": node for name, node in NODES.items()}
    return {**told, **messages, **nodes, **VALUES}
