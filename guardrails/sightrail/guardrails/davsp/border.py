"""Borders: where they stand, how a picture is put into one, and whether it already is.

The picture is shrunk into the inner box, never overwritten, so nothing of it is lost but
resolution. Frames are on whole pixel levels 0-255: what is computed is what a PNG holds. For
training, values are levels 0-255 in float tensors [3, H, W], and a gradient reaches them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..errors import ConfigurationError
from .preprocess import whole_levels

Box = tuple[int, int, int, int]
Pixels = NDArray[np.uint8]
Sizing = Literal["fixed", "relative"]
"""``fixed``: every picture is put on the border's own canvas, as models with one input resolution
need it. ``relative``: the border is scaled to each picture's own size, for models that keep it."""


@dataclass(frozen=True)
class Frame:
    """A border at the size of one canvas.

    Attributes:
        pixels: the canvas [H, W, 3]; what stands inside the box is covered by the picture.
        box: left, top, right, bottom of the picture's place.
    """

    pixels: Pixels
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


def border_mask(frame_size: tuple[int, int], box: Box) -> NDArray[np.bool_]:
    """Where the border is: [H, W], true outside the box."""
    mask = np.ones((frame_size[1], frame_size[0]), dtype=np.bool_)
    mask[box[1] : box[3], box[0] : box[2]] = False
    return mask


def has_frame(image: Image.Image, frame: Frame) -> bool:
    """Whether the picture stands in this very frame already, pixel for pixel."""
    if image.size != frame.size or image.mode != "RGB":
        return False
    mask = border_mask(frame.size, frame.box)
    return bool(np.array_equal(np.asarray(image)[mask], frame.pixels[mask]))


class Placement(Protocol):
    """What is trained, between which bounds, and where it goes."""

    def start(self) -> Tensor:
        """The values before the first step."""

    def bounded(self, values: Tensor) -> Tensor:
        """The nearest values that may be shown."""

    def place(self, values: Tensor, image: Image.Image) -> Tensor:
        """The picture with the values: [3, H, W] on whole levels."""


class AroundPicture:
    """A border around the shrunk picture: all pixels of it are free within 0-255.

    Args:
        size: width and height of the border's canvas.
        share: width of the border, as a share of the sides.
        relative: whether the border is scaled to each picture's own size.
        mean: level of each channel to start from: zero in normalised space.
    """

    def __init__(
        self, size: tuple[int, int], share: float, *, relative: bool, mean: tuple[float, ...]
    ) -> None:
        self.size, self.relative = size, relative
        self.box = inner_box(size, share)
        self._mean = mean

    def start(self) -> Tensor:
        """Every pixel at the mean."""
        levels = torch.tensor(self._mean).round().reshape(3, 1, 1)
        return levels.expand(3, self.size[1], self.size[0]).clone()

    def bounded(self, values: Tensor) -> Tensor:
        """Clamped to valid levels."""
        return values.clamp(0, 255)

    def place(self, values: Tensor, image: Image.Image) -> Tensor:
        """The border, the shrunk picture in its box."""
        frame = Frame(levels_to_pixels(values), self.box)
        if self.relative and image.size != self.size:
            frame = scaled_frame(frame, image.size)
            size = (image.height, image.width)
            scaled = functional.interpolate(
                values[None], size=size, mode="bilinear", antialias=True, align_corners=False
            )
            values = whole_levels(scaled[0])
        left, top, right, bottom = frame.box
        inside = torch.zeros_like(values)
        inside[:, top:bottom, left:right] = picture_to_levels(shrunk(image, frame.box)).to(values)
        mask = torch.from_numpy(border_mask(frame.size, frame.box)).to(values.device)
        return torch.where(mask, whole_levels(values), inside)

    def frame(self, values: Tensor) -> Frame:
        """The border as it is kept: whole levels, also where the picture goes.

        A border that is scaled mixes pixels across the edge of the box, in use as in training.
        """
        return Frame(levels_to_pixels(values), self.box)


class OverPicture:
    """An additive perturbation of the whole picture, the border's baseline.

    Args:
        size: width and height that every picture is brought to.
        bound: levels by which a pixel may change, in either direction.
    """

    def __init__(self, size: tuple[int, int], bound: float) -> None:
        self.size, self.bound = size, bound

    def start(self) -> Tensor:
        """No change."""
        return torch.zeros(3, self.size[1], self.size[0])

    def bounded(self, values: Tensor) -> Tensor:
        """Clamped to the bound."""
        return values.clamp(-self.bound, self.bound)

    def place(self, values: Tensor, image: Image.Image) -> Tensor:
        """The picture plus the change, on valid levels."""
        levels = picture_to_levels(shrunk(image, (0, 0, *self.size))).to(values)
        return whole_levels(levels + values)


def picture_to_levels(image: Image.Image) -> Tensor:
    """A picture as [3, H, W], float levels 0-255."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float()


def levels_to_pixels(values: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """[3, H, W] levels as whole pixels [H, W, 3]."""
    levels = values.detach().clamp(0, 255).round().to(torch.uint8)
    return levels.permute(1, 2, 0).cpu().numpy().copy()
