"""Text in pictures, as a detector: read it, judge what it says, say where it stands."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from ...errors import ConfigurationError
from ...intake import Limits, Picture, PictureSource
from ...verdict import Box, NotInspected, Region, RiskMap, Threshold, Verdict
from ..asking import decoded
from ..cache import content_key
from ..calibration import Calibration, OnOneScale
from ..looking import placed, renderings
from . import READING
from .engines import Budget, OcrEngine, RapidOcr
from .judged import JudgedText, judge_texts
from .lexicon import Lexicon
from .readers import TextReader
from .words import Line, Reading, join, script_of

__all__ = ["ReadingSettings", "TextInPicture"]

_LOG: Final = logging.getLogger(__name__)
_LINE_LETTERS: Final = 4
_MOST_BOXES: Final = 256
_KEPT: Final = 64
_KEPT_S: Final = 900.0
"""Pictures whose words are remembered, and for how many seconds."""


class ReadingSettings(BaseModel):
    """How much is read, and when what could not be read counts.

    Attributes:
        max_side: the longest side at which a picture is read, in pixels; smaller print is lost.
        max_words: words that are read of one picture.
        max_seconds: for reading one picture, all its renderings together.
        min_confidence: a line that was read less surely counts as not read. Its text is judged all
            the same: a flag is worth having.
        unread_letters, unread_area: lines of four letters and more that were not read, or
            that are in a script that engine or reader do not know, make the picture not inspected
            where they have this many letters and cover this share of the picture. Photographs are
            full of things that look like a letter or two.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_side: PositiveInt = 1600
    max_words: PositiveInt = 1000
    max_seconds: PositiveFloat = 20.0
    min_confidence: float = Field(default=0.7, ge=0, le=1)
    unread_letters: PositiveInt = 8
    unread_area: float = Field(default=0.03, ge=0, le=1)


@dataclass(frozen=True)
class _Seen:
    """What was read of a picture, in its own pixels."""

    lines: tuple[Line, ...] = ()
    unread: tuple[Box, ...] = ()
    late: bool = False
    views: int = 0

    @property
    def read(self) -> tuple[Line, ...]:
        """The lines in which there is anything to judge."""
        return tuple(line for line in self.lines if line.text)


_REMEMBERED: Final[WeakKeyDictionary[TextInPicture, OrderedDict[bytes, tuple[float, _Seen]]]] = (
    WeakKeyDictionary()
)
"""What each reader has read lately: beside it, so that no copy, pickle or repr has it."""
_LOCK: Final = threading.Lock()


@dataclass(frozen=True, eq=False)
class TextInPicture(OnOneScale):
    """Reads what is written in pictures and lets a reader judge it.

    Has the interface of every detector, so it stands wherever `RiskDetector` may, alone or beside
    it. Regions are the boxes of the lines that make a flagged sentence, so that masking covers the
    sentence. What was read is in no verdict and no log: a verdict has boxes and counts.
    Its measures:

    - `lines`, `words`: how much was read;
    - `confidence`: of the engine, the mean over letters; 1 where there is no text;
    - `unread_lines`, `unread_area`: found and not read (too unsure, or beyond the budget), and the
      share of the picture that these cover;
    - `script_coverage`: the share of letters in scripts that engine and reader both know.

    Text that was found and could not be read, or judged, in substance makes a picture not
    inspected: see ReadingSettings.

    Example:
        >>> detector = TextInPicture()  # RapidOCR and the English lexicon; no encoder
        >>> detector.name
        'reading rapidocr lexicon'

    Attributes:
        reader: what judges the text: Lexicon, ConceptReader, ModelReader, JudgeReader, GuardReader.
        engine: what reads it: RapidOcr or Tesseract.
        settings: how much is read.
        limits: what intake is willing to decode.
        calibration: a threshold in place of the reader's own; see `calibrate`.
        show_text: write what was read into the log, with a warning. For debugging alone.
    """

    reader: TextReader = field(default_factory=Lexicon.default)
    engine: OcrEngine = field(default_factory=RapidOcr)
    settings: ReadingSettings = field(default_factory=ReadingSettings)
    limits: Limits = field(default_factory=Limits)
    calibration: Calibration | None = None
    show_text: bool = False

    def __post_init__(self) -> None:
        if not callable(getattr(self.reader, "read", None)) or not hasattr(self.reader, "scripts"):
            raise ConfigurationError(
                f"{type(self.reader).__name__} is no reader of texts; wrap a callable or a "
                "Runnable in GuardReader, a judge in JudgeReader, a model in ModelReader."
            )
        if self.show_text:
            _LOG.warning("show_text is on: what stands in pictures will be written into this log")

    @property
    def name(self) -> str:
        """Engine and reader."""
        return f"{READING} {self.engine.name} {self.reader.name}"

    def screen(self, images: Iterable[PictureSource | Picture]) -> list[Verdict]:
        """Read pictures and judge what they say.

        Args:
            images: anything `read_picture` takes, or pictures it has read.

        Returns:
            One verdict a picture, in order.

        Raises:
            MissingDependencyError: the engine is not installed.
        """
        started = time.perf_counter()
        taken = [decoded(image, self.limits) for image in images]
        seen = [self._see(item) if isinstance(item, Picture) else _Seen() for item in taken]
        read = time.perf_counter()
        judged = judge_texts(self.reader, [item.read for item in seen], self._limit.value)
        timings = {"read": 1000 * (read - started), "judge": 1000 * (time.perf_counter() - read)}
        return [
            item
            if isinstance(item, Verdict)
            else self._verdict(item, own, risk).model_copy(update={"timings_ms": timings})
            for item, own, risk in zip(taken, seen, judged, strict=True)
        ]

    def words(self, pictures: Sequence[Picture]) -> list[str | None]:
        """What is written in pictures, for the rules about tool calls (see ``CallRules``).

        From the first call on, what was read of the last pictures is kept for a while, in this
        process alone, so that a picture is read once for all steps of an agent.

        Returns:
            The text of each, lines apart; None where text was found that could not be read in
            substance, by the measure of ``settings``.
        """
        _REMEMBERED.setdefault(self, OrderedDict())
        return [self._words(self._see(picture), picture.image.size) for picture in pictures]

    def _words(self, seen: _Seen, size: tuple[int, int]) -> str | None:
        if any(self._gaps(seen, self._unsure(seen), size, self.engine.scripts)):
            return None
        return "\n".join((join(seen.read), *(line.text for line in seen.read))).strip()

    @property
    def _limit(self) -> Threshold:
        return self.calibration.threshold if self.calibration else self.reader.threshold

    # Reading

    def _see(self, picture: Picture) -> _Seen:
        """What stands in a picture, remembered where somebody asks for words."""
        memory = _REMEMBERED.get(self)
        if memory is None:
            return self._looked(picture)
        key, now = content_key(picture), time.monotonic()
        with _LOCK:
            for old in [k for k, (since, _) in memory.items() if now - since > _KEPT_S]:
                del memory[old]
            if key in memory:
                return memory[key][1]
        seen = self._looked(picture)
        with _LOCK:
            memory[key] = (now, seen)
            if len(memory) > _KEPT:
                memory.popitem(last=False)
        return seen

    def _looked(self, picture: Picture) -> _Seen:
        """Every rendering of a picture, read within one budget."""
        budget = Budget(
            self.settings.max_side,
            self.settings.max_words,
            time.monotonic() + self.settings.max_seconds,
        )
        size, late, count = picture.image.size, False, 0
        found: list[Line] = []
        unread: list[Box] = []
        for view in renderings(picture):
            if budget.spent:
                late = True
                break
            try:
                reading = self.engine.read(view, budget)
            except TimeoutError:
                late = True
                break
            count += 1
            placed = _placed(reading, view.size, size)
            found += [line for line in placed.lines if line not in found]
            unread += placed.unread
        if self.show_text:
            _LOG.warning("text in a picture: %r", [line.text for line in found])
        return _Seen(tuple(found), tuple(unread), late, count)

    @property
    def _scripts(self) -> frozenset[str] | None:
        known = [s for s in (self.engine.scripts, self.reader.scripts) if s is not None]
        return frozenset.intersection(*known) if known else None

    # The verdict

    def _verdict(self, picture: Picture, seen: _Seen, judged: JudgedText) -> Verdict:
        limit, size = self._limit, picture.image.size
        score = max(judged.scores.values(), default=None)
        flagged = score is not None and score >= limit.value
        if score is not None and not np.isfinite(score):
            return Verdict.failed("the reader gave scores that are not numbers")
        unsure = self._unsure(seen)
        unread = [*seen.unread, *(line.box for line in unsure)]
        gaps = [*judged.gaps, *self._gaps(seen, unsure, size, self._scripts)]
        return Verdict(
            status="flagged" if flagged else "clean",
            guardrail=READING,
            category=_riskiest(judged.scores),
            score=score,
            p_value=self.p_value(score),
            threshold=limit,
            scores=judged.scores,
            measures={
                "lines": float(len(seen.read)),
                "words": float(sum(line.words for line in seen.lines)),
                "confidence": _confidence(seen.lines),
                "unread_lines": float(len(unread)),
                "unread_area": _covered(unread, size),
                "script_coverage": _coverage(seen.lines, self._scripts),
            },
            regions=_regions(judged) if flagged else (),
            risk_map=_map(judged, size),
            not_inspected=tuple(dict.fromkeys(gaps)),
            image_size=size,
            frames=max(1, seen.views),
            encoder=self.engine.name,
        )

    def _unsure(self, seen: _Seen) -> list[Line]:
        surely = self.settings.min_confidence
        return [line for line in seen.lines if line.confidence < surely or not line.legible]

    def _gaps(
        self,
        seen: _Seen,
        unsure: Sequence[Line],
        size: tuple[int, int],
        scripts: frozenset[str] | None,
    ) -> Iterator[NotInspected]:
        """What of the text nobody has judged, where it is too much to be passed over."""
        settings = self.settings
        if seen.unread or seen.late:
            most = f"{settings.max_words} words, {settings.max_seconds:g} s"
            yield NotInspected(reason="too_much_text", detail=f"more than is read ({most})")
        strange = [line for line in seen.lines if _coverage([line], scripts) < 0.5]
        found = {
            ("unreadable_text", "text was found that was not read surely enough"): unsure,
            ("unknown_script", "text in a script that engine or reader do not know"): strange,
        }
        texts = [line for line in {*unsure, *strange} if line.letters >= _LINE_LETTERS]
        area = _covered([line.box for line in texts], size)
        if sum(line.letters for line in texts) < settings.unread_letters:
            return
        if area >= settings.unread_area:
            for (reason, detail), lines in found.items():
                if any(line in texts for line in lines):
                    yield NotInspected(reason=reason, detail=detail)


def _placed(reading: Reading, inside: tuple[int, int], size: tuple[int, int]) -> Reading:
    """What was read in a rendering of another size, in the picture's own pixels."""
    if inside == size:
        return reading
    return Reading(
        tuple(replace(line, box=placed(line.box, inside, size)) for line in reading.lines),
        tuple(placed(box, inside, size) for box in reading.unread),
    )


def _confidence(lines: Sequence[Line]) -> float:
    letters = sum(len(line.text) for line in lines)
    return sum(line.confidence * len(line.text) for line in lines) / letters if letters else 1.0


def _coverage(lines: Sequence[Line], known: frozenset[str] | None) -> float:
    """The share of letters in known scripts; 1 where there are no letters."""
    scripts = [script for line in lines for letter in line.text if (script := script_of(letter))]
    if known is None or not scripts:
        return 1.0
    return sum(script in known for script in scripts) / len(scripts)


def _covered(boxes: Sequence[Box], size: tuple[int, int]) -> float:
    """The share of the picture that boxes cover, together at most 1."""
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in boxes)
    return min(1.0, areas / max(1, size[0] * size[1]))


def _riskiest(scores: Mapping[str, float]) -> str | None:
    """The category with the highest score; None where all are alike."""
    if len(scores) > 1 and len(set(scores.values())) == 1:
        return None
    return max(scores, key=lambda name: scores[name], default=None)


def _regions(judged: JudgedText) -> tuple[Region, ...]:
    regions = [
        Region(box=line.box, category=place.category, score=place.score)
        for place in judged.flagged
        for line in place.lines
    ]
    return tuple(sorted(dict.fromkeys(regions), key=lambda region: -region.score))


def _map(judged: JudgedText, size: tuple[int, int]) -> RiskMap | None:
    """The lines' boxes with their risk; the riskiest where they are many."""
    boxes = sorted(judged.risks, key=lambda pair: -pair[1])[:_MOST_BOXES]
    if not boxes:
        return None
    return RiskMap(size=size, boxes=tuple(b for b, _ in boxes), scores=tuple(s for _, s in boxes))
