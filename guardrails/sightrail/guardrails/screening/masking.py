"""Covering the risky places of a picture, so that the rest of it can travel on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from PIL import Image, ImageFilter

from ..verdict import Region

FILL: Final = (123, 117, 104)
"""The colour that CLIP's normalisation maps to zero: the paper sets masked patches to x := 0."""

_BLUR_SHARE: Final = 4  # a blur over a quarter of the region leaves no shape that CLIP can name


MARGIN: Final = 1 / 16
"""How far a policy's mask reaches beyond a region, as a share of the picture's shorter side: a risk
map is as coarse as its patches, and what sticks out of a mask can still be named."""


def cover_regions(
    image: Image.Image,
    regions: Iterable[Region],
    how: Literal["fill", "blur"] = "fill",
    *,
    margin: float = 0.0,
) -> Image.Image:
    """A copy of the picture with every region covered (GuardAlign, sec. 3.1: x^m := 0).

    Args:
        image: RGB; not changed.
        regions: boxes in this picture's pixels.
        how: `fill` paints FILL, `blur` replaces the region by its own coarse colours.
        margin: how far beyond each region to cover, as a share of the picture's shorter side.
    """
    covered, reach = image.copy(), round(margin * min(image.size))
    for region in regions:
        left, top, right, bottom = region.box
        box = (
            max(0, left - reach),
            max(0, top - reach),
            min(image.width, right + reach),
            min(image.height, bottom + reach),
        )
        if how == "fill":
            covered.paste(FILL, box)
            continue
        part = image.crop(box)
        radius = max(4.0, max(part.size) / _BLUR_SHARE)
        covered.paste(part.filter(ImageFilter.GaussianBlur(radius)), box)
    return covered
