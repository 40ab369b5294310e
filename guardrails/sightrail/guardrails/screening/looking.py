"""What is looked at of one picture: its renderings, the crops of each, in which order, until when.

Looking at everything encodes every crop at once. Coarse to fine begins with the whole picture and
goes on to smaller windows only while the picture is not settled, and only where something stands
out; how far is told by `Bands`, which a calibration wrote.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..deadline import check_time
from ..intake import Picture
from ..verdict import Box, NotInspected, Region
from .encoder import Encoder, crop_levels, tile_boxes, token_boxes
from .regions import find_regions, overlap, with_margin
from .scoring import Risk, TextBank, score_patches
from .seen_by import revealing, scaled_views, sizes_seen
from .settings import Bands, Calibrated, ScreeningSettings

_COARSEST: Final = 2.0
"""Pixels of what the model sees that one pixel of the encoder's input may stand for. Things that a
model can name span several of its pixels; at half its sharpness an encoder still shows them."""

_LONGEST: Final = 4.0
"""How much longer than wide a window may be: it is squashed to the encoder's input, and what was
stretched further than this is no longer recognised."""

_GAP: Final = 2
"""A crop is made smaller from at least so many times the encoder's input, so that nothing of it is
lost; larger pictures are reduced once, and not for every crop again."""


@dataclass(frozen=True)
class Looking:
    """How pictures are cut up for one encoder: the settings, and what the encoder takes.

    Attributes:
        settings: crops, patches and sizes.
        grid: (rows, columns) of patches in a crop.
        side: height and width of the encoder's input.
    """

    settings: ScreeningSettings
    grid: tuple[int, int]
    side: tuple[int, int]

    def whole_alone(self) -> Looking:
        """The same without any smaller crop."""
        return replace(self, settings=self.settings.model_copy(update={"scales": ()}))


@dataclass(frozen=True)
class View:
    """One rendering of a picture.

    Attributes:
        owner: the number of the picture.
        image: the rendering, reduced where it is far larger than any crop needs.
        encoded: its crops, the whole of it first, in pixels of `image`.
        levels: for each crop how fine it looks; 0 is the whole.
        placed: its crops in pixels of the picture.
        patches: for each crop where its patches lie, in pixels of the picture.
        size: of the picture.
        seen_at: the size at which it shows what a model will see; None for the picture itself.
        unresolved: why this rendering is not looked at as closely as a model sees it.
    """

    owner: int
    image: Image.Image
    encoded: list[tuple[float, float, float, float]]
    levels: list[int]
    placed: list[Box]
    patches: list[list[Box]]
    size: tuple[int, int]
    seen_at: tuple[int, int] | None = None
    unresolved: NotInspected | None = None


def views_of(owner: int, picture: Picture, looking: Looking) -> list[View]:
    """Every rendering of a picture, also at the sizes at which a model will see it.

    Of those, only what shows something else than the picture does is looked at; where it is not
    known which model will see it and through which scaler, as a whole only, since there are many.
    It is placed in the pixels of the picture itself, so that covering it there covers it
    everywhere.

    Args:
        owner: the number of the picture.
        picture: as intake read it.
        looking: how it is cut up.
    """
    size, settings = picture.image.size, looking.settings
    sizes = sizes_seen(size, settings.seen_at, settings.seen_by)
    if picture.scaled:  # the very model is known, and so is what it sees
        sizes = [view.size for view in picture.scaled]
        shown, once = revealing(picture.image, picture.scaled), looking
    else:
        own = [(looking.side[1], looking.side[0])] if settings.seen_at is None else []
        guessed = scaled_views(picture.image, (*sizes, *own), settings.seen_through)
        shown, once = revealing(picture.image, guessed), looking.whole_alone()
    views = [_view(owner, image, image.size, looking, sizes) for image in picture.views]
    return views + [
        replace(_view(owner, image, size, once, [image.size]), seen_at=image.size)
        for image in shown
    ]


def renderings(picture: Picture) -> Iterator[Image.Image]:
    """Every view of a picture, and what a model's size shows that the picture does not.

    For detectors that look at one rendering at a time and take long over it.
    """
    yield from picture.views
    yield from revealing(picture.image, picture.scaled)


def _view(
    owner: int,
    image: Image.Image,
    size: tuple[int, int],
    looking: Looking,
    seen: Iterable[tuple[int, int]],
) -> View:
    levels = crop_levels(image.size, looking.settings.scales)
    tiles, unresolved = _tiles(image.size, looking, seen, sum(map(len, levels)))
    levels = [*levels, tiles] if tiles else levels
    crops = [box for level in levels for box in level]
    reduced, across, down = _reduced(image, crops, looking.side)
    return View(
        owner,
        reduced,
        [(a / across, b / down, c / across, d / down) for a, b, c, d in crops],
        [depth for depth, level in enumerate(levels) for _ in level],
        [placed(crop, image.size, size) for crop in crops],
        [
            [placed(box, image.size, size) for box in token_boxes(crop, looking.grid)]
            for crop in crops
        ],
        size,
        unresolved=unresolved,
    )


def _tiles(
    size: tuple[int, int], looking: Looking, seen: Iterable[tuple[int, int]], count: int
) -> tuple[list[Box], NotInspected | None]:
    """Further windows where a model sees more than the crops show, if the budget allows them."""
    width, height = max(seen, default=size)
    rows, columns = looking.side
    share = min([scale for scale, _ in looking.settings.scales], default=1.0)
    wide, high = share * width, share * height
    fine = wide <= _COARSEST * columns and high <= _COARSEST * rows
    if not looking.settings.scales or (fine and max(wide, high) <= _LONGEST * min(wide, high)):
        return [], None
    across = min(width, _COARSEST * columns, _LONGEST * height) * size[0] / width
    down = min(height, _COARSEST * rows, _LONGEST * width) * size[1] / height
    most = looking.settings.max_crops - count
    tiles = tile_boxes(size, (across, down), most)
    if tiles is None:
        detail = (
            f"a model sees {width} x {height} pixels of it, and more than "
            f"{looking.settings.max_crops} crops would be needed to look as closely"
        )
        return [], NotInspected(reason="not_resolved", detail=detail)
    return tiles, None


def _reduced(
    image: Image.Image, crops: list[Box], side: tuple[int, int]
) -> tuple[Image.Image, float, float]:
    """The picture with no more pixels than its smallest crop needs, and by what it was divided."""
    across = int(min(right - left for left, _, right, _ in crops) / side[1] / _GAP) or 1
    down = int(min(bottom - top for _, top, _, bottom in crops) / side[0] / _GAP) or 1
    if across == down == 1:
        return image, 1.0, 1.0
    reduced = image.reduce((across, down))
    return reduced, image.width / reduced.width, image.height / reduced.height


def placed(box: Box, inside: tuple[int, int], size: tuple[int, int]) -> Box:
    """A box of a rendering in the pixels of the picture, rounded outwards."""
    if inside == size:
        return box
    across, down = size[0] / inside[0], size[1] / inside[1]
    left, top, right, bottom = box
    return (
        int(left * across),
        int(top * down),
        min(size[0], -int(-right * across // 1)),
        min(size[1], -int(-bottom * down // 1)),
    )


_MOST_SHARE: Final = 0.5
_MOST_ROUNDS: Final = 6


@dataclass
class Look:
    """What has been seen of one rendering so far.

    Attributes:
        view: the rendering.
        wanted: the crops that may be looked at, by number: the whole, and in a first look all.
        covered: boxes in pixels of the picture that were covered since a first look; None in that.
        seen: the crops that were, in the order of `patches`.
        patches: [len(seen) * P, D], unit; P patches a crop.
        risk: what follows from these.
    """

    view: View
    wanted: frozenset[int]
    covered: Sequence[Box] | None = None
    seen: list[int] = field(default_factory=list)
    patches: Tensor | None = None
    risk: Risk | None = None

    @property
    def boxes(self) -> list[Box]:
        """Where the patches lie, in pixels of the picture."""
        return [box for crop in self.seen for box in self.view.patches[crop]]


@dataclass(frozen=True)
class Looker:
    """An encoder with what it compares with, and how it looks.

    Attributes:
        encoder: embeds crops.
        texts: the concepts.
        settings: what is looked at, and when that is over.
        stop_when_flagged: coarse to fine also ends where no further crop could lower the risk below
            the threshold; the regions are the coarser then.
        clean_below: a risk of all patches together below which coarse to fine ends as well, once
            windows were looked at and not the whole alone.
    """

    encoder: Encoder
    texts: TextBank
    settings: ScreeningSettings
    stop_when_flagged: bool = False
    clean_below: float = -math.inf

    def look(
        self, views: Sequence[View], covered: Sequence[Sequence[Box]] | None = None
    ) -> Iterator[Look]:
        """One look a rendering, in order; some at a time, so that memory stays bounded.

        Args:
            views: what is looked at.
            covered: for each the boxes that were covered since a first look, in pixels of the
                picture; what they do not touch is left out. A first look when None.

        Raises:
            TimeoutError: the deadline of this context passed.
        """
        if covered is None:
            looks = [Look(view, frozenset(range(len(view.encoded)))) for view in views]
        else:
            pairs = zip(views, covered, strict=True)
            looks = [Look(view, _touched(view, boxes), boxes) for view, boxes in pairs]
        for group in _groups(looks, self.encoder.batch_size):
            self._look(group)
            yield from group

    def look_at_the_rest(self, look: Look) -> None:
        """Every crop that the look left out, so that it is as good as a first one."""
        rest = [n for n in range(len(look.view.encoded)) if n not in look.seen]
        self._encode([(look, rest)])
        self._score(look, complete=True)

    def _look(self, looks: list[Look]) -> None:
        bands = self.settings.bands if self.settings.look == "coarse_to_fine" else None
        if bands is None:
            self._encode([(look, sorted(look.wanted)) for look in looks])
            for look in looks:
                self._score(look, complete=True)
            return
        self._step_by_step(looks, bands)

    def _step_by_step(self, looks: list[Look], bands: Bands) -> None:
        deepest = max(max(look.view.levels) for look in looks)
        unsettled = looks
        for level in range(deepest + 1):
            closer = [(look, self._open(look, level, bands)) for look in unsettled]
            self._encode(closer)
            for look in unsettled:
                self._score(look, complete=level == deepest)
            if level < min(deepest, len(bands.clean_below)):
                below = max(bands.clean_below[level], self.clean_below if level else -math.inf)
                unsettled = [look for look in unsettled if not self._settled(look, below)]
            if not unsettled:
                return

    def _settled(self, look: Look, below: float) -> bool:
        """Whether what is still to be seen of a look would not change what it is to say."""
        risk = risk_of(look)
        if risk.stays_at(self.settings.thresholds().picture.value):
            return self.stop_when_flagged
        return bool(risk.parts.max() < below)

    def _open(self, look: Look, level: int, bands: Bands) -> list[int]:
        """The crops of a level that stand out in what was seen of their places."""
        crops = [n for n in sorted(look.wanted) if look.view.levels[n] == level]
        if level == 0 or look.patches is None or level > len(bands.look_closer):
            return crops
        least = bands.look_closer[level - 1]
        margins = standing_out(look, self.texts, crops)
        return [crop for crop, margin in zip(crops, margins, strict=True) if margin >= least]

    def _encode(self, chosen: Iterable[tuple[Look, list[int]]]) -> None:
        asked = [(look, crop) for look, crops in chosen for crop in crops]
        most = self.encoder.batch_size
        for start in range(0, len(asked), most):
            check_time()
            part = asked[start : start + most]
            pixels = torch.cat(
                [
                    self.encoder.pixels(look.view.image, [look.view.encoded[n] for n in crops])
                    for look, crops in _runs(part)
                ]
            )
            if self.settings.patches == "crops":
                found = self.encoder.embed_pixels(pixels)[:, None]
            else:
                found = self.encoder.embed_tokens(pixels, self.settings.patches)
            for (look, crop), patches in zip(part, found, strict=True):
                look.seen.append(crop)
                known = () if look.patches is None else (look.patches,)
                look.patches = torch.cat([*known, patches])

    def _score(self, look: Look, *, complete: bool) -> None:
        """The risk of what was seen; a complete look counts the same mass of the riskiest patches
        as one that saw every crop.
        """
        assert look.patches is not None
        settings, total = self.settings, len(look.view.encoded)
        if complete and len(look.seen) < total:
            share = _same_mass(settings, total, len(look.seen))
            settings = settings.model_copy(update={"share": share})
        whole = len(look.view.patches[0])
        known = None if look.risk is None else look.risk.alone
        (look.risk,) = score_patches(
            look.patches[None], self.texts, settings, whole=whole, alone=known
        )


def standing_out(look: Look, texts: TextBank, crops: Sequence[int]) -> list[float]:
    """For each crop the highest margin of what was seen in its place: by how much a patch fits an
    unsafe text better than any benign one, in cosines.

    In a second look only patches at the edge of a cover count: inside nothing is to be seen, and
    outside nothing has changed.
    """
    assert look.patches is not None
    boxes, patches = look.boxes, look.patches
    unsafe = torch.stack([(patches @ z.T).amax(-1) for z in texts.variants]).amax(0)
    margins = (unsafe - (patches @ texts.anchors.T).amax(-1)).numpy()
    if look.covered is not None:
        margins = np.where([_at_edge(box, look.covered) for box in boxes], margins, -np.inf)
    middles = np.asarray([((a + c) / 2, (b + d) / 2) for a, b, c, d in boxes])
    return [_highest(margins, middles, look.view.placed[crop]) for crop in crops]


def _highest(margins: NDArray[np.float32], middles: NDArray[np.float64], box: Box) -> float:
    """The highest margin of the patches whose middle lies in a box."""
    left, top, right, bottom = box
    x, y = middles[:, 0], middles[:, 1]
    inside = margins[(left <= x) & (x <= right) & (top <= y) & (y <= bottom)]
    return float(inside.max()) if len(inside) else float("inf")


def _at_edge(box: Box, covered: Sequence[Box]) -> bool:
    """Whether a patch meets a cover and shows something beside it."""
    left, top, right, bottom = box
    grown = (left - 1, top - 1, right + 1, bottom + 1)
    return any(overlap(grown, cover) for cover in covered) and not any(
        _inside(box, cover) for cover in covered
    )


def _inside(box: Box, cover: Box) -> bool:
    return cover[0] <= box[0] and cover[1] <= box[1] and box[2] <= cover[2] and box[3] <= cover[3]


def _touched(view: View, covered: Sequence[Box]) -> frozenset[int]:
    """The whole, and the crops that show the edge of a cover."""
    return frozenset({0, *(n for n, box in enumerate(view.placed) if _at_edge(box, covered))})


def _runs(part: Sequence[tuple[Look, int]]) -> Iterator[tuple[Look, list[int]]]:
    """Crops that follow one another and are of one rendering, together."""
    run: list[int] = []
    owner: Look | None = None
    for look, crop in part:
        if owner is not None and look is not owner:
            yield owner, run
            run = []
        owner = look
        run.append(crop)
    if owner is not None:
        yield owner, run


def _groups(looks: Sequence[Look], most: int) -> Iterator[list[Look]]:
    """Renderings whose crops fit one encoder pass together; one with more crops goes alone."""
    group: list[Look] = []
    for look in looks:
        if group and sum(len(one.wanted) for one in group) + len(look.wanted) > most:
            yield group
            group = []
        group.append(look)
    if group:
        yield group


def risk_of(look: Look) -> Risk:
    """The risk of a finished look."""
    assert look.risk is not None
    return look.risk


def find_all_regions(
    look: Look, texts: TextBank, settings: ScreeningSettings, limit: Calibrated
) -> list[Region]:
    """The regions after which the rest of the picture would no longer be flagged.

    A region stands out from the strongest risk of its category, so a weaker object may lie in none.
    What the regions cover (with the margin of a mask) is therefore set aside, and the rest judged
    and searched again.
    """
    assert look.patches is not None
    boxes, risk, whole = look.boxes, risk_of(look), len(look.view.patches[0])
    left = np.arange(len(boxes))
    found: list[Region] = []
    for _ in range(_MOST_ROUNDS):
        reached = [i for i, value in enumerate(risk.picture) if value >= limit.picture.value]
        if not reached:
            break
        new = find_regions(
            [boxes[n] for n in left],
            risk.patches[:, reached],
            [texts.categories[i] for i in reached],
            look.view.size,
            limit.patch,
            int((left < whole).sum()),
            each_patch=settings.score == "ot_printed" and settings.masks == "patches",
        )
        found += new
        covers = [with_margin(region.box, look.view.size) for region in new]
        kept = [n for n in left if not any(overlap(boxes[n], cover) for cover in covers)]
        if not kept or len(kept) == len(left):
            break
        left = np.asarray(kept)
        rest = settings.model_copy(update={"share": _same_mass(settings, len(boxes), len(left))})
        (risk,) = score_patches(
            look.patches[None, left], texts, rest, whole=int((left < whole).sum())
        )
    return found


def _same_mass(settings: ScreeningSettings, total: int, left: int) -> float:
    """The share that takes as much of a part as the settings' share takes of all patches."""
    return max(settings.share, min(_MOST_SHARE, settings.share * total / left))
