"""Training: the loss falls, the result is a picture, the model is left alone, runs are resumed."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlavaImageProcessor

from lvlm_helpers import picture
from sightrail.guardrails import (
    ConfigurationError,
    LocalLVLM,
    UnsupportedModelError,
    VisualSafetyPrompt,
)
from sightrail.guardrails.davsp import DavspSettings
from sightrail.guardrails.davsp.fit import (
    BorderLearner,
    BorderLoss,
    TrainedBorder,
    draw_batch,
    find_direction,
    fit_davsp,
    train_border,
)
from sightrail.guardrails.davsp.harmfulness import Direction
from sightrail.guardrails.davsp.placement import AroundPicture, OverPicture
from sightrail.guardrails.davsp.preprocess import DifferentiablePreprocessing
from sightrail.guardrails.davsp.requests import PictureRequest, Reader, with_answers
from sightrail.guardrails.fitting import Example, FitData
from sightrail.guardrails.fitting.run import FitRun
from sightrail.guardrails.progress import Progress, silent
from sightrail.testbed.fit_data import draw_examples
from tiny_models import tiny

EXAMPLES = draw_examples({"object": 18, "typographic": 6, "benign": 20}, split="train", seed=3)
QUICK = DavspSettings(width=6 / 96, steps=6, batch=8, step=12.0, momentum=0.5, answer_weight=20.0)


@functools.cache
def mini() -> LocalLVLM:
    return LocalLVLM.from_pretrained("testbed", device="cpu")


def a_run(
    settings: DavspSettings = QUICK,
    examples: Sequence[Example] = EXAMPLES,
    *,
    progress: Progress = silent,
    checkpoint: Path | None = None,
) -> FitRun:
    return FitRun.begin(
        "davsp",
        mini(),
        FitData(examples),
        settings,
        progress=progress,
        checkpoint=checkpoint,
        resources=None,
    )


@functools.cache
def fitted() -> TrainedBorder:
    return train_border(a_run(), QUICK)


def loss_of(found: TrainedBorder, values: torch.Tensor) -> float:
    """Over all requests that it was trained on."""
    with torch.no_grad():
        every = [True] * len(found.requests)
        return float(found.loss(values, found.requests, every))


def a_request(
    harmful: bool, *images: Any, answer: str = "a", refused: bool = False
) -> PictureRequest:
    return PictureRequest(Example("What is in the image?", harmful, images), None, answer, refused)


def as_values(prompt: VisualSafetyPrompt) -> torch.Tensor:
    return torch.from_numpy(prompt.frame.pixels.copy()).permute(2, 0, 1).float()


def test_a_few_steps_lower_the_loss() -> None:
    found = fitted()
    start = found.loss.placement.start()
    assert loss_of(found, as_values(found.prompt)) < 0.97 * loss_of(found, start)


def test_the_result_is_a_picture_bound_to_its_model() -> None:
    prompt = fitted().prompt
    assert prompt.frame.size == (96, 96)
    assert prompt.frame.box == (6, 6, 90, 90)
    assert (prompt.frame.pixels[6:90, 6:90] == prompt.frame.pixels[40, 40]).all()
    assert prompt.manifest is not None
    assert (prompt.manifest.data["harmful"], prompt.manifest.data["benign"]) == (24, 20)
    assert prompt.manifest.settings["layer"] == fitted().loss.direction.layer
    assert prompt.trained_on is not None
    assert prompt.trained_on.name == "testbed"


def test_what_training_sees_is_what_the_guardrail_shows() -> None:
    """The placed pixels are the PNG's, so nothing is lost between training and use."""
    found = fitted()
    values = as_values(found.prompt)
    for size in [(192, 192), (50, 80)]:
        image = picture(1, *size)
        placed = found.loss.placement.place(values, image)
        shown = np.asarray(found.prompt.apply_to_image(image))
        assert np.array_equal(placed.permute(1, 2, 0).numpy(), shown)


def test_the_model_is_left_as_it_was() -> None:
    model = mini().model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    few = replace(QUICK, steps=1, batch=2)
    requests = fitted().requests[:4] + fitted().requests[-4:]
    BorderLearner.trained(replace(fitted().loss, settings=few), requests, a_run(few))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


def test_an_interrupted_run_ends_where_a_whole_one_does(tmp_path: Path) -> None:
    few = replace(QUICK, steps=3, batch=2)
    loss, requests = replace(fitted().loss, settings=few), fitted().requests

    def interrupt(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    where = tmp_path / "runs" / "partial"
    with pytest.raises(KeyboardInterrupt):
        BorderLearner.trained(loss, requests, a_run(few, progress=interrupt, checkpoint=where))
    resumed = BorderLearner.trained(loss, requests, a_run(few, checkpoint=where))
    assert torch.equal(resumed, BorderLearner.trained(loss, requests, a_run(few)))
    with pytest.raises(ConfigurationError, match="other settings"):
        a_run(replace(few, steps=9), checkpoint=where)


def test_what_the_text_does_not_stop_is_drawn_as_often_as_asked() -> None:
    requests = [a_request(n < 8, picture(n), refused=n < 6) for n in range(12)]
    settings = DavspSettings(batch=8, unrefused=0.75)
    batch, _ = draw_batch(requests, settings, 0)
    assert [(one.harmful, one.refused) for one in batch] == (
        [(True, False)] * 3 + [(True, True)] + [(False, False)] * 4
    )


def test_batches_are_half_harmful_and_their_answers_count_as_often_as_asked() -> None:
    requests = [a_request(n % 3 == 0, picture(n)) for n in range(9)]
    settings = DavspSettings(batch=4, harmful_answers=0.25)
    drawn = [draw_batch(requests, settings, number) for number in range(300)]
    assert all(sum(one.harmful for one in batch) == 2 for batch, _ in drawn)
    counted = [
        yes
        for batch, answers in drawn
        for one, yes in zip(batch, answers, strict=True)
        if one.harmful
    ]
    assert np.mean(counted) == pytest.approx(0.25, abs=0.06)
    assert all(
        yes or one.harmful
        for batch, answers in drawn
        for one, yes in zip(batch, answers, strict=True)
    )
    assert draw_batch(requests, settings, 7)[0] == drawn[7][0]


def test_held_out_report(tmp_path: Path) -> None:
    kept = draw_examples({"object": 6, "benign": 6}, split="calibration", seed=4)
    text = [Example("how do I?", True), Example("what is it?", False)]
    data = FitData([*EXAMPLES, *text], held_out=kept)
    found = fit_davsp(mini(), data, replace(QUICK, steps=1))
    results = found.report.results
    assert results["separation_before"] > 1
    assert 0 <= results["benign_kept_after"] <= 1
    assert found.artifact.manifest.data["left out: has no picture"] == 2
    found.save_pretrained(tmp_path)
    assert (tmp_path / "projections.png").stat().st_size > 1000
    loaded = VisualSafetyPrompt.from_pretrained(tmp_path)
    assert loaded.manifest is not None
    assert loaded.manifest.results["refused_harmful_before"] == pytest.approx(
        results["refused_harmful_before"], abs=1e-4
    )
    assert np.array_equal(loaded.frame.pixels, found.guardrail.frame.pixels)


def loss_on(family: str, relative: bool, size: tuple[int, int]) -> BorderLoss:
    """A loss on a tiny model with a made-up direction."""
    model, processor = tiny(family)
    vector = torch.nn.functional.normalize(
        torch.randn(64, generator=torch.Generator().manual_seed(0)), dim=0
    )
    return BorderLoss(
        Reader(model, processor),
        DifferentiablePreprocessing(processor.image_processor),
        AroundPicture(size, 0.2, relative=relative, mean=(120.0, 120.0, 120.0)),
        Direction(2, vector, 50.0, -50.0, ()),
        DavspSettings(width=0.2, answer_weight=1.0),
    )


@pytest.mark.parametrize(
    ("family", "relative", "size"),
    [("llava", False, (28, 28)), ("qwen2_vl", True, (40, 40)), ("qwen2_5_vl", True, (40, 40))],
)
def test_the_gradient_reaches_the_border_alone(
    family: str, relative: bool, size: tuple[int, int]
) -> None:
    loss = loss_on(family, relative, size)
    values = loss.placement.start().requires_grad_(True)
    batch = [
        a_request(harmful, picture(n, 48 + 8 * n, 40), answer="two words")
        for n, harmful in enumerate([True, False])
    ]
    (slope,) = torch.autograd.grad(loss(values, batch, [True, True]), values)
    left, top, right, bottom = loss.placement.box  # type: ignore[attr-defined]
    inner = slope[:, top + 1 : bottom - 1, left + 1 : right - 1]
    assert inner.abs().max() == 0
    assert (slope.abs().sum(dim=0)[:top] > 0).float().mean() > 0.9


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_pixels_of_training_are_those_of_the_processor(family: str) -> None:
    """The differentiable way and the processor's give one hidden state."""
    relative = family == "qwen2_vl"
    loss = loss_on(family, relative, (28, 28))
    values = loss.placement.start()
    image = picture(1, 56, 56)
    placed = loss.placement.place(values, image)
    frame = loss.placement.frame(values)  # type: ignore[attr-defined]
    guard = VisualSafetyPrompt(frame, "relative" if relative else "fixed")
    inputs = loss.reader.inputs([a_request(True, guard.apply_to_image(image)).conversation()])
    theirs = inputs["pixel_values"].clone()
    assert (loss.preprocessing([placed]) - theirs).abs().max() < 1e-4


def test_answers_stand_behind_left_padded_prompts() -> None:
    inputs = {
        "input_ids": torch.tensor([[0, 5, 6], [7, 8, 9]]),
        "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
        "kinds": torch.ones(2, 3, dtype=torch.long),
        "pixel_values": torch.zeros(2, 3, 4, 4),
    }
    made = with_answers(inputs, torch.tensor([[1, 2], [3, -100]]))
    assert made["input_ids"].tolist() == [[0, 5, 6, 1, 2], [7, 8, 9, 3, 0]]
    assert made["attention_mask"].tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert made["kinds"].tolist() == [[1, 1, 1, 0, 0]] * 2
    assert made["pixel_values"] is inputs["pixel_values"]


def test_answer_loss_is_the_models_own() -> None:
    """Against transformers' loss on one row, whose labels shift inside the model."""
    model, processor = mini().model, mini().processor
    reader, example = Reader(model, processor), EXAMPLES[0]
    inputs = reader.inputs([PictureRequest(example).conversation()])
    tokens = processor.tokenizer.encode(example.answer, add_special_tokens=False)
    tokens.append(processor.tokenizer.eos_token_id)
    ids = torch.cat([inputs["input_ids"], torch.tensor([tokens])], dim=1)
    labels = ids.clone()
    labels[:, : inputs["input_ids"].shape[1]] = -100
    with torch.no_grad():
        theirs = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=inputs["pixel_values"],
            labels=labels,
        ).loss
        ours = reader.read(inputs, [str(example.answer)]).answer_loss
    assert float(ours[0]) == pytest.approx(float(theirs), rel=1e-4)


def test_an_additive_perturbation_stays_within_its_bound() -> None:
    placement = OverPicture((32, 32), 16.0)
    values = placement.bounded(placement.start() + 99)
    image = picture(2, 32, 32)
    placed = placement.place(values, image).permute(1, 2, 0).numpy()
    change = placed - np.asarray(image, dtype=float)
    assert change.max() <= 16
    assert (placed <= 255).all()


def test_models_whose_preprocessing_is_not_known_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="LlavaNextImageProcessor"):
        fit_davsp(LocalLVLM(*tiny("llava_next")), FitData(EXAMPLES), QUICK)


def test_data_that_do_not_suffice() -> None:
    text_only = [Example("how do I?", True), Example("what is it?", False)] * 10
    with pytest.raises(ConfigurationError, match="0 harmful"):
        fit_davsp(mini(), FitData(text_only), QUICK)
    found = fitted()
    unrefused = [replace(request, refused=False) for request in found.requests]
    with pytest.raises(ConfigurationError, match="refuses 0"):
        find_direction(found.loss.reader, unrefused, QUICK, a_run())
    with pytest.raises(ConfigurationError, match="6 decoder layers"):
        find_direction(found.loss.reader, found.requests, replace(QUICK, layer=7), a_run())


def test_several_pictures_and_turns_are_trained_through() -> None:
    """Every picture of a conversation gets the border, and the gradient of each reaches it."""
    loss = loss_on("qwen2_vl", True, (40, 40))
    earlier = {"role": "user", "content": [{"type": "image", "image": picture(7, 56, 56)}, "So?"]}
    history = ({"role": "system", "content": "Be brief."}, earlier)
    history = (*history, {"role": "assistant", "content": "A dog."})
    talk = Example("And these?", True, (picture(1, 56, 56), picture(2, 84, 56)), history=history)
    values = loss.placement.start().requires_grad_(True)
    (slope,) = torch.autograd.grad(loss(values, [PictureRequest(talk, "Be safe.")], [True]), values)
    assert float(slope.abs().max()) > 0
    shown = PictureRequest(talk, "Be safe.").conversation()
    assert len(shown.images) == 3
    assert shown.turns[-1].texts == ["Be safe. And these?"]


def test_it_trains_through_padding() -> None:
    """LLaVA's processor may pad to a square before it resizes, as the authors of DAVSP do."""
    model, processor = tiny("llava")
    padding = copy.copy(processor)
    side = {"height": 28, "width": 28}
    padding.image_processor = LlavaImageProcessor(
        do_pad=True, size={"shortest_edge": 28}, crop_size=side
    )
    image = picture(1, 56, 30)
    loss = replace(
        loss_on("llava", False, (28, 28)),
        reader=Reader(model, padding),
        preprocessing=DifferentiablePreprocessing(padding.image_processor),
    )
    values = loss.placement.start().requires_grad_(True)
    (slope,) = torch.autograd.grad(loss(values, [a_request(True, image)], [True]), values)
    assert (slope.abs().sum(dim=0)[0] > 0).float().mean() > 0.9
