"""Engines that read text in pictures: RapidOCR (in process), and Tesseract (a program)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import MissingDependencyError
from ...verdict import Box
from .words import Line, Reading

if TYPE_CHECKING:
    from rapidocr import RapidOCR

__all__ = ["Budget", "OcrEngine", "RapidOcr"]

_SHORT_SIDE: Final = 736
"""What RapidOCR's detector is made for; a smaller picture is enlarged to it."""
_LONG_TILE: Final = 3.0
"""A picture longer than this times its shorter side is read in tiles."""
_TURN_BELOW: Final = 0.8
"""A line read less surely than this may stand on its head: it is read the other way up as well."""

_TALL: Final = 1.5
"""RapidOCR turns lines that are so many times as high as they are wide."""


@dataclass
class Budget:
    """How much may still be read of a picture.

    Attributes:
        max_side: the longest side at which a tile is looked at, in pixels.
        words: how many words may still be read.
        ends: when to stop, on the clock of `time.monotonic`.
    """

    max_side: int
    words: int
    ends: float

    @property
    def spent(self) -> bool:
        """Whether nothing more may be read."""
        return self.words <= 0 or time.monotonic() > self.ends

    @property
    def seconds_left(self) -> float:
        """Time that is left, at least a moment."""
        return max(0.01, self.ends - time.monotonic())


class OcrEngine(Protocol):
    """What reads text in one picture."""

    @property
    def name(self) -> str:
        """What to call it in verdicts."""

    @property
    def scripts(self) -> frozenset[str] | None:
        """The scripts it can read, as `words.script_of` names them; None: it does not say."""

    def read(self, image: Image.Image, budget: Budget, /) -> Reading:
        """The lines of an RGB picture, in its own pixels; takes from the budget."""


@dataclass(frozen=True)
class RapidOcr:
    """RapidOCR with the models of its wheel (PP-OCRv6 small; Latin, Greek, Chinese, Japanese).

    Loaded when it first reads; threads share one; a pickled one loads its own. Lines in any
    direction are found; those that stand on their head are turned.

    >>> RapidOcr(threads=1).name
    'rapidocr'

    Attributes:
        threads: of one picture's reading; None leaves that to onnxruntime (all cores).
    """

    threads: int | None = None
    _loaded: _Loaded = field(default_factory=lambda: _Loaded(), repr=False, compare=False)

    @property
    def name(self) -> str:
        """See OcrEngine."""
        return "rapidocr"

    @property
    def scripts(self) -> frozenset[str]:
        """See OcrEngine: of the models in the wheel."""
        return frozenset({"LATIN", "GREEK", "CJK", "HIRAGANA", "KATAKANA"})

    def read(self, image: Image.Image, budget: Budget) -> Reading:
        """See OcrEngine. The largest text is read first: it is what a model reads too.

        Raises:
            MissingDependencyError: RapidOCR is not installed.
        """
        started = time.monotonic()
        detector, recogniser = self._loaded.parts(self.threads)
        budget.ends += time.monotonic() - started  # loading the models is not reading
        found = [
            (number, scale, tile, left, top, corners)
            for number, (tile, left, top, scale) in enumerate(_tiles(image, budget))
            for corners in _corners(detector, tile)
        ]
        found.sort(key=lambda place: -_short_edge(place[5]) / place[1])
        lines: list[tuple[int, Line]] = []
        unread: list[Box] = []
        for number, scale, tile, left, top, corners in found:
            box = _box(corners / scale + (left, top), image.size)
            if budget.spent:
                unread.append(box)
                continue
            line = _recognise(recogniser, tile, corners, box)
            lines.append((number, line))
            budget.words -= line.words
        return Reading(tuple(_without_doubles(lines)), tuple(unread))


class _Loaded:
    """RapidOCR's two models. A copy, or the same engine in another process, loads its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: dict[int | None, tuple[RapidOCR, RapidOCR]] = {}

    def parts(self, threads: int | None) -> tuple[RapidOCR, RapidOCR]:
        """What finds lines, and what reads one.

        Raises:
            MissingDependencyError: RapidOCR is not installed.
        """
        with self._lock:
            if threads not in self._parts:
                own = {
                    "Global.use_cls": False,
                    "Global.log_level": "critical",
                    "Global.text_score": 0.0,
                    "Global.max_side_len": 100_000,  # tiles have their size already
                    "Det.limit_side_len": 32,
                    "EngineConfig.onnxruntime.intra_op_num_threads": threads or -1,
                }
                self._parts[threads] = (
                    _rapid({**own, "Global.use_rec": False}),
                    _rapid({**own, "Global.use_det": False}),
                )
            return self._parts[threads]

    def __reduce__(self) -> tuple[type[_Loaded], tuple[()]]:
        return _Loaded, ()


def _rapid(params: dict[str, Any]) -> RapidOCR:
    try:
        import onnxruntime  # noqa: F401 - RapidOCR imports it when it is first used, not before
        from rapidocr import RapidOCR
    except ImportError as error:
        raise MissingDependencyError(
            'Reading text in pictures needs RapidOCR: pip install "sightrail[ocr]"; or pass '
            "engine=Tesseract() where that program is installed."
        ) from error
    return RapidOCR(params=params)


def _tiles(
    image: Image.Image, budget: Budget
) -> Iterator[tuple[NDArray[np.uint8], int, int, float]]:
    """(pixels as BGR [h, w, 3], left, top, scale): a long picture in pieces that overlap.

    A piece is as long as can be looked at enlarged to twice its size: where pieces end, lines are
    cut.
    """
    width, height = image.size
    length = max(2 * min(width, height), budget.max_side // 2)
    if max(width, height) <= max(length, _LONG_TILE * min(width, height)):
        yield _scaled(image, 0, 0, budget)
        return
    starts = range(0, max(width, height) - length // 4, length * 3 // 4)
    for start in starts:
        if budget.spent:
            return
        across = width > height
        left, top = (start, 0) if across else (0, start)
        right, bottom = (start + length, height) if across else (width, start + length)
        piece = image.crop((left, top, min(width, right), min(height, bottom)))
        yield _scaled(piece, left, top, budget)


def _scaled(
    image: Image.Image, left: int, top: int, budget: Budget
) -> tuple[NDArray[np.uint8], int, int, float]:
    enlarged = max(1.0, _SHORT_SIDE / min(image.size))
    scale = min(enlarged, budget.max_side / max(image.size))
    if scale != 1.0:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(_evened(image))[:, :, ::-1]), left, top, scale


def _evened(image: Image.Image) -> Image.Image:
    """A picture of little contrast with all of it, as far as that is worth doing."""
    from PIL import ImageOps

    grey = np.asarray(image.convert("L"))
    return image if int(grey.max()) - int(grey.min()) > 128 else ImageOps.autocontrast(image)


def _corners(detector: RapidOCR, tile: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """The corners of every line, [4, 2] each, in the tile's pixels."""
    found: Any = detector(tile)  # what it is depends on the parts that are switched on
    boxes = found.boxes
    return [] if boxes is None else [np.asarray(corners, dtype=np.float32) for corners in boxes]


def _short_edge(corners: NDArray[np.float32]) -> float:
    edges = np.linalg.norm(corners - np.roll(corners, 1, axis=0), axis=1)
    return float(edges.min())


def _recognise(
    recogniser: RapidOCR, tile: NDArray[np.uint8], corners: NDArray[np.float32], box: Box
) -> Line:
    """The text of a line and how sure it is; the surer reading of both ways up."""
    from rapidocr.utils.process_img import get_rotate_crop_image

    crop = get_rotate_crop_image(tile, corners.copy())  # a tall one comes turned to the left
    tall = float(np.linalg.norm(corners[3] - corners[0]) / np.linalg.norm(corners[1] - corners[0]))
    length = max(crop.shape[:2]) / max(1, min(crop.shape[:2]))
    text, confidence = _read_line(recogniser, crop)
    line = Line(text.strip(), box, confidence, 90 if tall >= _TALL else 0, length)
    if confidence >= _TURN_BELOW and line.legible:
        return line
    text, confidence = _read_line(recogniser, np.ascontiguousarray(crop[::-1, ::-1]))
    turned = Line(text.strip(), box, confidence, 270 if tall >= _TALL else 180, length)
    return max(line, turned, key=lambda reading: reading.confidence)


def _read_line(recogniser: RapidOCR, crop: NDArray[np.uint8]) -> tuple[str, float]:
    found: Any = recogniser(crop)
    if not found.txts or not found.scores:
        return "", 0.0
    return str(found.txts[0]), float(found.scores[0])


def _box(corners: NDArray[np.float32], size: tuple[int, int]) -> Box:
    left, top = np.floor(corners.min(axis=0)).astype(int)
    right, bottom = np.ceil(corners.max(axis=0)).astype(int)
    left, top = max(0, min(int(left), size[0] - 1)), max(0, min(int(top), size[1] - 1))
    return (
        left,
        top,
        max(left + 1, min(size[0], int(right))),
        max(top + 1, min(size[1], int(bottom))),
    )


def _without_doubles(lines: list[tuple[int, Line]]) -> list[Line]:
    """Lines that two tiles both show, once, the surer one; in reading order.

    Within one tile nothing is found twice: boxes around neighbours that are written at an angle
    overlap as much.

    Args:
        lines: each with the number of its tile.
    """
    kept: list[tuple[int, Line]] = []
    for tile, line in sorted(lines, key=lambda seen: (not seen[1].legible, -seen[1].confidence)):
        if not any(_overlap(line.box, o.box) > 0.6 for other, o in kept if other != tile):
            kept.append((tile, line))
    return sorted((line for _, line in kept), key=lambda line: (line.box[1], line.box[0]))


def _overlap(one: Box, other: Box) -> float:
    """The common area as a share of the smaller box."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / min(areas)
