"""From the risk of patches to regions: connected risky places as boxes, and covering them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage

from ..verdict import Action, Box, FrozenDict, NotInspected, Region, RiskMap, Verdict
from .encoder import token_boxes

MOST_PATCHES: Final = 256
GRID: Final = 20  # rows and columns of the map where there are more patches than that
_FINE: Final = 8  # points along a side at which a cell of that map is read, to give its mean
_PEAK_SHARE: Final = 0.25  # of the way from the patch threshold up to the map's peak


def find_regions(
    boxes: Sequence[Box],
    risk: NDArray[np.float32],
    categories: Sequence[str],
    size: tuple[int, int],
    threshold: float,
    whole: int = 1,
    *,
    each_patch: bool = False,
) -> tuple[Region, ...]:
    """Connected places whose mapped risk stands out, riskiest first.

    For each category, the patches' risk is spread over the pixels (see RiskMap.to_array); what
    lies above the threshold, by a quarter of the way up to the map's peak, is a region. A category
    whose map stays below the threshold gives its riskiest patch, if that reaches it: a crop may
    see what the mean over its neighbours hides.

    Args:
        boxes: M patches in pixels.
        risk: [M, I], higher is riskier.
        categories: the I names.
        size: (width, height) of the picture.
        threshold: the risk at which a patch counts.
        whole: how many of the patches, from the first on, are the whole picture's own. Where there
            are several, places that they alone show are regions too: crops cut up what is large.
        each_patch: every patch that reaches the threshold is a region, but the whole picture; no
            map is made (GuardAlign's x^m := 0 where d(m) <= tau).
    """
    found: list[Region] = []
    for index, category in enumerate(categories):
        if each_patch:
            found += [
                Region(box=box, category=category, score=float(score))
                for box, score in zip(boxes, risk[:, index], strict=True)
                if score >= threshold and (box != (0, 0, *size) or len(boxes) == 1)
            ]
            continue
        for count in {len(boxes), whole} - {1} or {1}:
            scores = risk[:count, index]
            if scores.max(initial=-np.inf) >= threshold:
                found += _regions_of(boxes[:count], scores, category, size, threshold)
    found.sort(key=lambda region: -region.score)
    return tuple(
        region
        for place, region in enumerate(found)
        if not any(_within(region, other) for other in found[:place])
    )


def overlap(box: Box, other: Box) -> bool:
    """Whether two boxes share a pixel."""
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def _within(region: Region, other: Region) -> bool:
    """Whether a region adds nothing to another, riskier one of its category."""
    (a, b, c, d), (left, top, right, bottom) = region.box, other.box
    inside = left <= a and top <= b and c <= right and d <= bottom
    return inside and region.category == other.category


def _regions_of(
    boxes: Sequence[Box],
    scores: NDArray[np.float32],
    category: str,
    size: tuple[int, int],
    threshold: float,
) -> list[Region]:
    heat = RiskMap(size=size, boxes=tuple(boxes), scores=tuple(map(float, scores))).cells()
    peak = float(heat.risk.max())
    if peak < threshold:
        best = int(scores.argmax())
        return [Region(box=boxes[best], category=category, score=float(scores[best]))]
    labelled, _ = ndimage.label(heat.risk >= threshold + _PEAK_SHARE * (peak - threshold))
    regions = []
    for index, (rows, columns) in enumerate(ndimage.find_objects(labelled), start=1):
        inside = labelled[rows, columns] == index
        score = float(heat.risk[rows, columns][inside].max())
        box = (
            int(heat.xs[columns.start]),
            int(heat.ys[rows.start]),
            int(heat.xs[columns.stop]),
            int(heat.ys[rows.stop]),
        )
        regions.append(Region(box=box, category=category, score=score))
    return regions


def summarise(boxes: Sequence[Box], risk: NDArray[np.float32], size: tuple[int, int]) -> RiskMap:
    """The risk map that a verdict carries: the patches themselves, or a grid where they are many.

    A verdict goes into logs and message metadata; thousands of overlapping patches do not.

    Args:
        boxes: M patches in pixels.
        risk: [M], higher is riskier.
        size: (width, height) of the picture.
    """
    full = RiskMap(size=size, boxes=tuple(boxes), scores=tuple(float(score) for score in risk))
    if len(boxes) <= MOST_PATCHES:
        return full
    columns, rows = min(GRID, size[0]), min(GRID, size[1])
    fine = full.to_array((columns * _FINE, rows * _FINE))
    means = fine.reshape(rows, _FINE, columns, _FINE).mean((1, 3)).ravel()
    cells = token_boxes((0, 0, *size), (rows, columns))
    return RiskMap(size=size, boxes=tuple(cells), scores=tuple(round(float(m), 4) for m in means))


FILL: Final = (123, 117, 104)
"""The colour that CLIP's normalisation maps to zero: the paper sets masked patches to x := 0."""

LOOKS: Final = 3
"""How often a masked picture is looked at again at the most, before it is refused."""

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

    The paper sets masked patches to zero, a flat grey. The colour of what lies around was tried:
    the encoder flags fewer of such covers, but the testbed's model, which sees nothing there, makes
    something up. Asked about 60 masked objects and 60 masked words (calibration split, seed 11) it
    spoke of some unsafe thing in 17 and 46 answers; with grey covers in 3 and 1. A region's own
    colours, however coarse, are worse still, so a blur keeps none of them either.

    Args:
        image: RGB; not changed.
        regions: boxes in this picture's pixels.
        how: `fill` paints FILL, `blur` does the same with a soft edge in the outer half of the
            margin. Either way nothing of a region itself is left.
        margin: how far beyond each region to cover, as a share of the picture's shorter side.
    """
    soft = round(margin * min(image.size)) // 4 if how == "blur" else 0
    mask = Image.new("L", image.size, 0)
    for region in regions:
        left, top, right, bottom = with_margin(region.box, image.size, margin)
        mask.paste(
            255,
            (
                left + soft * (left > 0),
                top + soft * (top > 0),
                right - soft * (right < image.width),
                bottom - soft * (bottom < image.height),
            ),
        )
    if soft:  # reaches as far to either side
        mask = mask.filter(ImageFilter.BoxBlur(soft))
    covered = image.copy()
    covered.paste(FILL, (0, 0, *image.size), mask)
    return covered


def with_margin(box: Box, size: tuple[int, int], margin: float = MARGIN) -> Box:
    """What a mask of a region covers in a picture of this size."""
    reach = round(margin * min(size))
    left, top, right, bottom = box
    return (
        max(0, left - reach),
        max(0, top - reach),
        min(size[0], right + reach),
        min(size[1], bottom + reach),
    )


def cover_until_clean(
    image: Image.Image,
    verdict: Verdict,
    how: Literal["fill", "blur"],
    decide: Callable[[Verdict], Action],
    look_again: Callable[[Image.Image, tuple[Box, ...]], Verdict] | None,
) -> tuple[Image.Image | None, Verdict]:
    """The picture with its risky places covered, and the verdict with all of them in it.

    Where something is still found, edges are hard from then on.

    Args:
        image: RGB; not changed.
        verdict: with the regions that were found first.
        how: as for ``cover_regions``.
        decide: what a verdict leads to.
        look_again: what can still be seen in a covered picture, given the boxes that were covered;
            None covers once and does not check.

    Returns:
        None in place of a picture that is not clean after `LOOKS` looks.
    """
    regions, spent = verdict.regions, 0.0
    for _ in range(LOOKS):
        covered = cover_regions(image, regions, how, margin=MARGIN)
        if look_again is None:
            return covered, verdict
        boxes = tuple(with_margin(region.box, image.size) for region in regions)
        found = look_again(covered, boxes)
        spent += sum(found.timings_ms.values())
        if (action := decide(found)) == "allow":
            timings = FrozenDict({**verdict.timings_ms, "look_again": spent})
            update = {"regions": regions, "timings_ms": timings}
            return covered, verdict.model_copy(update=update)
        if action != "mask":
            break
        regions, how = (*regions, *found.regions), "fill"
    why = NotInspected(
        reason="still_risky", detail="covering the risky places did not make it clean"
    )
    unseen = (*verdict.not_inspected, why)
    return None, verdict.model_copy(update={"regions": regions, "not_inspected": unseen})
