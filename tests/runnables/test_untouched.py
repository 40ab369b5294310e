"""What holds no picture travels as it came; what is written into it does not pass unseen."""

from __future__ import annotations

import base64
import copy
import io
import json
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from PIL import Image

from sightrail.guardrails import Policy
from sightrail.guardrails.testing import StubDetector
from sightrail.runnables import ScreenImages
from untouched import CALL, DATA, METADATA, messages

BUFFER = io.BytesIO()
Image.effect_noise((24, 24), 60).convert("RGB").save(BUFFER, format="PNG")
B64 = base64.b64encode(BUFFER.getvalue()).decode()
URL = f"data:image/png;base64,{B64}"


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
