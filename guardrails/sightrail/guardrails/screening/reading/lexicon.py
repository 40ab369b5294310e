"""The lexicon: a reader that needs no model. It finds words of harm where a text asks for a way."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...errors import ConfigurationError
from ...verdict import NotInspected, Threshold
from .readers import TextRisk
from .spelling import words_of

DEFAULT_LEXICON: Final = Path(__file__).parent / "lexicon.toml"

_MENTIONED: Final = 0.5
"""The score of a word that counts where a text asks, in a text that does not ask."""
_APART: Final = 6
_FORM: Final = re.compile(r"(?:\b[1-9]\s*[.):]\s*){2,}\W*$")
"""Numbers with nothing behind them, at the end of a text: a list to be filled in."""
_TAIL: Final = 400  # letters in which that end is looked for

_ALIKE: Final = str.maketrans("l1|", "iii")
_LONG: Final = 6
_MISREAD: Final = re.compile(r"ii|[1|]")

Pair = tuple[tuple[str, ...], tuple[str, ...]]


class Words(BaseModel):
    """The words of one category; see lexicon.toml for what the kinds mean."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alone: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    prompted: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()


class Frames(BaseModel):
    """Words by which a text asks for a way of doing something."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    asks: tuple[str, ...] = ()


class Lexicon(BaseModel):
    """Categories of words of harm, as a text reader.

    A text scores 1 in a category where a word counts, half where the word stands in a text that
    asks for nothing, and 0 without one. It knows words, not what is meant: a text that avoids them
    passes, and it reads English alone unless you give it more words.

    >>> lexicon = Lexicon(categories={"weapons": Words(alone=("bomb*",))})
    >>> lexicon.read(["two bombs", "a cat"])[0].scores
    {'weapons': 1.0}

    Attributes:
        categories: by name.
        frames: what makes a text one that asks.
        scripts: the scripts that its words are written in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    categories: dict[str, Words] = Field(min_length=1, repr=False)
    frames: Frames = Field(default=Frames(), repr=False)
    scripts: frozenset[str] | None = frozenset({"LATIN"})

    @classmethod
    def from_file(cls, path: Path | str) -> Self:
        """Read a lexicon from TOML; see lexicon.toml beside this module for the form.

        Raises:
            ConfigurationError: missing, not TOML, or not a lexicon.
        """
        try:
            return cls.model_validate(tomllib.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise ConfigurationError(f"The lexicon {path} cannot be read: {error}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
            raise ConfigurationError(f"{path} is not a lexicon: {error}") from error

    @classmethod
    def default(cls) -> Self:
        """The English lexicon that comes with the library."""
        return cls.from_file(DEFAULT_LEXICON)

    def without(self, *categories: str) -> Self:
        """The same without some categories.

        Raises:
            ConfigurationError: there is no such category.
        """
        unknown = set(categories) - set(self.categories)
        if unknown:
            raise ConfigurationError(
                f"The lexicon has no category {sorted(unknown)}; it has {sorted(self.categories)}"
            )
        kept = {k: v for k, v in self.categories.items() if k not in categories}
        return self.model_validate({**self.model_dump(), "categories": kept})

    @property
    def name(self) -> str:
        """See TextReader."""
        return "lexicon"

    @property
    def threshold(self) -> Threshold:
        """See TextReader."""
        return Threshold(value=1.0, source="a word of the lexicon, in a text that asks")

    def read(self, texts: Sequence[str]) -> list[TextRisk | NotInspected]:
        """See TextReader."""
        return [TextRisk(self._scores(text)) for text in texts]

    def _scores(self, text: str) -> dict[str, float]:
        words = [_as_meant(word) for word in words_of(text)]
        said = f" {' '.join(words)} "
        asks = bool(self._asks.search(said))
        form = bool(_FORM.search(text.rstrip()[-_TAIL:]))
        return {
            name: category.score(said, words, asks, form)
            for name, category in self._compiled.items()
        }

    @cached_property
    def _asks(self) -> re.Pattern[str]:
        return _pattern(self.frames.asks)

    @cached_property
    def _compiled(self) -> dict[str, _Category]:
        return {name: _Category(words) for name, words in self.categories.items()}


class _Category:
    """The words of a category, ready to be searched for."""

    def __init__(self, words: Words) -> None:
        self._alone = _pattern(words.alone)
        self._asked = _pattern(words.asked)
        self._prompted = _pattern(words.prompted)
        self._pairs = [(_pattern(first), _pattern(second)) for first, second in words.pairs]

    def score(self, said: str, words: Sequence[str], asks: bool, form: bool) -> float:
        """1 where a word counts, a half where it is only mentioned, else 0.

        Args:
            said: the text's words with a space around each.
            words: the same as a list.
            asks: whether the text asks for a way.
            form: whether it is a form to be filled in.
        """
        if self._alone.search(said):
            return 1.0
        found = self._asked.search(said) or self._paired(words)
        if found or (form and self._prompted.search(said)):
            return 1.0 if asks else _MENTIONED
        return 0.0

    def _paired(self, words: Sequence[str]) -> bool:
        return any(
            second.search(f" {' '.join(words[place + 1 : place + 1 + _APART])} ")
            for first, second in self._pairs
            for place, word in enumerate(words)
            if first.search(f" {word} ")
        )


def _pattern(phrases: Sequence[str]) -> re.Pattern[str]:
    """Finds any of the phrases among words with a space around each; see lexicon.toml."""
    if not phrases:
        return re.compile(r"(?!)")
    parts = (
        (r"(?<=\A )" if phrase.startswith("^") else "") + " ".join(map(_either, _words(phrase)))
        for phrase in phrases
    )
    return re.compile(rf"(?<= )(?:{'|'.join(parts)})(?= )")


def _as_meant(word: str) -> str:
    """A word with the letters as one that engines take for one another.

    A short word that differs from another by such a letter is mostly another word ("ball", "bail"):
    it is taken at its word unless nobody would write it so ("baii").
    """
    doubtful = len(word) >= _LONG or _MISREAD.search(word)
    return word.translate(_ALIKE) if doubtful else word


def _either(word: str) -> str:
    """Finds a word of the lexicon as it is written, and as it is misread."""
    forms = dict.fromkeys(re.escape(form) for form in (word, word.translate(_ALIKE)))
    return "(?:" + "|".join(forms).replace(r"\*", r"\S*") + ")"


def _words(phrase: str) -> list[str]:
    """The words of a phrase as texts are cut into words, `*` kept."""
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)?\*?|\*", phrase.casefold())
