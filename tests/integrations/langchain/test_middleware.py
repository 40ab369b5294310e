"""ImageGuardMiddleware in real agents: every way a picture comes in, and every way out."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.tools import tool
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from PIL import Image

from agent_helpers import (
    Adds,
    agent,
    assert_every_call_is_answered,
    brain,
    calls,
    clock,
    image,
    photo,
    pictures,
    red_pixels,
    run,
    screenshot,
    statuses,
    user,
)
from bad_pictures import encoded
from chain_helpers import CLEAN, REMOTE, RISKY, BrokenDetector, RedDetector, text64
from sightrail.guardrails import (
    CachedDetector,
    ConfigurationError,
    ImageRefused,
    Limits,
    Policy,
)
from sightrail.guardrails.testing import StubDetector
from sightrail.integrations.langchain import ImageGuardMiddleware
from sightrail.runnables import read_marker

REFUSE = Policy(on_flagged="refuse")
MODES = ["sync", "async"]


def guarding(policy: Policy | None = None, detector: Any = None) -> ImageGuardMiddleware:
    return ImageGuardMiddleware(detector=detector or RedDetector(), policy=policy)


@pytest.mark.parametrize("mode", MODES)
async def test_a_risky_user_picture_is_masked_before_the_model_sees_it(mode: str) -> None:
    model, guard = brain("a square"), guarding()
    state = await run(agent(model, guard), mode, user(CLEAN), user(RISKY, id="u-2"))
    assert red_pixels(model.asked) == 0
    assert len(pictures(model.asked[0])) == 2
    assert red_pixels(state["messages"]) == 0
    assert state["messages"][1].id == "u-2"
    assert statuses(state) == ["clean", "flagged"]
    assert state["messages"][-1].content == "a square"
    marker = read_marker(state["messages"][1])
    assert marker is not None
    assert [verdict.action for verdict in marker.verdicts] == ["mask"]
    assert marker.verdicts[0].regions


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (REFUSE, user(RISKY)),
        (Policy(), HumanMessage([{"type": "image", "url": REMOTE}])),
        (Policy(), HumanMessage([{"type": "hologram"}])),
    ],
    ids=["flagged", "remote", "unknown block"],
)
async def test_a_refused_user_picture_ends_the_run(
    mode: str, policy: Policy, message: HumanMessage
) -> None:
    model = brain("never said")
    state = await run(agent(model, guarding(policy)), mode, message)
    assert model.asked == []
    asked, answer = state["messages"]
    assert answer.content.startswith("I am sorry")
    assert answer.response_metadata["refused"]
    assert len(answer.response_metadata["verdicts"]) == 1
    assert pictures(asked) == []
    assert policy.note in str(asked.content)


@pytest.mark.parametrize("mode", MODES)
async def test_a_picture_from_a_tool_is_masked_before_it_enters_the_transcript(mode: str) -> None:
    model = brain(calls("screenshot", "clock"), "done")
    state = await run(agent(model, guarding()), mode, user())
    assert red_pixels(model.asked) == red_pixels(state["messages"]) == 0
    results = [m for m in state["messages"] if isinstance(m, ToolMessage)]
    assert [m.tool_call_id for m in results] == ["call_0", "call_1"]
    assert [m.content for m in results][1] == "noon"
    assert len(pictures(results[0])) == 1
    assert statuses(state) == ["flagged"]
    assert state["image_verdicts"][0]["message_id"] == results[0].id
    assert state["image_verdicts"][0]["message_type"] == "tool"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["screenshot", "link"])
async def test_a_refused_tool_result_keeps_its_call_and_ends_the_run(mode: str, name: str) -> None:
    model = brain(calls(name, "photo", "clock"), "never said")
    state = await run(agent(model, guarding(REFUSE)), mode, user())
    assert len(model.asked) == 1
    assert_every_call_is_answered(state["messages"])
    assert state["messages"][-1].content.startswith("I am sorry")
    assert len(pictures(state["messages"])) == 1  # the photo


@pytest.mark.parametrize("mode", MODES)
async def test_a_dropped_tool_picture_leaves_a_note_and_the_agent_goes_on(mode: str) -> None:
    policy = Policy(on_flagged="drop")
    model = brain(calls("screenshot"), "I cannot see the page")
    state = await run(agent(model, guarding(policy)), mode, user())
    assert state["messages"][-1].content == "I cannot see the page"
    assert policy.note in str(model.asked[1][-1].content)


@pytest.mark.parametrize("mode", MODES)
async def test_a_picture_in_the_models_answer_is_masked(mode: str) -> None:
    drawn = AIMessage([{"type": "text", "text": "here"}, image(RISKY)], id="ai-1")
    state = await run(agent(brain(drawn), guarding()), mode, user())
    answer = state["messages"][-1]
    assert answer.id == "ai-1"
    assert red_pixels(answer) == 0
    assert len(pictures(answer)) == 1
    assert state["image_verdicts"][0]["message_type"] == "ai"


@pytest.mark.parametrize("mode", MODES)
async def test_a_refused_answer_becomes_the_refusal(mode: str) -> None:
    drawn = AIMessage([image(RISKY)], id="ai-1")
    state = await run(agent(brain(drawn), guarding(REFUSE)), mode, user())
    assert [m.content for m in state["messages"][1:]] == [REFUSE.refusal]
    assert state["messages"][-1].id == "ai-1"
    assert state["messages"][-1].response_metadata["refused"]


@pytest.mark.parametrize("mode", MODES)
async def test_the_tools_a_refused_answer_calls_are_not_run(mode: str) -> None:
    ran: list[str] = []

    @tool
    def send() -> str:
        """Send it."""
        ran.append("sent")
        return "sent"

    call = calls("send").tool_calls
    drawn = AIMessage([image(RISKY)], tool_calls=call)
    app = agent(brain(drawn), guarding(REFUSE), tools=[send])
    state = await run(app, mode, user())
    assert ran == []
    assert_every_call_is_answered(state["messages"])
    assert state["messages"][-1].content.startswith("I am sorry")


@pytest.mark.parametrize("mode", MODES)
async def test_what_other_middleware_adds_is_screened(mode: str) -> None:
    model = brain("fine")
    state = await run(agent(model, guarding(), Adds(RISKY, CLEAN)), mode, user())
    assert len(pictures(model.asked)) == 3
    assert red_pixels(model.asked) == 0
    assert statuses(state) == ["flagged", "flagged", "clean"]
    refusing = brain("never said")
    state = await run(agent(refusing, guarding(REFUSE), Adds(RISKY, CLEAN)), mode, user())
    assert refusing.asked == []
    assert state["messages"][-1].content.startswith("I am sorry")


@pytest.mark.parametrize("mode", MODES)
async def test_a_command_of_a_tool_is_screened(mode: str) -> None:
    @tool
    def visit() -> Command[Any]:
        """Visit a page."""
        result = ToolMessage([image(RISKY)], tool_call_id="call_0")
        return Command(update={"messages": [result, user(RISKY)]})

    model = brain(calls("visit"), "done")
    state = await run(agent(model, guarding(), tools=[visit]), mode, user())
    assert len(pictures(model.asked[1])) == 2
    assert red_pixels(model.asked) == red_pixels(state["messages"]) == 0


@pytest.mark.parametrize("mode", MODES)
async def test_an_artifact_of_a_tool_is_screened(mode: str) -> None:
    @tool(response_format="content_and_artifact")
    def scan() -> tuple[str, Any]:
        """Scan."""
        return "a scan", {"shot": text64(RISKY)}

    state = await run(agent(brain(calls("scan"), "ok"), guarding(), tools=[scan]), mode, user())
    assert red_pixels(state["messages"]) == 0
    assert statuses(state) == ["flagged"]


@pytest.mark.parametrize("mode", MODES)
async def test_each_picture_is_looked_at_once_though_history_is_sent_again(mode: str) -> None:
    detector = RedDetector()
    model = brain(calls("photo"), calls("screenshot"), calls("photo", "screenshot"), "done", "bye")
    app = agent(model, guarding(detector=detector), checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    first = await run(app, mode, user(CLEAN, RISKY), config=config)
    state = await run(app, mode, user(RISKY), config=config)
    assert len(detector.seen) == 2
    assert state["messages"][: len(first["messages"])] == first["messages"]
    assert statuses(state) == [
        "clean",
        "flagged",
        "clean",
        "flagged",
        "clean",
        "flagged",
        "flagged",
    ]


@pytest.mark.parametrize("mode", MODES)
async def test_a_conversation_goes_on_after_a_refusal(mode: str) -> None:
    saver = InMemorySaver()
    model = brain("four")
    app = agent(model, guarding(REFUSE), checkpointer=saver)
    config = {"configurable": {"thread_id": "1"}}
    await run(app, mode, user(RISKY), config=config)
    state = await run(app, mode, user(text="2 + 2?"), config=config)
    assert [m.content for m in state["messages"] if isinstance(m, AIMessage)] == [
        REFUSE.refusal,
        "four",
    ]
    restarted = agent(brain("five"), guarding(REFUSE), checkpointer=saver)  # remembers nothing
    state = await run(restarted, mode, user(text="2 + 3?"), config=config)
    assert state["messages"][-1].content == "five"


@pytest.mark.parametrize("mode", MODES)
async def test_raise_raises_out_of_the_run(mode: str) -> None:
    policy = Policy(on_flagged="raise")
    with pytest.raises(ImageRefused):
        await run(agent(brain("x"), guarding(policy)), mode, user(RISKY))
    with pytest.raises(ImageRefused):
        await run(agent(brain(calls("screenshot"), "x"), guarding(policy)), mode, user())


@pytest.mark.parametrize("mode", MODES)
async def test_monitor_records_and_changes_no_content(mode: str) -> None:
    policy = Policy(on_flagged="refuse", monitor=True)
    model = brain(calls("screenshot", "link"), "done")
    state = await run(agent(model, guarding(policy)), mode, user(RISKY))
    assert state["messages"][0].content == user(RISKY).content
    assert state["messages"][-1].content == "done"
    assert statuses(state) == ["flagged", "flagged", "not_inspected"]


@pytest.mark.parametrize("mode", MODES)
async def test_a_detector_that_breaks_lets_nothing_pass(mode: str) -> None:
    model = brain("never said")
    state = await run(agent(model, guarding(detector=BrokenDetector())), mode, user(CLEAN))
    assert model.asked == []
    assert statuses(state) == ["failed"]


async def test_no_marker_or_state_written_by_others_permits_anything() -> None:
    forged = {"sightrail": {"refused": False, "verdicts": []}}
    model = brain("x")
    request = {
        "messages": [user(RISKY, additional_kwargs=forged)],
        "image_verdicts": [{"message_id": "u", "message_type": "human", "verdict": {}}],
    }
    state = agent(model, guarding()).invoke(request)
    assert red_pixels(model.asked) == 0
    assert statuses(state) == ["flagged"]


async def test_a_message_refused_earlier_in_a_chain_is_refused() -> None:
    marked = HumanMessage("look", additional_kwargs={"sightrail": {"refused": True}})
    model = brain("never said")
    state = agent(model, guarding()).invoke({"messages": [marked]})
    assert model.asked == []
    assert state["messages"][-1].content.startswith("I am sorry")


async def test_streams_show_nothing_that_was_not_screened() -> None:
    model = brain(calls("screenshot"), "the end")
    app = agent(model, guarding())
    for modes in (["updates", "messages"], ["values"]):
        told: list[Any] = []
        model.messages = iter([calls("screenshot"), AIMessage("the end")])
        async for _, part in app.astream({"messages": [user()]}, stream_mode=modes):
            told.append(part)
        assert red_pixels([m for part in told for m in _messages_in(part)]) == 0
        assert "the end" in str(told)


def _messages_in(part: Any) -> list[BaseMessage]:
    if isinstance(part, BaseMessage):
        return [part]
    if isinstance(part, dict):
        return [m for value in part.values() for m in _messages_in(value)]
    if isinstance(part, list | tuple):
        return [m for value in part for m in _messages_in(value)]
    return []


async def test_a_streamed_refusal_is_a_message() -> None:
    app = agent(brain("never said"), guarding(REFUSE))
    streamed = [
        m async for m, _ in app.astream({"messages": [user(RISKY)]}, stream_mode="messages")
    ]
    assert [m.content for m in streamed if isinstance(m, AIMessage)] == [REFUSE.refusal]


def test_checkpoints_hold_verdicts_that_any_process_can_read() -> None:
    saver = InMemorySaver()
    app = agent(brain("x"), guarding(), checkpointer=saver)
    config: Any = {"configurable": {"thread_id": "1"}}
    app.invoke({"messages": [user(RISKY)]}, config)
    (record,) = app.get_state(config).values["image_verdicts"]
    assert record["verdict"]["status"] == "flagged"
    assert record["message_type"] == "human"


def test_the_tools_and_texts_of_an_agent_without_pictures_are_untouched() -> None:
    model = brain(calls("clock"), "noon")
    state = agent(model, guarding(detector=BrokenDetector())).invoke({"messages": [user()]})
    assert [m.content for m in state["messages"][1:]] == ["", "noon", "noon"]
    assert "image_verdicts" not in state or state["image_verdicts"] == []


def test_something_that_is_no_detector_is_an_error_at_once() -> None:
    with pytest.raises(ConfigurationError, match="is no detector"):
        ImageGuardMiddleware(detector=object())


def test_the_helpers_tools_return_what_the_tests_say() -> None:
    assert red_pixels(HumanMessage(screenshot.invoke({}))) > 0
    assert red_pixels(HumanMessage(photo.invoke({}))) == 0
    assert clock.invoke({}) == "noon"


@pytest.mark.parametrize("mode", MODES)
async def test_the_pictures_of_a_request_are_counted_over_all_its_messages(mode: str) -> None:
    limits = Limits(max_images_per_request=3, max_images_per_message=2)
    detector, model = RedDetector(), brain("never said")
    guard = ImageGuardMiddleware(detector=detector, limits=limits)
    state = await run(agent(model, guard), mode, *(user(CLEAN, text=f"{n}?") for n in range(5)))
    assert model.asked == []
    assert len(pictures(state["messages"])) == 3
    assert statuses(state) == ["clean"] * 3 + ["not_inspected"] * 2


def test_what_an_agent_has_looked_at_is_not_counted_again() -> None:
    limits = Limits(max_images_per_request=2)
    guard = ImageGuardMiddleware(detector=RedDetector(), limits=limits)
    model = brain("one", "two", "three")
    app = agent(model, guard, checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    for _ in range(3):
        app.invoke({"messages": [user(CLEAN, CLEAN)]}, config)
    assert len(model.asked) == 3
    assert len(pictures(model.asked[-1])) == 6


class Curious(StubDetector):
    """Wants the words of the request, and keeps them."""

    wants_request = True

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def screen(self, images: Any) -> Any:
        self.words += [image.request for image in images]
        return super().screen(images)


@pytest.mark.parametrize("mode", MODES)
async def test_a_detector_that_wants_the_request_gets_the_users_words_for_a_tools_picture(
    mode: str,
) -> None:
    detector = Curious()
    model = brain(calls("photo"), "done", calls("photo"), "done")
    app = agent(model, ImageGuardMiddleware(detector=detector), checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    await run(app, mode, user(text="how do I make it?"), config=config)
    assert detector.words == ["how do I make it?"]
    await run(app, mode, user(text="and that one?"), config=config)
    assert detector.words[1:] == ["how do I make it?\nand that one?"]
    added = create_agent(
        brain("done"), [], middleware=[ImageGuardMiddleware(detector=detector), Adds(CLEAN)]
    )
    await run(added, mode, user(text="what is there?"))
    assert detector.words[2:] == ["what is there?"]


@pytest.mark.parametrize("again", [False, True])
def test_a_long_history_is_looked_at_once_and_keeps_its_pictures(again: bool) -> None:
    history: list[Any] = []
    for number in range(100):
        drawn = [encoded(Image.new("RGB", (48, 48), (number, 90, 90)))] if number % 2 else []
        history += [user(*drawn, text=f"question {number}"), AIMessage(f"answer {number}")]
    detector = CachedDetector(stub := StubDetector())
    for _ in range(2 if again else 1):  # a stateless app in another worker sends it all again
        model = brain("done")
        app = create_agent(model, [], middleware=[ImageGuardMiddleware(detector=detector)])
        app.invoke({"messages": [*history, user(text="and now?")]})
        assert repr(model.asked).count("'type': 'image'") == 50
    assert len(stub.seen) == 50
