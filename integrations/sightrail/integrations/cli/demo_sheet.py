"""The demo's contact sheet: every case with its pictures and both answers, on one page."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from sightrail.guardrails import Verdict

from .panels import INK, MUTED, draw_verdict, literal, passed_on, status_ink

_COLUMNS: Final = 46  # characters that fit beside the pictures
_BLOCKS: Final = (("asked", "question"), ("bare model", "bare"), ("guarded chain", "guarded"))


@dataclass(frozen=True)
class SheetRow:
    """One case: its picture, the verdict on it, the question and both answers."""

    title: str
    image: Image.Image
    verdict: Verdict
    question: str
    bare: str
    guarded: str


def save_contact_sheet(path: Path, rows: Sequence[SheetRow]) -> None:
    """Draw all cases below each other as PNG."""
    figure = Figure(figsize=(13.2, 2.75 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 4, squeeze=False, width_ratios=(1, 1, 1, 1.9))
    for axes, row in zip(grid, rows, strict=True):
        draw_verdict(axes[:3], row.image, row.verdict, "fill")
        axes[0].set_title(literal(row.title), fontsize=10, color=INK, loc="left", weight="bold")
        axes[1].set_title("risk map", fontsize=9, color=MUTED)
        axes[2].set_title(passed_on(row.verdict), fontsize=9, color=MUTED)
        _write_answers(axes[3], row)
    figure.savefig(path, dpi=110, facecolor="white")


def _write_answers(axis: Axes, row: SheetRow) -> None:
    axis.axis("off")
    axis.set_title(
        literal(row.verdict.summary()), fontsize=9, color=status_ink(row.verdict), loc="left"
    )
    top = 0.97
    for label, field in _BLOCKS:
        lines = textwrap.wrap(getattr(row, field), _COLUMNS, max_lines=4) or [""]
        axis.text(0, top, label, fontsize=8, color=MUTED, va="top", transform=axis.transAxes)
        axis.text(
            0,
            top - 0.08,
            literal("\n".join(lines)),
            fontsize=10,
            color=INK,
            va="top",
            transform=axis.transAxes,
        )
        top -= 0.15 + 0.085 * len(lines)
