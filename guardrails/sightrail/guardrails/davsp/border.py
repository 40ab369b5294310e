"""Borders: where they stand, how a picture is put into one, and whether it already is.

The picture is shrunk into the inner box, never overwritten, so nothing of it is lost but
resolution. Everything here is on whole pixel levels 0-255: what is computed is what a PNG holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from ..errors import ConfigurationError

Box = tuple[int, int, int, int]
Sizing = Literal["fixed", "relative"]
"""``fixed``: every picture is put on the border's own canvas, as models with one input resolution
need it. ``relative``: the border is scaled to each picture's own size, for models that keep it."""


@dataclass(frozen=True)
class Frame:
    """A border at the size of one canvas.

    Attributes:
        pixels: the canvas; what stands inside the box is covered by the picture.
        box: left, top, right, bottom of the picture's place.
    """

    pixels: UInt8[np.ndarray, "H W 3"]
    box: Box

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the canvas."""
        return self.pixels.shape[1], self.pixels.shape[0]


def inner_box(size: tuple[int, int], share: float) -> Box:
    """The picture's place on a canvas.

    Args:
        size: width and height of the canvas.
        share: width of the border on each side, as a share of the canvas' sides.

    Raises:
        ConfigurationError: no border, or no room for a picture, is left.
    """
    width, height = size
    across, down = round(share * width), round(share * height)
    if across < 1 or down < 1 or 2 * across >= width or 2 * down >= height:
        raise ConfigurationError(
            f"A border of {share:.3g} of the sides does not fit on {width} x {height} pixels; "
            "it takes at least one pixel on each side and leaves room for the picture."
        )
    return across, down, width - across, height - down


def scaled_frame(frame: Frame, size: tuple[int, int]) -> Frame:
    """The border at another canvas size; the same frame where that is its own.

    Raises:
        ConfigurationError: the canvas is too small for a border.
    """
    if size == frame.size:
        return frame
    left, top = frame.box[:2]
    across = max(1, round(left * size[0] / frame.size[0]))
    down = max(1, round(top * size[1] / frame.size[1]))
    if min(size[0] - 2 * across, size[1] - 2 * down) < 1:
        raise ConfigurationError(
            f"A picture of {size[0]} x {size[1]} pixels has no room for a border."
        )
    scaled = Image.fromarray(frame.pixels).resize(size, Image.Resampling.BILINEAR)
    return Frame(np.asarray(scaled), (across, down, size[0] - across, size[1] - down))


def framed(image: Image.Image, frame: Frame) -> Image.Image:
    """The picture shrunk into the frame; RGB, the size of the frame's canvas."""
    canvas = Image.fromarray(frame.pixels)
    canvas.paste(shrunk(image, frame.box), frame.box[:2])
    return canvas


def shrunk(image: Image.Image, box: Box) -> Image.Image:
    """The picture at the size of the box."""
    size = (box[2] - box[0], box[3] - box[1])
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def border_mask(frame_size: tuple[int, int], box: Box) -> Bool[np.ndarray, "H W"]:
    """Where the border is: true outside the box."""
    mask = np.ones((frame_size[1], frame_size[0]), dtype=np.bool_)
    mask[box[1] : box[3], box[0] : box[2]] = False
    return mask


def has_frame(image: Image.Image, frame: Frame) -> bool:
    """Whether the picture stands in this very frame already, pixel for pixel."""
    if image.size != frame.size or image.mode != "RGB":
        return False
    mask = border_mask(frame.size, frame.box)
    return bool(np.array_equal(np.asarray(image)[mask], frame.pixels[mask]))
