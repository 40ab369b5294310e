"""BorderImages in front of chat models: kinds in and out, what is bordered, what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.language_models import ParrotFakeChatModel
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompt_values import ChatPromptValue, ImagePromptValue, StringPromptValue
from langchain_core.prompts import ChatPromptTemplate
from pydantic import ValidationError

from chain_helpers import (
    CARRIERS,
    CLEAN,
    REMOTE,
    RISKY,
    RedDetector,
    after,
    clean_picture,
    data_url,
    find_pictures,
    text64,
)
from sightrail.guardrails import ImageError, Limits, Picture, Policy, VisualSafetyPrompt
from sightrail.guardrails.davsp import Frame
from sightrail.runnables import BorderImages, ScreenImages, read_marker

PIXELS = np.random.default_rng(5).integers(0, 256, (24, 24, 3), dtype=np.uint8)
GUARD = VisualSafetyPrompt(Frame(PIXELS, (3, 3, 21, 21)), text="Stay safe.")
BORDER = BorderImages(border=GUARD)
EXPECTED = np.asarray(GUARD.apply_to_image(clean_picture()))


def image(data: bytes = CLEAN) -> dict[str, Any]:
    return {"type": "image", "base64": text64(data), "mime_type": "image/png"}


def asked(*blocks: dict[str, Any], **fields: Any) -> HumanMessage:
    return HumanMessage([*(blocks or (image(),)), {"type": "text", "text": "What?"}], **fields)


def shown(value: Any) -> list[np.ndarray[Any, Any]]:
    found = [one.seen for one in find_pictures(value, Limits())]
    assert all(isinstance(one, Picture) for one in found)
    return [np.asarray(one.image) for one in found if isinstance(one, Picture)]


@pytest.mark.parametrize("name", CARRIERS)
def test_every_carrier_is_bordered(name: str) -> None:
    message = asked(CARRIERS[name](CLEAN))
    before = copy.deepcopy(message)
    out = BORDER.invoke([message])
    assert [np.array_equal(one, EXPECTED) for one in shown(out)] == [True]
    assert message == before


@pytest.mark.parametrize(
    "value",
    [
        asked(),
        [SystemMessage("Be kind."), asked()],
        (asked(),),
        ChatPromptValue(messages=[asked()]),
        ImagePromptValue(image_url={"url": data_url(CLEAN)}),
        {"history": [asked()], "question": "?"},
        {"image": clean_picture()},
        Document(page_content="a page", metadata={"preview": data_url(CLEAN)}),
        data_url(CLEAN),
        [ToolMessage([image()], tool_call_id="1"), HumanMessage("What?")],
    ],
    ids=lambda value: type(value).__name__,
)
async def test_the_same_kind_comes_back_with_one_border(value: Any) -> None:
    before = repr(value)
    once = BORDER.invoke(value)
    assert type(once) is type(value)
    assert [np.array_equal(one, EXPECTED) for one in shown(once)] == [True]
    assert [np.array_equal(one, EXPECTED) for one in shown(BORDER.invoke(once))] == [True]
    assert repr(await BORDER.ainvoke(value)).count("Stay safe.") == repr(once).count("Stay safe.")
    assert repr(value) == before


def test_the_text_goes_before_the_last_words_of_the_user() -> None:
    talk = [asked(), AIMessage("A cat."), ChatMessage(role="user", content="Sure?"), AIMessage("S")]
    out = BORDER.invoke(talk)
    assert out[2].content == "Stay safe. Sure?"
    assert out[0].content[-1]["text"] == "What?"
    assert BORDER.invoke(out)[2].content == "Stay safe. Sure?"
    assert BORDER.invoke("What?") == "Stay safe. What?"
    assert BORDER.invoke(StringPromptValue(text="What?")).text == "Stay safe. What?"
    assert BORDER.invoke(asked()).content[-1]["text"] == "Stay safe. What?"
    assert BORDER.invoke([SystemMessage("x")]) == [SystemMessage("x")]
    assert BORDER.invoke(AIMessage("x")) == AIMessage("x")


def test_a_border_without_a_text_leaves_words_alone() -> None:
    silent = BorderImages(border=VisualSafetyPrompt(GUARD.frame, text=None))
    assert silent.invoke("What?") == "What?"
    assert silent.invoke([asked()])[0].content[-1]["text"] == "What?"


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image_url", "image_url": {"url": REMOTE}},
        {"type": "image", "base64": text64(CLEAN[:-40]), "mime_type": "image/png"},
        {"type": "audio", "base64": "AAAA", "mime_type": "audio/wav"},
        {"type": "hologram", "payload": "?"},
    ],
    ids=lambda block: block["type"],
)
def test_what_cannot_be_bordered_is_an_error_unless_it_is_asked_to_pass(block: Any) -> None:
    message = asked(block)
    with pytest.raises(ImageError, match="Screen the input first"):
        BORDER.invoke([message])
    lenient = BorderImages(border=GUARD, on_unreadable="pass")
    assert lenient.invoke([message])[0].content[0] == block


def test_screening_sees_the_picture_and_the_model_the_border() -> None:
    detector = RedDetector()
    chain = ScreenImages(detector=detector, policy=Policy()) | BORDER | ParrotFakeChatModel()
    answer = chain.invoke([asked(image(RISKY))])
    assert detector.seen[0].size == (40, 32)
    (seen,) = shown([HumanMessage(answer.content)])
    assert seen.shape == (24, 24, 3)
    left, top, right, bottom = GUARD.frame.box
    assert not (seen[top:bottom, left:right, 0] > 240).any()


def test_a_refusal_stays_on_its_message() -> None:
    screen = ScreenImages(detector=RedDetector(), policy=Policy(on_flagged="refuse"))
    (out,) = BORDER.invoke(after(screen, [asked(image(RISKY))]))
    marker = read_marker(out)
    assert marker is not None
    assert marker.refused


def test_in_a_prompt_chain_and_in_a_batch(tmp_path: Path) -> None:
    prompt = ChatPromptTemplate(
        [("human", [{"type": "text", "text": "{q}"}, {"type": "image_url", "image_url": "{u}"}])]
    )
    chain = prompt | BORDER
    outs = chain.batch([{"q": "A?", "u": data_url(CLEAN)}, {"q": "B?", "u": data_url(RISKY)}])
    assert [out.messages[0].content[0]["text"] for out in outs] == [
        "Stay safe. A?",
        "Stay safe. B?",
    ]
    assert [len(shown(out)) for out in outs] == [1, 1]


def test_something_else_is_no_border() -> None:
    with pytest.raises((ValidationError, ValueError), match="no visual safety prompt"):
        BorderImages(border=RedDetector())
