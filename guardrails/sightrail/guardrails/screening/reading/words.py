"""What was read in a picture, and which lines make a sentence or a passage together."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from ...verdict import Box

__all__ = ["Line", "Reading", "join", "passages", "script_of", "sentences"]

_WORD: Final = re.compile(r"\w+")
_WORDLESS_SCRIPTS: Final = frozenset({"CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI"})
_LETTERS_PER_HEIGHT: Final = 1.6
_SENTENCE_END: Final = re.compile(r"[.!?。！？][\"')\]]*\s*$")


@dataclass(frozen=True)
class Line:
    """One line of text.

    Attributes:
        text: what it says; not shown by `repr`, so that it does not end up in logs.
        box: where it stands.
        confidence: of the engine, 0 to 1.
        turned: by how far it is turned clockwise, in degrees: 90 runs downwards, 180 stands on its
            head.
        length: of the line, in its own heights; 0 where the engine does not say.
    """

    text: str = field(repr=False)
    box: Box
    confidence: float
    turned: Literal[0, 90, 180, 270] = 0
    length: float = 0.0

    @property
    def height(self) -> int:
        """Of its box; of a line that runs downwards, its width."""
        return max(1, min(self.box[2] - self.box[0], self.box[3] - self.box[1]))

    @property
    def letters(self) -> int:
        """How many letters it has; of a line that was not read, how many it has room for."""
        read = sum(map(str.isalpha, self.text))
        return read if self.legible else max(read, round(self.length * _LETTERS_PER_HEIGHT))

    @property
    def legible(self) -> bool:
        """Whether as much was read as stands there: an engine reads scripts that it does not know
        as blanks, with a sign here and there.
        """
        return len("".join(self.text.split())) >= self.length / 4

    @property
    def words(self) -> int:
        """How many words, roughly: scripts without spaces count two letters a word."""
        plain = len(_WORD.findall(self.text))
        dense = sum(script_of(letter) in _WORDLESS_SCRIPTS for letter in self.text)
        return max(plain, dense // 2)


@dataclass(frozen=True)
class Reading:
    """What an engine made of one picture.

    Attributes:
        lines: what was read, in reading order.
        unread: boxes of text that the budget left unread.
    """

    lines: tuple[Line, ...]
    unread: tuple[Box, ...] = ()


def script_of(letter: str) -> str | None:
    """A letter's script by the first word of its Unicode name (`LATIN`, `CYRILLIC`, `CJK` ...).

    None for what is no letter.
    """
    if not letter.isalpha():
        return None
    name = unicodedata.name(letter, "UNKNOWN").split(" ")[0]
    return "LATIN" if name in ("FULLWIDTH", "MODIFIER") else name


def join(lines: Iterable[Line]) -> str:
    """The text of lines that belong together.

    A word that was hyphenated is whole again, and so is one whose letters stand below one another.
    """
    text, last = "", None
    for line in lines:
        said = line.text.strip()
        if re.search(r"[^\W\d]-$", text) and said[:1].isalpha():
            text = text[:-1] + said
        elif last is not None and _below(last, line):
            text += said
        else:
            text = f"{text} {said}".strip()
        last = line
    return text


def _below(upper: Line, lower: Line) -> bool:
    """Whether both are single signs of one column, and no more than half a sign apart."""
    if len(upper.text.strip()) != 1 or len(lower.text.strip()) != 1:
        return False
    across = max(upper.box[0], lower.box[0]) - min(upper.box[2], lower.box[2])
    down = lower.box[1] - upper.box[3]
    tall = max(line.box[3] - line.box[1] for line in (upper, lower))
    return across < 0 and -tall < 2 * down < tall


def passages(lines: Sequence[Line]) -> list[tuple[Line, ...]]:
    """Lines that stand together, each group in reading order.

    Two lines belong to one passage where they are of about one size and the room between them is
    less than their height, beside or below one another.
    """
    ordered = sorted(lines, key=lambda line: (line.box[1], line.box[0]))
    group = list(range(len(ordered)))

    def root(i: int) -> int:
        while group[i] != i:
            group[i] = group[group[i]]
            i = group[i]
        return i

    for i, line in enumerate(ordered):
        for j in range(i):
            if _near(ordered[j], line):
                group[root(i)] = root(j)
    found: dict[int, list[Line]] = {}
    for i, line in enumerate(ordered):
        found.setdefault(root(i), []).append(line)
    return [tuple(_reading_order(members)) for members in found.values()]


def _near(one: Line, other: Line) -> bool:
    small, large = sorted((one.height, other.height))
    if large > 2.5 * small:
        return False
    across = max(one.box[0], other.box[0]) - min(one.box[2], other.box[2])
    down = max(one.box[1], other.box[1]) - min(one.box[3], other.box[3])
    return (across < 1.5 * large and down < 0) or (down < 1.2 * large and across < 0)


def _reading_order(lines: Sequence[Line]) -> list[Line]:
    """Rows from above, each from the left, of the way up that most of the text has: a line joins a
    row whose middle it overlaps.
    """
    signs = Counter[int]()
    for line in lines:
        signs[line.turned] += len(line.text)
    (turned, _), *_ = signs.most_common(1)
    boxes = {line: _upright(line.box, turned) for line in lines}
    rows: list[list[Line]] = []
    for line in sorted(boxes, key=lambda line: boxes[line][1] + boxes[line][3]):
        middle = (boxes[line][1] + boxes[line][3]) / 2
        if rows and boxes[rows[-1][0]][1] <= middle <= boxes[rows[-1][0]][3]:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [line for row in rows for line in sorted(row, key=lambda line: boxes[line][0])]


def _upright(box: Box, turned: int) -> Box:
    """A box as it lies once its picture is turned back."""
    left, top, right, bottom = box
    if turned == 90:
        return (top, -right, bottom, -left)
    if turned == 180:
        return (-right, -bottom, -left, -top)
    if turned == 270:
        return (-bottom, left, -top, right)
    return box


def sentences(lines: Sequence[Line], most: int = 12) -> list[tuple[Line, ...]]:
    """A passage cut after lines that end a sentence, and after `most` lines in any case."""
    found: list[list[Line]] = [[]]
    for line in lines:
        found[-1].append(line)
        if _SENTENCE_END.search(line.text) or len(found[-1]) == most:
            found.append([])
    return [tuple(part) for part in found if part]
