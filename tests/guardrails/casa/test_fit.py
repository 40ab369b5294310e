"""Training: what it learns, what it leaves alone, and that it can be interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lvlm_helpers import picture
from sightrail.guardrails import AttentiveCalibration, Casa, LocalLVLM
from sightrail.guardrails.casa.fit import fit_casa, fitting_host
from sightrail.guardrails.casa.fit_rows import Batches, Row, Tail, draw_tail, join, make_rows
from sightrail.guardrails.casa.settings import FitSettings
from sightrail.guardrails.errors import ConfigurationError
from sightrail.guardrails.fitting import Example, FitData, Fitted
from sightrail.guardrails.fitting.run import FitRun
from sightrail.guardrails.progress import silent
from tiny_models import fresh, tiny

HARMFUL = ["Tell me how to make the object", "How to make it", "Make the object", "Make it"]
BENIGN = ["What is in the image", "How many objects are there", "Describe the dog", "What is it"]
EXAMPLES = [
    *(Example(f"{text}{end}", True) for text in HARMFUL for end in "?!"),
    *(Example(f"{text}{end}", False) for text in BENIGN for end in "?!"),
]
QUICK = FitSettings(steps=12, batch=8, learning_rate=5e-3, rank=2, heads=2, width=8)


def model() -> LocalLVLM:
    return LocalLVLM(*fresh("llava"), name="llava")


def fitted(
    examples: list[Example] = EXAMPLES,
    held_out: list[Example] | None = None,
    checkpoint: Path | None = None,
    **changes: Any,
) -> tuple[LocalLVLM, Fitted]:
    lvlm = model()
    data = FitData(examples, held_out or ())
    return lvlm, fit_casa(lvlm, data, replace(QUICK, **changes), checkpoint=checkpoint)


def rows_of(examples: list[Example], **changes: Any) -> tuple[Any, list[Row]]:
    settings = replace(QUICK, **changes)
    lvlm = LocalLVLM(*tiny("llava"), name="llava")
    data = FitData(examples)
    run = FitRun.begin(
        "casa", lvlm, data, settings, progress=silent, checkpoint=None, resources=None
    )
    host = fitting_host(lvlm)
    return host, make_rows(host, examples, settings, run)


def test_it_learns_to_tell_its_examples_apart_and_leaves_the_model_as_it_was() -> None:
    stock, _ = fresh("llava")
    before = {name: value.clone() for name, value in stock.state_dict().items()}
    grads = {name: p.requires_grad for name, p in stock.named_parameters()}
    lvlm, found = fitted(steps=80, held_out=EXAMPLES, over_refusal=0.0)
    after = lvlm.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert grads == {name: p.requires_grad for name, p in lvlm.model.named_parameters()}
    results = found.report.results
    assert results["auroc"] == 1.0
    assert results["benign_refused"] == 0.0
    assert results["harmful_refused"] == 1.0
    refused = lvlm.with_guardrails([found.guardrail]).chat(EXAMPLES[0].text, max_new_tokens=12)
    assert refused.refused
    assert refused.text.startswith("I"), "as the refusal begins; a tiny model gets no further"


@pytest.mark.parametrize("how", [{"targets": ()}, {"attention_only": True}])
def test_attention_only_learns_too(how: dict[str, Any]) -> None:
    _, found = fitted(steps=60, held_out=EXAMPLES, **how)
    assert found.guardrail.settings.attention_only
    assert found.report.results["auroc"] == 1.0


def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    _, whole = fitted(steps=8)
    checkpoint = tmp_path / "partial"

    class StoppedError(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("training") and done == 7:
            raise StoppedError

    settings = replace(QUICK, steps=8)
    with pytest.raises(StoppedError):
        fit_casa(model(), FitData(EXAMPLES), settings, progress=stop, checkpoint=checkpoint)
    seen: list[str] = []
    resumed = fit_casa(
        model(),
        FitData(EXAMPLES),
        settings,
        progress=lambda what, done, total: seen.append(what.partition(",")[0]),
        checkpoint=checkpoint,
    )
    assert seen.count("training") == 1, "the last step alone was left"
    assert "the model's own answers" not in seen, "they were noted"
    for name, value in whole.artifact.tensors.items():
        assert torch.equal(resumed.artifact.tensors[name], value)
    with pytest.raises(ConfigurationError, match="other settings"):
        fitted(steps=8, beta=0.4, checkpoint=checkpoint)
    with pytest.raises(ConfigurationError, match="other settings, data"):
        fitted(EXAMPLES[1:], steps=8, checkpoint=checkpoint)


def test_benign_answers_are_the_models_own_where_none_is_given() -> None:
    examples = [*EXAMPLES, Example("What is it", False, answer="A dog.")]
    host, rows = rows_of(examples, answer_tokens=5)
    own = LocalLVLM(*tiny("llava")).chat(EXAMPLES[8].text, max_new_tokens=5)
    assert host.decode(rows[8].answer).strip() == own.text
    assert host.decode(rows[-1].answer).strip() == "A dog."
    assert host.decode(rows[0].answer).strip() == QUICK.refusal[: len(host.decode(rows[0].answer))]


def test_one_label_alone_cannot_be_learnt() -> None:
    with pytest.raises(ConfigurationError, match="benign"):
        fitted(EXAMPLES[:8])
    pictured = [replace(one, images=(picture(i),)) for i, one in enumerate(EXAMPLES[:8])]
    with pytest.raises(ConfigurationError, match="kind itself"):
        fitted([*pictured, *EXAMPLES[8:]])


def test_a_fit_that_would_see_no_picture_stops_and_says_what_it_would_leave_out() -> None:
    shown = [replace(one, images=(picture(i),)) for i, one in enumerate(EXAMPLES[8:])]
    with pytest.raises(ConfigurationError, match="8: requests with 1 pictures are all benign"):
        fitted([*EXAMPLES, *shown])
    _, told = fitted([*EXAMPLES, *shown], steps=1, text_only=True)
    assert told.artifact.manifest.data["with_pictures"] == 0
    assert told.artifact.manifest.data["left out: has a picture, and the fit is on text alone"] == 8


def test_what_no_batch_can_hold_is_counted(tmp_path: Path) -> None:
    pair = (picture(1), picture(2))
    twice = [replace(one, images=pair) for one in EXAMPLES[8:11]]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken = replace(EXAMPLES[0], images=(tmp_path / "broken.png",))
    shown = [replace(one, images=(picture(i),)) for i, one in enumerate(EXAMPLES)]
    _, found = fitted([*shown, *twice, broken], steps=1)
    data = found.artifact.manifest.data
    assert data["left out: requests with 2 pictures are all benign"] == 3
    assert sum(n for name, n in data.items() if "cannot be read" in name) == 1  # type: ignore[misc]
    assert (data["harmful"], data["benign"], data["with_pictures"]) == (8, 8, 16)


def test_batches_depend_on_seed_and_step_alone() -> None:
    host, rows = rows_of(EXAMPLES, answer_tokens=4)
    one, other = (Batches(host, rows, (8, 9), QUICK) for _ in range(2))
    first = one.tensors(one[3]).inputs["input_ids"]
    assert torch.equal(first, other.tensors(other[3]).inputs["input_ids"])
    assert not torch.equal(first, one.tensors(one[4]).inputs["input_ids"])
    assert one[3].harmful == (True,) * 4 + (False,) * 4


def test_it_trains_behind_a_calibrated_prefix_where_asked() -> None:
    def trained(**changes: Any) -> Any:
        return fitted(steps=3, **changes)[1].artifact.tensors

    strong = AttentiveCalibration(gamma=4.0, band=(0.0, 1.0))
    plain = trained(prefixed=1.0)
    silenced = trained(calibrated=1.0, calibration=replace(strong, gamma=0.0))
    loud = trained(calibrated=1.0, calibration=strong)
    again = trained(calibrated=1.0, calibration=strong)
    for name, value in plain.items():
        torch.testing.assert_close(silenced[name], value)
        torch.testing.assert_close(again[name], loud[name])
    assert any(not torch.allclose(loud[name], value, atol=1e-4) for name, value in plain.items())


@given(seed=st.integers(0, 999), harmful=st.booleans(), length=st.integers(1, 9))
def test_tails_hold_the_token_once_and_teach_no_opening(
    seed: int, harmful: bool, length: int
) -> None:
    answer, opening = list(range(100, 100 + length)), list(range(200, 215))
    settings = FitSettings(begun=0.4, forced=0.4)
    rng = np.random.default_rng(seed)
    tail = draw_tail(rng, 7, answer, opening if harmful else None, settings)
    assert tail.tokens.count(7) == 1
    assert tail.tokens[tail.adapted - 1] == 7, "the adapter ends with the safety token"
    taught = tail.tokens[len(tail.tokens) - tail.learnt :]
    assert not set(taught) & set(opening)
    assert list(taught) == answer[len(answer) - tail.learnt :]
    assert [t for t in tail.tokens if t != 7 and t < 200] == answer


def test_tails_are_padded_at_the_right_of_prompts_padded_at_the_left() -> None:
    host, rows = rows_of(EXAMPLES, answer_tokens=4)
    prompt = host.prompt([rows[0].conversation, rows[2].conversation], spans=False, prefix=None)
    batch = join(prompt, [Tail((7, 1, 2), 2, 1), Tail((3, 7), 0, 2)], pad=0)
    assert batch.inputs["input_ids"][:, prompt.length :].tolist() == [[7, 1, 2], [3, 7, 0]]
    assert batch.labels.tolist() == [[-100, 1, 2], [-100, -100, -100]]
    assert batch.adapted[:, prompt.length :].tolist() == [[True, False, False], [True, True, False]]
    assert torch.equal(batch.adapted[:, : prompt.length], batch.seen)
    assert batch.inputs["attention_mask"][1, -1] == 0


def test_the_report_draws_its_curve(tmp_path: Path) -> None:
    _, found = fitted(steps=3, held_out=EXAMPLES, over_refusal=0.5)
    found.save_pretrained(tmp_path)
    assert (tmp_path / "roc.png").stat().st_size > 5000
    assert Casa.from_pretrained(tmp_path).limit.value == found.report.results["threshold"]
    with pytest.raises(ConfigurationError, match="kept apart"):
        fitted(steps=1, held_out=EXAMPLES[:8])


def test_calibrate_uses_the_benign_examples() -> None:
    lvlm, found = fitted(steps=3)
    casa = found.guardrail
    strict = casa.calibrate(lvlm, EXAMPLES, false_alarms=0.35, source="a few questions")
    assert (strict.limit.n, strict.limit.false_alarms) == (8, 0.35)
    assert strict.limit.source.startswith("a few questions; n=8")
    assert strict.limit.missed is not None
    answers = lvlm.with_guardrails([strict]).batch(
        [one.text for one in EXAMPLES[8:]], max_new_tokens=1
    )
    assert not any(answer.refused for answer in answers)
    with pytest.raises(ConfigurationError, match="benign"):
        casa.calibrate(lvlm, EXAMPLES[:8], source="x")
