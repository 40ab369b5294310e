"""A picture as a model sees it: payloads exist that appear only after it was made smaller.

A scaler that reads few pixels of the original (nearest neighbour, or bilinear and bicubic without
a low-pass filter) lets an attacker choose those few pixels (Xiao et al., "Seeing is Not Believing:
Camouflage Attacks on Image Scaling Algorithms", USENIX Security 2019). At full size the payload is
a sprinkle of dots; at the model's size it is the whole picture.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import numpy as np
from PIL import Image

Scaler = Literal[
    "nearest",
    "nearest_corner",
    "bilinear",
    "bicubic",
    "smooth_bilinear",
    "smooth_bicubic",
    "lanczos",
]
"""How pixels are read. `nearest` takes the middle of each cell (Pillow), `nearest_corner` its upper
left (OpenCV, torch). `bilinear` and `bicubic` read 2 x 2 and 4 x 4 pixels however far they are
apart (OpenCV, torch without antialias); the `smooth_` ones and `lanczos` weigh the whole cell
(Pillow, torch with antialias)."""

SeenAt = int | tuple[int, int]
"""A size in pixels: the shorter side, keeping the shape, or exactly (width, height)."""

SPARSE: Final[tuple[Scaler, ...]] = ("nearest", "nearest_corner", "bilinear", "bicubic")
"""The scalers that can be made to show something else than the picture shows."""

_POINTWISE: Final = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_WHOLE: Final = {
    "nearest": Image.Resampling.NEAREST,
    "smooth_bilinear": Image.Resampling.BILINEAR,
    "smooth_bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def scaled_views(
    image: Image.Image, sizes: Iterable[SeenAt], scalers: Iterable[Scaler]
) -> tuple[Image.Image, ...]:
    """The picture at every size by every scaler, each distinct one once.

    A size that is not smaller hides nothing, and is left out.

    Args:
        image: RGB.
        sizes: see SeenAt.
        scalers: see Scaler.
    """
    found: dict[tuple[tuple[int, int], bytes], Image.Image] = {}
    scalers = tuple(scalers)
    for size in dict.fromkeys(target_size(image.size, wanted) for wanted in sizes):
        if size[0] >= image.width and size[1] >= image.height:
            continue
        for scaler in scalers:
            view = scale(image, size, scaler)
            found.setdefault((view.size, view.tobytes()), view)
    return tuple(found.values())


def target_size(size: tuple[int, int], wanted: SeenAt) -> tuple[int, int]:
    """(width, height) that a picture of this size gets; sides as processors round them, down."""
    if isinstance(wanted, tuple):
        return wanted
    width, height = size
    short = min(width, height)
    return max(1, width * wanted // short), max(1, height * wanted // short)


def scale(image: Image.Image, size: tuple[int, int], scaler: Scaler) -> Image.Image:
    """One picture at one size by one scaler."""
    if scaler in _WHOLE:
        return image.resize(size, _WHOLE[scaler])
    if scaler == "nearest_corner":
        rows, columns = (
            np.floor(np.arange(new, dtype=np.float32) * np.float32(old / new)).astype(int)
            for old, new in ((image.height, size[1]), (image.width, size[0]))
        )
        return Image.fromarray(np.asarray(image)[rows][:, columns])
    across, down = image.width / size[0], image.height / size[1]
    affine = (across, 0.0, 0.0, 0.0, down, 0.0)  # pixel centres onto pixel centres
    return image.transform(size, Image.Transform.AFFINE, affine, resample=_POINTWISE[scaler])
