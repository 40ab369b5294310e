"""Looking coarse to fine: over where the rest is sure, never clean where all crops flag."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from PIL import Image

from sightrail.guardrails import ConfigurationError, Picture, RiskDetector
from sightrail.guardrails.screening import calibration
from sightrail.guardrails.screening.calibration import fit_bands
from sightrail.guardrails.screening.looking import Looker
from sightrail.testbed.recipe.calibrate import with_bands
from sightrail.testbed.scenes import draw_objects, draw_words
from sightrail.testbed.splits import SPLITS

TEST = SPLITS["test"]


def _read(images: Iterable[Image.Image]) -> Iterator[Picture]:
    return (Picture(image, (image,)) for image in images)


@pytest.fixture(scope="module")
def unsafe() -> list[Picture]:
    crowds = [
        draw_objects(TEST.rng(700 + n), TEST, ["bomb", *["cat", "key", "cup"][: n % 4]])
        for n in range(5)
    ]
    words = [draw_words(TEST.rng(710), TEST, "bomb")]
    return list(_read(scene.image for scene in (*crowds, *words)))


def crops_of(detector: RiskDetector, pictures: list[Picture]) -> list[int]:
    looker = Looker(detector.encoder, detector.texts, detector.settings)
    return [len(look.seen) for look in looker.look(detector.views(pictures))]


def test_fitted_bands_settle_none_of_their_pictures_as_clean(
    testbed_detector: RiskDetector, unsafe: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_FEWEST", 3)
    fitted = fit_bands(testbed_detector, unsafe, "six scenes")
    assert (
        len(fitted.clean_below) == len(fitted.look_closer) == len(testbed_detector.settings.scales)
    )
    quick = testbed_detector.with_settings(look="coarse_to_fine", bands=fitted.model_dump())
    in_full = [verdict.status for verdict in testbed_detector.screen(unsafe)]
    assert in_full.count("flagged") >= 3
    assert [verdict.status for verdict in quick.screen(unsafe)] == in_full
    assert sum(crops_of(quick, unsafe)) < sum(crops_of(testbed_detector, unsafe))
    plain = list(_read([Image.new("RGB", (160, 160), "white")]))
    assert [verdict.status for verdict in quick.screen(plain)] == ["clean"]


def test_too_few_pictures_give_no_bands(
    testbed_detector: RiskDetector, unsafe: list[Picture]
) -> None:
    with pytest.raises(ConfigurationError, match="100 are needed"):
        fit_bands(testbed_detector, unsafe[:1], "one scene")


def test_bands_are_needed_to_look_coarse_to_fine(testbed_detector: RiskDetector) -> None:
    with pytest.raises(ConfigurationError, match="fit_bands"):
        testbed_detector.with_settings(look="coarse_to_fine", bands=None)


def test_a_look_at_everything_left_says_what_a_first_look_does(
    testbed_detector: RiskDetector, unsafe: list[Picture]
) -> None:
    looker = Looker(testbed_detector.encoder, testbed_detector.texts, testbed_detector.settings)
    views = testbed_detector.views(unsafe[:1])
    (whole,) = looker.look(views)
    (part,) = looker.look(views, [[(0, 0, 8, 8)]])
    assert 1 < len(part.seen) < len(whole.seen)
    looker.look_at_the_rest(part)
    assert whole.risk is not None
    assert part.risk is not None
    assert np.abs(part.risk.picture - whole.risk.picture).max() <= 1e-5


@pytest.mark.long
def test_the_shipped_bands_are_what_the_recipe_fits(testbed_detector: RiskDetector) -> None:
    shipped = testbed_detector.settings.bands
    fitted = with_bands(testbed_detector).bands
    assert shipped is not None
    assert fitted is not None
    assert fitted.clean_below == pytest.approx(shipped.clean_below, abs=2e-3)
    assert fitted.look_closer == pytest.approx(shipped.look_closer, abs=2e-3)
