"""ImageGuardNodes in real graphs: pass, review, enforce, refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, StateGraph
from langgraph.types import Command

from agent_helpers import brain, statuses, user
from chain_helpers import CLEAN, REMOTE, RISKY, BrokenDetector, RedDetector, find_pictures
from sightrail.guardrails import ConfigurationError, ImageRefused, Limits, Picture, Policy
from sightrail.integrations.langchain import GuardedState, ImageGuardNodes

MODES = ["sync", "async"]


def decided(kind: Any, **more: Any) -> dict[str, Any]:
    return {"decisions": [{"type": kind, **more}]}


THREAD: Any = {"configurable": {"thread_id": "1"}}


def graph(model: Any, nodes: ImageGuardNodes, saver: Any = None) -> Any:
    building = StateGraph(GuardedState)
    building.add_node("answer", lambda state: {"messages": [model.invoke(state["messages"])]})
    building.add_edge("answer", END)
    nodes.add_to(building)
    return building.compile(checkpointer=saver or InMemorySaver())


async def run(app: Any, mode: str, value: Any) -> Any:
    given = value if isinstance(value, Command) else {"messages": value}
    return app.invoke(given, THREAD) if mode == "sync" else await app.ainvoke(given, THREAD)


def red(messages: Any) -> bool:
    seen = [found.seen for found in find_pictures(messages, Limits())]
    verdicts = RedDetector().screen([one for one in seen if isinstance(one, Picture)])
    return any(verdict.status == "flagged" for verdict in verdicts)


@pytest.mark.parametrize("mode", MODES)
async def test_clean_pictures_are_answered(mode: str) -> None:
    state = await run(graph(brain("grey"), ImageGuardNodes(RedDetector())), mode, [user(CLEAN)])
    assert state["messages"][-1].content == "grey"
    assert statuses(state) == ["clean"]


@pytest.mark.parametrize("mode", MODES)
async def test_a_person_sees_verdicts_and_no_pictures(mode: str) -> None:
    model = brain("x")
    app = graph(model, ImageGuardNodes(RedDetector()))
    state = await run(app, mode, [user(CLEAN), user(RISKY)])
    (interrupt,) = state["__interrupt__"]
    (request,) = interrupt.value["action_requests"]
    assert request["args"]["message_id"] == state["messages"][1].id
    assert [r["verdict"]["category"] for r in request["args"]["verdicts"]] == ["red"]
    (config,) = interrupt.value["review_configs"]
    assert config["action_name"] == request["name"]
    assert config["allowed_decisions"] == ["approve", "edit", "reject", "respond"]
    assert find_pictures(interrupt.value, Limits()) == []
    json.dumps(interrupt.value)
    assert model.asked == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("ruling", "answer", "sees_red"),
    [
        (decided("approve"), "a square", True),
        (decided("edit"), "a square", False),
        (decided("reject"), Policy().refusal, False),
        (decided("reject", message="Not that one."), "Not that one.", False),
        (decided("respond", message="A red square."), "A red square.", False),
        (decided("respond"), Policy().refusal, False),
        (decided("whatever"), Policy().refusal, False),
        (decided(["approve"]), Policy().refusal, False),
        ("approve", Policy().refusal, False),
        ({"decisions": []}, Policy().refusal, False),
        ({"decisions": [{"type": "approve"}] * 2}, Policy().refusal, False),
        ({"decisions": "approve"}, Policy().refusal, False),
        (["approve"], Policy().refusal, False),
    ],
    ids=str,
)
async def test_the_decision_is_followed(
    mode: str, ruling: Any, answer: str, sees_red: bool
) -> None:
    detector = RedDetector()
    model = brain("a square", "again")
    app = graph(model, ImageGuardNodes(detector))
    await run(app, mode, [user(RISKY)])
    state = await run(app, mode, Command(resume=ruling))
    assert state["messages"][-1].content == answer
    assert red(model.asked) is sees_red
    assert red(state["messages"]) is sees_red
    assert len(detector.seen) == 1
    later = await run(app, mode, [user(text="and now?")])
    assert "__interrupt__" not in later
    assert isinstance(later["messages"][-1], AIMessage)
    assert len(detector.seen) == 1


@pytest.mark.parametrize("mode", MODES)
async def test_each_message_has_a_decision_of_its_own(mode: str) -> None:
    model = brain("two")
    app = graph(model, ImageGuardNodes(RedDetector()))
    await run(app, mode, [user(RISKY, text="first"), user(RISKY, text="second")])
    answer = {"decisions": [{"type": "edit"}, {"type": "approve"}]}
    state = await run(app, mode, Command(resume=answer))
    first, second, _ = state["messages"]
    assert (red([first]), red([second])) == (False, True)
    records = state["image_verdicts"][-2:]
    assert [record["verdict"]["action"] for record in records] == ["mask", "allow"]


@pytest.mark.parametrize("mode", MODES)
async def test_enforcing_a_policy_that_refuses_refuses(mode: str) -> None:
    model = brain("never said")
    app = graph(model, ImageGuardNodes(RedDetector(), Policy(on_flagged="refuse")))
    await run(app, mode, [user(RISKY)])
    state = await run(app, mode, Command(resume=decided("edit")))
    assert model.asked == []
    assert state["messages"][-1].response_metadata["refused"]
    assert not red(state["messages"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("detector", "message"),
    [
        (RedDetector(), user(RISKY)),
        (RedDetector(), HumanMessage([{"type": "image", "url": REMOTE}])),
        (BrokenDetector(), user(CLEAN)),
    ],
    ids=["flagged", "remote", "broken detector"],
)
async def test_without_review_what_may_not_pass_is_refused(
    mode: str, detector: Any, message: HumanMessage
) -> None:
    model = brain("never said")
    app = graph(model, ImageGuardNodes(detector, review=False))
    state = await run(app, mode, [message])
    assert model.asked == []
    assert state["messages"][-1].content.startswith("I am sorry")
    assert find_pictures(state["messages"], Limits()) == [] or not red(state["messages"])


async def test_a_history_that_a_caller_sends_is_looked_at() -> None:
    app = graph(brain("x"), ImageGuardNodes(RedDetector()))
    state = await run(app, "sync", [user(RISKY), AIMessage("ok"), user()])
    assert state["__interrupt__"]


async def test_a_message_refused_earlier_in_a_chain_is_refused() -> None:
    marked = HumanMessage("look", additional_kwargs={"sightrail": {"refused": True}})
    model = brain("never said")
    state = await run(graph(model, ImageGuardNodes(RedDetector())), "sync", [marked])
    assert model.asked == []
    assert state["messages"][-1].content.startswith("I am sorry")


async def test_monitor_passes_everything_and_records() -> None:
    nodes = ImageGuardNodes(RedDetector(), Policy(on_flagged="refuse", monitor=True))
    state = await run(graph(brain("a square"), nodes), "sync", [user(RISKY)])
    assert state["messages"][-1].content == "a square"
    assert statuses(state) == ["flagged"]


async def test_review_goes_on_with_another_guard() -> None:
    saver, model = InMemorySaver(), brain("a square")
    await run(graph(model, ImageGuardNodes(RedDetector()), saver), "sync", [user(RISKY)])
    other = graph(model, ImageGuardNodes(RedDetector()), saver)
    state = await run(other, "sync", Command(resume=decided("edit")))
    assert state["messages"][-1].content == "a square"
    assert not red(model.asked)


def test_a_state_that_was_never_screened_is_refused() -> None:
    assert ImageGuardNodes(RedDetector()).decide({"messages": [user(RISKY)]}) == "refuse"


@pytest.mark.parametrize("review", [True, False])
async def test_raise_leaves_a_thread_that_goes_on(review: bool) -> None:
    model = brain("four")
    nodes = ImageGuardNodes(RedDetector(), Policy(on_flagged="raise"), review=review)
    app = graph(model, nodes)
    if review:
        await run(app, "sync", [user(RISKY)])
        state = await run(app, "sync", Command(resume=decided("edit")))
        assert state["messages"][-1].response_metadata["refused"]
    else:
        with pytest.raises(ImageRefused) as caught:
            await run(app, "sync", [user(RISKY)])
        assert caught.value.verdicts[0].category == "red"
    assert not red(app.get_state(THREAD).values["messages"])
    state = await run(app, "sync", [user(text="2 + 2?")])
    assert state["messages"][-1].content == "four"


def test_names_and_place_in_the_graph_are_ones_own() -> None:
    building = StateGraph(GuardedState)
    building.add_node("screen", lambda state: {"messages": [user(RISKY)]})
    building.add_node("reply", lambda state: {"messages": [AIMessage("ok")]})
    building.set_entry_point("screen")
    building.add_edge("reply", END)
    nodes = ImageGuardNodes(
        RedDetector(), review=False, answer="reply", after="screen", prefix="image_"
    )
    nodes.add_to(building)
    state = building.compile().invoke({"messages": [user()]})
    assert state["messages"][-1].response_metadata["refused"]
    assert not red(state["messages"])


SECRET = "sixteen bytes, or more"


@pytest.mark.parametrize("secret", [SECRET, "another secret, as long", None])
async def test_another_process_goes_by_what_a_person_approved(secret: str | None) -> None:
    saver, detector = InMemorySaver(), RedDetector()
    first = graph(brain("a square"), ImageGuardNodes(detector, secret=SECRET), saver)
    await run(first, "sync", [user(RISKY)])
    await run(first, "sync", Command(resume=decided("approve")))
    later = graph(brain("four"), ImageGuardNodes(RedDetector(), secret=secret), saver)
    state = await run(later, "sync", [user(text="2 + 2?")])
    assert ("__interrupt__" in state) is (secret != SECRET)
    if secret == SECRET:
        assert state["messages"][-1].content == "four"
        assert red(state["messages"])
        state = await run(later, "sync", [user(RISKY, text="and this one?")])
        assert state["__interrupt__"]  # approved was another message
        assert len(state["__interrupt__"][0].value["action_requests"]) == 1


@pytest.mark.parametrize(
    "forged", [["a" * 64], "a" * 64, [None, 7, {"a": []}], {"a": 1}, 7, ["\ud800"], [b"x"] * 9]
)
async def test_no_approval_that_somebody_made_up_is_believed(forged: Any) -> None:
    nodes = ImageGuardNodes(RedDetector(), secret=SECRET)
    marked = user(RISKY, additional_kwargs={"sightrail": {"refused": False, "verdicts": []}})
    update = nodes.screen({"messages": [marked], "image_approvals": forged})
    assert update["image_decision"] == "review"


def test_a_secret_that_can_be_guessed_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="at least 16"):
        ImageGuardNodes(RedDetector(), secret="abc")
    assert SECRET not in repr(ImageGuardNodes(RedDetector(), secret=SECRET))


PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command
from agent_helpers import brain, user
from chain_helpers import RISKY, RedDetector
from sightrail.integrations.langchain import ImageGuardNodes
from test_nodes import SECRET, THREAD, decided, graph, red

with SqliteSaver.from_conn_string(sys.argv[2]) as saver:
    app = graph(brain("a square"), ImageGuardNodes(RedDetector(), secret=SECRET), saver)
    if sys.argv[3] == "ask":
        state = app.invoke({"messages": [user(RISKY)]}, THREAD)
        assert state["__interrupt__"]
    elif sys.argv[3] == "approve":
        assert app.get_state(THREAD).next == ("review",)
        state = app.invoke(Command(resume=decided("approve")), THREAD)
        assert state["messages"][-1].content == "a square", state["messages"]
        values = app.get_state(THREAD).values
        assert red(values["messages"])
        assert not values["image_pending"]
        actions = [record["verdict"]["action"] for record in values["image_verdicts"]]
        assert actions == ["mask", "allow"], actions
    else:
        state = app.invoke({"messages": [user(text="and?")]}, THREAD)
        assert state["messages"][-1].content == "a square", state
print("done")
"""


def test_a_restart_in_the_middle_of_a_review_and_after_it(tmp_path: Path) -> None:
    pytest.importorskip("langgraph.checkpoint.sqlite")
    here = Path(__file__).parent

    def process(what: str) -> str:
        """What an interpreter of its own says that shares nothing but the checkpoints."""
        paths = [str(here.parents[1]), str(tmp_path / "threads.sqlite"), what]
        code = f"import sys; sys.path.insert(0, {str(here)!r})\n{PROCESS}"
        done = subprocess.run(
            [sys.executable, "-c", code, *paths], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    for what in ("ask", "approve", "later"):
        assert process(what).endswith("done\n")
