"""From lines to risks: what is put before a reader, and what its answers say about which lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ...verdict import Box, NotInspected
from .readers import TextReader, TextRisk
from .spelling import spellings
from .words import Line, join, passages, sentences

_CHUNK_WORDS: Final = 120
"""A reader gets at most about this much at once: in a long text a sentence goes under."""

Lines = tuple[Line, ...]


@dataclass(frozen=True)
class Flagged:
    """Lines that say something unsafe together."""

    lines: Lines
    category: str
    score: float


@dataclass(frozen=True)
class JudgedText:
    """What a reader makes of the text in one picture.

    Attributes:
        scores: the highest risk by category; empty where there was no text.
        flagged: the lines that reached the threshold together.
        risks: every line's box with the risk of what it stands in.
        gaps: why text was not judged.
    """

    scores: Mapping[str, float] = field(default_factory=dict)
    flagged: tuple[Flagged, ...] = ()
    risks: tuple[tuple[Box, float], ...] = ()
    gaps: tuple[NotInspected, ...] = ()


def judge_texts(
    reader: TextReader, pictures: Sequence[Lines], threshold: float
) -> list[JudgedText]:
    """Judge the lines of several pictures, in as few calls of the reader as possible.

    A picture's text is judged as a whole, in pieces where it is long; what reaches the threshold is
    judged again sentence by sentence, to know where it stands.

    Args:
        reader: what judges.
        pictures: the lines of each.
        threshold: from which on a text is unsafe.
    """
    chunks = [_chunks(lines) for lines in pictures]
    coarse = _ask(reader, [chunk for own in chunks for chunk in own])
    fine_of = {
        chunk: sentences(chunk)
        for own in chunks
        for chunk in own
        if _reached(coarse[chunk], threshold) and len(chunk) > 1
    }
    fine = _ask(reader, [part for parts in fine_of.values() for part in parts])
    return [
        _judged(own, {**fine, **{c: coarse[c] for c in own}}, fine_of, threshold) for own in chunks
    ]


def _chunks(lines: Lines) -> list[Lines]:
    """The whole text where it is short, and else its passages, cut where they are long."""
    if not lines:
        return []
    found = passages(lines)
    whole = tuple(line for passage in found for line in passage)
    if sum(line.words for line in whole) <= _CHUNK_WORDS:
        return [whole] if len(found) == 1 else [whole, *found]
    return [chunk for passage in found for chunk in _cut(passage)]


def _cut(passage: Lines) -> list[Lines]:
    """Pieces of about `_CHUNK_WORDS` words; each begins with the last line of the one before."""
    pieces: list[list[Line]] = [[]]
    words = 0
    for line in passage:
        if pieces[-1] and words + line.words > _CHUNK_WORDS:
            pieces.append([pieces[-1][-1]])
            words = pieces[-1][0].words
        pieces[-1].append(line)
        words += line.words
    return [tuple(piece) for piece in pieces if piece]


def _ask(reader: TextReader, chunks: Sequence[Lines]) -> dict[Lines, TextRisk | NotInspected]:
    """The risk of every chunk: the highest of its spellings; a gap where any has none.

    Raises:
        ValueError: the reader gave something else than one answer each.
    """
    asked = [(chunk, text) for chunk in chunks for text in spellings(join(chunk))]
    texts = list(dict.fromkeys(text for _, text in asked))
    answers = reader.read(texts) if texts else []
    if len(answers) != len(texts):
        raise ValueError(f"the reader gave {len(answers)} answers for {len(texts)} texts")
    known = dict(zip(texts, answers, strict=True))
    found: dict[Lines, TextRisk | NotInspected] = {}
    for chunk, text in asked:
        found[chunk] = worst_of(found.get(chunk), known[text])
    return found


def worst_of(
    one: TextRisk | NotInspected | None, other: TextRisk | NotInspected
) -> TextRisk | NotInspected:
    """The risks of two spellings of a text together: the higher ones, or why there are none.

    A risk that is no number is none: nothing compares with it, and a maximum may drop it.
    """
    if isinstance(other, TextRisk) and any(map(math.isnan, other.scores.values())):
        other = NotInspected(reason="failed", detail="the reader gave scores that are not numbers")
    if one is None:
        return other
    if isinstance(one, NotInspected) or isinstance(other, NotInspected):
        return one if isinstance(one, NotInspected) else other
    names = (*one.scores, *other.scores)
    return TextRisk(
        {n: max(r.scores[n] for r in (one, other) if n in r.scores) for n in dict.fromkeys(names)}
    )


def _reached(risk: TextRisk | NotInspected, threshold: float) -> bool:
    return isinstance(risk, TextRisk) and risk.score >= threshold


def _judged(
    chunks: Sequence[Lines],
    risks: Mapping[Lines, TextRisk | NotInspected],
    fine_of: Mapping[Lines, Sequence[Lines]],
    threshold: float,
) -> JudgedText:
    scores: dict[str, float] = {}
    flagged: list[Flagged] = []
    by_box: dict[Box, float] = {}
    for chunk in chunks:
        risk = risks[chunk]
        if isinstance(risk, NotInspected):
            continue
        for name, score in risk.scores.items():
            scores[name] = max(score, scores.get(name, score))
        for line in chunk:
            by_box[line.box] = max(risk.score, by_box.get(line.box, risk.score))
        if _reached(risk, threshold):
            parts = [p for p in fine_of.get(chunk, ()) if _reached(risks[p], threshold)]
            flagged += [_flagged(part, risks[part]) for part in parts or [chunk]]
    gaps = [found for chunk in chunks if isinstance(found := risks[chunk], NotInspected)]
    return JudgedText(scores, tuple(dict.fromkeys(flagged)), tuple(by_box.items()), tuple(gaps))


def _flagged(lines: Lines, risk: TextRisk | NotInspected) -> Flagged:
    assert isinstance(risk, TextRisk)
    return Flagged(lines, max(risk.scores, key=lambda name: risk.scores[name]), risk.score)
