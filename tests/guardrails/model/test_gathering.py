"""Calls that come at once share a run of the model, and nobody can tell from the answer."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from lvlm_helpers import ROWS, Recorder, picture, user
from sightrail.guardrails import Casa, Moras, SafetyPrefix, VisualSafetyPrompt
from sightrail.guardrails.errors import (
    Abandoned,
    ConfigurationError,
    DeadlineExceeded,
    PromptError,
)
from sightrail.guardrails.evaluation.stacks import (
    Supplies,
    artifacts_for,
    build_stack,
    calibration_for,
)
from sightrail.guardrails.model import Gathering, LocalLVLM, Place
from sightrail.guardrails.model.gathering import AnyTicket, Gatherer, Ticket, gatherer_of
from sightrail.guardrails.model.interventions import Interventions
from sightrail.guardrails.screening import RiskDetector
from sightrail.testbed.source import as_messages, draw_requests
from tiny_models import tiny

ASK = user("What is in the image?", picture())
ENDLESS = {"max_new_tokens": 1900, "min_new_tokens": 1900}


@dataclass
class Gate(Recorder):
    """A guardrail that notes how many rows each run has, and holds the first run until told."""

    opened: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    runs: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def interventions(self, prompt: Any, host: Any) -> Interventions:
        self.runs.append(prompt.rows)
        self.asked += [conversation.turns[-1].texts[-1] for conversation in prompt.originals]
        self.entered.set()
        assert self.opened.wait(60)
        return Interventions()


@contextlib.contextmanager
def busy(lvlm: LocalLVLM, gate: Gate) -> Iterator[ThreadPoolExecutor]:
    """The model at work on a first request until ``gate.opened``; threads to ask more from."""
    with ThreadPoolExecutor(32) as pool:
        first = pool.submit(lvlm.chat, "first", max_new_tokens=1)
        assert gate.entered.wait(60)
        try:
            yield pool
        finally:
            gate.opened.set()
        first.result(60)


def wait_for(lvlm: LocalLVLM, calls: int) -> None:
    """Until so many calls wait for the model."""
    gatherer = gatherer_of(lvlm.model)
    until = time.monotonic() + 60
    while gatherer.waiting < calls:
        assert time.monotonic() < until
        time.sleep(0.005)


def gated(kind: str = "llava", **settings: Any) -> tuple[LocalLVLM, Gate]:
    gate = Gate()
    patient = Gathering(**{"max_wait_s": 600.0, **settings})
    return LocalLVLM(*tiny(kind), guardrails=[gate], gather=patient), gate


def streamed(lvlm: LocalLVLM, messages: Any, **options: Any) -> Any:
    chunks = list(lvlm.stream(messages, **options))
    assert "".join(chunk.text for chunk in chunks) == chunks[-1].answer.text
    return chunks[-1].answer


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
def test_every_row_gets_what_it_would_get_alone(kind: str) -> None:
    lvlm, gate = gated(kind, max_rows=8)
    alone = LocalLVLM(*tiny(kind), gather=False)
    whole = alone.chat(ROWS[0], max_new_tokens=30).text
    calls: list[tuple[Any, dict[str, Any]]] = [
        (row, {"max_new_tokens": 3 + 7 * number}) for number, row in enumerate(ROWS)
    ]
    calls += [(ROWS[0], {"max_new_tokens": 30, "stop": [whole[4:6]]})]
    calls += [(ASK, {"max_new_tokens": 9, "temperature": 0.9, "seed": seed}) for seed in range(4)]
    calls += [(ASK, {"max_new_tokens": 6, "num_beams": 2})]
    calls += [(ASK, {"max_new_tokens": 6, "repetition_penalty": 1.3})]
    expected = [alone.chat(messages, **options) for messages, options in calls]
    with busy(lvlm, gate) as pool:
        ask = [pool.submit(lvlm.chat, messages, **options) for messages, options in calls]
        streams = [
            pool.submit(streamed, lvlm, messages, **options)
            for messages, options in calls
            if "num_beams" not in options
        ]
        wait_for(lvlm, len(ask) + len(streams))
        gate.opened.set()
        assert [call.result(60) for call in ask] == expected
        assert [call.result(60) for call in streams] == [*expected[:-2], expected[-1]]
    assert len(gate.runs) < len(ask) + len(streams)
    assert max(gate.runs) > 2


def supplies() -> Supplies:
    detector = RiskDetector.from_pretrained("testbed")
    return Supplies(detector, artifacts_for("testbed"), calibration_for("testbed"))


@pytest.mark.parametrize("stack", ["bare", "casa", "moras", "prefix+calibration", "davsp"])
def test_the_testbed_answers_every_request_as_alone(stack: str) -> None:
    guards = build_stack(stack, supplies())
    bare = LocalLVLM.from_pretrained("testbed")
    requests = [*draw_requests("benign", 4, "test", 7), *draw_requests("text", 4, "test", 7)]
    talks = [as_messages(request) for request in requests]
    alone = LocalLVLM(bare.model, bare.processor, guardrails=guards, gather=False)
    expected = [alone.chat(talk, max_new_tokens=24) for talk in talks]
    gate = Gate()
    patient = Gathering(max_wait_s=600.0)
    lvlm = LocalLVLM(bare.model, bare.processor, guardrails=[gate, *guards], gather=patient)
    with busy(lvlm, gate) as pool:
        calls = [pool.submit(lvlm.chat, talk, max_new_tokens=24) for talk in talks]
        wait_for(lvlm, len(talks))
        gate.opened.set()
        made = [call.result(120) for call in calls]
    assert [_said(answer) for answer in made] == [_said(answer) for answer in expected]
    for answer, other in zip(made, expected, strict=True):
        scores = [verdict.score for verdict in answer.verdicts]
        assert scores == pytest.approx([verdict.score for verdict in other.verdicts], abs=1e-5)
    assert max(gate.runs) > 2


def _said(answer: Any) -> Any:
    actions = [(verdict.status, verdict.action) for verdict in answer.verdicts]
    return answer.text, answer.refused, answer.usage, answer.finish_reason, actions


def test_the_kinds_of_guardrails_above_are_on_the_model() -> None:
    """The stacks of the test before are the real defences."""
    kinds = [
        type(build_stack(name, supplies())[0])
        for name in ("casa", "moras", "prefix+calibration", "davsp")
    ]
    assert kinds == [Casa, Moras, SafetyPrefix, VisualSafetyPrompt]


def test_an_error_is_its_own_calls(lvlm: LocalLVLM) -> None:
    guarded, gate = gated()
    with busy(guarded, gate) as pool:
        good = [pool.submit(guarded.chat, ROWS[2], max_new_tokens=4) for _ in range(3)]
        bad = pool.submit(guarded.chat, "word " * 5000, max_new_tokens=4)
        more = [pool.submit(guarded.chat, ROWS[2], max_new_tokens=4) for _ in range(3)]
        wait_for(guarded, 7)
        gate.opened.set()
        expected = lvlm.chat(ROWS[2], max_new_tokens=4)
        assert [call.result(60) for call in good + more] == [expected] * 6
        with pytest.raises(PromptError, match="context"):
            bad.result(60)


def test_a_short_answer_does_not_wait_for_a_long_one_in_its_run() -> None:
    lvlm, gate = gated()
    given_up = threading.Event()
    with busy(lvlm, gate) as pool:
        long = pool.submit(lvlm.chat, "long", max_new_tokens=1900, cancel=given_up)
        short = pool.submit(lvlm.chat, "short", max_new_tokens=2)
        wait_for(lvlm, 2)
        gate.opened.set()
        assert short.result(60).usage.output_tokens == 2
        assert not long.done()
        assert gate.runs == [1, 2]
        given_up.set()
        with pytest.raises(Abandoned):
            long.result(60)


def test_a_long_run_does_not_hold_up_what_comes_after_it() -> None:
    lvlm = LocalLVLM(*tiny("llava"), gather=Gathering(max_wait_s=0.05))
    given_up = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(lvlm.chat, ASK, cancel=given_up, **ENDLESS)
        while not gatherer_of(lvlm.model).lanes:
            time.sleep(0.005)
        assert lvlm.chat(ASK, max_new_tokens=2).usage.output_tokens == 2
        assert not long.done()
        given_up.set()
        with pytest.raises(Abandoned):
            long.result(60)


def test_a_call_that_waits_can_be_cancelled_and_has_its_deadline() -> None:
    lvlm, gate = gated()
    cancel = threading.Event()
    with busy(lvlm, gate) as pool:
        given_up = pool.submit(lvlm.chat, "given up", cancel=cancel)
        late = pool.submit(lvlm.chat, "late", place=Place(deadline_s=0.05))
        stream = pool.submit(lambda: list(lvlm.stream("stream", cancel=cancel)))
        with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
            late.result(60)
        cancel.set()
        with pytest.raises(Abandoned):
            given_up.result(60)
        assert stream.result(60) == []
    assert gate.asked == ["first"]


def test_a_deadline_ends_a_row_at_work() -> None:
    lvlm = LocalLVLM(*tiny("llava"))
    soon = Place(deadline_s=0.3)
    with pytest.raises(DeadlineExceeded):
        lvlm.chat(ASK, place=soon, **ENDLESS)
    with pytest.raises(DeadlineExceeded):
        list(lvlm.stream(ASK, place=soon, **ENDLESS))
    with pytest.raises(ConfigurationError, match="deadline_s"):
        Place(deadline_s=0)


def test_priority_goes_first_and_clients_take_turns() -> None:
    lvlm, gate = gated(max_rows=1)
    one, two, urgent = Place(client="one"), Place(client="two"), Place(priority=1)
    asked = [("one a", one), ("one b", one), ("one c", one), ("two a", two), ("urgent", urgent)]
    with busy(lvlm, gate) as pool:
        calls = []
        for number, (text, place) in enumerate(asked):
            calls.append(pool.submit(lvlm.chat, text, max_new_tokens=1, place=place))
            wait_for(lvlm, number + 1)
        gate.opened.set()
        for call in calls:
            call.result(60)
    assert gate.asked == ["first", "urgent", "one a", "two a", "one b", "one c"]


def test_a_call_from_inside_a_run_does_not_wait_for_it(lvlm: LocalLVLM) -> None:
    class Asking(Recorder):
        def interventions(self, prompt: Any, host: Any) -> Interventions:
            with ThreadPoolExecutor(1) as pool:
                context = contextvars.copy_context()
                told.append(pool.submit(context.run, lvlm.chat, "inside", max_new_tokens=2))
                told[-1].result(60)
            return Interventions()

    told: list[Any] = []
    outer = lvlm.with_guardrails([Asking()])
    assert outer.chat("outside", max_new_tokens=2) == lvlm.chat("outside", max_new_tokens=2)
    assert told[0].result().usage.output_tokens == 2


async def test_tasks_are_gathered_however_few_threads_asyncio_has() -> None:
    lvlm, gate = gated(max_rows=64)
    first = asyncio.create_task(lvlm.achat("first", max_new_tokens=1))
    while not gate.entered.is_set():
        await asyncio.sleep(0.005)
    tasks = [asyncio.create_task(lvlm.achat(ROWS[2], max_new_tokens=4)) for _ in range(50)]
    while gatherer_of(lvlm.model).waiting < 50:
        await asyncio.sleep(0.005)
    tasks[7].cancel()
    gate.opened.set()
    answers = await asyncio.gather(first, *tasks, return_exceptions=True)
    assert isinstance(answers[8], asyncio.CancelledError)
    assert (
        len({answer.text for answer in answers[1:] if not isinstance(answer, BaseException)}) == 1
    )
    assert gate.runs[0] == 1
    assert len(gate.runs) == 2


def test_what_torch_keeps_for_a_thread_holds_in_its_run() -> None:
    lvlm, gate = gated()
    with busy(lvlm, gate) as pool:

        def lowered() -> int:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                gate.opened.set()
                return lvlm.chat(ASK, max_new_tokens=2).usage.output_tokens

        assert pool.submit(lowered).result(60) == 2
    assert gate.runs == [1, 1]


def test_gather_false_gives_every_call_its_own_run() -> None:
    gate = Gate()
    lvlm = LocalLVLM(*tiny("llava"), guardrails=[gate], gather=False)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(lvlm.chat, "same", max_new_tokens=1) for _ in range(4)]
        while len(gate.runs) < 4:
            time.sleep(0.005)
        gate.opened.set()
        assert len({call.result(60).text for call in calls}) == 1
    assert gate.runs == [1, 1, 1, 1]
    assert lvlm.with_guardrails([]).gather is False


def test_settings_out_of_range_are_errors() -> None:
    for wrong in ({"max_rows": 0}, {"max_wait_s": 0}, {"linger_s": -1}):
        with pytest.raises(ConfigurationError, match="gather=False"):
            Gathering(**wrong)


def test_where_runs_usually_last_long_another_begins_later() -> None:
    gatherer, short, long = Gatherer(), Gathering(max_wait_s=0.01), Gathering(max_wait_s=60)

    def lasts(tickets: Sequence[AnyTicket]) -> None:
        time.sleep(0.1)
        for ticket in tickets:
            ticket.deliver(0, "done")

    assert gatherer.patience(short) == 0.01
    assert gatherer.answer(Ticket(["row"], lasts, key=0), short) == ["done"]
    assert gatherer.patience(short) == 0.04
    assert gatherer.patience(long) == 60


def test_a_model_is_not_pickled(lvlm: LocalLVLM) -> None:
    with pytest.raises(TypeError, match="from_pretrained"):
        pickle.dumps(lvlm)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_does_not_wait_for_the_lanes_of_its_parent() -> None:
    lvlm, gate = gated()
    with busy(lvlm, gate):
        child = os.fork()
        if child == 0:
            gate.opened.set()
            free = lvlm.with_guardrails([])
            os._exit(0 if free.chat("child", max_new_tokens=1).usage.output_tokens == 1 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_nothing_keeps_the_interpreter_alive() -> None:
    script = """
        import threading, time
        from sightrail.guardrails import LocalLVLM
        lvlm = LocalLVLM.from_pretrained("testbed")
        endless = {"max_new_tokens": 100_000, "min_new_tokens": 100_000}
        for _ in range(3):
            threading.Thread(
                target=lvlm.chat, args=["What?"], kwargs=endless, daemon=True
            ).start()
        left = lvlm.stream("Describe the image.", **endless)
        time.sleep(0.3)
        next(left)
        print("over", flush=True)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "over"), ran.stderr


@pytest.fixture(scope="module")
def lvlm() -> LocalLVLM:
    return LocalLVLM(*tiny("llava"))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    ours: list[threading.Thread] = [
        thread for thread in threading.enumerate() if thread.name.startswith("sightrail-")
    ]
    for thread in ours:
        thread.join(10)
    assert not any(thread.is_alive() for thread in ours)
