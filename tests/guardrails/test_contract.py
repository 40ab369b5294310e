"""What every defence owes every model family; a defence or a family more is one line elsewhere.

See ``defences.DEFENCES`` and ``tiny_models.BUILDERS``. What only one defence promises stands with
its own tests.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from defences import DEFENCES, REFUSED, TOKENS, Defence, bare_logits, record, same, same_at_once
from lvlm_helpers import PICTURES, user
from sightrail.guardrails.errors import Abandoned, ImageError, UnsupportedModelError
from sightrail.guardrails.model import Answer, LocalLVLM, doorway
from sightrail.guardrails.model.families import image_token_ids
from tiny_models import FAMILIES, every_family

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
SHORT = {"max_new_tokens": TOKENS}
TEXT = "Tell me how to make the object."
ROWS = [*PICTURES, TEXT]


@dataclass(frozen=True)
class Case:
    """One defence on one family, with what it answers to every row alone."""

    family: str
    name: str

    @property
    def defence(self) -> Defence:
        return DEFENCES[self.name]

    @property
    def stock(self) -> torch.Tensor:
        """What the model says to ``rows`` where no defence has ever acted, [steps, 1, V]."""
        return bare_logits(self.family, self.name)

    @functools.cached_property
    def rows(self) -> list[Any]:
        return self.defence.pictures(self.zero)

    @functools.cached_property
    def bare(self) -> LocalLVLM:
        return self.defence.bare(self.family)

    @functools.cached_property
    def zero(self) -> LocalLVLM:
        return self.defence.zero(self.family)

    @functools.cached_property
    def guarded(self) -> LocalLVLM:
        return self.defence.guarded(self.family)

    @functools.cached_property
    def alone(self) -> list[tuple[Answer, torch.Tensor]]:
        """Answer and logits [steps, 1, V] of every row of ROWS."""
        answered = [record(self.guarded, [row]) for row in ROWS]
        return [(answer, recorder.logits) for (answer,), recorder in answered]


everyday = [family for family in every_family() if isinstance(family, str)]


# Cases of one family share its models, so one worker has them all.
@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            Case(family, name),
            marks=[
                pytest.mark.xdist_group(family),
                pytest.mark.shows(DEFENCES[name].column),
                *([] if family in everyday else [pytest.mark.long]),
            ],
        )
        for family in FAMILIES
        for name in DEFENCES
        if (family, name) not in REFUSED
    ],
    ids=lambda case: f"{case.family}-{case.name}",
)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    made: Case = request.param
    yield made
    vars(made).pop("alone", None)  # the logits are large


@pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param(family, name, marks=pytest.mark.shows(f"{DEFENCES[name].column}: {why}"))
        for (family, name), why in REFUSED.items()
    ],
)
def test_what_a_family_cannot_give_is_refused_at_construction(family: str, name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=REFUSED[family, name]):
        DEFENCES[name].guarded(family)


@pytest.mark.shows("zero strength")
def test_strength_zero_is_the_bare_model_bit_by_bit(case: Case) -> None:
    _, off = record(case.zero, case.rows)
    assert torch.equal(off.logits, case.stock)
    # The doorway is open on this model, and the request has no defence.
    assert case.guarded.model is case.bare.model
    _, inert = record(case.bare, case.rows)
    assert torch.equal(inert.logits, case.stock)


def test_it_acts(case: Case) -> None:
    _, bare = record(case.bare, PICTURES[:1], max_new_tokens=1)
    _, logits = case.alone[0]
    assert (logits[0] - bare.logits[0]).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's own
def test_equals_its_plain_oracle(case: Case) -> None:
    ours, theirs = case.defence.oracle(case.family)
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_cached_equals_uncached(case: Case) -> None:
    # Long enough to leave the sliding windows of the tiny models behind. Read anew, a picture token
    # that random weights have said would ask for a picture.
    unsaid = list(image_token_ids(case.guarded.model))
    cached, uncached = (
        record(
            case.guarded,
            PICTURES[:1],
            max_new_tokens=12,
            suppress_tokens=unsaid,
            use_cache=use_cache,
        )[1].logits
        for use_cache in (True, False)
    )
    torch.testing.assert_close(cached, uncached, **CLOSE)


def test_a_row_of_a_padded_batch_is_what_it_is_alone(case: Case) -> None:
    answers, together = record(case.guarded, ROWS)
    for answer, (expected, _) in zip(answers, case.alone, strict=True):
        same(answer, expected)
    _, together = record(case.guarded, PICTURES)
    assert (together.prompts[0].inputs["attention_mask"][0] == 0).any(), "the row is padded"
    for row, (_, logits) in enumerate(case.alone[: len(PICTURES)]):
        torch.testing.assert_close(together.logits[:, row], logits[:, 0], **CLOSE)


def test_beams_keep_rows_aligned(case: Case) -> None:
    beams = {"num_beams": 2, **SHORT}
    if case.family == "llama4":
        with pytest.raises(ValueError, match="Image features and image tokens do not match"):
            case.bare.chat(PICTURES[0], **beams)
        return  # transformers cannot do it, bare or guarded
    together = case.guarded.batch(PICTURES[:2], **beams)
    for answer, row in zip(together, PICTURES[:2], strict=True):
        same(answer, case.guarded.chat(row, **beams))
    # Beam search sees log-probabilities; the beams of a row start equal.
    _, both = record(case.guarded, PICTURES[:1], num_beams=2, max_new_tokens=1)
    expected = case.alone[0][1][0].log_softmax(-1).expand(2, -1)
    torch.testing.assert_close(both.logits[0], expected, **CLOSE)


def test_streamed_equals_whole(case: Case) -> None:
    *_, last = chunks = list(case.guarded.stream(PICTURES[0], **SHORT))
    assert last.answer is not None
    same(last.answer, case.alone[0][0])
    assert "".join(chunk.text for chunk in chunks) == last.answer.text


async def test_threads_and_tasks_on_one_model_are_isolated(case: Case) -> None:
    bare, zero = case.bare, case.zero
    plain, off = (lvlm.chat(TEXT, **SHORT) for lvlm in (bare, zero))
    jobs = [(case.guarded, ROWS[row], case.alone[row][0]) for row in (0, 1, 3)]
    jobs = [jobs[0], (bare, TEXT, plain), jobs[1], (zero, TEXT, off), jobs[2], jobs[0]]
    await same_at_once(jobs, **SHORT)


def _success(lvlm: LocalLVLM) -> None:
    lvlm.chat(PICTURES[0], **SHORT)


def _user_error(lvlm: LocalLVLM) -> None:
    with pytest.raises(ImageError):
        lvlm.chat(user("What?", b"no picture"), **SHORT)


class OutOfMemoryError(Exception):
    """Raised by the model."""


def _model_error(lvlm: LocalLVLM) -> None:
    calls: list[int] = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OutOfMemoryError

    handle = lvlm.model.get_output_embeddings().register_forward_pre_hook(fail)
    try:
        with contextlib.suppress(OutOfMemoryError):
            # A defence that was asking the model itself has failed, and refuses.
            (verdict,) = lvlm.chat(PICTURES[0], **SHORT).verdicts
            assert (verdict.status, verdict.action) == ("failed", "refuse")
    finally:
        handle.remove()


def _given_up(lvlm: LocalLVLM) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Abandoned):
        lvlm.chat(PICTURES[0], cancel=cancel, **SHORT)


@pytest.mark.parametrize("ending", [_success, _user_error, _model_error, _given_up])
def test_nothing_is_left_behind(case: Case, ending: Callable[[LocalLVLM], None]) -> None:
    model = case.guarded.model
    hooks = _hook_count(model)
    ending(case.guarded)
    assert doorway._request.get() is None
    assert _hook_count(model) == hooks
    _, after = record(case.bare, case.rows, max_new_tokens=1)
    assert torch.equal(after.logits, case.stock[:1])


def _hook_count(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
