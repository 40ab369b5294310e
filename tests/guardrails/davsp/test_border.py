"""The border around pictures: what is seen of it, of the picture, and of both on disk."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lvlm_helpers import picture, user
from sightrail.guardrails import ConfigurationError, ImageError, PromptError, VisualSafetyPrompt
from sightrail.guardrails.davsp import Frame
from sightrail.guardrails.davsp.border import Sizing, inner_box
from sightrail.guardrails.errors import ArtifactError
from sightrail.guardrails.fitting import Manifest, ModelIdentity

ORIGIN = ModelIdentity(name="a model", shape="shape", weights=(1.0, 2.0))
MANIFEST = Manifest(kind="davsp", base=ORIGIN, settings={"width": 0.1})


def border(
    size: tuple[int, int] = (32, 24),
    share: float = 0.125,
    sizing: Sizing = "fixed",
    text: str | None = "Stay safe.",
) -> VisualSafetyPrompt:
    pixels = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return VisualSafetyPrompt(Frame(pixels, inner_box(size, share)), sizing, text, MANIFEST)


def grey_frame() -> Frame:
    """Pixels that are no picture's; made so that no check of shapes is in the way."""
    frame = Frame(np.zeros((8, 8, 3), np.uint8), (1, 1, 7, 7))
    object.__setattr__(frame, "pixels", np.zeros((8, 8)))
    return frame


def around(image: Image.Image, guard: VisualSafetyPrompt) -> np.ndarray[Any, Any]:
    """The pixels of the border itself."""
    pixels = np.array(image)
    left, top, right, bottom = guard.frame.box
    pixels[top:bottom, left:right] = 0
    return pixels


def test_a_bordered_picture_holds_the_border_and_the_whole_picture_shrunk() -> None:
    guard, image = border(), picture(1, 70, 50)
    seen = guard.apply_to_image(image)
    assert (seen.size, seen.mode) == ((32, 24), "RGB")
    assert np.array_equal(around(seen, guard), around(Image.fromarray(guard.frame.pixels), guard))
    box = guard.frame.box
    shrunk = image.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(seen.crop(box)), np.asarray(shrunk))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(4, 80),
    st.integers(4, 80),
    st.sampled_from(["fixed", "relative"]),
    st.sampled_from(["RGB", "L", "RGBA", "P", "1"]),
)
def test_any_picture_once_and_no_more(width: int, height: int, sizing: Sizing, mode: str) -> None:
    guard, image = border(sizing=sizing), picture(width, width, height).convert(mode)
    before = image.tobytes()
    once = guard.apply_to_image(image)
    assert once.size == ((32, 24) if sizing == "fixed" else (width, height))
    assert guard.apply_to_image(once) is once
    assert image.tobytes() == before


def test_a_lossless_copy_is_known_again_and_a_touched_one_is_not(tmp_path: Path) -> None:
    guard = border()
    once = guard.apply_to_image(picture())
    once.save(tmp_path / "once.png")
    again = Image.open(tmp_path / "once.png")
    assert np.array_equal(np.asarray(guard.apply_to_image(again)), np.asarray(once))
    touched = once.copy()
    touched.putpixel((0, 0), (1, 2, 3))
    assert guard.apply_to_image(touched).getpixel((0, 0)) == once.getpixel((0, 0))


def test_a_relative_border_grows_with_the_picture() -> None:
    guard = border((40, 40), 0.1, "relative")
    for size, box in {(80, 40): (8, 4, 72, 36), (40, 120): (4, 12, 36, 108)}.items():
        grey = Image.new("RGB", size, (9, 9, 9))
        inside = np.all(np.asarray(guard.apply_to_image(grey)) == 9, axis=2)
        assert inside[box[1] : box[3], box[0] : box[2]].all()
        assert inside.sum() == (box[2] - box[0]) * (box[3] - box[1])


def test_too_small_for_a_relative_border() -> None:
    with pytest.raises(ConfigurationError, match="2 x 30"):
        border(sizing="relative").apply_to_image(picture(0, 2, 30))


def test_png_for_any_client(tmp_path: Path) -> None:
    """Shrink the picture into the transparent box and put the PNG over it: the same pixels."""
    guard, image = border(), picture(1, 60, 60)
    png = Image.open(guard.to_png(tmp_path / "border.png"))
    left, top, right, bottom = guard.frame.box
    theirs = Image.new("RGB", png.size)
    theirs.paste(image.resize((right - left, bottom - top), Image.Resampling.BICUBIC), (left, top))
    theirs.paste(png, mask=png.getchannel("A"))
    assert np.array_equal(np.asarray(theirs), np.asarray(guard.apply_to_image(image)))


def test_messages_pure_and_idempotent() -> None:
    guard, image = border(), picture(1)
    messages = [
        {"role": "system", "content": "Be kind."},
        *user("One.", image),
        {"role": "assistant", "content": "Two."},
        *user("Three.", picture(2), picture(3)),
    ]
    before = copy.deepcopy(messages)
    once = guard.apply(messages)
    shown = [
        p["image"]
        for m in once[1::2]
        if not isinstance(m["content"], str)
        for p in m["content"]
        if "image" in p
    ]
    assert [one.size for one in shown] == [(32, 24)] * 3
    assert once[3]["content"][-1]["text"] == "Stay safe. Three."
    assert once[1]["content"][-1]["text"] == "One."
    assert messages == before
    assert messages[1]["content"][0]["image"] is image
    assert guard.apply(once) == once


def test_history_that_is_sent_again_keeps_one_border() -> None:
    guard = border()
    first = guard.apply(user("One.", picture()))
    again = guard.apply([*first, {"role": "assistant", "content": "Two."}, *user("Three.")])
    assert again[0]["content"][0]["image"] is first[0]["content"][0]["image"]


def test_pictures_that_are_not_decoded_yet(tmp_path: Path) -> None:
    guard = border()
    picture().save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    expected = np.asarray(guard.apply_to_image(picture()))
    for source in (tmp_path / "a.png", data):
        seen = guard.apply(user("?", source))[0]["content"][0]["image"]
        assert np.array_equal(np.asarray(seen), expected)
    with pytest.raises(ImageError):
        guard.apply(user("?", b"no picture at all"))


def test_text() -> None:
    assert border().apply("What?") == "Stay safe. What?"
    bare = border(text=None)
    assert bare.apply("What?") == "What?"
    assert bare.needs == {"pixels"}
    assert border().needs == {"pixels", "prompt"}
    with pytest.raises(PromptError, match="no user message"):
        border().apply([{"role": "system", "content": "x"}])


@pytest.mark.parametrize("sizing", ["fixed", "relative"])
def test_on_disk_and_back(sizing: Sizing, tmp_path: Path) -> None:
    guard = border(sizing=sizing)
    loaded = VisualSafetyPrompt.from_pretrained(guard.save_pretrained(tmp_path / "border"))
    assert np.array_equal(loaded.frame.pixels, guard.frame.pixels)
    assert (loaded.frame.box, loaded.sizing, loaded.text) == (guard.frame.box, sizing, "Stay safe.")
    assert loaded.trained_on == ORIGIN
    image = picture(4, 50, 70)
    assert loaded.apply_to_image(image).tobytes() == guard.apply_to_image(image).tobytes()


def test_without_a_text_on_disk(tmp_path: Path) -> None:
    folder = border(text=None).save_pretrained(tmp_path)
    assert VisualSafetyPrompt.from_pretrained(folder).text is None


def test_a_border_of_unknown_origin_is_not_saved(tmp_path: Path) -> None:
    guard = VisualSafetyPrompt(border().frame)
    assert guard.trained_on is None
    with pytest.raises(ConfigurationError, match="to_png"):
        guard.save_pretrained(tmp_path)


def test_damaged_artifacts(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(ArtifactError, match="sightrail fit davsp"):
        VisualSafetyPrompt.from_pretrained(tmp_path)
    folder = border().save_pretrained(tmp_path / "a")
    save_file({"border": torch.zeros(4, 4)}, folder / "sightrail.safetensors")
    with pytest.raises(ArtifactError, match="unreadable"):
        VisualSafetyPrompt.from_pretrained(folder)
    save_file(
        {"border": torch.zeros(4, 4, 3, dtype=torch.uint8), "box": torch.tensor([0, 0, 4, 4])},
        folder / "sightrail.safetensors",
    )
    with pytest.raises(ArtifactError, match="no border"):
        VisualSafetyPrompt.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"frame": grey_frame()}, "uint8"),
        ({"frame": Frame(np.zeros((8, 8, 3), np.uint8), (0, 1, 7, 7))}, "no border"),
        ({"frame": Frame(np.zeros((8, 8, 3), np.uint8), (5, 1, 4, 7))}, "no border"),
        ({"sizing": "large"}, "fixed or relative"),
        ({"text": " "}, "empty"),
    ],
)
def test_settings_that_are_not_possible(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        VisualSafetyPrompt(**({"frame": border().frame} | changes))


def test_the_pixels_cannot_be_changed_from_outside() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    guard = VisualSafetyPrompt(Frame(pixels, (2, 2, 6, 6)))
    pixels[:] = 255
    assert guard.frame.pixels.max() == 0
    with pytest.raises(ValueError, match="read-only"):
        guard.frame.pixels[0, 0, 0] = 1


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9])
def test_a_share_that_leaves_nothing(share: float) -> None:
    with pytest.raises(ConfigurationError, match="does not fit"):
        inner_box((32, 24), share)
