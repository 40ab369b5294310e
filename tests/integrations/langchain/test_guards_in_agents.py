"""Guards among other middleware: order, retries, several of them, restarts, artifacts, raise."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware, ToolRetryMiddleware
from langchain.agents.structured_output import ToolStrategy
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.tool import tool_call
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import create_retriever_tool
from langgraph.checkpoint.memory import InMemorySaver
from PIL import Image
from pydantic import BaseModel

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
from chain_helpers import CLEAN, RISKY, RedDetector, data_url, text64
from sightrail.guardrails import ImageRefused, Policy
from sightrail.guardrails.testing import StubDetector
from sightrail.integrations.langchain import ImageGuardMiddleware
from sightrail.integrations.langchain.message_screen import message_key
from sightrail.runnables import read_marker

REFUSE = Policy(on_flagged="refuse")
MODES = ["sync", "async"]


def guarding(policy: Policy | None = None, **more: Any) -> ImageGuardMiddleware:
    return ImageGuardMiddleware(**{"detector": RedDetector(), "policy": policy, **more})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("first", ["user", "screenshot", "drawing", "added"])
async def test_raise_is_not_swallowed_and_the_thread_goes_on(mode: str, first: str) -> None:
    policy = Policy(on_flagged="raise")
    said: list[Any] = {
        "user": [],
        "screenshot": [calls("screenshot", "clock")],
        "drawing": [AIMessage([image(RISKY)], tool_calls=calls("clock").tool_calls)],
        "added": [],
    }[first]
    retries: list[Any] = [
        ToolRetryMiddleware(max_retries=2, initial_delay=0, jitter=False),
        ModelRetryMiddleware(max_retries=2, initial_delay=0, jitter=False),
    ]
    saver = InMemorySaver()
    more = [*retries, Adds(RISKY)] if first == "added" else retries
    app = agent(brain(*said, "never said"), guarding(policy), *more, checkpointer=saver)
    config: Any = {"configurable": {"thread_id": "1"}}
    asked = user(RISKY) if first == "user" else user()
    with pytest.raises(ImageRefused, match="cannot help") as caught:
        await run(app, mode, asked, config=config)
    assert caught.value.verdicts[0].category == "red"
    left = app.get_state(config).values["messages"]
    assert red_pixels(left) == 0
    assert_every_call_is_answered(left)
    later = agent(brain("four"), guarding(policy), *retries, checkpointer=saver)
    state = await run(later, mode, user(text="2 + 2?"), config=config)
    assert state["messages"][-1].content == "four"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("policy", [Policy(), REFUSE, Policy(on_flagged="drop")], ids=str)
async def test_what_middleware_behind_the_guard_adds_does_not_reach_the_model_unseen(
    mode: str, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    model = brain("never said")
    app = create_agent(model, [clock], middleware=[guarding(policy), Adds(RISKY)])
    state = await run(app, mode, user(CLEAN))
    assert model.asked == []
    assert state["messages"][-1].content.startswith("I am sorry")
    assert "put it last" in caplog.text
    assert statuses(state) == ["clean", "flagged", "flagged"]
    fine = brain("fine")
    app = create_agent(fine, [clock], middleware=[guarding(policy), Adds(CLEAN)])
    state = await run(app, mode, user())
    assert state["messages"][-1].content == "fine"
    assert len(pictures(fine.asked)) == 2
    guard = guarding(policy.model_copy(update={"monitor": True}))
    app = create_agent(brain("fine"), [clock], middleware=[guard, Adds(RISKY)])
    assert (await run(app, mode, user()))["messages"][-1].content == "fine"


@pytest.mark.parametrize("mode", MODES)
async def test_several_guards_in_one_agent(mode: str) -> None:
    with pytest.raises(AssertionError, match="duplicate"):
        create_agent(brain("x"), [], middleware=[guarding(), guarding()])
    wide = StubDetector(flag=lambda picture: picture.image.width == 60, category="wide")
    guards = [guarding(name="RedGuard"), guarding(detector=wide, name="WideGuard")]
    model = brain(calls("photo", "screenshot"), calls("clock"), "done", "bye")
    tools = [photo, screenshot, clock]
    app = create_agent(model, tools, middleware=guards, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    noise = encoded(Image.effect_noise((60, 30), 50).convert("RGB"))
    state = await run(app, mode, user(RISKY, noise), config=config)
    assert red_pixels(model.asked) == 0
    records = [(r["guard"], r["verdict"]["action"]) for r in state["image_verdicts"]]
    assert records[:4] == [
        ("RedGuard", "mask"),
        ("RedGuard", "allow"),
        ("WideGuard", "mask"),
        ("WideGuard", "mask"),
    ]
    looked = len(wide.seen)
    state = await run(app, mode, user(text="bye"), config=config)
    assert len(state["image_verdicts"]) == len(records)  # nothing is recorded again and again
    assert len(wide.seen) == looked
    marker = read_marker(state["messages"][0])
    assert marker is not None
    assert [verdict.action for verdict in marker.verdicts] == ["mask", "mask"]


class Album(BaseRetriever):
    """Finds a page with a picture in its metadata."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return [Document("a page", metadata={"preview": data_url(RISKY), "id": 7, "source": "db"})]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("action", ["mask", "refuse", "drop"])
async def test_what_a_retriever_leaves_in_an_artifact_is_decided(
    mode: str, action: Any, direct: bool
) -> None:
    find = create_retriever_tool(Album(), "find", "f", response_format="content_and_artifact")
    find.return_direct = direct
    call = AIMessage("", tool_calls=[tool_call(name="find", args={"query": "x"}, id="c")])
    model = brain(call, "done")
    app = agent(model, guarding(Policy(on_flagged=action)), tools=[find])
    state = await run(app, mode, user())
    told = [(r["verdict"]["status"], r["verdict"]["action"]) for r in state["image_verdicts"]]
    assert told == [("flagged", action)]
    result = state["messages"][2]
    (document,) = result.artifact
    assert document.metadata["id"] == 7
    assert document.metadata["source"] == "db"
    assert red_pixels(result) == 0
    ending = state["messages"][-1]
    assert bool(ending.response_metadata.get("refused")) is (action == "refuse")
    assert len(model.asked) == (1 if direct or action == "refuse" else 2)
    assert_every_call_is_answered(state["messages"])


@pytest.mark.parametrize("mode", MODES)
async def test_a_history_that_was_refused_does_not_refuse_in_a_stateless_agent(mode: str) -> None:
    turns = [user(RISKY), AIMessage("No."), user(text="2 + 2?")]
    model = brain("four")
    state = await run(agent(model, guarding(REFUSE)), mode, *turns)
    assert state["messages"][-1].content == "four"
    assert pictures(model.asked) == []


def test_after_a_restart_records_stay_single_and_masked_stays_masked() -> None:
    saver = InMemorySaver()
    config: Any = {"configurable": {"thread_id": "1"}}
    model = brain(calls("screenshot"), "one", "two", "three")
    agent(model, guarding(), checkpointer=saver).invoke({"messages": [user(RISKY)]}, config)
    for _ in range(2):
        app = agent(model, guarding(), checkpointer=saver)
        state = app.invoke({"messages": [user(text="and?")]}, config)
    assert [r["verdict"]["action"] for r in state["image_verdicts"]] == ["mask", "mask"]
    marker = read_marker(state["messages"][0])
    assert marker is not None
    assert [verdict.action for verdict in marker.verdicts] == ["mask"]


class Page(BaseModel):
    """A page."""

    html: str


def test_a_picture_in_structured_output_refuses_it() -> None:
    args = {"html": f"<img src={data_url(RISKY)}>"}
    model = brain(AIMessage("", tool_calls=[tool_call(name="Page", args=args, id="c")]))
    app = agent(model, guarding(), response_format=ToolStrategy(Page))
    state = app.invoke({"messages": [user()]})
    assert state.get("structured_response") is None
    assert state["messages"][-1].response_metadata["refused"]
    assert text64(RISKY)[:100] not in repr(state)
    assert_every_call_is_answered(state["messages"])


@pytest.mark.parametrize(
    ("kept", "other"),
    [
        ({"a": b"\x01"}, {"a": {"bytes": "01"}}),
        ([1, 23], [12, 3]),
        (["a", "b"], ["ab"]),
        ([True], [1]),
        ({"1": 2}, {1: 2}),
        (["1"], [1]),
        ((1,), [1]),
        ([Document("a")], ["a", {}]),
        (["a:1;str:1;b"], ["a", "b"]),
        (None, []),
    ],
)
def test_messages_that_differ_have_different_keys(kept: Any, other: Any) -> None:
    keys = {message_key(ToolMessage("x", tool_call_id="1", artifact=a)) for a in (kept, other)}
    assert None not in keys
    assert len(keys) == 2


def test_the_key_covers_everything_that_is_looked_at() -> None:
    call = tool_call(name="look", args={"picture": text64(CLEAN)}, id="c")
    said = AIMessage("", tool_calls=[call])
    worse = AIMessage("", tool_calls=[{**call, "args": {"picture": text64(RISKY)}}])
    assert message_key(said) != message_key(worse)
    assert message_key(HumanMessage("a")) != message_key(SystemMessage("a"))
    assert message_key(HumanMessage("a", id="1")) == message_key(HumanMessage("a", id="2"))
    deep: Any = "x"
    for _ in range(10_000):
        deep = [deep]
    assert message_key(ToolMessage("a", tool_call_id="1", artifact=deep)) is None
    assert message_key(ToolMessage("a", tool_call_id="1", artifact=object())) is None


@pytest.mark.parametrize("artifact", [{"shot": RISKY}, {"shot": {"bytes": RISKY.hex()}}])
def test_bytes_are_not_taken_for_words_about_them(artifact: Any) -> None:
    guard = guarding()
    for held in ({"shot": {"bytes": RISKY.hex()}}, artifact):
        message = ToolMessage("x", tool_call_id="1", artifact=held)
        seen = guard._screen([message]).messages
        assert red_pixels(seen) == 0


def test_verdicts_are_told_under_the_name_of_the_guard(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Any] = []
    guard = guarding(on_verdict=told.append, name="Pictures")
    with caplog.at_level("INFO", "sightrail"):
        agent(brain("x"), guard).invoke({"messages": [user(RISKY)]})
    assert [verdict.action for verdict in told] == ["mask"]
    assert "Pictures: flagged: red" in caplog.text
