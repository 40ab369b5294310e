"""What a notebook shows of verdicts: lines, risk maps and regions, one by one or as a trace.

A verdict holds no picture, so neither does a drawing without one.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

    from .verdict import RiskMap, Verdict

_SIDE: Final = 256
_COLD: Final = (38, 70, 120)
_MIDDLE: Final = (242, 236, 220)
_HOT: Final = (200, 40, 40)


def draw_risk_map(verdict: Verdict) -> Image | None:
    """The risk map with the regions outlined; None for a verdict without one.

    Blue is below the threshold, red beyond it; without a threshold the middle of the scores takes
    its place.
    """
    from PIL import Image, ImageDraw

    if verdict.risk_map is None or not verdict.risk_map.scores:
        return None
    risk = verdict.risk_map.to_array(_drawn_size(verdict.risk_map))
    drawn = Image.fromarray(_colours(verdict, risk))
    pen = ImageDraw.Draw(drawn)
    across = drawn.width / max(1, verdict.risk_map.size[0])
    down = drawn.height / max(1, verdict.risk_map.size[1])
    for region in verdict.regions:
        left, top, right, bottom = region.box
        outline = (left * across, top * down, right * across - 1, bottom * down - 1)
        if outline[0] <= outline[2] and outline[1] <= outline[3]:
            pen.rectangle(outline, outline="white", width=2)
    return drawn


def draw_regions(verdict: Verdict, image: Image) -> Image:
    """A copy of the picture with every region outlined, and named by its category and score.

    Args:
        verdict: on this picture.
        image: in the size that the verdict is about.
    """
    from PIL import ImageDraw

    drawn = image.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    width = max(2, round(max(drawn.size) / 200))
    for region in verdict.regions:
        left, top, right, bottom = region.box
        if left < right and top < bottom:
            pen.rectangle((left, top, right - 1, bottom - 1), outline="red", width=width)
            cut_off = "(cut off) " if region.cut_off else ""
            words = f" {region.category} {region.score:.2f} {cut_off}"
            pen.rectangle(pen.textbbox((left, top), words), fill="red")
            pen.text((left, top), words, fill="white")
    return drawn


def trace_html(title: str, verdicts: Sequence[Verdict]) -> str:
    """What became of a request, and every verdict on the way there, as HTML."""
    steps = "".join(f"<li>{verdict_html(verdict)}</li>" for verdict in verdicts)
    return f"<div><b>{html.escape(title)}</b><ol>{steps}</ol></div>"


def risk_map_png(verdict: Verdict) -> bytes | None:
    """``draw_risk_map`` as PNG."""
    drawn = draw_risk_map(verdict)
    if drawn is None:
        return None
    buffer = io.BytesIO()
    drawn.save(buffer, format="PNG")
    return buffer.getvalue()


def verdict_html(verdict: Verdict) -> str:
    """The verdict as HTML: everything that could come from outside is escaped."""
    parts = [f"<b>{html.escape(verdict.summary())}</b>"]
    png = risk_map_png(verdict)
    if png is not None:
        data = base64.b64encode(png).decode("ascii")
        parts.append(f'<img alt="risk map" src="data:image/png;base64,{data}">')
    if verdict.regions:
        rows = "".join(
            f"<tr><td>{html.escape(region.category)}</td><td>{region.score:.3f}</td>"
            f"<td>{', '.join(map(str, region.box))}</td></tr>"
            for region in verdict.regions
        )
        head = "<tr><th>category</th><th>score</th><th>box (pixels)</th></tr>"
        parts.append(f"<table>{head}{rows}</table>")
    return f"<div>{'<br>'.join(parts)}</div>"


def _drawn_size(risk_map: RiskMap) -> tuple[int, int]:
    """The map on few pixels: the size is a stranger's, and cost grows with it."""
    width, height = risk_map.size
    scale = min(1.0, _SIDE / max(width, height, 1))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _colours(verdict: Verdict, risk: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A map's pixels [height, width] as colours, uint8 [height, width, 3]."""
    middle = verdict.threshold.value if verdict.threshold else float(risk.min() + risk.max()) / 2
    reach = max(float(np.abs(risk - middle).max()), 1e-6)
    warmth = ((risk - middle) / reach)[..., None]  # -1 coldest, 0 at the threshold, 1 hottest
    centre = np.asarray(_MIDDLE, dtype=np.float32)
    end = np.where(warmth > 0, np.asarray(_HOT), np.asarray(_COLD))
    colours: NDArray[np.uint8] = (centre + (end - centre) * np.abs(warmth)).round().astype(np.uint8)
    return colours
