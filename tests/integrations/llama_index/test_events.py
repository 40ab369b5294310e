"""What LlamaIndex's instrumentation hears: verdicts, and neither pictures nor words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.schema import ImageNode, NodeWithScore
from llama_index.core.tools import FunctionTool
from llama_index_instrumentation import root_dispatcher
from llama_index_instrumentation.event_handlers import BaseEventHandler
from pydantic import Field

from chain_helpers import CLEAN, REMOTE, RISKY, RedDetector, text64
from sightrail.guardrails import LocalLVLM, Policy
from sightrail.integrations.llama_index import (
    LVLM,
    ImageRiskPostprocessor,
    ImageRiskTransform,
    ImageScreen,
    ImagesScreenedEvent,
    guard_tool,
)
from tiny_models import tiny


class _Ear(BaseEventHandler):
    """Keeps our events."""

    heard: list[ImagesScreenedEvent] = Field(default_factory=list)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        if isinstance(event, ImagesScreenedEvent):
            self.heard.append(event)


@pytest.fixture
def heard() -> Iterator[list[ImagesScreenedEvent]]:
    ear = _Ear()
    root_dispatcher.add_event_handler(ear)
    yield ear.heard
    root_dispatcher.event_handlers.remove(ear)


def node(data: bytes = RISKY) -> ImageNode:
    return ImageNode(image=text64(data), text="very private words")


async def test_every_part_reports_what_it_saw(heard: list[Any], detector: RedDetector) -> None:
    message = ChatMessage(blocks=[TextBlock(text="very private words"), ImageBlock(image=RISKY)])
    ImageRiskPostprocessor(detector=detector).postprocess_nodes([NodeWithScore(node=node())])
    await ImageRiskTransform(detector=detector).acall([node()])
    ImageScreen(detector).screen([[message]])
    tool = FunctionTool.from_defaults(lambda: message.blocks[1], name="a", description="a")
    guard_tool(tool, detector=detector).call()
    LVLM(model=LocalLVLM(*tiny("llava"), guardrails=[detector]), max_tokens=1).chat([message])
    assert [event.component for event in heard] == [
        "ImageRiskPostprocessor",
        "ImageRiskTransform",
        "ImageScreen",
        "guard_tool",
        "LVLM",
    ]
    for event in heard:
        assert {(v.status, v.action) for v in event.verdicts} == {("flagged", "mask")}
        assert event.class_name() == "ImagesScreenedEvent"
        told = json.dumps(event.model_dump(mode="json"))
        assert "private" not in told
        assert text64(RISKY)[:40] not in told


def test_refusals_are_reported_and_exceptions_too(heard: list[Any], detector: RedDetector) -> None:
    refusing = ImageScreen(detector, Policy(on_flagged="refuse"))
    refusing.screen([node(CLEAN), node(RISKY)])
    ImageScreen(detector, Policy(on_flagged="raise")).screen([node(RISKY)])
    LVLM(model=LocalLVLM(*tiny("llava"))).chat([ChatMessage(blocks=[ImageBlock(url=REMOTE)])])
    assert [event.refused for event in heard] == [True, True, True]
    assert [len(event.verdicts) for event in heard] == [2, 1, 1]


def test_where_there_is_no_picture_nothing_is_reported(
    heard: list[Any], detector: RedDetector
) -> None:
    ImageScreen(detector).screen(["words", ChatMessage("words")])
    assert heard == []
