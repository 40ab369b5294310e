"""What every defence owes every family with tools on, at every step of an agent.

The transcripts have several turns of tools, and several pictures that tools have returned.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from decision_helpers import ALL_SAFE, untrained
from defences import DEFENCES, Defence, record, same, same_at_once
from lvlm_helpers import picture, user
from sightrail.guardrails.model import Answer, LocalLVLM
from sightrail.guardrails.model.chat_form import shaped
from sightrail.guardrails.model.messages import ImagePart, read_messages
from sightrail.guardrails.model.tools import ToolCall, read_tools
from tool_templates import TOOLED, TOOLS, Says, looked, tooled

EVERYDAY = ("gemma3", "internvl", "mistral3", "qwen2_5_vl")
SHORT: dict[str, Any] = {"tools": TOOLS, "max_new_tokens": 4}


def shows(seed: int) -> list[dict[str, Any]]:
    """What a tool gives back: a picture and words."""
    return [{"type": "image", "image": picture(seed)}, {"type": "text", "text": "A photo."}]


#: No step yet, one step, and two: the second with two calls at once.
STEPS = [
    user("What is in photo 3?", picture(1)),
    looked(shows(4)),
    [*looked(shows(4)), *looked(shows(5), "Nothing here. " * 3)[1:]],
]


@dataclass(frozen=True)
class Case:
    """One defence on one family whose template knows tools."""

    family: str
    name: str

    @property
    def defence(self) -> Defence:
        return DEFENCES[self.name]

    @functools.cached_property
    def bare(self) -> LocalLVLM:
        return self.defence.bare(self.family, tooled(self.family))

    @functools.cached_property
    def zero(self) -> LocalLVLM:
        return self.defence.zero(self.family, tooled(self.family))

    @functools.cached_property
    def guarded(self) -> LocalLVLM:
        return self.defence.guarded(self.family, tooled(self.family))

    @functools.cached_property
    def alone(self) -> list[Answer]:
        return [self.guarded.chat(row, **SHORT) for row in STEPS]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            Case(family, name),
            marks=[
                pytest.mark.xdist_group(family),
                pytest.mark.shows("tools"),
                *([] if family in EVERYDAY else [pytest.mark.long]),
            ],
        )
        for family in sorted(TOOLED)
        for name in DEFENCES
    ],
    ids=lambda case: f"{case.family}-{case.name}",
)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    made: Case = request.param
    yield made
    vars(made).clear()


def test_strength_zero_is_the_bare_model_bit_by_bit(case: Case) -> None:
    for row in STEPS[1:]:
        talk = _bordered(case.zero, replace(read_messages(row), tools=read_tools(TOOLS)))
        asked = shaped(case.zero.processor, talk)
        _, plain = record(case.bare, [asked], **SHORT)
        _, inert = record(case.zero, [asked], **SHORT)
        assert torch.equal(plain.logits, inert.logits)


def test_it_acts_at_every_step(case: Case) -> None:
    for row in STEPS:
        _, acting = record(case.guarded, [row], **{**SHORT, "max_new_tokens": 1})
        _, bare = record(case.bare, [row], **{**SHORT, "max_new_tokens": 1})
        assert (acting.logits[0] - bare.logits[0]).abs().max() > 1e-3


def test_it_decides_at_every_step_over_the_whole_transcript(case: Case) -> None:
    if case.name not in ("casa", "moras"):
        pytest.skip("only these decide or measure")
    found = [answer.verdicts[-1] for answer in case.alone]
    measured = {(*verdict.measures.values(), verdict.score) for verdict in found}
    assert len(measured) == len(STEPS)  # each step is looked at anew
    assert [answer.step for answer in case.alone] == [0, 1, 2]


def test_a_row_of_a_padded_batch_is_what_it_is_alone(case: Case) -> None:
    for found, expected in zip(case.guarded.batch(STEPS, **SHORT), case.alone, strict=True):
        same(found, expected)


def test_streamed_equals_whole(case: Case) -> None:
    *_, last = case.guarded.stream(STEPS[1], **SHORT)
    assert last.answer is not None
    same(last.answer, case.alone[1])


async def test_threads_and_tasks_on_one_model_are_isolated(case: Case) -> None:
    plain = case.bare.chat(STEPS[1], **SHORT)
    jobs = [
        (case.guarded, STEPS[2], case.alone[2]),
        (case.bare, STEPS[1], plain),
        (case.guarded, STEPS[0], case.alone[0]),
        (case.bare, STEPS[1], plain),
    ]
    await same_at_once(jobs, **SHORT)


def test_no_call_is_broken_by_it(case: Case) -> None:
    pair = tooled(case.family)
    guard = case.defence.on(case.family, pair)
    if case.name == "casa":  # it lets the request pass, and its hidden token is spoken before
        guard = untrained(case.family, pair=pair, threshold=ALL_SAFE)
    text = TOOLED[case.family].written(("look", {"photo": 3}), ("save", {"note": "a < b"}))
    text = f"so</think>{text}" if case.family == "qwen3_vl" else text
    lvlm = LocalLVLM(*pair, guardrails=[guard, Says(text, case.family)])
    calls = (ToolCall("look", {"photo": 3}), ToolCall("save", {"note": "a < b"}))
    asked: dict[str, Any] = {"tools": TOOLS, "max_new_tokens": 200}
    for answer in lvlm.batch(STEPS[1:], **asked):
        assert (answer.text, answer.tool_calls, answer.invalid_tool_calls) == ("", calls, ())
    *pieces, last = lvlm.stream(STEPS[2], **asked)
    assert tuple(call for piece in pieces for call in piece.tool_calls) == calls
    assert last.text == ""


def _bordered(lvlm: LocalLVLM, talk: Any) -> Any:
    """The same turns, each picture in its border already where there is one to put it in."""
    border = getattr(lvlm.guardrails[0], "apply_to_image", None)
    if border is None:
        return talk
    parts = [replace(part, source=border(part.source)) for part in talk.image_parts]
    assert all(isinstance(part, ImagePart) for part in parts)
    return talk.with_images(parts)
