"""Pictures of verdicts: original | risk map | what is passed on."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from sightrail.guardrails import Policy, RiskMap, Verdict, apply_policy
from sightrail.guardrails.screening.reading import READING
from sightrail.guardrails.verdict import Box

from .batches import Screened
from .consoles import printable

Masking = Literal["fill", "blur"]

_MAX_SIDE: Final = 640  # what a panel can show; a map in full resolution would only cost memory
_LABEL_SHARE: Final = 0.08  # of a panel's longer side: the room that a label needs
_COLOURS: Final = "turbo"
INK: Final = "#1b1f24"
MUTED: Final = "#6a737d"
_LABEL: Final = "#cf222e"
_STATUS_INK: Final = {"clean": "#1a7f37", "flagged": _LABEL}


class PanelFolder:
    """Writes one panel per picture into a folder.

    Names come from the files; a second `cat.png` becomes `cat.png-2.screened.png`, and no file in
    `keep` is ever written to. Panels of an earlier run are replaced.
    """

    def __init__(self, folder: Path, mask: Masking, keep: Iterable[Path] = ()) -> None:
        self.folder = folder
        self.written = 0
        self._mask: Masking = mask
        self._taken = {place for path in keep for place in (path.resolve(), _place(path))}
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, screened: Screened) -> Path | None:
        """Draw one file's panel; None for what could not be decoded."""
        if screened.image is None:
            return None
        target = self._free_name(screened.path.name)
        save_panel(
            target,
            printable(Path(screened.path.name)),
            screened.image,
            screened.verdict,
            self._mask,
        )
        self.written += 1
        return target

    def _free_name(self, name: str) -> Path:
        number, target = 1, self.folder / f"{name}.screened.png"
        while _place(target) in self._taken:
            number += 1
            target = self.folder / f"{name}-{number}.screened.png"
        self._taken.add(_place(target))
        return target


def _place(path: Path) -> Path:
    """Where a name itself stands; if it is a link, that is what is replaced and not its goal."""
    return path.parent.resolve() / path.name


def save_panel(path: Path, title: str, image: Image.Image, verdict: Verdict, mask: Masking) -> None:
    """One picture's panel as PNG."""
    shape = min(max(image.height / image.width, 0.3), 1.3)  # very long pictures stay small
    figure = Figure(figsize=(11.6, 0.9 + 3.5 * shape), layout="constrained")
    axes = figure.subplots(1, 3)
    heat = draw_verdict(axes, image, verdict, mask)
    _colour_bar(figure, axes[1], heat, verdict)
    for axis, name in zip(axes, ("original", "risk map", passed_on(verdict)), strict=True):
        axis.set_title(name, fontsize=10, color=MUTED)
    summary = f"{literal(title)}\n{literal(verdict.summary())}"
    figure.suptitle(summary, fontsize=11, color=status_ink(verdict))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, facecolor="white")
    _replace(path, buffer.getvalue())


def _replace(path: Path, data: bytes) -> None:
    """Write a file anew; what stands there is replaced, and a link is never written through."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        file.write(data)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def draw_verdict(
    axes: Sequence[Axes], image: Image.Image, verdict: Verdict, mask: Masking
) -> ScalarMappable | None:
    """Draw original, risk map and passed-on picture on three axes; returns the map's colours."""
    original, heated, passed = axes
    small = _shrunk(image)
    original.imshow(small)
    heat = _draw_heat(heated, small, verdict)
    _draw_regions(heated, small, small.width / image.width, verdict)
    policy = Policy(mask=mask)
    through = apply_policy(image, verdict, policy).image
    if through is None:
        passed.imshow(Image.new("RGB", small.size, "#eaeef2"))
        passed.text(0.5, 0.5, "refused", transform=passed.transAxes, ha="center", color=INK)
    else:
        passed.imshow(_shrunk(through))
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_color("#d0d7de")
    return heat


def status_ink(verdict: Verdict) -> str:
    """The colour in which a verdict is written."""
    return _STATUS_INK.get(verdict.status, "#9a6700")


def passed_on(verdict: Verdict) -> str:
    """What the default policy lets through, in words."""
    if verdict.status == "clean":
        return "passed on unchanged"
    return "passed on, covered" if Policy().decide(verdict) == "mask" else "not passed on"


def _shrunk(image: Image.Image) -> Image.Image:
    small = image.copy()
    small.thumbnail((_MAX_SIDE, _MAX_SIDE))
    return small


def _draw_heat(axis: Axes, small: Image.Image, verdict: Verdict) -> ScalarMappable | None:
    axis.imshow(np.asarray(small.convert("L")), cmap="gray", vmin=-40, vmax=295)
    if verdict.risk_map is None or not verdict.risk_map.scores:
        return None
    norm = _scale_around(verdict)
    if verdict.guardrail == READING:  # where nothing is written there is no risk to be shown
        return _draw_lines(axis, small.width / verdict.risk_map.size[0], verdict.risk_map, norm)
    risk = verdict.risk_map.to_array(small.size)
    above = np.clip(norm(risk), 0, 1)
    return axis.imshow(risk, cmap=_COLOURS, norm=norm, alpha=0.25 + 0.45 * above)


def _scale_around(verdict: Verdict) -> Normalize:
    """Colours with the threshold in the middle, so that warm always means beyond it.

    Where no score lies beyond it and one upon it, as a lexicon's do, the threshold is the warmest.
    """
    scores = verdict.risk_map.scores if verdict.risk_map else (0.0,)
    if verdict.threshold is None:
        return Normalize(min(scores), max(max(scores), min(scores) + 1e-6))
    middle = verdict.threshold.value
    reach = max(0.0, *(abs(score - middle) for score in scores)) or 1.0
    return Normalize(middle - reach, middle if max(scores) == middle else middle + reach)


def _draw_lines(axis: Axes, scale: float, risks: RiskMap, norm: Normalize) -> ScalarMappable:
    """The boxes of the lines that were read, whatever they say, in the colour of their risk."""
    colours = ScalarMappable(norm, _COLOURS)
    shades = colours.to_rgba(np.asarray(risks.scores))
    for box, shade in zip(risks.boxes, shades, strict=True):
        place, size = _rectangle(box, scale)
        axis.add_patch(Rectangle(place, *size, lw=0, fc=shade, alpha=0.3))
        axis.add_patch(Rectangle(place, *size, fill=False, lw=0.8, ec=INK, ls=":"))
    return colours


def _draw_regions(axis: Axes, small: Image.Image, scale: float, verdict: Verdict) -> None:
    """Every region, and one label for those that say the same, above the highest of them."""
    named: dict[str, list[Box]] = {}
    for region in verdict.regions:
        named.setdefault(f"{literal(region.category)} {region.score:.2f}", []).append(region.box)
        place, size = _rectangle(region.box, scale)
        axis.add_patch(Rectangle(place, *size, fill=False, lw=3, ec="white"))
        axis.add_patch(Rectangle(place, *size, fill=False, lw=1.5, ec=_LABEL))
    for name, boxes in named.items():
        left, top, right, _ = (edge * scale for edge in min(boxes, key=lambda box: box[1]))
        above = top > _LABEL_SHARE * max(small.size)
        at_right = left + right > small.width
        axis.annotate(
            name,
            (right if at_right else left, top if above else max(b[3] for b in boxes) * scale),
            xytext=(-2 if at_right else 2, 4 if above else -4),
            textcoords="offset points",
            ha="right" if at_right else "left",
            va="bottom" if above else "top",
            fontsize=8,
            color="white",
            bbox={"facecolor": _LABEL, "edgecolor": "none", "pad": 2},
        )


def _rectangle(box: Box, scale: float) -> tuple[tuple[float, float], tuple[float, float]]:
    left, top, right, bottom = (edge * scale for edge in box)
    return (left, top), (right - left, bottom - top)


def _colour_bar(figure: Figure, axis: Axes, heat: ScalarMappable | None, verdict: Verdict) -> None:
    if heat is None:
        return
    bar = figure.colorbar(heat, ax=axis, fraction=0.046, pad=0.02)
    if bar.solids is not None:
        bar.solids.set_alpha(1)  # the map is see-through, its legend is not
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, colors=MUTED)
    ends = [bound for bound in heat.get_clim() if bound is not None]
    labels = [f"{bound:.2g}" for bound in ends]
    if verdict.threshold is not None:
        value = verdict.threshold.value
        bar.ax.axhline(value, color=INK, lw=2)
        labels = [label for end, label in zip(ends, labels, strict=True) if end != value]
        ends = [*(end for end in ends if end != value), value]
        labels.append(f"{value:.2g}\nthreshold")
    bar.set_ticks(ends, labels=labels)


def literal(text: str) -> str:
    """Text that matplotlib does not read as mathematics, in characters that can be drawn."""
    clean = text.encode("utf-8", "replace").decode("utf-8")
    return clean.replace("$", r"\$")
