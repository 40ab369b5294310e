"""Any message structure at all: no untyped exception, no silent pass, nothing changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from chain_helpers import CARRIERS, CLEAN, PLAIN, RISKY, UNSEEN, RedDetector, after
from sightrail.guardrails import Policy
from sightrail.runnables import ScreenImages, read_marker

KEYS = st.sampled_from(
    [
        "type",
        "image",
        "image_url",
        "url",
        "base64",
        "data",
        "source",
        "source_type",
        "file",
        "file_data",
        "file_id",
        "mime_type",
        "media_type",
        "text",
        "content",
        "value",
        "extras",
        "inline_data",
        "result",
        "refusal",
        "json",
        "guard_content",
        "input",
        "role",
        "sightrail",
    ]
)
WORDS = st.sampled_from(
    [
        "image",
        "image_url",
        "input_image",
        "file",
        "text",
        "media",
        "tool_result",
        "non_standard",
        "image_generation_call",
        "document",
        "tool_call",
        "audio",
        "hologram",
        "base64",
        "id",
        "url",
        "image/png",
        "application/pdf",
        "user",
        "data:",
        "https://example.org/a.png",
        "file:///a.png",
        "data:image/png;base64,%%",
        "data:image/png,",
        "iVBORw0KGgoAAAANSUhEUgAA",
    ]
)
RISKS = st.sampled_from([make(RISKY) for make in CARRIERS.values()])
SAFE = st.sampled_from([make(CLEAN) for make in CARRIERS.values()] + list(PLAIN.values()))
ODD = st.sampled_from([block for _, block in UNSEEN.values()])
LEAVES = WORDS | st.none() | st.booleans() | st.integers() | st.binary(max_size=40) | st.text()
JUNK = st.recursive(
    LEAVES | RISKS | SAFE | ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)
BLOCKS = st.lists(RISKS | SAFE | ODD | st.dictionaries(KEYS, JUNK, max_size=4) | WORDS, max_size=4)
EXTRA = st.dictionaries(KEYS, JUNK, max_size=2)
MESSAGES = st.one_of(
    st.builds(HumanMessage, BLOCKS, additional_kwargs=EXTRA),
    st.builds(SystemMessage, BLOCKS),
    st.builds(AIMessage, BLOCKS, additional_kwargs=EXTRA),
    st.builds(ToolMessage, BLOCKS, tool_call_id=st.just("1"), artifact=JUNK),
)
VALUES = st.lists(MESSAGES, max_size=3) | st.dictionaries(KEYS, JUNK, max_size=3) | JUNK


def check(value: Any) -> None:
    """Screening ends well and takes out what is risky or unseen; a second look finds no more."""
    before = copy.deepcopy(value)
    first, second = RedDetector(), RedDetector()
    # Without words in its place: a note under the key "image_url" would count as an address.
    policy = Policy(on_flagged="drop", note="")
    screened = after(ScreenImages(detector=first, policy=policy), value)
    unchanged = value == before
    assert unchanged
    strict = Policy(on_flagged="raise", on_not_inspected="raise", on_error="raise")
    after(ScreenImages(detector=second, policy=strict), screened)
    assert len(second.seen) <= len(first.seen)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(VALUES)
def test_any_structure_is_screened(value: Any) -> None:
    check(value)


@pytest.mark.long
@settings(max_examples=6000, deadline=None, suppress_health_check=list(HealthCheck))
@given(VALUES)
def test_any_structure_is_screened_at_length(value: Any) -> None:
    check(value)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(RISKS | SAFE | ODD, max_size=5), st.integers(0, 4))
def test_a_risk_is_found_wherever_it_stands(blocks: list[Any], place: int) -> None:
    blocks = [*blocks[:place], CARRIERS["standard base64"](RISKY), *blocks[place:]]
    refusing = ScreenImages(detector=RedDetector(), policy=Policy(on_flagged="refuse"))
    marker = read_marker(after(refusing, HumanMessage(blocks)))
    assert marker is not None
    assert marker.refused
