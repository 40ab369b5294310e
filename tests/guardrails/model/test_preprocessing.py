"""What a processor cuts off: seen by the model when padded, and borders stay whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lvlm_helpers import picture, user
from sightrail.guardrails import LocalLVLM, VisualSafetyPrompt
from sightrail.guardrails.davsp import Frame
from sightrail.guardrails.errors import PromptError, UnsupportedModelError
from sightrail.guardrails.model.messages import Conversation
from sightrail.guardrails.model.preprocessing import padded_to_square, seen_by
from sightrail.guardrails.testing import StubGuardrail
from tiny_models import SIDE, tiny

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
