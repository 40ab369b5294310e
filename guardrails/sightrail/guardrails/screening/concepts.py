"""The concept bank: unsafe categories with text variants, benign anchors, in a readable file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..errors import ConfigurationError

DEFAULT_BANK: Final = Path(__file__).parent / "concepts.toml"


class ConceptBank(BaseModel):
    """What a picture is compared with.

    Attributes:
        unsafe: category -> text variants (GuardAlign's z_i^n, n = 1..N_i).
        benign: anchor texts. A patch that fits one of them better than any unsafe text is not
            flagged; the paper has none, and its softmax then gives every patch some category.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    unsafe: dict[str, tuple[str, ...]] = Field(min_length=1)
    benign: tuple[str, ...] = ()

    @field_validator("unsafe")
    @classmethod
    def _has_texts(cls, unsafe: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        empty = [name for name, texts in unsafe.items() if not texts or not all(texts)]
        if empty:
            raise ValueError(f"categories without texts: {', '.join(empty)}")
        return unsafe

    @classmethod
    def from_file(cls, path: Path | str) -> Self:
        """Read a bank from TOML: a table `[unsafe]` of lists and a list `benign`.

        Raises:
            ConfigurationError: missing, not TOML, or not a bank; the message says which.
        """
        try:
            return cls.model_validate(tomllib.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise ConfigurationError(f"The concept file {path} cannot be read: {error}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
            raise ConfigurationError(
                f"{path} is not a concept bank: {error}. It needs a table [unsafe] of lists of "
                f"texts, and may have a list named benign."
            ) from error

    @classmethod
    def default(cls) -> Self:
        """The bank for encoders of real photographs."""
        return cls.from_file(DEFAULT_BANK)

    def with_unsafe(self, category: str, *texts: str) -> Self:
        """A bank in which `category` has these texts too (a new category where it was unknown)."""
        joined = (*self.unsafe.get(category, ()), *texts)
        return self.model_validate(
            {"unsafe": {**self.unsafe, category: joined}, "benign": self.benign}
        )

    def with_benign(self, *texts: str) -> Self:
        """A bank with further benign anchors."""
        return self.model_validate({"unsafe": self.unsafe, "benign": (*self.benign, *texts)})
