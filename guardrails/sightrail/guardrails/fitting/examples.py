"""What a defence is fitted on: harmful and benign requests, with pictures or without, as JSONL.

One JSON object a line:

    {"text": "...", "label": "harmful" | "benign", "image": "path, optional", "answer": "optional"}

A path is relative to the file. ``"testbed"`` in place of a file draws from the mini world.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import ConfigurationError

if TYPE_CHECKING:
    from PIL import Image

    from ..intake import Limits


@dataclass(frozen=True)
class Example:
    """One request to fit on.

    Attributes:
        text: the user's words.
        harmful: whether it ought to be refused.
        image: a picture (PIL) or the path of one; None for a request in text alone.
        answer: what the model ought to say, where that is known.
    """

    text: str
    harmful: bool
    image: Image.Image | Path | None = None
    answer: str | None = None

    def picture(self, limits: Limits | None = None) -> Image.Image | None:
        """The picture, decoded as intake does it.

        Raises:
            ImageError: it cannot be read.
        """
        if not isinstance(self.image, Path):
            return self.image
        from ..intake import Limits, read_picture

        return read_picture(self.image, limits or Limits()).image

    def messages(self) -> list[dict[str, Any]]:
        """The request as one user message, the picture before the text."""
        image = self.picture()
        parts: list[dict[str, Any]] = [] if image is None else [{"type": "image", "image": image}]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": self.text}]}]


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore")

    text: str = Field(min_length=1)
    label: Literal["harmful", "benign"]
    image: str | None = None
    answer: str | None = None


def load_examples(path: str | Path) -> list[Example]:
    """Read a JSONL file of examples.

    Raises:
        ConfigurationError: the file is missing or empty, or a line is not an example; the message
            names the line.
    """
    where = Path(path)
    try:
        lines = where.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{where} cannot be read as JSONL: {error}") from error
    found = [_example(line, number, where) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ConfigurationError(f"{where} holds no examples.")
    return found


def _example(line: str, number: int, where: Path) -> Example:
    try:
        read = _Line.model_validate(json.loads(line))
    except (ValueError, ValidationError) as error:
        raise ConfigurationError(
            f'{where}, line {number}: {error}. A line is {{"text": ..., "label": "harmful" or '
            '"benign", "image": optional path, "answer": optional}.'
        ) from error
    image = None if read.image is None else where.parent / read.image
    if image is not None and not image.is_file():
        raise ConfigurationError(f"{where}, line {number}: there is no picture {read.image}.")
    return Example(read.text, read.label == "harmful", image, read.answer)


def split_by_label(examples: Sequence[Example], least: int) -> tuple[list[Example], list[Example]]:
    """The harmful and the benign ones.

    Raises:
        ConfigurationError: fewer than ``least`` of either.
    """
    harmful = [example for example in examples if example.harmful]
    benign = [example for example in examples if not example.harmful]
    for name, found in (("harmful", harmful), ("benign", benign)):
        if len(found) < least:
            raise ConfigurationError(
                f"The data hold {len(found)} {name} examples; at least {least} of each label are "
                "needed, and about as many of one as of the other."
            )
    return harmful, benign
