"""Several detectors as one: who looks, who decides, and what is merged."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from sightrail.guardrails import CachedDetector, ConfigurationError, Picture, Policy
from sightrail.guardrails.carriers.loop import ask
from sightrail.guardrails.guarantees import needed
from sightrail.guardrails.screening.calibration import Calibration, OnOneScale
from sightrail.guardrails.screening.cascade import Band, Cascade, Together
from sightrail.guardrails.verdict import NotInspected, Region, Threshold, Verdict

BOX = Region(box=(1, 1, 4, 4), category="knife", score=0.9)


OWN = Threshold(value=1.0, source="test")


def grey(value: int, request: str = "") -> Picture:
    image = Image.new("RGB", (8, 8), (value, value, value))
    return Picture(image, (image,), request=request)


def colour(value: tuple[int, int, int]) -> Picture:
    image = Image.new("RGB", (8, 8), value)
    return Picture(image, (image,))


@dataclass
class Scored:
    """Its score is the picture's brightness over 100."""

    threshold: float = 0.5
    region: bool = True
    name: str = "scored"
    wants_request: bool = False
    seen: list[list[int]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def screen(self, images):
        pictures = [image if isinstance(image, Picture) else grey(image) for image in images]
        self.seen.append([picture.image.getpixel((0, 0))[0] for picture in pictures])
        self.requests += [picture.request for picture in pictures]
        return [self._verdict(value / 100) for value in self.seen[-1]]

    def _verdict(self, score):
        if score > 2:
            return Verdict.failed("broken")
        flagged = score >= self.threshold
        return Verdict(
            status="flagged" if flagged else "clean",
            guardrail=self.name,
            category="knife",
            score=score,
            scores={"knife": score},
            threshold=Threshold(value=self.threshold, source="test"),
            regions=(BOX,) if flagged and self.region else (),
            image_size=(8, 8),
            timings_ms={"look": 1.0},
        )


def statuses(verdicts):
    return [verdict.status for verdict in verdicts]


def test_the_second_sees_only_what_the_first_is_unsure_of() -> None:
    then = Scored(threshold=0.6)
    cascade = Cascade(Scored(), then, band=(0.3, 0.8))
    found = cascade.screen([grey(v) for v in (10, 30, 65, 80, 95)])
    assert statuses(found) == ["clean", "clean", "flagged", "flagged", "flagged"]
    assert then.seen == [[30, 65]]
    assert [v.measures["escalated"] for v in found] == [0, 1, 1, 0, 0]
    assert found[2].measures["first"] == 0.65
    assert found[0].threshold.value == 0.8
    assert set(found[2].timings_ms) == {"look", "then look"}


def test_the_seconds_word_stands_and_the_firsts_regions_are_kept() -> None:
    clears = Cascade(Scored(threshold=0.1), Scored(threshold=0.9)).screen([grey(50)])[0]
    assert (clears.status, clears.regions) == ("clean", ())
    flags = Cascade(Scored(), Scored(region=False, name="judge"), band=(0, 1)).screen([grey(60)])[0]
    assert (flags.status, flags.guardrail, flags.regions) == ("flagged", "judge", (BOX,))


def test_whoever_breaks_fails_and_is_never_passed_over() -> None:
    def broken(images):
        raise OSError("gone")

    then = Scored()
    then.screen = broken
    found = Cascade(Scored(), then, band=(0.3, 0.8)).screen([grey(10), grey(50), grey(220)])
    assert statuses(found) == ["clean", "failed", "failed"]
    assert ask(Cascade(then, Scored()), [grey(50)])[0][0].status == "failed"


def test_a_picture_that_cannot_be_read_is_not_inspected_by_any() -> None:
    for detector in (Cascade(Scored(), Scored()), Together(Scored(), Scored())):
        found = detector.screen([b"no picture", grey(60)])
        assert statuses(found) == ["not_inspected", "flagged"]


def test_a_band_from_calibration_keeps_both_promises() -> None:
    benign = [v % 50 for v in range(needed(0.05, None) * 2)]
    attacks = [40 + v % 60 for v in range(60)]
    fitted = Cascade(Scored(), Scored()).calibrate(
        benign, attacks, false_alarms=0.1, missed=0.05, confidence=None, source="greys"
    )
    found = fitted.screen([grey(v) for v in benign])
    alone = [v for v in found if v.status == "flagged" and not v.measures["escalated"]]
    assert len(alone) <= 0.05 * len(benign)
    passed = [v for v in fitted.first.screen(attacks) if v.score < fitted.band.low]
    assert len(passed) <= 0.05 * len(attacks)
    assert "greys" in fitted.band.source
    with pytest.raises(ConfigurationError, match="benign scores"):
        fitted.calibrate(benign[:5], attacks, source="few")


@dataclass(frozen=True)
class Channel(OnOneScale):
    """Its score is one of a picture's colours, over 100."""

    number: int
    calibration: Calibration | None = None

    def screen(self, images):
        limit = self.calibration.threshold if self.calibration else OWN
        colours = [image.image.getpixel((0, 0))[self.number] / 100 for image in images]
        scored = Scored(limit.value, name=f"channel {self.number}")
        return [scored._verdict(c).model_copy(update={"threshold": limit}) for c in colours]


@pytest.mark.parametrize("shared", [0.0, 0.7, 1.0])
def test_together_keeps_one_promise_however_its_detectors_depend(shared) -> None:
    rng = np.random.default_rng(5)

    def benign(n: int) -> list[Picture]:
        common = rng.normal(size=(n, 1)) * shared
        colours = 90 + 18 * (common + (1 - shared) * rng.normal(size=(n, 3)))
        return [colour(tuple(map(int, np.clip(row, 0, 199)))) for row in colours]

    shares = []
    for _ in range(12):
        pair = Together(Channel(0), Channel(1)).calibrate(
            benign(200), false_alarms=0.1, confidence=None, source="colours"
        )
        shares.append(np.mean([v.status == "flagged" for v in pair.screen(benign(300))]))
    assert np.mean(shares) < 0.115  # three standard errors of 3600 draws
    assert statuses(pair.screen([colour((199, 0, 0)), colour((0, 199, 0))])) == ["flagged"] * 2


def test_together_says_what_it_promises() -> None:
    benign = [colour((v % 100, v * 7 % 100, 0)) for v in range(300)]
    pair = Together(Channel(0), Channel(1)).calibrate(benign, false_alarms=0.05, source="colours")
    limit = pair.screen([grey(10)])[0].threshold
    assert (limit.false_alarms, limit.confidence) == (0.05, pytest.approx(0.95))
    mixed = Together(Channel(0), Scored()).screen([grey(10)])[0].threshold
    assert (mixed.false_alarms, mixed.confidence) == (None, None)
    with pytest.raises(ConfigurationError, match="146"):  # 2.5 % at 97.5 %
        Together(Channel(0), Channel(1)).calibrate(benign[:50], false_alarms=0.05, source="few")
    with pytest.raises(ConfigurationError, match="Scored has no calibrate"):
        Together(Channel(0), Scored()).calibrate(benign, source="colours")


def test_together_flags_what_any_flags() -> None:
    pair = Together(Scored(threshold=0.5, name="a"), Scored(threshold=0.8, name="b"))
    clean, one, both = pair.screen([grey(30), grey(60), grey(90)])
    assert statuses([clean, one, both]) == ["clean", "flagged", "flagged"]
    assert clean.score == pytest.approx(-0.2)
    assert one.score == pytest.approx(0.1)
    assert one.threshold.value == 0
    assert one.flagged_categories == ("knife",)
    assert one.measures == {"a": 0.6, "b": 0.6}
    assert Policy().decide(one) == "mask"


def test_what_one_flags_without_a_place_covers_all_of_it() -> None:
    found = Together(Scored(), Scored(region=False)).screen([grey(60)])[0]
    assert {region.box for region in found.regions} == {(1, 1, 4, 4), (0, 0, 8, 8)}


def test_what_one_could_not_see_is_not_clean_because_another_could() -> None:
    class Blind:
        def screen(self, images):
            return [Verdict.uninspected("dark") for _ in images]

    class Broken:
        def screen(self, images):
            return [Verdict.failed("broken") for _ in images]

    assert Together(Scored(), Blind()).screen([grey(10)])[0].status == "not_inspected"
    flagged = Together(Scored(), Blind()).screen([grey(60)])[0]
    assert flagged.not_inspected == (NotInspected(reason="dark"),)
    assert Policy().decide(flagged) == "refuse"
    assert Together(Scored(), Broken()).screen([grey(10)])[0].status == "failed"
    lenient = Policy(on_not_inspected="allow")
    assert lenient.decide(Together(Scored(), Broken()).screen([grey(60)])[0]) == "refuse"


def test_only_those_who_want_the_words_see_them() -> None:
    wants, does_not = Scored(wants_request=True), Scored()
    for whole in (Together(wants, does_not), Cascade(does_not, wants)):
        assert whole.wants_request
        assert ask(whole, [grey(60, "the words")])[0][0].status == "flagged"
    assert wants.requests == ["the words"] * 2
    assert does_not.requests == [""] * 2
    assert not Together(Scored(), Scored()).wants_request
    cached = CachedDetector(wants)
    assert cached.wants_request
    for words in ("one", "two", "one"):
        cached.screen([grey(60, words)])
    assert wants.requests[2:] == ["one", "two"]
    plain = CachedDetector(Scored())
    for words in ("one", "two"):
        ask(plain, [grey(60, words)])
    assert len(plain.detector.seen) == 1


def test_the_words_are_in_no_repr() -> None:
    assert "secret" not in repr(grey(1, "secret"))


def test_p_values_are_merged_so_that_dependence_does_no_harm() -> None:
    class Known(Scored):
        def screen(self, images):
            return [v.model_copy(update={"p_value": 0.02}) for v in super().screen(images)]

    assert Together(Known(), Known(), Known()).screen([grey(1)])[0].p_value == pytest.approx(0.06)
    assert Together(Known(), Scored()).screen([grey(1)])[0].p_value is None


def test_they_travel_and_decide_alike() -> None:
    for detector in (Together(Scored(), Scored(0.9)), Cascade(Scored(), Scored(0.9), (0.2, 0.8))):
        copy = pickle.loads(pickle.dumps(detector))
        pictures = [grey(v) for v in range(0, 100, 7)]
        assert copy.screen(pictures) == detector.screen(pictures)


def test_what_cannot_be() -> None:
    for make in (
        lambda: Together(Scored()),
        lambda: Together(Scored(), object()),
        lambda: Cascade(Scored(), None),
        lambda: Cascade(Scored(), Scored(), band=(0.8, 0.2)),
    ):
        with pytest.raises(ConfigurationError):
            make()
    assert Cascade(Scored(), Scored()).band == Band()
