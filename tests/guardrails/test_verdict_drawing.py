"""What a notebook shows of a verdict."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from sightrail.guardrails import NotInspected, Region, RiskMap, Verdict
from sightrail.guardrails.verdict import Threshold

MAP = RiskMap(size=(40, 20), boxes=((0, 0, 20, 20), (20, 0, 40, 20)), scores=(0.1, 0.9))
FLAGGED = Verdict(
    status="flagged",
    category="red",
    score=0.9,
    threshold=Threshold(value=0.5, source="a test"),
    risk_map=MAP,
    regions=(Region(box=(22, 2, 38, 18), category="<b>red", score=0.9),),
)


def drawn(verdict: Verdict) -> np.ndarray:
    png = verdict._repr_png_()
    assert png is not None
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=int)


def test_the_risky_side_is_red_the_other_blue_and_the_region_outlined() -> None:
    pixels = drawn(FLAGGED)
    assert pixels.shape == (20, 40, 3)
    assert pixels[10, 5, 2] > pixels[10, 5, 0]
    assert pixels[10, 30, 0] > pixels[10, 30, 2]
    assert tuple(pixels[2, 30]) == (255, 255, 255)


def test_html_says_and_shows_it_and_escapes_what_others_named() -> None:
    shown = FLAGGED._repr_html_()
    assert "flagged: red 0.900" in shown
    assert "data:image/png;base64," in shown
    assert "22, 2, 38, 18" in shown
    assert "&lt;b&gt;red" in shown
    assert "<b>red" not in shown


@pytest.mark.parametrize(
    "verdict",
    [
        Verdict(status="not_inspected", not_inspected=(NotInspected(reason="<i>truncated"),)),
        Verdict(status="clean"),
        Verdict(status="clean", risk_map=RiskMap(size=(5, 5), boxes=(), scores=())),
    ],
    ids=["not inspected", "no map", "empty map"],
)
def test_a_verdict_without_a_map_is_told_in_words(verdict: Verdict) -> None:
    assert verdict._repr_png_() is None
    assert "<img" not in verdict._repr_html_()
    assert "<i>" not in verdict._repr_html_()


@pytest.mark.parametrize("size", [(100_000, 100_000), (100_000, 8), (1, 1)], ids=str)
def test_a_map_of_any_size_is_drawn_small(size: tuple[int, int]) -> None:
    whole = RiskMap(size=size, boxes=((0, 0, *size),), scores=(1.0,))
    region = Region(box=(0, 0, *size), category="red", score=1.0)
    height, width, _ = drawn(Verdict(status="clean", risk_map=whole, regions=(region,))).shape
    assert max(height, width) <= 256
