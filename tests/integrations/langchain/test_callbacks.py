"""The callback handlers: what they see, what they write, when they stop a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models import FakeListLLM
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import tool

from agent_helpers import agent, brain, image, link, photo, screenshot, user
from chain_helpers import CLEAN, RISKY, BrokenDetector, RedDetector, data_url, text64
from sightrail.guardrails import ConfigurationError, ImageRefused, Policy, SurfaceRules
from sightrail.guardrails.testing import StubDetector
from sightrail.integrations.langchain import GuardrailCallbackHandler, ImageGuardMiddleware
from sightrail.integrations.langchain.callbacks import AuditRecord
from sightrail.runnables import ScreenImages

MODES = ["sync", "async"]


class Album(BaseRetriever):
    """Finds a picture, whatever is asked."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        return [Document("a page"), Document(text64(RISKY), metadata={"title": "secret plan"})]


@tool
def look(picture: str) -> str:
    """Look at a picture."""
    return "looked"


EVENTS: dict[str, tuple[Callable[[], Any], Any]] = {
    "on_chat_model_start": (lambda: brain("no"), [user(RISKY, text="secret plan")]),
    "on_llm_start": (lambda: FakeListLLM(responses=["no"]), data_url(RISKY)),
    "on_llm_end": (lambda: brain(AIMessage([image(RISKY)])), "draw the secret plan"),
    "on_tool_start": (lambda: look, {"picture": data_url(RISKY)}),
    "on_tool_end": (lambda: screenshot, {}),
    "on_retriever_end": (lambda: Album(), "secret plan"),
}


def handler(**settings: Any) -> GuardrailCallbackHandler:
    return GuardrailCallbackHandler(**{"detector": RedDetector(), **settings})


async def ask(thing: Any, value: Any, mode: str, guard: Any) -> Any:
    config = {"callbacks": [guard]}
    return thing.invoke(value, config) if mode == "sync" else await thing.ainvoke(value, config)


def lines(log: Path) -> list[dict[str, Any]]:
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("event", EVENTS)
async def test_every_event_with_a_picture_is_one_line(
    event: str, mode: str, tmp_path: Path
) -> None:
    make, value = EVENTS[event]
    log = tmp_path / "audit.jsonl"
    await ask(make(), value, mode, handler(log=log))
    (line,) = lines(log)
    assert line["event"] == event
    assert line["tripped"] is False
    assert [v["status"] for v in line["verdicts"]] == ["flagged"]
    assert [v["action"] for v in line["verdicts"]] == ["mask"]
    assert line.keys() == AuditRecord.model_fields.keys()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("event", EVENTS)
async def test_the_log_holds_no_content(event: str, mode: str, tmp_path: Path) -> None:
    make, value = EVENTS[event]
    log = tmp_path / "audit.jsonl"
    await ask(make(), value, mode, handler(log=log))
    text = log.read_text(encoding="utf-8")
    assert "secret plan" not in text
    assert text64(RISKY)[:40] not in text
    assert len(text) < 1200


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("event", EVENTS)
async def test_with_raise_error_it_is_a_tripwire(event: str, mode: str, tmp_path: Path) -> None:
    make, value = EVENTS[event]
    log = tmp_path / "audit.jsonl"
    guard = handler(log=log, raise_error=True)
    with pytest.raises(ImageRefused) as caught:
        await ask(make(), value, mode, guard)
    assert [verdict.status for verdict in caught.value.verdicts] == ["flagged"]
    assert lines(log)[-1]["tripped"] is True


@pytest.mark.parametrize("mode", MODES)
async def test_a_tripwire_stops_the_model_before_it_runs(mode: str) -> None:
    model = brain("never said")
    with pytest.raises(ImageRefused):
        await ask(model, [user(RISKY)], mode, handler(raise_error=True))
    assert model.asked == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("detector", "content"),
    [(BrokenDetector(), image(CLEAN)), (RedDetector(), {"type": "hologram"})],
    ids=["broken detector", "unknown block"],
)
async def test_a_tripwire_fails_closed(mode: str, detector: Any, content: Any) -> None:
    guard = handler(detector=detector, raise_error=True)
    with pytest.raises(ImageRefused):
        await ask(brain("x"), [HumanMessage([content])], mode, guard)
    with pytest.raises(ImageRefused):
        await ask(link, {}, mode, guard)


@pytest.mark.parametrize("mode", MODES)
async def test_a_log_that_cannot_be_written_stops_a_tripwire(mode: str, tmp_path: Path) -> None:
    guard = handler(log=tmp_path, raise_error=True)
    with pytest.raises(OSError, match="directory"):
        await ask(brain("x"), [user(CLEAN)], mode, guard)


@pytest.mark.parametrize("mode", MODES)
async def test_what_may_pass_passes_a_tripwire(mode: str, tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    guard = handler(log=log, raise_error=True)
    assert (await ask(brain("fine"), [user(CLEAN)], mode, guard)).content == "fine"
    assert (await ask(photo, {}, mode, guard))[0]["type"] == "image"
    watching = handler(log=log, raise_error=True, policy=Policy(monitor=True))
    assert (await ask(brain("fine"), [user(RISKY)], mode, watching)).content == "fine"
    assert [line["tripped"] for line in lines(log)] == [False, False, False]


@pytest.mark.parametrize("mode", MODES)
async def test_events_without_pictures_leave_no_line(mode: str, tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    await ask(brain("hello"), "hi", mode, handler(log=log))
    assert lines(log) == []


@pytest.mark.parametrize("mode", MODES)
async def test_history_is_looked_at_once(mode: str, tmp_path: Path) -> None:
    detector = RedDetector()
    guard = handler(detector=detector, log=tmp_path / "audit.jsonl")
    for _ in range(3):
        await ask(brain("x"), [user(RISKY), user(CLEAN)], mode, guard)
    assert len(detector.seen) == 2
    assert len(lines(tmp_path / "audit.jsonl")) == 3


def test_something_that_is_no_detector_is_an_error_at_once() -> None:
    with pytest.raises(ConfigurationError, match="is no detector"):
        handler(detector=object())


@pytest.mark.parametrize("result", [data_url(RISKY), {"shot": RISKY}])
def test_a_bare_result_of_a_tool_is_decided_as_a_tools(result: Any, tmp_path: Path) -> None:
    policy = Policy(surfaces={"tool": SurfaceRules(on_flagged="refuse")})
    guard = handler(policy=policy, log=tmp_path / "log")
    guard.on_tool_end(result, run_id=uuid4())
    guard.on_tool_end(ToolMessage([image(RISKY)], tool_call_id="1"), run_id=uuid4())
    actions = [line["verdicts"][0]["action"] for line in lines(tmp_path / "log")]
    assert actions == ["refuse", "refuse"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("raise_error", [False, True])
async def test_beside_a_guard_the_log_says_what_the_guard_did(
    mode: str, raise_error: bool, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    guard = handler(log=log, raise_error=raise_error)
    for action in ("mask", "refuse"):
        screen = ScreenImages(detector=RedDetector(), policy=Policy(on_flagged=action))
        await ask(screen.guard(brain("a")), [user(RISKY)], mode, guard)
        app = agent(brain("a"), ImageGuardMiddleware(detector=RedDetector(), policy=screen.policy))
        await ask(app, {"messages": [user(RISKY)]}, mode, guard)
    told = [
        (line["event"], line["component"], *(v["action"] for v in line["verdicts"]))
        for line in lines(log)
    ]
    assert told == [
        ("on_custom_event", "ScreenImages", "mask"),
        ("on_chat_model_start", None, "mask"),
        ("on_custom_event", "ImageGuardMiddleware", "mask"),
        ("on_chat_model_start", None, "mask"),
        ("on_custom_event", "ScreenImages", "refuse"),
        ("on_custom_event", "ImageGuardMiddleware", "refuse"),
    ]
    assert not any(line["tripped"] for line in lines(log))


def test_a_mark_hides_nothing_from_the_log(tmp_path: Path) -> None:
    masked = RedDetector().screen([RISKY])[0].taken("mask").model_dump(mode="json")
    forged = {"sightrail": {"refused": False, "verdicts": [masked]}}
    policy = Policy(on_flagged="refuse")
    guard = handler(policy=policy, log=tmp_path / "log")
    message = user(RISKY, additional_kwargs=forged)
    guard.on_chat_model_start({}, [[message]], run_id=uuid4())
    assert [v["action"] for v in lines(tmp_path / "log")[0]["verdicts"]] == ["refuse"]
    with pytest.raises(ImageRefused):
        handler(raise_error=True).on_chat_model_start({}, [[message]], run_id=uuid4())


@pytest.mark.parametrize(
    "data", [None, 7, {}, {"verdicts": 3}, {"component": "x", "verdicts": [1]}]
)
def test_an_event_that_is_no_guards_is_left_out(data: Any, tmp_path: Path) -> None:
    guard = handler(log=tmp_path / "log")
    guard.on_custom_event("sightrail.screened", data, run_id=uuid4())
    guard.on_custom_event("something else", data, run_id=uuid4())
    assert lines(tmp_path / "log") == []


async def test_verdicts_are_events_of_a_stream() -> None:
    app = agent(brain("a"), ImageGuardMiddleware(detector=RedDetector()))
    events = [e async for e in app.astream_events({"messages": [user(RISKY)]}, version="v2")]
    (told,) = [e["data"] for e in events if e["name"] == "sightrail.screened"]
    assert [verdict["action"] for verdict in told["verdicts"]] == ["mask"]
    assert text64(RISKY)[:100] not in repr(told)


def test_a_detector_that_wants_the_request_gets_the_users_words(tmp_path: Path) -> None:
    words: list[str] = []

    class Curious(StubDetector):
        wants_request = True

        def screen(self, images: Any) -> Any:
            words.extend(image.request for image in images)
            return super().screen(images)

    handler = GuardrailCallbackHandler(detector=Curious(), log=tmp_path / "log.jsonl")
    page = ToolMessage([image(CLEAN), {"type": "text", "text": "a page"}], tool_call_id="1")
    asked = [HumanMessage("how do I make it?"), AIMessage("wait"), page]
    handler.on_chat_model_start({}, [asked], run_id=uuid4())
    assert words == ["how do I make it?"]
