"""At which sizes models see a picture, and what appears only there.

The sizes come from a table of named models, or are one's own. A scaler that reads few pixels of the
original (nearest neighbour, or bilinear and bicubic without a low-pass filter) lets an attacker
choose those few pixels (Xiao et al., "Seeing is Not Believing: Camouflage Attacks on Image Scaling
Algorithms", USENIX Security 2019). At full size the payload is a sprinkle of dots; at the model's
size it is the whole picture.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, PositiveInt, TypeAdapter
from scipy import ndimage

_TABLE: Final = Path(__file__).parent / "seen_by.toml"


class SeenBy(BaseModel):
    """How small a model makes a picture: until it keeps to every bound; see ``seen_by.toml``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    longer: PositiveInt | None = None
    shorter: PositiveInt | None = None
    pixels: PositiveInt | None = None
    exactly: tuple[PositiveInt, PositiveInt] | None = None
    source: str

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) at which the model sees a picture of this size."""
        if self.exactly is not None:
            return self.exactly
        width, height = size
        shares = [1.0]
        if self.longer is not None:
            shares.append(self.longer / max(size))
        if self.shorter is not None:
            shares.append(self.shorter / min(size))
        if self.pixels is not None:
            shares.append((self.pixels / (width * height)) ** 0.5)
        return max(1, round(width * min(shares))), max(1, round(height * min(shares)))


@cache
def known_models() -> dict[str, SeenBy]:
    """The models of the table, by name."""
    table = tomllib.loads(_TABLE.read_text(encoding="utf-8"))
    return TypeAdapter(dict[str, SeenBy]).validate_python(table)


def sizes_seen(
    size: tuple[int, int], seen_at: Sequence[SeenAt] | None, seen_by: Iterable[str]
) -> list[tuple[int, int]]:
    """The sizes at which a picture of this size will be seen, where they are known.

    Args:
        size: (width, height) of the picture.
        seen_at: sizes of one's own, in place of the named models'.
        seen_by: names of the table.
    """
    if seen_at is None:
        return [known_models()[name].size(size) for name in seen_by]
    sizes = [target_size(size, wanted) for wanted in seen_at]
    return [(min(w, size[0]), min(h, size[1])) for w, h in sizes]


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

_PLAINLY: Final = 48  # of 255, in any colour
_PARTS: Final = 8  # a part of a view is so small a share of its shorter side
_SHARE: Final = 0.25

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


def revealing(image: Image.Image, views: Iterable[Image.Image]) -> tuple[Image.Image, ...]:
    """Those scaled views of a picture that show something else than it does at their size.

    Any scaler shows what one that weighs every pixel shows, but for a little roughness, unless
    somebody chose the pixels that it reads. A view in some part of which a quarter of the
    neighbourhoods differ plainly has to be looked at by itself.

    Args:
        image: RGB.
        views: of it, smaller.
    """
    smooth: dict[tuple[int, int], NDArray[np.int16]] = {}
    found = []
    for view in views:
        if view.size not in smooth:
            plain = image.resize(view.size, Image.Resampling.BOX, reducing_gap=2.0)
            smooth[view.size] = _coarse(plain)
        if _differs(_coarse(view), smooth[view.size]):
            found.append(view)
    return tuple(found)


def _coarse(image: Image.Image) -> NDArray[np.int16]:
    """Means over neighbourhoods of 2 x 2 pixels, in which the roughness of a scaler evens out."""
    return np.asarray(image.reduce(2), dtype=np.int16)


def _differs(view: NDArray[np.int16], smooth: NDArray[np.int16]) -> bool:
    plainly = (np.abs(view - smooth).max(axis=2) > _PLAINLY).astype(np.float32)
    window = max(2, min(plainly.shape) // _PARTS)
    return bool(ndimage.uniform_filter(plainly, window, mode="nearest").max() > _SHARE)


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
