"""Pictures of written words, as tests of reading need them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont


@cache
def font(size: int = 40, name: str = "DejaVuSans") -> ImageFont.FreeTypeFont:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"{name}.ttf"), size)


@cache
def font_for(letters: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of this machine that has these letters; the test is skipped where there is none."""
    from matplotlib.font_manager import findSystemFonts, get_font

    for file in sorted(findSystemFonts()):
        known = get_font(file).get_charmap()
        if all(ord(letter) in known for letter in letters if not letter.isspace()):
            return ImageFont.truetype(file, size)
    pytest.skip(f"no font here has {letters[:4]!r} ...")


def written(
    text: str,
    size: tuple[int, int] = (600, 300),
    *,
    points: int = 40,
    ink: str = "black",
    paper: str = "white",
    at: tuple[int, int] = (20, 20),
    face: ImageFont.FreeTypeFont | None = None,
) -> Image.Image:
    """A text on plain paper; lines as the text breaks them."""
    image = Image.new("RGB", size, paper)
    ImageDraw.Draw(image).multiline_text(at, text, font=face or font(points), fill=ink, spacing=12)
    return image
