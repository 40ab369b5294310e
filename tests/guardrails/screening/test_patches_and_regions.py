from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sightrail.guardrails.screening.encoder import crop_boxes, token_boxes
from sightrail.guardrails.screening.regions import FILL, cover_regions, find_regions
from sightrail.guardrails.verdict import Region, RiskMap

SCALES = ((0.5, 3), (1 / 3, 5))
SIZES = st.tuples(st.integers(1, 500), st.integers(1, 500))


@given(SIZES)
def test_every_pixel_lies_in_a_crop_of_every_scale(size: tuple[int, int]) -> None:
    for scale in SCALES:
        boxes = crop_boxes(size, (scale,))
        seen = np.zeros(size[::-1], dtype=bool)
        for left, top, right, bottom in boxes[1:] or boxes:
            assert 0 <= left < right <= size[0]
            assert 0 <= top < bottom <= size[1]
            seen[top:bottom, left:right] = True
        assert seen.all() or min(size) < 4


def test_the_whole_picture_comes_first_and_no_crop_twice() -> None:
    boxes = crop_boxes((300, 200), (*SCALES, (1.0, 1)))

    assert boxes[0] == (0, 0, 300, 200)
    assert len(boxes) == len(set(boxes)) == 1 + 9 + 25


@given(SIZES, st.integers(1, 12), st.integers(1, 12))
def test_token_boxes_tile_what_was_encoded(size: tuple[int, int], rows: int, columns: int) -> None:
    boxes = token_boxes((10, 20, 10 + size[0], 20 + size[1]), (rows, columns))

    assert len(boxes) == rows * columns
    seen = np.zeros((20 + size[1] + 1, 10 + size[0] + 1), dtype=bool)
    for left, top, right, bottom in boxes:
        seen[top:bottom, left:right] = True
    assert seen[20 : 20 + size[1], 10 : 10 + size[0]].all()


def test_a_map_puts_risk_where_the_risky_patch_is() -> None:
    grid = token_boxes((0, 0, 80, 40), (2, 4))
    scores = [0.0] * 8
    scores[6] = 1.0

    heat = RiskMap(size=(80, 40), boxes=tuple(grid), scores=tuple(scores)).to_array()

    assert heat.shape == (40, 80)
    assert heat[30, 50] == 1.0
    assert heat[10, 50] == 0.0


def test_two_separate_places_become_two_regions_riskiest_first() -> None:
    grid = token_boxes((0, 0, 100, 100), (10, 10))
    risk = np.full((100, 2), -1.0, dtype=np.float32)
    risk[11, 0], risk[12, 0], risk[88, 0] = 0.8, 0.8, 0.9

    regions = find_regions(grid, risk, ["weapons", "drugs"], (100, 100), threshold=0.1)

    assert [(r.box, r.category) for r in regions] == [
        ((80, 80, 90, 90), "weapons"),
        ((10, 10, 30, 20), "weapons"),
    ]


def test_a_category_below_the_threshold_has_no_region() -> None:
    grid = token_boxes((0, 0, 20, 20), (2, 2))

    assert find_regions(grid, np.full((4, 1), 0.2, np.float32), ["gore"], (20, 20), 0.3) == ()


def test_a_crop_that_its_neighbours_outvote_is_still_a_region() -> None:
    boxes = [(0, 0, 40, 40), (0, 0, 30, 30), (0, 0, 29, 29)]
    risk = np.array([[-5.0], [0.5], [-5.0]], dtype=np.float32)

    (region,) = find_regions(boxes, risk, ["gore"], (40, 40), threshold=0.1)

    assert region.box == (0, 0, 30, 30)


@pytest.mark.parametrize("how", ["fill", "blur"])
def test_covering_changes_the_region_and_nothing_else(how: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    region = Region(box=(8, 16, 40, 48), category="weapons", score=1.0)

    covered = np.asarray(cover_regions(image, [region], how))  # type: ignore[arg-type]

    inside = np.zeros((64, 64), dtype=bool)
    inside[16:48, 8:40] = True
    assert (covered[~inside] == pixels[~inside]).all()
    assert np.asarray(image).tobytes() == pixels.tobytes(), "the caller's picture was changed"
    assert (covered[inside] == FILL).all()
