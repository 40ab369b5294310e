"""Conversations: what is new, what the user asks, and what may be told again; and hostile ones."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.schema import ImageNode, NodeWithScore

from chain_helpers import RISKY, RedDetector, data_url, text64
from sightrail.guardrails import Policy
from sightrail.guardrails.carriers.conversation import Turns, answered, asked_in, screen_turns
from sightrail.guardrails.carriers.loop import PictureLoop
from sightrail.guardrails.errors import ImageRefused
from sightrail.guardrails.intake import Limits
from sightrail.integrations.llama_index import ImageRiskPostprocessor, read_marker
from sightrail.integrations.llama_index.screening import LLAMA_INDEX
from sightrail.runnables import ScreenImages, hide_images
from sightrail.runnables.walk import LANGCHAIN

CALL = AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1", "type": "tool_call"}])
PAGE = ToolMessage("a long page", tool_call_id="1")


@pytest.mark.parametrize(
    ("messages", "past", "asked"),
    [
        ([], 0, ""),
        ([HumanMessage("a")], 0, "a"),
        ([SystemMessage("s"), HumanMessage("a")], 0, "a"),
        ([HumanMessage("a"), AIMessage("b"), HumanMessage("c")], 2, "a\nc"),
        ([HumanMessage("a"), CALL, PAGE], 2, "a"),
        ([HumanMessage("a"), CALL, PAGE, AIMessage("b")], 2, "a"),
        ([HumanMessage("a"), CALL, PAGE, AIMessage("b"), HumanMessage("c")], 4, "a\nc"),
        ([AIMessage("b")], 0, "b"),
        ([PAGE], 0, "a long page"),
        ([AIMessage("b"), HumanMessage("x" * 30_000), PAGE], 1, "x" * 20_000),
    ],
)
def test_what_is_new_and_what_is_asked(messages: list[BaseMessage], past: int, asked: str) -> None:
    assert answered(messages, LANGCHAIN) == past
    assert asked_in(messages, LANGCHAIN) == asked


def picture(**fields: Any) -> HumanMessage:
    return HumanMessage([{"type": "image", "base64": text64(RISKY)}], **fields)


def test_an_earlier_turn_is_taken_out_and_raises_nothing_and_is_told_to_nobody() -> None:
    told: list[Any] = []
    policy, limits = Policy(on_flagged="raise"), Limits()
    loop = PictureLoop((RedDetector(),), policy, limits, LANGCHAIN, on_verdict=told.append)
    past = [picture(), AIMessage("no")]
    said = [*past, HumanMessage("and?")]
    [(earlier, outcome)] = screen_turns(loop, [Turns(past, said[2:], said)])
    assert not isinstance(outcome, ImageRefused)
    assert not outcome.refused
    assert text64(RISKY) not in repr(earlier)
    assert told == []
    [(earlier, outcome)] = screen_turns(loop, [Turns(past, [picture()], said)])
    assert isinstance(outcome, ImageRefused)
    assert earlier == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30) | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["type", "content", "role", "text", "image", "base64", "url", "data"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@settings(max_examples=150, deadline=None)
@given(value=JSON)
def test_hiding_takes_any_value_and_shows_no_picture(value: Any) -> None:
    address = data_url(RISKY)
    for hidden in (hide_images, LLAMA_INDEX.hidden):
        hidden(value)
        shown = hidden({"data": value, "kept": "words", "image": address})
        assert address not in repr(shown)
        assert shown["kept"] == "words"


class Odd:
    """An object of an app's own that does not like to be looked at."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


def deep(levels: int, end: Any) -> Any:
    for _ in range(levels):
        end = [{"content": end}]
    return end


LYING: dict[str, Any] = {
    "no base64": {"type": "image", "base64": 7},
    "empty": {"type": "image"},
    "a list for an address": {"type": "image_url", "image_url": [1]},
    "an odd object": {"input": Odd(), "other": [Odd()]},
    "very deep": deep(3_000, "end"),
    "very deep message": HumanMessage([{"type": "text", "text": "a"}, *deep(300, "end")]),
    "very long": {"output": "a b " * 500_000 + data_url(RISKY)},
    "broken picture": {"image": text64(RISKY)[:200], "address": data_url(RISKY)[:300]},
    "half a sign": {"text": "\ud800 " + data_url(RISKY)},
}


@pytest.mark.parametrize("name", LYING)
def test_hiding_takes_lying_values(name: str) -> None:
    for hidden in (hide_images, LLAMA_INDEX.hidden):
        assert text64(RISKY)[40:200] not in str(_flat(hidden(LYING[name])))
    ring: dict[str, Any] = {}
    ring["self"] = [ring]
    hide_images(ring)
    LLAMA_INDEX.hidden(ring)


def _flat(value: Any) -> list[str]:
    """The texts in a value, however deep."""
    texts, left = [], [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            left += item.values()
        elif isinstance(item, list):
            left += item
        elif isinstance(item, BaseMessage):
            left.append(item.content)
        elif isinstance(item, str):
            texts.append(item)
    return texts


BROKEN = ["sightrail:", "sightrail:{", "sightrail:" + "[" * 50_000, "sightrail:7", "sightrail", ""]


@pytest.mark.parametrize("entry", BROKEN)
def test_a_nodes_record_that_is_none_permits_nothing(entry: str) -> None:
    node = ImageNode(image=text64(RISKY), excluded_llm_metadata_keys=[entry, "page"])
    assert read_marker(node) is None
    [kept] = ImageRiskPostprocessor(detector=RedDetector()).postprocess_nodes(
        [NodeWithScore(node=node)]
    )
    marker = read_marker(kept)
    assert marker is not None
    assert [verdict.action for verdict in marker.verdicts] == ["mask"]
    assert "page" in kept.node.excluded_llm_metadata_keys


@pytest.mark.parametrize(
    "roles", [["user"], ["tool", "user"], ["assistant"] * 3, ["model", "tool"]]
)
def test_conversations_of_any_order_are_looked_at(roles: list[str]) -> None:
    blocks = [TextBlock(text="hm"), ImageBlock(image=RISKY)]
    messages = [ChatMessage(role=role, blocks=blocks) for role in roles]
    loop = PictureLoop((RedDetector(),), Policy(), Limits(), LLAMA_INDEX)
    count = answered(messages, LLAMA_INDEX)
    turns = Turns(messages[:count], messages[count:], messages)
    [(earlier, outcome)] = screen_turns(loop, [turns])
    assert not isinstance(outcome, ImageRefused)
    seen = [*earlier, *outcome.value]
    assert len(seen) == len(messages)
    assert all(message.blocks[1].image != RISKY for message in seen)
    asked: Any = [("system", "s"), *[(r, "x") for r in ("human", "ai") * 200], ("human", "y")]
    assert ScreenImages(detector=RedDetector()).invoke(asked) is asked
