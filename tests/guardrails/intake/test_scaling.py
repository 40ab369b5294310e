"""Payloads that appear only once a picture was made smaller are screened, where the size is named.

The payloads are real: every pixel that a scaler will read is the payload's, every other one the
decoy's. At full size they are a few dots among many; at the model's size they are the picture.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from chain_helpers import RED, RedDetector, clean_picture
from lvlm_helpers import user
from sightrail.guardrails import LocalLVLM, Picture, Policy, Verdict
from sightrail.guardrails.model.preprocessing import seen_by
from sightrail.guardrails.screening.seen_by import SPARSE, Scaler, scale, scaled_views, target_size
from tiny_models import tiny

SMALL, FACTOR = (28, 28), 9
SIDE = SMALL[0] * FACTOR


def decoy() -> Image.Image:
    return clean_picture().resize((SIDE, SIDE))


def camouflaged(scaler: Scaler) -> Image.Image:
    """A picture that is the decoy, and red all over once this scaler has made it 28 x 28."""
    pixels = np.asarray(decoy()).copy()
    reach = {"nearest": (4, 5), "nearest_corner": (0, 1), "bilinear": (4, 5), "bicubic": (3, 6)}
    first, last = reach[scaler]  # bicubic weighs a pixel on either side of the middle by nothing
    for row in range(first, last):
        for column in range(first, last):
            pixels[row::FACTOR, column::FACTOR] = RED
    return Image.fromarray(pixels)


class ThoroughDetector(RedDetector):
    """Takes a picture for risky if most of any rendering is red, scaled ones included."""

    def screen(self, images: Any) -> list[Verdict]:
        return [
            max(map(self._look, (*p.views, *p.scaled)), key=lambda verdict: verdict.score or 0)
            for p in images
        ]

    def _look(self, image: Image.Image) -> Verdict:
        red = np.all(np.abs(np.asarray(image, dtype=int) - RED) < 3, axis=2).mean()
        flagged = red > 0.5
        return Verdict(status="flagged" if flagged else "clean", category="red", score=float(red))


@pytest.mark.parametrize("scaler", SPARSE)
def test_a_payload_is_the_decoy_until_it_is_scaled(scaler: Scaler) -> None:
    image = camouflaged(scaler)
    changed = (np.asarray(image) != np.asarray(decoy())).any(axis=2).mean()
    assert changed < 0.15
    shown = np.asarray(scale(image, SMALL, scaler), dtype=int)
    assert np.abs(shown - RED).max() <= 2


@pytest.mark.parametrize("scaler", SPARSE)
def test_it_is_found_with_the_models_size_and_missed_without(scaler: Scaler) -> None:
    image = camouflaged(scaler)
    plain = Picture(image, (image,))
    seen = replace(plain, scaled=scaled_views(image, [28], SPARSE))
    without, with_size = ThoroughDetector().screen([plain, seen])
    assert (without.status, with_size.status) == ("clean", "flagged")


def test_the_local_model_adds_its_own_size() -> None:
    model, processor = tiny("llava")
    image_processor = hf.CLIPImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, resample=0
    )
    nearest = hf.LlavaProcessor(
        image_processor=image_processor,
        tokenizer=processor.tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=processor.chat_template,
    )
    policy = Policy(on_flagged="refuse")
    question = user("What is this?", camouflaged("nearest"))
    answers = [
        LocalLVLM(model, used, guardrails=[ThoroughDetector()], policy=policy).chat(
            question, max_new_tokens=1
        )
        for used in (nearest, processor)
    ]
    assert [answer.refused for answer in answers] == [True, False]


@pytest.mark.parametrize(("resample", "tolerance"), [(0, 0), (1, 15), (2, 6), (3, 6)])
@pytest.mark.parametrize("size", [(64, 48), (45, 91)])
def test_what_is_screened_is_what_the_processor_makes(
    resample: int, tolerance: int, size: tuple[int, int]
) -> None:
    image = Image.fromarray(
        np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    )
    processor = hf.CLIPImageProcessor(
        size={"shortest_edge": 28},
        do_center_crop=False,
        do_rescale=False,
        do_normalize=False,
        resample=resample,
    )
    pixels = processor(image, return_tensors="pt")["pixel_values"][0]
    holder = type("Holder", (), {"image_processor": processor})()
    (view,) = seen_by(holder, image)
    ours = torch.from_numpy(np.asarray(view).copy()).permute(2, 0, 1).float()
    assert ours.shape == pixels.shape
    assert (ours - pixels.float()).abs().max() <= tolerance


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("llava", {(37, 28)}),
        ("gemma3", {(28, 28)}),
        ("internvl", {(28, 28)}),
        ("idefics3", {(56, 42), (64, 48)}),
        ("mistral3", {(42, 31)}),
        ("qwen2_vl", {(39, 29)}),
    ],
)
def test_every_familys_size_is_read(family: str, sizes: set[tuple[int, int]]) -> None:
    views = seen_by(tiny(family)[1], Image.new("RGB", (64, 48), "blue"))
    assert {view.size for view in views} == sizes


def test_a_size_for_each_picture_is_what_the_processor_chooses() -> None:
    processor = tiny("qwen2_vl")[1]
    image = Image.effect_noise((600, 300), 40).convert("RGB")
    (view,) = seen_by(processor, image)
    found = processor.image_processor(image, return_tensors="pt")
    side = processor.image_processor.patch_size
    rows, columns = (int(n) * side for n in found["image_grid_thw"][0][1:])
    assert view.size == pytest.approx((columns, rows), rel=0.1)


def test_tiles_count_as_what_they_show() -> None:
    images = hf.LlavaNextImageProcessor(
        size={"shortest_edge": 28},
        crop_size={"height": 28, "width": 28},
        image_grid_pinpoints=[[56, 56], [28, 84]],
    )
    holder = type("Holder", (), {"image_processor": images})()
    views = seen_by(holder, Image.effect_noise((400, 400), 40).convert("RGB"))
    assert [view.size for view in views] == [(28, 28), (62, 62)]  # four tiles and the whole


def test_what_the_processor_cannot_prepare_is_looked_at_as_it_is() -> None:
    thin = Image.new("RGB", (3000, 10))  # Qwen-VL takes nothing longer than 200 times its width
    assert seen_by(tiny("qwen2_vl")[1], thin) == (thin,)


def test_a_picture_that_is_not_made_smaller_has_no_further_views() -> None:
    small = Image.new("RGB", (20, 24))
    assert scaled_views(small, [28, (20, 24), (40, 40)], SPARSE) == ()
    assert seen_by(tiny("llava")[1], small) == ()
    assert seen_by(object(), small) == ()


def test_equal_views_are_looked_at_once() -> None:
    assert len(scaled_views(Image.new("RGB", (90, 60), "red"), [28, (42, 28)], SPARSE)) == 1


@pytest.mark.parametrize(
    ("size", "wanted", "target"),
    [((640, 480), 336, (448, 336)), ((10, 1000), 8, (8, 800)), ((9, 9), (30, 40), (30, 40))],
)
def test_target_sizes(size: tuple[int, int], wanted: Any, target: tuple[int, int]) -> None:
    assert target_size(size, wanted) == target
