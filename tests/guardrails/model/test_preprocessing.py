"""What a processor cuts off: seen by the model when padded, and borders stay whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lvlm_helpers import picture, user
from sightrail.guardrails import LocalLVLM, Policy, Region, Verdict, VisualSafetyPrompt
from sightrail.guardrails.davsp import Frame
from sightrail.guardrails.errors import PromptError, UnsupportedModelError
from sightrail.guardrails.model.messages import Conversation
from sightrail.guardrails.model.preprocessing import cuts_out, kept_part, padded_to_square, seen_by
from sightrail.guardrails.testing import StubGuardrail
from sightrail.guardrails.verdict import Threshold
from tiny_models import FAMILIES, SIDE, tiny

FRAME = Frame(np.full((SIDE, SIDE, 3), 99, np.uint8), (3, 3, SIDE - 3, SIDE - 3))


def pixels(processor: Any, image: Image.Image) -> torch.Tensor:
    made = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    while not isinstance(made, torch.Tensor):
        (made,) = made
    return made


def with_edge(colour: int) -> Image.Image:
    """A wide picture whose left edge has a colour of its own."""
    image = picture(1, width=160, height=40)
    image.paste((colour, colour, colour), (0, 0, 16, 40))
    return image


def test_what_is_cut_off_is_seen_once_it_is_padded() -> None:
    _, processor = tiny("llava")
    padded = padded_to_square(processor)
    assert torch.equal(pixels(processor, with_edge(0)), pixels(processor, with_edge(255)))
    assert not torch.equal(pixels(padded, with_edge(0)), pixels(padded, with_edge(255)))
    assert pixels(padded, with_edge(0)).shape == pixels(processor, with_edge(0)).shape
    assert not getattr(processor.image_processor, "do_pad", None)  # the given one stays


def test_screening_looks_at_the_size_inside_the_padding() -> None:
    _, processor = tiny("llava")
    sizes = {view.size for view in seen_by(padded_to_square(processor), with_edge(0))}
    assert sizes == {(SIDE, SIDE // 4)}


@pytest.mark.parametrize("family", FAMILIES)
def test_whether_a_processor_cuts_out_is_what_it_does(family: str) -> None:
    processor = tiny(family)[1]
    unseen = torch.equal(pixels(processor, with_edge(0)), pixels(processor, with_edge(255)))
    assert cuts_out(processor.image_processor) == unseen


@given(width=st.integers(8, 300), height=st.integers(8, 300), crop=st.integers(8, SIDE))
@settings(max_examples=30, deadline=None)
def test_what_lies_beside_the_kept_part_changes_nothing(width: int, height: int, crop: int) -> None:
    images = tiny("llava")[1].image_processor.__class__(
        size={"shortest_edge": SIDE}, crop_size={"height": crop, "width": crop}
    )
    kept = kept_part(images, (width, height)) or (0, 0, width, height)
    left, top, right, bottom = kept
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    # Neighbours flow into the edge of what is kept when a picture is made smaller.
    reach = 4 * max(1, -(-min(width, height) // SIDE))
    inner = (left + reach, top + reach, right - reach, bottom - reach)
    before = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    after = before.copy()
    after[: max(0, top - reach)] = after[bottom + reach :] = 0
    after[:, : max(0, left - reach)] = after[:, right + reach :] = 0
    shown = [images(Image.fromarray(each), return_tensors="np") for each in (before, after)]
    assert np.array_equal(shown[0]["pixel_values"], shown[1]["pixel_values"])
    if inner[0] < inner[2] and inner[1] < inner[3]:
        after[inner[1] : inner[3], inner[0] : inner[2]] ^= 255
        seen = images(Image.fromarray(after), return_tensors="np")["pixel_values"]
        assert not np.array_equal(shown[0]["pixel_values"], seen)


def test_a_finding_says_whether_the_model_sees_it() -> None:
    model, processor = tiny("llava")

    @dataclass(frozen=True)
    class TwoPlaces:
        """Finds something at the left edge and in the middle, or at the edge alone."""

        middle: bool = True

        def screen(self, pictures: Any) -> list[Verdict]:
            regions = [Region(box=(0, 0, 16, 40), category="red", score=1.0)]
            regions += [Region(box=(70, 0, 90, 40), category="red", score=0.9)] * self.middle
            limit = Threshold(value=0.5, source="test")
            return [
                Verdict(status="flagged", score=1.0, threshold=limit, regions=tuple(regions))
                for _ in pictures
            ]

    def found(processor: Any, guard: Any) -> Verdict:
        lvlm = LocalLVLM(model, processor, guardrails=[guard], policy=Policy(monitor=True))
        return lvlm.chat(user("What?", with_edge(0)), max_new_tokens=1).verdicts[0]

    both, edge = found(processor, TwoPlaces()), found(processor, TwoPlaces(middle=False))
    assert both.kept == (60, 0, 102, 40)
    assert [region.cut_off for region in both.regions] == [True, False]
    assert "not shown" not in both.summary()
    assert "in a part that the model is not shown" in edge.summary()
    padded = found(padded_to_square(processor), TwoPlaces(middle=False))
    assert (padded.kept, padded.regions[0].cut_off) == (None, False)


def test_a_padded_model_answers_and_takes_borders_of_any_shape() -> None:
    model, processor = tiny("llava")
    relative = VisualSafetyPrompt(FRAME, "relative", None)
    with pytest.raises(UnsupportedModelError, match="padded_to_square"):
        LocalLVLM(model, processor, guardrails=[relative])
    lvlm = LocalLVLM(model, padded_to_square(processor), guardrails=[relative])
    answer = lvlm.chat(user("What is in the image?", with_edge(0)), max_new_tokens=3)
    assert (answer.refused, answer.usage.output_tokens) == (False, 3)


@pytest.mark.parametrize("family", ["gemma3", "qwen2_vl"])
def test_padding_is_for_processors_that_cut(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match="cuts nothing out"):
        padded_to_square(tiny(family)[1])


@dataclass(frozen=True)
class Cropping(StubGuardrail):
    """Cuts the border off again."""

    def apply(self, messages: Conversation) -> Conversation:
        from dataclasses import replace

        parts = [
            replace(part, screened=part.screened.crop((3, 3, SIDE - 3, SIDE - 3)))
            for part in messages.image_parts
            if part.screened is not None
        ]
        return messages.with_images(parts)


SIDES = {
    "left": (slice(None), slice(0, 3)),
    "right": (slice(None), slice(-3, None)),
    "top": (slice(0, 3), slice(None)),
    "bottom": (slice(-3, None), slice(None)),
}


@pytest.mark.shows("border survives")
@pytest.mark.parametrize("side", SIDES)
def test_every_side_of_a_border_reaches_the_model(family: str, side: str) -> None:
    """Also of a picture that is no square, in a border of fixed size."""
    _, processor = tiny(family)
    other = FRAME.pixels.copy()
    other[SIDES[side]] = 180
    image = picture(1, width=160, height=40)
    frames = [FRAME, Frame(other, FRAME.box)]
    one, two = (
        pixels(processor, VisualSafetyPrompt(frame, text=None).apply_to_image(image))
        for frame in frames
    )
    assert one.shape == two.shape
    assert not torch.equal(one, two)


def test_a_fixed_border_that_is_cut_off_is_refused() -> None:
    wide = Frame(np.full((SIDE, 2 * SIDE, 3), 99, np.uint8), (3, 3, 2 * SIDE - 3, SIDE - 3))
    with pytest.raises(UnsupportedModelError, match="cuts the middle out"):
        LocalLVLM(*tiny("llava"), guardrails=[VisualSafetyPrompt(wide, text=None)])


def test_a_border_that_is_gone_again_is_missed() -> None:
    guards = [VisualSafetyPrompt(FRAME, text=None), Cropping(stage="prompt")]
    lvlm = LocalLVLM(*tiny("llava"), guardrails=guards)
    with pytest.raises(PromptError, match="without its border"):
        lvlm.chat(user("What is in the image?", picture(1)), max_new_tokens=2)
