"""A place in a value where something stands that a model could look at."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from sightrail.guardrails.intake import PictureSource
from sightrail.guardrails.policy import Surface
from sightrail.guardrails.verdict import NotInspected

TextBlock = dict[str, Any]


@dataclass(frozen=True)
class Carrier:
    """One picture, or one thing that nobody can look into, where it was found.

    Attributes:
        source: what intake is to read, or why there is nothing it could read.
        original: the value as it was found; passes only where the policy allows the unseen.
        rebuild: a picture in the form of the original.
        note: a text in the place of the original.
        surface: whose word it came with.
    """

    source: PictureSource | NotInspected
    original: Any
    rebuild: Callable[[Image.Image], Any]
    note: Callable[[str], Any]
    surface: Surface = "user"


def unseen(
    original: Any, reason: str, detail: str, note: Callable[[str], Any] | None = None
) -> Carrier:
    """A carrier that nobody can look into; no picture ever stands in its place."""
    return Carrier(
        NotInspected(reason=reason, detail=detail), original, _no_form, note or text_block
    )


def text_block(text: str) -> TextBlock:
    """A text in the place of a content block."""
    return {"type": "text", "text": text}


def png_bytes(image: Image.Image) -> bytes:
    """The very pixels, losslessly encoded; the same pixels always give the same bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)  # what costs time here is compression
    return buffer.getvalue()


def png_base64(image: Image.Image) -> str:
    """``png_bytes`` as base64 text."""
    return base64.b64encode(png_bytes(image)).decode("ascii")


def png_url(image: Image.Image) -> str:
    """``png_bytes`` as a data URL."""
    return f"data:image/png;base64,{png_base64(image)}"


def _no_form(image: Image.Image) -> Any:
    raise TypeError("what was not inspected has no picture to stand in its place")
