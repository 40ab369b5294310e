"""The differentiable preprocessing gives what the model's own processor gives, and a gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    LlavaImageProcessor,
    Qwen2VLImageProcessor,
    SiglipImageProcessor,
)

from lvlm_helpers import picture
from sightrail.guardrails.davsp.placement import picture_to_levels
from sightrail.guardrails.davsp.preprocess import DifferentiablePreprocessing, whole_levels
from sightrail.guardrails.errors import UnsupportedModelError
from sightrail.testbed import model_path
from tiny_models import tiny

SQUARE = {"height": 24, "width": 24}
PROCESSORS: dict[str, Any] = {
    "LLaVA-1.5": CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=SQUARE),
    "LLaVA-1.5, padded": LlavaImageProcessor(
        do_pad=True, size={"shortest_edge": 28}, crop_size=SQUARE
    ),
    "padded, not resized": LlavaImageProcessor(do_pad=True, do_resize=False, crop_size=SQUARE),
    "small crop": CLIPImageProcessor(size={"shortest_edge": 20}, crop_size=SQUARE),
    "squashed": CLIPImageProcessor(size=SQUARE, do_center_crop=False),
    "bilinear": CLIPImageProcessor(size=SQUARE, do_center_crop=False, resample=2),
    "SigLIP": SiglipImageProcessor(size=SQUARE),
    "not resized": CLIPImageProcessor(do_resize=False, crop_size=SQUARE),
    "not normalised": CLIPImageProcessor(size=SQUARE, do_center_crop=False, do_normalize=False),
    "Qwen2-VL": Qwen2VLImageProcessor(
        size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56}, patch_size=7
    ),
}
EXACT = 1e-5  # of values around 1, in single precision


def made(images: Any, *pictures: Image.Image) -> torch.Tensor:
    return DifferentiablePreprocessing(images)([picture_to_levels(one) for one in pictures])


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(40, 30), (24, 24), (29, 61), (28, 28)])
def test_equals_the_processor(name: str, size: tuple[int, int]) -> None:
    images = [picture(1, *size), picture(2, *size)]
    theirs = PROCESSORS[name](images, return_tensors="pt")["pixel_values"]
    ours = made(PROCESSORS[name], *images)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= EXACT


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(sorted(PROCESSORS)))
def test_any_shape(width: int, height: int, name: str) -> None:
    image = picture(width, width, height)
    theirs = PROCESSORS[name](image, return_tensors="pt")["pixel_values"]
    assert (made(PROCESSORS[name], image) - theirs).abs().max() <= EXACT


def test_pictures_of_several_sizes() -> None:
    images = [picture(1, 40, 30), picture(2, 30, 60)]
    for name in ("LLaVA-1.5", "Qwen2-VL"):
        theirs = PROCESSORS[name](images, return_tensors="pt")["pixel_values"]
        assert (made(PROCESSORS[name], *images) - theirs).abs().max() <= EXACT
    with pytest.raises(UnsupportedModelError, match="different sizes"):
        made(CLIPImageProcessor(size={"shortest_edge": 20}, do_center_crop=False), *images)


def test_the_gradient_is_that_of_the_maths_without_rounding() -> None:
    """Against finite differences, large enough that rounding to levels averages out."""
    images = PROCESSORS["LLaVA-1.5"]
    levels = picture_to_levels(picture(4, 40, 30)).clamp(60, 190)
    weights = torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(0))

    def score(pixels: torch.Tensor) -> torch.Tensor:
        return (DifferentiablePreprocessing(images)([pixels])[0] * weights).sum()

    point = levels.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(score(point), point)
    way = 10 * slope / slope.std()
    found = (score(levels + way) - score(levels - way)) / 2
    assert float(found) == pytest.approx(float((slope * way).sum()), rel=0.02)


def test_whole_levels() -> None:
    pixels = torch.tensor([-3.0, 0.4, 99.6, 300.0], requires_grad=True)
    whole = whole_levels(pixels)
    assert whole.tolist() == [0, 0, 100, 255]
    assert torch.autograd.grad(whole.sum(), pixels)[0].tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("name", "canvas"),
    [("LLaVA-1.5", (24, 24)), ("squashed", (24, 24)), ("SigLIP", (24, 24)), ("Qwen2-VL", None)],
)
def test_canvas(name: str, canvas: tuple[int, int] | None) -> None:
    assert DifferentiablePreprocessing(PROCESSORS[name]).canvas() == canvas


def test_canvas_of_the_testbed() -> None:
    images = CLIPImageProcessor.from_pretrained(model_path("lvlm"))
    assert DifferentiablePreprocessing(images).canvas() == (96, 96)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_families_that_are_served(family: str) -> None:
    images = tiny(family)[1].image_processor
    theirs = images(picture(1, 56, 42), return_tensors="pt")["pixel_values"]
    assert (made(images, picture(1, 56, 42)) - theirs).abs().max() <= EXACT


@pytest.mark.parametrize("family", ["llava_next", "internvl", "smolvlm", "mllama", "pixtral"])
def test_families_that_cut_tiles_or_pad_are_refused_with_the_remedy(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match="can still be put around"):
        DifferentiablePreprocessing(tiny(family)[1].image_processor)
