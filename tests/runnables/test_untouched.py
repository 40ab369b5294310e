"""What holds no picture travels as it came; what is written into it does not pass unseen."""

from __future__ import annotations

import base64
import copy
import datetime
import decimal
import io
import json
import uuid
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from PIL import Image

from sightrail.guardrails import Policy
from sightrail.guardrails.testing import StubDetector
from sightrail.runnables import ScreenImages

BUFFER = io.BytesIO()
Image.effect_noise((24, 24), 60).convert("RGB").save(BUFFER, format="PNG")
B64 = base64.b64encode(BUFFER.getvalue()).decode()
URL = f"data:image/png;base64,{B64}"
CALL = {"name": "look", "args": {"n": 1, "why": "to see"}, "id": "1", "type": "tool_call"}

BLOCKS: list[dict[str, Any]] = [
    {
        "type": "text",
        "text": "words",
        "annotations": [{"type": "url_citation", "url": "https://a.b"}],
    },
    {"type": "text", "text": "words", "cache_control": {"type": "ephemeral"}},
    {"type": "input_text", "text": "words"},
    {"type": "output_text", "text": "words", "logprobs": []},
    {"type": "refusal", "refusal": "no"},
    {"cachePoint": {"type": "default"}},
    {"text": "words of Bedrock"},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "id": "rs_1"},
    {"type": "reasoning", "reasoning": "hm", "extras": {"signature": "c2ln" * 20}},
    {"type": "thinking", "thinking": "hm", "signature": "RXJJ" * 40},
    {"type": "redacted_thinking", "data": "Z2Vo" * 40},
    {"type": "reasoning_content", "reasoning_content": {"text": "hm", "signature": "x"}},
    {"type": "citation", "url": "https://a.b", "title": "t", "start_index": 0},
    {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"query": "cats"}},
    {"type": "file_search_call", "id": "fs", "queries": ["cats"], "results": [{"text": "cat"}]},
    {"type": "code_interpreter_call", "id": "ci", "code": "1+1", "outputs": [{"logs": "2"}]},
    {"type": "computer_call", "id": "cu", "action": {"type": "click", "x": 1, "y": 2}},
    {"type": "local_shell_call", "id": "sh", "action": {"command": ["ls", "-l"]}},
    {"type": "mcp_call", "id": "m", "name": "add", "arguments": '{"a": 1}', "output": "2"},
    {"type": "mcp_list_tools", "server_label": "s", "tools": [{"name": "add"}]},
    {"type": "mcp_approval_request", "id": "m", "name": "add", "arguments": "{}"},
    {"type": "tool_use", "id": "t", "name": "look", "input": {"path": "/etc/hosts"}},
    {"type": "server_tool_use", "id": "t", "name": "web_search", "input": {"query": "cats"}},
    {
        "type": "web_search_tool_result",
        "tool_use_id": "t",
        "content": [
            {
                "type": "web_search_result",
                "url": "https://a.b",
                "title": "t",
                "encrypted_content": "Zm9v",
            }
        ],
    },
    {
        "type": "search_result",
        "source": "https://a.b",
        "title": "t",
        "content": [{"type": "text", "text": "found"}],
    },
    {"type": "tool_result", "tool_use_id": "t", "content": "words"},
    {"type": "function_call", "name": "f", "arguments": '{"url": "https://a.b/c.png"}', "id": "f"},
    {"type": "function_call_output", "call_id": "f", "output": "words"},
    {"type": "custom_tool_call", "name": "f", "input": "words"},
    {"type": "non_standard", "value": {"type": "reasoning", "summary": []}},
    {"type": "text-plain", "text": "words", "mime_type": "text/plain"},
    {"type": "guard_content", "guard_content": {"text": "words"}},
]
DATA: list[Any] = [
    {"id": 7, "source": "db", "tags": ["a", "b"], "score": 0.5, "nested": {"x": [1, {"y": None}]}},
    {"url": "https://example.org/page", "title": "a page"},
    {"path": "report.docx", "bytes": 100, "created": datetime.datetime(2026, 1, 2)},
    {"price": decimal.Decimal("1.10"), "key": uuid.UUID(int=7), "ok": True, "no": None},
    {"html": "<p>hello <b>you</b></p>", "markdown": "![cat](https://example.org/cat.png)"},
    {"hash": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"},
    ["a", 1, 2.5, ("b", "c")],
    "plain words",
]


def messages() -> list[BaseMessage]:
    return [
        SystemMessage("be kind"),
        SystemMessage([{"type": "text", "text": "be kind"}, {"cachePoint": {"type": "default"}}]),
        HumanMessage("hello", name="ann", id="m1", additional_kwargs={"k": [1]}),
        AIMessage("hi", tool_calls=[CALL], usage_metadata=None, response_metadata={"m": "x"}),
        AIMessage(
            "",
            invalid_tool_calls=[{**CALL, "args": "{", "error": "e", "type": "invalid_tool_call"}],
        ),
        ToolMessage("42", tool_call_id="1", name="look", status="success", id="t1"),
        ToolMessage([{"type": "text", "text": "42"}], tool_call_id="1", artifact={"rows": [1, 2]}),
        ToolMessage(json.dumps({"a": [1, 2], "b": "c"}), tool_call_id="1"),
        *(AIMessage([block]) for block in BLOCKS),
        *(HumanMessage("x", additional_kwargs={"extra": data}) for data in DATA),
        *(ToolMessage("x", tool_call_id="1", artifact=data) for data in DATA),
    ]


@pytest.mark.parametrize("number", range(len(messages())))
def test_a_message_without_a_picture_is_the_same_object(number: int) -> None:
    message = messages()[number]
    before = copy.deepcopy(message)
    screen = ScreenImages(detector=StubDetector(flag=True))
    (seen,) = screen.invoke([message])
    assert seen is message
    assert message == before


@pytest.mark.parametrize("number", range(len(DATA)))
def test_a_document_without_a_picture_is_the_same_object(number: int) -> None:
    document = Document("words", metadata={"value": DATA[number]}, id="d")
    screen = ScreenImages(detector=StubDetector(flag=True))
    assert screen.invoke(document) is document


WRITTEN: list[BaseMessage] = [
    HumanMessage(f"what is ![this]({URL})?"),
    AIMessage("", tool_calls=[{**CALL, "args": {"picture": B64}}]),
    AIMessage("", tool_calls=[{**CALL, "args": {"deep": [{"html": f"<img src='{URL}'>"}]}}]),
    AIMessage([{"type": "tool_use", "id": "t", "name": "f", "input": {"image": URL}}]),
    AIMessage([{"type": "thinking", "thinking": f"I saw {URL} there", "signature": "x"}]),
    AIMessage([{"type": "mcp_call", "id": "m", "name": "f", "output": json.dumps({"i": B64})}]),
    AIMessage([{"type": "code_interpreter_call", "id": "c", "outputs": [{"logs": URL}]}]),
    ToolMessage(json.dumps({"image": B64, "id": 7}), tool_call_id="1"),
    ToolMessage([{"type": "text", "text": json.dumps([URL])}], tool_call_id="1"),
    ToolMessage("x", tool_call_id="1", artifact={"page": f"<img src={URL}>"}),
    SystemMessage(f"logo: {URL}"),
]


@pytest.mark.parametrize("number", range(len(WRITTEN)))
def test_a_picture_in_words_is_taken_out_wherever_it_stands(number: int) -> None:
    detector = StubDetector(flag=True)
    screen = ScreenImages(detector=detector, policy=Policy(on_flagged="drop"))
    (seen,) = screen.invoke([WRITTEN[number]])
    assert len(detector.seen) >= 1
    assert B64 not in seen.model_dump_json()
    assert Policy().note in seen.model_dump_json()
    assert type(seen) is type(WRITTEN[number])


@pytest.mark.parametrize("number", range(len(WRITTEN)))
def test_a_clean_picture_in_words_stays_to_the_letter(number: int) -> None:
    screen = ScreenImages(detector=StubDetector())
    (seen,) = screen.invoke([WRITTEN[number]])
    assert seen.content == WRITTEN[number].content
    assert getattr(seen, "tool_calls", None) == getattr(WRITTEN[number], "tool_calls", None)


METADATA: list[dict[str, Any]] = [
    {"image_url": "https://example.org/a.png", "id": 7, "source": "db"},
    {"type": "file", "source": "report.docx"},
    {"type": "image", "url": "https://example.org/a.png", "width": 3},
    {"type": "image", "image": "cat.png"},
    {"type": "video", "url": "https://example.org/watch"},
    {"type": "audio", "data": [1, 2]},
    {"inline_data": {"rows": 1}},
    {"page": {"image_url": {"url": "https://example.org/a.png"}, "number": 3}},
    {"handle": datetime.UTC, "raw": b"abc", "of": range(3)},
]


@pytest.mark.parametrize("number", range(len(METADATA)))
def test_metadata_describes_and_is_no_block(number: int) -> None:
    screen = ScreenImages(detector=StubDetector(flag=True))
    document = Document("words", metadata=METADATA[number], id="d")
    assert screen.invoke(document) is document
    assert screen.invoke({"context": [document]})["context"][0] is document


def test_a_picture_in_metadata_is_replaced_in_place() -> None:
    metadata = {"id": 7, "type": "image", "base64": B64, "source": "db", "more": {"html": URL}}
    screen = ScreenImages(detector=StubDetector(flag=True), policy=Policy(on_flagged="drop"))
    seen = screen.invoke(Document("words", metadata=metadata, id="d"))
    note = Policy().note
    assert list(seen.metadata) == [*metadata, "sightrail"]
    assert seen.metadata["base64"] == seen.metadata["more"]["html"] == note
    assert (seen.metadata["id"], seen.metadata["source"], seen.id) == (7, "db", "d")
    clean = ScreenImages(detector=StubDetector()).invoke(Document("w", metadata=metadata))
    assert {key: clean.metadata[key] for key in metadata} == metadata


@pytest.mark.parametrize(
    "data", [{"image_url": "https://a.b/c.png", "id": 7}, {"type": "file", "source": "report.docx"}]
)
def test_links_in_data_are_no_pictures(data: dict[str, Any]) -> None:
    screen = ScreenImages(detector=StubDetector(flag=True))
    message = ToolMessage("x", tool_call_id="1", artifact=[data])
    assert screen.invoke([message])[0] is message
    assert screen.invoke({"found": data})["found"] is data
