"""Tasks with tools in an evaluation: the model works step by step, and is judged by its acts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from PIL import Image

from sightrail.guardrails import LocalLVLM, Policy
from sightrail.guardrails.evaluation.agents import MAX_STEPS, told, untold, work
from sightrail.guardrails.evaluation.answers import ask, judged
from sightrail.guardrails.evaluation.items import Item
from sightrail.guardrails.evaluation.judge import REFUSED, Judgement, KeywordJudge
from sightrail.guardrails.evaluation.tally import Tally
from sightrail.guardrails.testing import StubDetector
from sightrail.testbed.judge import ExactJudge
from tool_templates import LOOK, SAVE, TOOLED, SaysInTurn, tooled

FAMILY = "internvl"
SEND = {"type": "function", "function": {**SAVE["function"], "name": "send"}}
PHOTO = Image.new("RGB", (40, 40), "red")


@dataclass
class Drawer:
    """Tools that remember what they were asked for."""

    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    tools: Sequence[Mapping[str, Any]] = (LOOK, SEND)

    def call(self, name: str, arguments: Mapping[str, Any]) -> str | list[dict[str, Any]]:
        self.asked.append((name, dict(arguments)))
        return [{"type": "image", "image": PHOTO}] if name == "look" else "kept"


def task(box: Drawer, *, harmful: bool = False, answer: str = "done") -> Item:
    return Item("task/0", ("task",), "Look and keep.", harmful, answer=answer, toolbox=box)


def acting(*texts: str, guards: Sequence[Any] = (), policy: Policy | None = None) -> LocalLVLM:
    says = SaysInTurn(texts[0], FAMILY, steps=texts[1:])
    return LocalLVLM(*tooled(FAMILY), guardrails=[*guards, says], policy=policy, name=FAMILY)


def written(name: str, **given: Any) -> str:
    return TOOLED[FAMILY].written((name, given))


def test_a_task_is_worked_step_by_step_until_the_model_calls_nothing() -> None:
    box = Drawer()
    lvlm = acting(written("look", photo=3), written("send", note="red"), "done")
    (done,) = work(lvlm, [task(box)], 150)
    assert box.asked == [("look", {"photo": 3}), ("send", {"note": "red"})]
    assert [(name, dict(given)) for name, given in done.calls] == box.asked
    assert (done.answer.text, done.steps) == ("done", 3)


def test_endless_calls_end() -> None:
    box = Drawer()
    (done,) = work(acting(written("look", photo=1)), [task(box)], 150)
    assert len(box.asked) == done.steps == MAX_STEPS
    assert done.answer.text == ""


def test_a_step_that_is_refused_ends_the_task_and_what_was_done_before_counts() -> None:
    box = Drawer()
    texts = (written("send", note="knife"), written("look", photo=1), "done")
    lvlm = acting(*texts, guards=[StubDetector(True)], policy=Policy(on_flagged="refuse"))
    attack = task(box, harmful=True)
    records = ask(lvlm, [attack], 150)
    assert records[0]["refused"]
    assert [name for name, _ in records[0]["calls"]] == ["send", "look"]
    (found,) = judged(records, [attack], ExactJudge())
    assert found.harmful
    assert found.refused


def test_a_task_refused_at_once_needs_no_judge() -> None:
    class Nobody:
        name = "nobody"

        def judge(self, asked: Sequence[tuple[Item, str]]) -> list[Judgement]:
            assert not asked
            return []

    record = {"item": "task/0", "text": "no", "refused": True, "calls": [], "steps": 1}
    assert judged([record], [task(Drawer())], Nobody()) == [REFUSED]


@pytest.mark.parametrize("text", ["done", "", "two\nlines", "a [call] in words"])
def test_what_is_told_can_be_read_again(text: str) -> None:
    calls = [("look", {"photo": 1}), ("send", {"note": "a\n[call] b"})]
    assert untold(told(text, calls)) == (text, calls)


def test_success_and_steps_are_counted() -> None:
    tally = Tally("bare")
    for number, right in enumerate((True, False, True)):
        tally.add(task(Drawer()), Judgement(refused=False, harmful=False, right=right))
        tally.step(task(Drawer()), {"steps": number + 1})
    rows = {row.metric: row for row in tally.rows()}
    assert rows["task_success"].value == pytest.approx(2 / 3)
    assert rows["steps"].value == 2
    assert rows["steps"].low < 2 < rows["steps"].high
    assert "benign_accuracy" not in rows


def test_words_alone_do_not_hide_a_call_from_whoever_reads_the_record() -> None:
    said = told("done", [("send", {"note": "x"})])
    assert json.dumps({"note": "x"}) in said
    assert KeywordJudge().judge([(task(Drawer(), harmful=True), said)])[0].harmful
