"""Words that are written so that a list of words misses them: plain spelling, for readers."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Final

__all__ = ["normalised", "plain", "spellings", "words_of"]

_MOST_MARKS: Final = 30
"""On one letter, as in Unicode's stream-safe text. Normalising sorts the marks of a letter, which
takes Python time that grows with the square of their number."""

_LOOKALIKES: Final = str.maketrans(
    "абвгеёзијкмнорсԁѕтухһԛԝьъєѐїӏґ"  # Cyrillic
    "αβεηικνορτυχωγμσζ"  # Greek
    "ɑɡıɩʟɴʀʏᴀᴄᴅᴇᴊᴋᴍᴏᴘᴛᴜᴠᴡᴢøłđħŧ",  # Latin of another shape
    "abbreesijkmhopcdstyxhqwbbeeiirabenikvoptuxwymszagiilnryacdejkmoptuvwzoldht",
)
"""Letters of other scripts -> the Latin letter they look like (after Unicode's confusables)."""

_DIGITS: Final = str.maketrans("0134578@$!|€£", "oieastbasiiel")
_ELL: Final = str.maketrans("1!|", "lll")
_SPACED: Final = re.compile(r"(?<!\w)(?:[^\W_][ ._\-*·•/]{1,3}){2,60}[^\W_](?!\w)")
"""Letters set apart, so many at the most: without an end every letter would be searched from."""
_INVISIBLE: Final = re.compile(
    r"[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    r"\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"
)
_WORD: Final = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")


def spellings(text: str) -> tuple[str, ...]:
    """The text as it is, and without disguise where that differs.

    >>> spellings("a b0mb")
    ('a b0mb', 'a bomb')
    """
    return tuple(dict.fromkeys((text, plain(text), plain(text, ell=True))))[:3]


def normalised(text: str) -> str:
    """NFKC of a text of any length and origin: what a letter has beyond 30 marks is left out."""
    if not text.isascii():
        text = _marks().sub(r"\1", text)
    return unicodedata.normalize("NFKC", text)


@cache
def _marks() -> re.Pattern[str]:
    """More marks in a row than a letter may have; the group holds those that stay."""
    marks = [c for c in map(chr, range(0x300, 0x20000)) if _is_mark(c)]
    return re.compile(f"([{''.join(marks)}]{{{_MOST_MARKS}}})[{''.join(marks)}]+")


def _is_mark(letter: str) -> bool:
    return all(map(unicodedata.combining, unicodedata.normalize("NFKD", letter)))


def plain(text: str, *, ell: bool = False) -> str:
    """Undo what hides words: look-alike letters, digits for letters, letters set apart.

    Args:
        text: as it was read.
        ell: whether 1, ! and | stand for l; else for i.
    """
    text = _INVISIBLE.sub("", normalised(text))
    text = _SPACED.sub(_closed_up, text)
    return re.sub(r"[^\s,;:()\"]+", lambda word: _plain_word(word[0], ell), text)


def _closed_up(spaced: re.Match[str]) -> str:
    """Letters set apart as a word; `a b o m b` may also be `a bomb`, so it becomes both."""
    letters = re.findall(r"\w", spaced[0])
    if all(letter.isdigit() for letter in letters):
        return spaced[0]
    word = "".join(letters)
    forms = [word]
    forms += [word[1:]] if word[0] in "aAiI" else []
    forms += [word[:-1]] if word[-1] in "aAiI" else []
    return " ".join(forms)


def _plain_word(word: str, ell: bool) -> str:
    bare = "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))
    turned = _latin(bare)
    letters = [c for c in turned if c.isalpha()]
    if letters and len(letters) >= len(re.findall(r"[\d@$!|€£]", turned.rstrip("!"))):
        end = turned[len(turned.rstrip("!?.")) :]
        core = turned[: len(turned) - len(end)]
        core = core.translate(_ELL) if ell else core
        turned = core.translate(_DIGITS) + end
    return word if turned.casefold() == word.casefold() else turned


def _latin(word: str) -> str:
    """A word in Latin letters where it mixes them with look-alikes, or is nothing but look-alikes.

    Words that are plainly of another script stay as they are.
    """
    turned = word.casefold().translate(_LOOKALIKES)
    letters = [c for c in turned if c.isalpha()]
    return turned if letters and all(c.isascii() for c in letters) else word


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case.

    >>> words_of("How to make it: 1. Don't!")
    ['how', 'to', 'make', 'it', '1', "don't"]
    """
    return [word.casefold().replace("’", "'") for word in _WORD.findall(text)]
