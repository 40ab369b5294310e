"""Every carrier in every place of every message class: inspected, or refused. No silent pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from PIL import Image

from chain_helpers import (
    CARRIERS,
    CLEAN,
    PLAIN,
    RED_BOX,
    RISKY,
    UNSEEN,
    RedDetector,
    after,
    clean_picture,
    find_pictures,
    risky_picture,
)
from sightrail.guardrails import Limits, Picture, Policy
from sightrail.guardrails.screening.regions import MARGIN, cover_regions
from sightrail.guardrails.verdict import Region
from sightrail.runnables import ScreenImages, read_marker

Block = dict[str, Any]
PLACES: dict[str, Callable[[Block], BaseMessage]] = {
    "human": lambda block: HumanMessage([{"type": "text", "text": "what is this?"}, block]),
    "system": lambda block: SystemMessage([block]),
    "ai": lambda block: AIMessage([block, "there you are"]),
    "ai chunk": lambda block: AIMessageChunk([block]),
    "tool": lambda block: ToolMessage([block], tool_call_id="call_1"),
    "tool artifact": lambda block: ToolMessage(
        "done", tool_call_id="call_1", artifact={"shots": [{"content": [block]}]}
    ),
    "function": lambda block: FunctionMessage([block], name="look"),
    "chat": lambda block: ChatMessage([block], role="user"),
    "result in a result": lambda block: HumanMessage(
        [{"type": "tool_result", "tool_use_id": "call_1", "content": [block]}]
    ),
    "additional": lambda block: AIMessage("", additional_kwargs={"output": {"content": [block]}}),
}


MANY = Limits(max_views_per_request=100)


def pixels_in(value: Any) -> list[Image.Image]:
    """What a model would see of a value."""
    seen = [found.seen for found in find_pictures(value, MANY)]
    return [one.image for one in seen if isinstance(one, Picture)]


def same(first: Image.Image, second: Image.Image) -> bool:
    return np.array_equal(np.asarray(first), np.asarray(second))


def masked() -> Image.Image:
    region = Region(box=RED_BOX, category="weapons", score=1.0)
    return cover_regions(risky_picture(), [region], margin=MARGIN)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_carrier_is_inspected_and_masked_in_its_own_form(carrier: str, place: str) -> None:
    message = PLACES[place](CARRIERS[carrier](RISKY))
    before = copy.deepcopy(message)
    detector = RedDetector()
    screened = after(ScreenImages(detector=detector), message)
    assert [same(image, risky_picture()) for image in detector.seen] == [True]
    assert [same(image, masked()) for image in pixels_in(screened)] == [True]
    assert [type(screened), type(screened.content)] == [type(before), type(before.content)]
    assert message == before
    marker = read_marker(screened)
    assert marker is not None
    assert [verdict.action for verdict in marker.verdicts] == ["mask"]


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_clean_picture_travels_on_as_the_pixels_that_were_screened(carrier: str) -> None:
    block = CARRIERS[carrier](CLEAN)
    detector = RedDetector()
    screened = after(ScreenImages(detector=detector), HumanMessage([block]))
    assert [same(image, clean_picture()) for image in pixels_in(screened)] == [True]
    assert screened.content[0].get("type") == block.get("type", screened.content[0].get("type"))
    again = after(ScreenImages(detector=detector), screened)
    assert again == screened


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("unseen", UNSEEN)
def test_what_cannot_be_looked_at_is_refused_and_taken_out(unseen: str, place: str) -> None:
    reason, block = UNSEEN[unseen]
    message = PLACES[place](copy.deepcopy(block))
    detector = RedDetector()
    if "type" not in block and place in ("additional", "tool artifact"):
        pytest.skip("a dict without a type is no block where any JSON may stand")
    screened = after(ScreenImages(detector=detector), message)
    marker = read_marker(screened)
    assert marker is not None
    assert marker.refused
    assert [verdict.not_inspected[0].reason for verdict in marker.verdicts] == [reason]
    assert detector.calls == []
    text = repr(screened.model_copy(update={"additional_kwargs": {}, "response_metadata": {}}))
    assert "[image removed by the safety policy]" in text or place == "additional"
    assert "hologram" not in text
    assert "example.org" not in text
    assert pixels_in(screened) == []


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("plain", PLAIN)
def test_what_carries_no_media_passes_as_the_same_object(plain: str, place: str) -> None:
    message = PLACES[place](copy.deepcopy(PLAIN[plain]))
    assert after(ScreenImages(detector=RedDetector()), message) is message


def test_only_labels_of_a_block_come_along() -> None:
    block = {
        "type": "image",
        "base64": CARRIERS["standard base64"](CLEAN)["base64"],
        "url": "https://example.org/another.png",
        "id": "block-1",
        "cache_control": {"type": "ephemeral"},
        "extras": {"thumbnail": "x" * 999},
        "title": "data:image/png;base64,AAAA",
    }
    (kept,) = after(ScreenImages(detector=RedDetector()), HumanMessage([block])).content
    assert kept.keys() == {"type", "id", "cache_control", "mime_type", "base64"}
    assert (kept["id"], kept["cache_control"]) == ("block-1", {"type": "ephemeral"})


def test_a_gallery_keeps_its_order() -> None:
    blocks = [CARRIERS[name](RISKY if i % 2 else CLEAN) for i, name in enumerate(CARRIERS)]
    screen = ScreenImages(detector=RedDetector(), limits=MANY)
    screened = after(screen, [HumanMessage([b]) for b in blocks])
    expected = [masked() if i % 2 else clean_picture() for i in range(len(blocks))]
    found = pixels_in(screened)
    assert [same(a, b) for a, b in zip(found, expected, strict=True)] == [True] * len(blocks)


def test_nesting_beyond_the_limit_is_refused() -> None:
    block: Any = {"type": "text", "text": "hi"}
    for _ in range(200):
        block = {"type": "tool_result", "tool_use_id": "1", "content": [block]}
    marker = read_marker(after(ScreenImages(detector=RedDetector()), HumanMessage([block])))
    assert marker is not None
    assert marker.refused
    assert marker.verdicts[0].not_inspected[0].reason == "too_deep"


@pytest.mark.parametrize("held", [object(), b"abc", range(3), print, (n for n in [1]), Policy])
def test_an_object_in_an_artifact_that_is_no_picture_passes(held: Any) -> None:
    message = ToolMessage("done", tool_call_id="1", artifact={"handle": held})
    assert after(ScreenImages(detector=RedDetector()), message) is message


@pytest.mark.parametrize("carried", [RISKY, risky_picture(), np.asarray(risky_picture())])
def test_a_bare_picture_in_an_artifact_is_inspected(carried: Any) -> None:
    message = ToolMessage("done", tool_call_id="1", artifact=[carried])
    screened = after(ScreenImages(detector=RedDetector()), message)
    assert isinstance(screened.artifact[0], type(carried) | Image.Image)
    assert [same(image, masked()) for image in pixels_in(screened)] == [True]


def test_signatures_that_clients_keep_beside_a_message_pass() -> None:
    message = AIMessage("hi", additional_kwargs={"signature": b"\x12\x34", "handle": object})
    assert after(ScreenImages(detector=RedDetector()), message) is message
