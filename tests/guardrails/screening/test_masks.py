"""Masks are checked: everything risky is covered, what is left is looked at, or nothing passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from sightrail.guardrails import CachedDetector, Picture, RiskDetector, Verdict
from sightrail.guardrails.carriers.loop import ask_again
from sightrail.guardrails.policy import Policy, apply_policy
from sightrail.guardrails.screening.regions import FILL, LOOKS, MARGIN, cover_regions, with_margin
from sightrail.guardrails.verdict import Box, Region
from sightrail.testbed.conversations import MASK_COLOUR
from sightrail.testbed.scenes import draw_objects
from sightrail.testbed.splits import SPLITS

TEST = SPLITS["test"]
PHOTO = Image.effect_noise((80, 80), 60).convert("RGB")
FIRST, SECOND = (10, 10, 20, 20), (50, 50, 60, 60)


def found(*boxes: Box) -> Verdict:
    regions = tuple(Region(box=box, category="weapons", score=0.9) for box in boxes)
    return Verdict(
        status="flagged" if boxes else "clean",
        category="weapons",
        regions=regions,
        timings_ms={"screen": 2.0},
    )


@dataclass
class Watcher:
    """Answers looks at masks in turn, and keeps what it was asked."""

    answers: list[Verdict]
    asked: list[tuple[Image.Image, tuple[Box, ...]]] = field(default_factory=list)

    def __call__(self, image: Image.Image, covered: tuple[Box, ...]) -> Verdict:
        self.asked.append((image, covered))
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


def test_what_a_second_look_finds_is_covered_as_well() -> None:
    watcher = Watcher([found(SECOND), found()])
    applied = apply_policy(PHOTO, found(FIRST), Policy(), look_again=watcher)
    assert applied.action == "mask"
    assert [region.box for region in applied.verdict.regions] == [FIRST, SECOND]
    assert applied.verdict.timings_ms["look_again"] == 4.0
    assert applied.image is not None
    assert applied.image.tobytes() == watcher.asked[-1][0].tobytes()
    for box in (FIRST, SECOND):
        assert len(applied.image.crop(box).getcolors() or []) == 1
    assert len(watcher.asked[-1][1]) == 2


@pytest.mark.parametrize(
    "answer", [found(FIRST), found(), Verdict.failed("broke"), Verdict.uninspected("truncated")]
)
def test_a_picture_that_does_not_get_clean_is_refused(answer: Verdict) -> None:
    watcher = Watcher([answer])
    applied = apply_policy(PHOTO, found(FIRST), Policy(), look_again=watcher)
    clean = answer.status == "clean"
    assert (applied.action, applied.image is None) == (
        ("mask", False) if clean else ("refuse", True)
    )
    assert len(watcher.asked) == (LOOKS if answer.status == "flagged" else 1)
    assert any(why.reason == "still_risky" for why in applied.verdict.not_inspected) is not clean


def test_a_soft_edge_that_leaves_something_becomes_hard() -> None:
    watcher = Watcher([found(FIRST), found()])
    applied = apply_policy(PHOTO, found(FIRST), Policy(mask="blur"), look_again=watcher)
    (first, _), (second, covers) = watcher.asked
    assert len(first.crop(covers[0]).getcolors() or []) > 1
    assert len(second.crop(covers[0]).getcolors() or []) == 1
    assert applied.image is not None
    assert applied.image.tobytes() == second.tobytes()


def test_the_model_of_the_testbed_learnt_what_masks_look_like() -> None:
    assert MASK_COLOUR == FILL


def test_a_monitor_covers_nothing_and_looks_once() -> None:
    watcher = Watcher([found(FIRST)])
    assert (
        apply_policy(PHOTO, found(FIRST), Policy(monitor=True), look_again=watcher).image is PHOTO
    )
    assert watcher.asked == []


@pytest.mark.parametrize("box", [(32, 32, 96, 80), (0, 40, 30, 128), (100, 0, 128, 9)])
def test_a_blur_leaves_nothing_of_a_region_and_fades_within_its_margin(box: Box) -> None:
    size = (128, 128)
    words = Image.effect_noise(size, 90).convert("RGB")
    covers = with_margin(box, size)
    for how in ("fill", "blur"):
        covered = cover_regions(words, found(box).regions, how, margin=MARGIN)  # type: ignore[arg-type]
        assert covered.crop(box).getcolors() == [((box[2] - box[0]) * (box[3] - box[1]), FILL)]
        changed = np.asarray(covered) != np.asarray(words)
        changed[covers[1] : covers[3], covers[0] : covers[2]] = False
        assert not changed.any()
    across = [covered.getpixel((x, 5 if box[1] < 5 else 60)) for x in range(covers[0], covers[2])]
    assert len(set(across)) > 1  # the edge


@dataclass
class OneTrick:
    """A detector without a second look of its own."""

    seen: list[int] = field(default_factory=list)

    def screen(self, images: Sequence[Picture]) -> list[Verdict]:
        self.seen.append(len(images))
        return [found() for _ in images]


def test_a_detector_without_a_second_look_looks_anew() -> None:
    for detector in (one := OneTrick(), CachedDetector(two := OneTrick())):
        verdict, cause = ask_again(detector, Picture(PHOTO, (PHOTO,)), [FIRST])
        assert (verdict.status, cause) == ("clean", None)
    assert one.seen == two.seen == [1]


def test_every_object_is_covered_however_weak_beside_the_strongest(
    testbed_detector: RiskDetector,
) -> None:
    left_over = []
    for seed in range(4):
        scene = draw_objects(TEST.rng(900 + seed), TEST, ["bomb", "cat", "axe", "key"])
        [verdict] = testbed_detector.screen([scene.image])
        masked = cover_regions(scene.image, verdict.regions, margin=1 / 16)
        covers = [with_margin(region.box, scene.image.size) for region in verdict.regions]
        [second] = testbed_detector.screen_again([Picture(masked, (masked,))], [covers])
        [whole] = testbed_detector.screen([masked])
        left_over.append((verdict.status, second.status, whole.status))
    assert left_over == [("flagged", "clean", "clean")] * 4


def test_a_second_look_sees_what_a_mask_left_open(testbed_detector: RiskDetector) -> None:
    scene = draw_objects(TEST.rng(903), TEST, ["bomb"])
    left, top, _, _ = scene.unsafe_items[0].box
    corner = (left, top, left + 6, top + 6)
    [second] = testbed_detector.screen_again([Picture(scene.image, (scene.image,))], [[corner]])
    assert second.status == "flagged"
    assert second.regions


@pytest.mark.long
@pytest.mark.parametrize("how", ["fill", "blur"])
def test_a_second_look_misses_nothing_that_a_whole_one_flags(
    testbed_detector: RiskDetector, how: Literal["fill", "blur"]
) -> None:
    """Of risky places as they were found, and of such as are covered by half."""
    both, flagged = [], 0
    for seed in range(12):
        names = [["bomb", "cat"], ["axe", "key", "syringe"], ["knife", "dog", "cup", "dynamite"]]
        scene = draw_objects(TEST.rng(700 + seed), TEST, names[seed % 3])
        [verdict] = testbed_detector.screen([scene.image])
        halves = [
            region.model_copy(update={"box": (a, b, (a + c + 1) // 2, d)})
            for region in verdict.regions
            for a, b, c, d in [region.box]
        ]
        for regions in (verdict.regions, halves):
            masked = cover_regions(scene.image, regions, how, margin=MARGIN)
            covers = [with_margin(region.box, scene.image.size) for region in regions]
            [quick] = testbed_detector.screen_again([Picture(masked, (masked,))], [covers])
            [whole] = testbed_detector.screen([masked])
            both.append((quick.status, whole.status))
            flagged += whole.status == "flagged"
    assert flagged
    assert ("clean", "flagged") not in both
