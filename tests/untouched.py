"""Values of LangChain's that hold no picture, of every kind that people have met."""

from __future__ import annotations

import datetime
import decimal
import json
import uuid
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompt_values import ChatPromptValue, StringPromptValue

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


OBJECTS: list[Any] = [
    *(object(), b"no picture", range(3), print, (n for n in [1]), {1, 2}, 2 + 3j, Ellipsis),
    *(datetime.UTC, uuid.UUID(int=3), decimal.Decimal("0.1"), BaseMessage),
]


def values() -> dict[str, Any]:
    """Name -> a value without a picture in it."""
    named: dict[str, Any] = {
        "text": "see https://example.org/cat.png",
        "long text": "lorem ipsum " * 2000,
        "hash": "9f86d081884c7d659a2feaa0c55ad015" * 4,
        "string prompt": StringPromptValue(text="hello"),
        "chat prompt": ChatPromptValue(messages=[HumanMessage("hello")]),
        "history in a dict": {"history": [HumanMessage("a"), AIMessage("b")], "question": "c"},
    }
    for message in messages()[:8]:
        named[f"{message.type} message {len(named)}"] = [message]
    for block in BLOCKS:
        name = f"block {block.get('type', next(iter(block)))}"
        named[name if name not in named else f"{name} {len(named)}"] = [AIMessage([block])]
    for data in DATA:
        named[f"artifact {_first(data)}"] = [ToolMessage("x", tool_call_id="1", artifact=data)]
        named[f"extra {_first(data)}"] = [HumanMessage("x", additional_kwargs={"extra": data})]
    for held in OBJECTS:
        name = f"artifact: a {type(held).__name__}"
        named[name if name not in named else f"{name} {len(named)}"] = [
            ToolMessage("x", tool_call_id="1", artifact={"held": held})
        ]
    for metadata in METADATA:
        named[f"metadata {_first(metadata)} {metadata.get('type', '')}".strip()] = Document(
            "words", metadata=metadata, id="d"
        )
    return named


def _first(data: Any) -> str:
    return f"with {next(iter(data))}" if isinstance(data, dict) else f"a {type(data).__name__}"
