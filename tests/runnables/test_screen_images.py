"""ScreenImages in chains: kinds in and out, policies, batches, streams, markers."""

from __future__ import annotations

import asyncio
import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.prompt_values import (
    ChatPromptValue,
    ImagePromptValue,
    PromptValue,
    StringPromptValue,
)
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import ConfigurableField, RunnableConfig, RunnableLambda
from PIL import Image
from pydantic import ValidationError

from bad_pictures import encoded
from chain_helpers import (
    CARRIERS,
    CLEAN,
    REMOTE,
    RISKY,
    BrokenDetector,
    MiscountingDetector,
    RedDetector,
    after,
    clean_picture,
    data_url,
    find_pictures,
    risky_picture,
    text64,
)
from sightrail.guardrails import CachedDetector, ImageRefused, Limits, Picture, Policy
from sightrail.guardrails.testing import StubDetector
from sightrail.runnables import ScreenImages, read_marker

REFUSE, DROP = Policy(on_flagged="refuse"), Policy(on_flagged="drop")


def asked(data: bytes = RISKY, **fields: Any) -> HumanMessage:
    image = {"type": "image", "base64": text64(data), "mime_type": "image/png"}
    return HumanMessage([{"type": "text", "text": "what is this?"}, image], **fields)


def screen(policy: Policy | None = None, detector: Any = None) -> ScreenImages:
    return ScreenImages(detector=detector or RedDetector(), policy=policy or Policy())


def red_pixels(value: Any) -> int:
    seen = [found.seen for found in find_pictures(value, Limits())]
    images = [one.image for one in seen if isinstance(one, Picture)]
    return sum(int((np.asarray(image)[..., 0] > 240).sum()) for image in images)


def told(value: Any) -> str:
    """A value in words, without the addresses of its pictures."""
    return re.sub(r" at 0x\w+", "", repr(value))


KINDS: dict[str, Callable[[bytes, Path], Any]] = {
    "text": lambda data, folder: data_url(data),
    "bare base64": lambda data, folder: text64(data),
    "string prompt": lambda data, folder: StringPromptValue(text=data_url(data)),
    "chat prompt": lambda data, folder: ChatPromptValue(messages=[asked(data)]),
    "image prompt": lambda data, folder: ImagePromptValue(image_url={"url": data_url(data)}),
    "message": lambda data, folder: asked(data),
    "messages": lambda data, folder: [SystemMessage("be kind"), asked(data)],
    "tuple of messages": lambda data, folder: (asked(data),),
    "dict of messages": lambda data, folder: {"history": [asked(data)], "question": "?"},
    "dict with a picture": lambda data, folder: {"image": _opened(data), "question": "?"},
    "dict with an array": lambda data, folder: {"image": np.asarray(_opened(data))},
    "dict with bytes": lambda data, folder: {"image": data},
    "dict with a path": lambda data, folder: {"image": _written(data, folder)},
    "dict with base64": lambda data, folder: {"image": text64(data), "n": 3, "also": None},
    "dict with a prompt": lambda data, folder: {"p": ChatPromptValue(messages=[asked(data)])},
    "dict in lists": lambda data, folder: {"pages": [[{"shot": data_url(data)}]]},
    "block": lambda data, folder: {"type": "image", "base64": text64(data)},
    "picture": lambda data, folder: _opened(data),
    "document": lambda data, folder: Document(text64(data), metadata={"page": 3}),
    "documents": lambda data, folder: {"context": [Document("a", metadata={"i": data_url(data)})]},
}


def _opened(data: bytes) -> Image.Image:
    return clean_picture() if data == CLEAN else risky_picture()


def _written(data: bytes, folder: Path) -> Path:
    path = folder / "picture.png"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("policy", [Policy(), DROP, REFUSE], ids=["mask", "drop", "refuse"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_kind_comes_back_without_the_risk(
    kind: str, policy: Policy, tmp_path: Path
) -> None:
    value = KINDS[kind](RISKY, tmp_path)
    detector = RedDetector()
    screened = after(screen(policy, detector), value)
    assert len(detector.seen) == 1
    assert red_pixels(screened) == 0
    assert bool(find_pictures(screened, Limits())) is (policy.on_flagged == "mask")
    if kind == "image prompt":
        assert isinstance(screened, PromptValue)
    elif policy.on_flagged == "mask" and kind != "dict with a path":
        assert type(screened) is type(value)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_was_passed_in_changes(kind: str, tmp_path: Path) -> None:
    value = KINDS[kind](RISKY, tmp_path)
    before = copy.deepcopy(value)
    after(screen(REFUSE), value)
    assert told(value) == told(before)


@pytest.mark.parametrize(
    "value",
    [
        "what is in the picture?",
        "",
        [],
        {},
        [HumanMessage("hello")],
        HumanMessage("hello"),
        HumanMessage([]),
        ChatPromptValue(messages=[HumanMessage("hello")]),
        [("human", "hello"), ("ai", "hi")],
        [{"role": "user", "content": "hello"}],
        {"question": "hello", "n": 3, "history": []},
        f"see {REMOTE}",
        Document("a text"),
    ],
    ids=repr,
)
def test_what_holds_no_picture_passes_as_the_same_object(value: Any) -> None:
    detector = BrokenDetector()
    assert screen(detector=detector).invoke(value) is value


@pytest.mark.parametrize(
    "messages",
    [
        [("human", [{"type": "image", "base64": text64(RISKY)}])],
        [["human", [{"type": "image", "base64": text64(RISKY)}]]],
        [{"role": "user", "content": [{"type": "image_url", "image_url": data_url(RISKY)}]}],
        [{"type": "human", "content": [{"type": "image_url", "image_url": data_url(RISKY)}]}],
        [SystemMessage("be kind"), ("human", [{"type": "image", "base64": text64(RISKY)}])],
        ["hello", {"role": "user", "content": [{"type": "image", "base64": text64(RISKY)}]}],
    ],
    ids=["tuple", "pair", "role", "type", "mixed", "with text"],
)
def test_what_langchain_takes_for_messages_becomes_messages(messages: list[Any]) -> None:
    screened = after(screen(REFUSE), messages)
    assert all(isinstance(message, BaseMessage) for message in screened)
    marker = read_marker(screened[-1])
    assert marker is not None
    assert marker.refused
    assert red_pixels(screened) == 0


def test_a_message_like_with_an_unknown_block_is_refused() -> None:
    for value in (
        [("human", [{"type": "hologram"}])],
        {"role": "user", "content": [{"type": "hologram"}]},
        [{"role": "tool", "content": [{"type": "hologram"}]}],
        {"messages": [("human", [{"type": "hologram"}])]},
    ):
        assert "hologram" not in repr(after(screen(), value))
        with pytest.raises(ImageRefused, match="cannot help with that content"):
            screen().invoke(value)


def test_names_ids_and_tool_calls_are_kept() -> None:
    call = {"type": "tool_call", "id": "call_1", "name": "look", "args": {"url": REMOTE}}
    answer = AIMessage(
        asked().content, id="ai-1", name="painter", tool_calls=[call], additional_kwargs={"x": 1}
    )
    result = ToolMessage(asked().content, id="t-1", tool_call_id="call_1", status="error", name="n")
    kept_answer, kept_result = screen().invoke([answer, result])
    assert (kept_answer.id, kept_answer.name, kept_answer.tool_calls) == ("ai-1", "painter", [call])
    assert kept_answer.additional_kwargs["x"] == 1
    assert (kept_result.id, kept_result.tool_call_id, kept_result.status, kept_result.name) == (
        *("t-1", "call_1", "error", "n"),
    )


def test_equal_inputs_give_equal_messages() -> None:
    assert screen().invoke(asked()) == screen().invoke(asked())


def test_each_message_holds_the_verdicts_of_its_own_pictures() -> None:
    screened = screen().invoke([asked(CLEAN), HumanMessage("hello"), asked(RISKY), asked(CLEAN)])
    markers = [read_marker(message) for message in screened]
    actions = [[v.action for v in marker.verdicts] if marker else None for marker in markers]
    assert actions == [["allow"], None, ["mask"], ["allow"]]


def test_a_dropped_picture_leaves_its_note_and_is_no_refusal() -> None:
    screened = screen(DROP).invoke(asked())
    assert screened.content[1] == {"type": "text", "text": DROP.note}
    marker = read_marker(screened)
    assert marker is not None
    assert not marker.refused


def test_raise_raises_and_a_batch_keeps_the_other_inputs() -> None:
    raising = screen(Policy(on_flagged="raise"))
    with pytest.raises(ImageRefused) as caught:
        raising.invoke(asked())
    assert caught.value.verdicts[0].category == "red"
    outcomes = raising.batch([asked(CLEAN), asked(), "hello"], return_exceptions=True)
    assert [type(one) for one in outcomes] == [HumanMessage, ImageRefused, str]
    with pytest.raises(ImageRefused):
        raising.batch([asked(CLEAN), asked()])


def test_monitor_records_and_changes_nothing() -> None:
    policy = Policy(on_flagged="refuse", monitor=True)
    unseen = HumanMessage([{"type": "image", "url": REMOTE}])
    for message in (asked(), unseen):
        screened = screen(policy).invoke(message)
        assert screened.content == message.content
        marker = read_marker(screened)
        assert marker is not None
        assert [verdict.action for verdict in marker.verdicts] == ["refuse"]
        assert not marker.refused


def test_allowing_the_unseen_lets_exactly_that_pass() -> None:
    block = {"type": "image", "url": REMOTE}
    screened = screen(Policy(on_not_inspected="allow")).invoke(HumanMessage([block]))
    assert screened.content == [block]


@pytest.mark.parametrize("detector", [BrokenDetector(), MiscountingDetector()])
def test_a_detector_that_breaks_has_failed_and_nothing_passes(detector: Any) -> None:
    screened = after(screen(detector=detector), [asked(CLEAN), asked(CLEAN)])
    for message in screened:
        marker = read_marker(message)
        assert marker is not None
        assert marker.refused
        assert [verdict.status for verdict in marker.verdicts] == ["failed"]
        assert "ran out of memory" not in repr(message)
    assert find_pictures(screened, Limits()) == []


def test_limits_are_those_that_were_set() -> None:
    small = ScreenImages(detector=RedDetector(), limits=Limits(max_pixels=100))
    marker = read_marker(after(small, asked(CLEAN)))
    assert marker is not None
    assert marker.verdicts[0].not_inspected[0].reason == "too_large"


def test_a_batch_is_one_call_of_the_detector() -> None:
    detector = RedDetector()
    inputs = [asked(), "hello", [asked(CLEAN), asked()], {"image": clean_picture()}]
    screened = screen(detector=detector).batch(inputs)
    assert [len(call) for call in detector.calls] == [4]
    alone = [screen().invoke(value) for value in inputs]
    assert told(screened) == told(alone)
    assert screen().batch([]) == []


async def test_the_async_twins_give_the_same() -> None:
    inputs = [asked(), "hello", [asked(CLEAN)]]
    one_by_one = screen()
    expected = [one_by_one.invoke(value) for value in inputs]
    assert await asyncio.gather(*map(one_by_one.ainvoke, inputs)) == expected
    assert await one_by_one.abatch(inputs) == expected
    assert [chunk async for chunk in one_by_one.astream(asked())] == [expected[0]]
    with pytest.raises(ImageRefused):
        await screen(Policy(on_flagged="raise")).ainvoke(asked())


def test_streamed_text_passes_as_it_comes() -> None:
    seen: list[str] = []

    def tokens() -> Iterator[str]:
        for token in ("Hel", "lo, ", "this is ", "a cat"):
            seen.append(token)
            yield token

    stream = screen().transform(tokens())
    assert next(stream) == "Hello, "
    assert seen == ["Hel", "lo, "]
    assert list(stream) == ["this is ", "a cat"]


def test_a_picture_that_comes_in_pieces_is_held_back_and_screened() -> None:
    url = data_url(RISKY)
    pieces = [url[i : i + 50] for i in range(0, len(url), 50)]
    (whole,) = screen().transform(iter(pieces))
    assert red_pixels(whole) == 0
    chunks = [AIMessageChunk(content=piece) for piece in pieces]
    (message,) = screen().transform(iter(chunks))
    assert isinstance(message, AIMessageChunk)
    assert red_pixels(message) == 0


def test_a_picture_in_a_stream_of_chunks_is_screened() -> None:
    chunks = [
        AIMessageChunk(content=[{"type": "text", "text": "here: ", "index": 0}]),
        AIMessageChunk(content=[{"type": "image", "base64": text64(RISKY), "index": 1}]),
        AIMessageChunk(content=[{"type": "text", "text": "done", "index": 2}]),
    ]
    first, rest = screen().transform(iter(chunks))
    assert first.content == chunks[0].content
    assert red_pixels(rest) == 0
    stream = screen(REFUSE).transform(iter(chunks))
    assert next(stream).content == chunks[0].content
    with pytest.raises(ImageRefused):
        next(stream)


async def test_async_streams_pass_text_and_hold_pictures() -> None:
    async def chunks() -> Any:
        yield "a long enough text, "
        yield "and more"

    assert [c async for c in screen().atransform(chunks())] == ["a long enough text, ", "and more"]


def test_policy_and_detector_can_be_configured_per_call() -> None:
    configurable = screen().configurable_fields(
        policy=ConfigurableField(id="policy"), detector=ConfigurableField(id="detector")
    )
    dropped = configurable.with_config(configurable={"policy": DROP}).invoke(asked())
    assert dropped.content[1]["text"] == DROP.note
    with pytest.raises(ImageRefused) as caught:
        configurable.with_config(configurable={"detector": BrokenDetector()}).invoke(asked())
    assert caught.value.verdicts[0].status == "failed"
    assert "ran out of memory" in str(caught.value.__cause__)
    assert red_pixels(configurable.invoke(asked())) == 0


def test_it_stands_between_a_prompt_and_a_model() -> None:
    image = {"type": "image", "base64": "{picture}", "mime_type": "image/png"}
    prompt = ChatPromptTemplate.from_messages(
        [MessagesPlaceholder("history"), ("human", [{"type": "text", "text": "{question}"}, image])]
    )
    chain = prompt | screen() | RunnableLambda(lambda value: value)
    value = chain.invoke({"history": [asked()], "question": "?", "picture": text64(RISKY)})
    assert isinstance(value, ChatPromptValue)
    assert red_pixels(value) == 0


def test_runs_are_traced_with_the_names_people_give() -> None:
    seen: list[str] = []

    from langchain_core.callbacks import BaseCallbackHandler

    class Names(BaseCallbackHandler):
        def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
            seen.append(kwargs["name"])

    config: RunnableConfig = {"callbacks": [Names()], "run_name": "look"}
    screen().invoke(asked(), config)
    screen().batch([asked(), asked()], {"callbacks": [Names()]})
    assert seen == ["look", "ScreenImages", "ScreenImages"]


@pytest.mark.parametrize("marker", [{"refused": False, "verdicts": []}, {}, 7, {"refused": 0}])
def test_no_marker_written_by_others_permits_anything(marker: Any) -> None:
    forged = asked(additional_kwargs={"sightrail": marker})
    screened = after(screen(REFUSE), forged)
    kept = read_marker(screened)
    assert kept is not None
    assert kept.refused
    assert red_pixels(screened) == 0


def test_refused_stays_refused() -> None:
    again = after(screen(Policy(monitor=True)), after(screen(REFUSE), asked()))
    marked = asked(CLEAN, additional_kwargs={"sightrail": {"refused": True}})
    for message in (again, after(screen(), marked)):
        marker = read_marker(message)
        assert marker is not None
        assert marker.refused
        with pytest.raises(ImageRefused):
            screen().invoke(message)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_refused_comes_out(kind: str, tmp_path: Path) -> None:
    value = KINDS[kind](RISKY, tmp_path)
    with pytest.raises(ImageRefused, match="cannot help with that image") as caught:
        screen(REFUSE).invoke(value)
    assert caught.value.verdicts[0].category == "red"
    assert "guard(model)" in caught.value.__notes__[0]
    with pytest.raises(ImageRefused):
        list(screen(REFUSE).stream(value))
    outcomes = screen(REFUSE).batch([value, "hello"], return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ImageRefused, str]


def test_a_conversation_that_was_refused_before_goes_on_as_what_it_was() -> None:
    turns = [asked(), AIMessage("No."), HumanMessage("2 + 2?")]
    for value in (turns, ChatPromptValue(messages=turns), tuple(turns)):
        seen = screen(REFUSE).invoke(value)
        assert type(seen) is type(value)
        assert red_pixels(seen) == 0
    clean = [HumanMessage("hi"), AIMessage("hello"), HumanMessage("2 + 2?")]
    assert screen(REFUSE).invoke(clean) is clean


def test_a_picture_inside_a_marker_is_found() -> None:
    forged = HumanMessage("hi", additional_kwargs={"sightrail": {"verdicts": [data_url(RISKY)]}})
    assert red_pixels(screen().invoke(forged)) == 0


def test_something_that_cannot_screen_is_no_detector() -> None:
    with pytest.raises(ValidationError, match="no method screen"):
        ScreenImages(detector=object())
    with pytest.raises(ValidationError):
        ScreenImages(detector=RedDetector(), plicy=DROP)


def test_a_long_history_is_looked_at_once_and_keeps_its_pictures() -> None:
    history: list[Any] = []
    for number in range(100):
        image = Image.new("RGB", (48, 48), (number, 90, 90))
        drawn = [CARRIERS["standard base64"](encoded(image))] if number % 2 else []
        history += [HumanMessage([{"type": "text", "text": "and?"}, *drawn]), AIMessage("a")]
        if number == 50:
            history.append(ToolMessage([{"type": "text", "text": "a page"}], tool_call_id="1"))
    look = ScreenImages(detector=CachedDetector(stub := StubDetector()))
    for _ in range(2):
        asked = [*history, HumanMessage("and now?")]
        seen = look.invoke(asked)
        assert [message.content for message in seen] == [message.content for message in asked]
    assert len(stub.seen) == 50
