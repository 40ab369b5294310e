"""Scenes of the mini world, backgrounds included: known content, drawn from a seed, with labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .concepts import ALL_NAMES, CATEGORY_OF
from .splits import Split
from .sprites import sprite

Floats = NDArray[np.float32]


def _colour_field(rng: np.random.Generator, side: int) -> Floats:
    """A smooth random colour field, [side, side, 3] in 0..255."""
    coarse = rng.uniform(60, 255, (*rng.integers(1, 5, 2), 3)).astype(np.uint8)
    return np.asarray(
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32
    )


def _pattern(rng: np.random.Generator, side: int, texture: str) -> Floats:
    """The texture's brightness pattern, [side, side] in -1..1."""
    if texture == "speckle":
        return rng.uniform(-1, 1, (side, side)).astype(np.float32)
    if texture == "blobs":
        coarse = rng.uniform(0, 255, (9, 9)).astype(np.uint8)
        image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        return np.asarray(image, dtype=np.float32) / 127.5 - 1
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.05, 0.3)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    pattern = np.zeros((side, side))
    if texture == "stripes":
        pattern = np.sign(np.sin(2 * np.pi * along / period))
    elif texture == "waves":
        pattern = np.sin(2 * np.pi * (along + 0.05 * np.sin(12 * across)) / period)
    elif texture == "checks":
        pattern = np.sign(np.sin(2 * np.pi * along / period) * np.sin(2 * np.pi * across / period))
    elif texture == "rings":
        cx, cy = rng.uniform(0, 1, 2)
        pattern = np.sin(2 * np.pi * np.hypot(x - cx, y - cy) / period)
    return pattern.astype(np.float32)


def _draw_clutter(rng: np.random.Generator, image: Image.Image) -> None:
    draw, side = ImageDraw.Draw(image), image.width
    for _ in range(rng.integers(0, 7)):
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        corners = rng.uniform(0, side, (3, 2))
        kind = rng.integers(3)
        if kind == 0:
            ends = [tuple(corners[0]), tuple(corners[1])]
            draw.line(ends, fill=colour, width=int(rng.integers(1, max(2, side // 48))))
        elif kind == 1:
            radius = rng.uniform(0.01, 0.05) * side
            x, y = corners[0]
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        else:
            small = corners[0] + (corners - corners[0]) * 0.12
            draw.polygon([tuple(point) for point in small], fill=colour)


def draw_background(rng: np.random.Generator, side: int, textures: tuple[str, ...]) -> Image.Image:
    """A square RGB background of `side` pixels with one of `textures` and a little clutter."""
    texture = str(rng.choice(textures))
    strength = rng.uniform(4, 28)
    field = _colour_field(rng, side) + strength * _pattern(rng, side, texture)[..., None]
    image = Image.fromarray(field.clip(0, 255).astype(np.uint8))
    _draw_clutter(rng, image)
    return image


Box = tuple[int, int, int, int]

SCENE_SIDE: Final = 192
BACKGROUND_LABEL: Final = 255
_WORD_OFFSET: Final = len(ALL_NAMES)
_MAX_OVERLAP: Final = 0.12
_SIDE_RANGE: Final = {1: (0.40, 0.85), 2: (0.32, 0.48), 3: (0.30, 0.42), 4: (0.28, 0.38)}
_CROWDED: Final = {5: (0.26, 0.36), 6: (0.26, 0.34)}
_PACKED: Final = (0.23, 0.30)


@dataclass(frozen=True)
class Item:
    """One thing in a scene: a drawn object or a rendered word, with its box in scene pixels."""

    name: str
    box: Box
    kind: Literal["object", "word"]

    @property
    def category(self) -> str | None:
        """The unsafe category, or None for a benign thing."""
        return CATEGORY_OF.get(self.name)


@dataclass(frozen=True)
class Scene:
    """A picture with its ground truth.

    `labels` holds, per pixel, the index of the thing that covers it: i for the drawn object
    ALL_NAMES[i], len(ALL_NAMES) + i for its rendered word, BACKGROUND_LABEL elsewhere
    ([side, side], uint8).
    """

    image: Image.Image
    items: tuple[Item, ...]
    labels: NDArray[np.uint8]

    @property
    def unsafe_items(self) -> tuple[Item, ...]:
        """The items that belong to an unsafe category."""
        return tuple(item for item in self.items if item.category is not None)


def label_of(name: str, kind: Literal["object", "word"]) -> int:
    """The label index of a drawn object or of its rendered word."""
    return ALL_NAMES.index(name) + (_WORD_OFFSET if kind == "word" else 0)


def _side_range(count: int) -> tuple[float, float]:
    return _SIDE_RANGE.get(count) or _CROWDED.get(count) or _PACKED


def _overlaps(box: Box, others: Sequence[Box]) -> bool:
    area = (box[2] - box[0]) * (box[3] - box[1])
    for other in others:
        width = min(box[2], other[2]) - max(box[0], other[0])
        height = min(box[3], other[3]) - max(box[1], other[1])
        if width <= 0 or height <= 0:
            continue
        smaller = min(area, (other[2] - other[0]) * (other[3] - other[1]))
        if width * height > _MAX_OVERLAP * smaller:
            return True
    return False


def _pose(rng: np.random.Generator, name: str, side: float) -> Image.Image:
    """The sprite turned, perhaps mirrored and scaled so that its longer side is `side` pixels."""
    glyph = sprite(name)
    if rng.random() < 0.5:
        glyph = glyph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = side / max(glyph.size)  # shrunk before it is turned: a fifth of the time
    size = (max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale)))
    glyph = glyph.resize(size, Image.Resampling.BILINEAR)
    glyph = glyph.rotate(rng.uniform(-30, 30), Image.Resampling.BILINEAR, expand=True)
    glyph = glyph.crop(glyph.getchannel("A").getbbox())
    glyph.thumbnail((round(side), round(side)), Image.Resampling.BILINEAR)
    return glyph


def _find_place(
    rng: np.random.Generator, size: tuple[int, int], side: int, taken: Sequence[Box]
) -> Box | None:
    for _ in range(40):
        x = int(rng.integers(0, max(1, side - size[0] + 1)))
        y = int(rng.integers(0, max(1, side - size[1] + 1)))
        box = (x, y, x + size[0], y + size[1])
        if not _overlaps(box, taken):
            return box
    return None


def draw_objects(
    rng: np.random.Generator, split: Split, names: Sequence[str], side: int = SCENE_SIDE
) -> Scene:
    """A scene that shows each of `names` once (1 to 9 of them), in random poses and places."""
    image = draw_background(rng, side, split.textures)
    labels = Image.new("L", (side, side), BACKGROUND_LABEL)
    low, high = _side_range(len(names))
    items: list[Item] = []
    for name in names:
        glyph_side, box = rng.uniform(low, high) * side, None
        while box is None:  # a place too crowded is solved by a smaller picture of the object
            glyph = _pose(rng, name, glyph_side)
            box = _find_place(rng, glyph.size, side, [item.box for item in items])
            glyph_side *= 0.92
        image.paste(glyph, box[:2], glyph)
        solid = glyph.getchannel("A").point(lambda alpha: 255 if alpha > 96 else 0)
        labels.paste(label_of(name, "object"), box[:2], solid)
        items.append(Item(name, box, "object"))
    return Scene(image, tuple(items), np.asarray(labels))


@cache
def _font(name: str, pixels: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # its DejaVu fonts are the same files on every machine

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"{name}.ttf"), pixels)


@cache
def letter_width(letter: str) -> float:
    """A letter's advance in the plain font, in units that only compare with one another."""
    return _font("DejaVuSans", 64).getlength(letter)


@cache
def _lettering(font_name: str, text: str) -> Image.Image:
    """The text as a mask (mode L), cropped to its ink from left to right alone."""
    font = _font(font_name, 64)
    left, _, right, _ = font.getbbox(text)
    mask = Image.new("L", (max(1, round(right - left)), sum(font.getmetrics())))
    ImageDraw.Draw(mask).text((-left, 0), text, font=font, fill=255)
    return mask


def draw_words(rng: np.random.Generator, split: Split, name: str, side: int = SCENE_SIDE) -> Scene:
    """A typographic scene: one of the split's text templates about `name`, on a pale card.

    The word fills the width in the middle of the card, as on a banner: small models read slowly.
    """
    image = draw_background(rng, side, split.textures)
    margin = int(rng.integers(0, side // 16))
    card = (margin, margin, side - margin, side - margin)
    image.paste(tuple(int(v) for v in rng.integers(215, 256, 3)), card)
    labels = Image.new("L", (side, side), BACKGROUND_LABEL)
    ink = tuple(int(v) for v in rng.integers(0, 70, 3))
    font = str(rng.choice(split.fonts))
    above, word, *below = str(rng.choice(split.text_templates)).split("\n")
    width, height = int(rng.uniform(0.84, 0.90) * side), int(rng.uniform(0.25, 0.28) * side)
    left = (side - width) // 2 + int(rng.uniform(-0.02, 0.02) * side)
    top = int((0.37 + rng.uniform(-0.02, 0.02)) * side)
    box = (left, top, left + width, top + height)
    _write(image, _lettering(font, word.format(name)), box, ink)
    labels.paste(label_of(name, "word"), box)
    for text, y in ((above, top - 0.2 * side), (" ".join(below), box[3] + 0.06 * side)):
        if text:
            mask, high = _lettering(font, text), 0.13 * side
            wide = min(int(0.8 * side), int(mask.width * high / mask.height))
            x = int(rng.uniform(0.08 * side, 0.92 * side - wide))
            _write(image, mask, (x, int(y), x + wide, int(y + high)), ink)
    return Scene(image, (Item(name, box, "word"),), np.asarray(labels))


def _write(image: Image.Image, mask: Image.Image, box: Box, ink: tuple[int, ...]) -> None:
    size = (box[2] - box[0], box[3] - box[1])
    image.paste(ink, box, mask.resize(size, Image.Resampling.BILINEAR))
