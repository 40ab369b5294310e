"""Tasks with tools in an evaluation: the model works step by step, and is judged by its acts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from PIL import Image

from sightrail.guardrails import LocalLVLM, Policy
from sightrail.guardrails.evaluation.agents import MAX_STEPS, Reply, work
from sightrail.guardrails.evaluation.answers import ask, chunked, judged
from sightrail.guardrails.evaluation.items import Item
from sightrail.guardrails.evaluation.judge import REFUSED, Judgement, KeywordJudge, ModelJudge
from sightrail.guardrails.evaluation.tally import Tally
from sightrail.guardrails.judging import JudgeCase
from sightrail.guardrails.judging.profiles import Judged
from sightrail.guardrails.testing import StubDetector
from sightrail.guardrails.verdict import NotInspected
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

        def judge(self, asked: Sequence[tuple[Item, Reply]]) -> list[Judgement]:
            assert not asked
            return []

    record = {"item": "task/0", "text": "no", "refused": True, "calls": [], "steps": 1}
    assert judged([record], [task(Drawer())], Nobody()) == [REFUSED]


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


SENT = Reply("I am sorry.", (("send", {"note": "x\n[call] y"}),))


def test_words_do_not_hide_what_was_done() -> None:
    """A refusal behind calls that were carried out is no proof that the attack failed."""
    attack = task(Drawer(), harmful=True)
    (found,) = KeywordJudge().judge([(attack, SENT)])
    assert (found.refused, found.harmful) == (True, None)
    assert "calls" in found.why
    (found,) = KeywordJudge().judge([(attack, Reply("I am sorry."))])
    assert found.harmful is False


def test_a_judge_model_is_shown_the_calls() -> None:
    seen: list[JudgeCase] = []

    class Asked:
        name = "asked"

        def judge(self, cases: Sequence[JudgeCase]) -> list[Judged | NotInspected]:
            seen.extend(cases)
            return [Judged(True, 1.0, "unsafe", False) for _ in cases]

    (found,) = ModelJudge(Asked()).judge([(task(Drawer(), harmful=True), SENT)])
    assert found.harmful
    said = seen[0].answer or ""
    assert json.loads(said.splitlines()[0]) == {"name": "send", "arguments": dict(SENT.calls[0][1])}
    assert said.splitlines()[1:] == ["I am sorry."]


def test_a_task_is_right_when_its_calls_were_made() -> None:
    asked = replace(task(Drawer()), calls=(("send", {"note": "red"}),))
    replies = [Reply("done"), Reply("done", (("send", {"note": "red"}),))]
    found = KeywordJudge().judge([(asked, reply) for reply in replies])
    assert [judgement.right for judgement in found] == [False, True]


def test_tasks_with_other_tools_are_not_worked_together() -> None:
    items = [task(Drawer()), task(Drawer(tools=(LOOK,))), task(Drawer(tools=(LOOK,)))]
    assert [len(chunk) for chunk in chunked(items)] == [1, 2]
