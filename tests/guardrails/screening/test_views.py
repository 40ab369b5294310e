"""Views of a picture: every rendering, and scaled ones placed where they lie in the picture."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from sightrail.guardrails import ConceptBank, Picture, Policy, RiskDetector
from sightrail.guardrails.screening import ScreeningSettings
from sightrail.guardrails.screening.encoder import Encoder, tile_boxes
from sightrail.guardrails.screening.looking import Looking, views_of
from sightrail.guardrails.screening.seen_by import known_models, sizes_seen
from sightrail.guardrails.screening.settings import Calibrated
from sightrail.guardrails.verdict import Threshold


def picture(width: int = 120, height: int = 90) -> Picture:
    image = Image.effect_noise((width, height), 60).convert("RGB")
    return Picture(image, (image,))


def looking(**settings: Any) -> Looking:
    return Looking(ScreeningSettings(**settings), (1, 1), (96, 96))


def test_scaled_views_lie_in_the_pixels_of_the_picture() -> None:
    own, scaled = views_of(0, picture(), looking(seen_at=(30,), seen_through=("nearest",)))
    assert (own.image.size, scaled.image.size) == ((120, 90), (40, 30))
    assert own.size == scaled.size == (120, 90)
    assert scaled.encoded == [(0, 0, 40, 30)]
    assert scaled.patches == [[(0, 0, 120, 90)]]


def test_what_a_known_model_sees_is_looked_at_closely_where_it_is_something_else() -> None:
    red = Image.new("RGB", (120, 90), "red")
    same, other = red.resize((40, 30)), Image.new("RGB", (40, 30), "blue")
    for scaled, sizes in (((same,), [(120, 90)]), ((same, other), [(120, 90), (40, 30)])):
        views = views_of(0, Picture(red, (red,), scaled), looking())
        assert [view.image.size for view in views] == sizes
        assert len({len(view.encoded) for view in views}) == 1


@pytest.mark.parametrize("patches", ["crops", "tokens"])
def test_a_detector_counts_and_places_them(random_encoder: Encoder, patches: str) -> None:
    settings = ScreeningSettings(
        seen_at=(30,),
        seen_through=("nearest", "nearest_corner"),
        patches=patches,  # type: ignore[arg-type]
        scales=((0.5, 2),),
    )
    everything = Calibrated(picture=Threshold(value=-9.0, source="all is flagged"), patch=-9.0)
    settings = settings.model_copy(update={"calibrated": {"ot": everything}})
    detector = RiskDetector(random_encoder, ConceptBank.default(), settings)
    (verdict,) = detector.screen([picture()])
    assert verdict.frames == 3
    assert verdict.risk_map is not None
    assert verdict.risk_map.size == (120, 90)
    assert all(0 <= r.box[0] < r.box[2] <= 120 and r.box[3] <= 90 for r in verdict.regions)


# As closely as the model behind


@pytest.mark.parametrize(
    ("size", "seen"),
    [((4000, 3000), (1280, 960)), ((4000, 300), (2048, 154)), ((640, 480), (640, 480))],
)
def test_named_models_see_a_picture_at_their_own_size(
    size: tuple[int, int], seen: tuple[int, int]
) -> None:
    assert max(sizes_seen(size, None, ("gpt-4o", "claude"))) == seen


def test_every_model_of_the_table_says_where_its_size_is_from() -> None:
    for model in known_models().values():
        assert "." in model.source
        assert 1 <= min(model.size((12_000, 9_000))) <= 9_000


def test_an_ordinary_photograph_is_looked_at_closely_enough() -> None:
    photo = Image.new("RGB", (4032, 3024), "red")
    [view] = views_of(0, Picture(photo, (photo,)), Looking(ScreeningSettings(), (1, 1), (336, 336)))
    assert view.unresolved is None
    assert len(view.encoded) == 35
    assert view.image.width < 4032  # made smaller once, and not for every crop
    assert view.patches[-1] == [(2688, 2016, 4032, 3024)]


def test_a_panorama_gets_windows_that_are_not_squashed() -> None:
    wide = Image.new("RGB", (4000, 300), "red")
    [view] = views_of(0, Picture(wide, (wide,)), Looking(ScreeningSettings(), (1, 1), (336, 336)))
    assert view.unresolved is None
    tiles = [box for box, level in zip(view.placed, view.levels, strict=True) if level == 3]
    assert tiles
    assert all((right - left) <= 4.1 * (bottom - top) for left, top, right, bottom in tiles)
    assert min(t[0] for t in tiles) == 0
    assert max(t[2] for t in tiles) == 4000


def test_what_the_budget_does_not_resolve_is_said_and_refused(random_encoder: Encoder) -> None:
    detector = RiskDetector(random_encoder, ConceptBank.default())
    large = Image.new("RGB", (3000, 2000), "red")
    [verdict] = detector.screen([large])
    assert [why.reason for why in verdict.not_inspected] == ["not_resolved"]
    assert Policy().decide(verdict) == "refuse"
    [small] = detector.with_settings(seen_at=(96,)).screen([large])
    assert small.not_inspected == ()
    strip = Image.new("RGB", (20_000, 8), "red")
    assert detector.screen([strip])[0].not_inspected[0].reason == "not_resolved"


@given(
    st.tuples(st.integers(8, 5000), st.integers(8, 5000)),
    st.tuples(st.floats(1, 900), st.floats(1, 900)),
)
def test_tiles_cover_the_picture_within_the_budget(
    size: tuple[int, int], tile: tuple[float, float]
) -> None:
    tiles = tile_boxes(size, tile, 70)
    if tiles is None:
        return
    assert 1 <= len(tiles) <= 70
    for axis in (0, 1):
        spans = sorted({(box[axis], box[axis + 2]) for box in tiles})
        assert spans[0][0] == 0
        assert spans[-1][1] == size[axis]
        assert all(one[1] >= other[0] for one, other in pairwise(spans))


def test_a_model_that_is_not_in_the_table_is_an_error_that_names_those_that_are() -> None:
    with pytest.raises(ValidationError, match=r"gpt-4o, .*claude"):
        ScreeningSettings(seen_by=("gpt-5000",))


@pytest.mark.parametrize("wrong", [{"seen_at": (4,)}, {"seen_through": ("magic",)}])
def test_impossible_sizes_are_rejected(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ScreeningSettings(**wrong)  # type: ignore[arg-type]
