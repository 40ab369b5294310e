"""How trained pixels and a picture become what the model sees: around it, or added onto it.

Values are levels 0-255 in float tensors [3, H, W]. A gradient reaches the trained values.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from .border import Frame, border_mask, inner_box, scaled_frame, shrunk
from .preprocess import whole_levels


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
