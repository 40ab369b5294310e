"""One contract for every detector that is made of others, whatever it adds."""

from __future__ import annotations

import ast
import math
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from PIL import Image

from repository import ROOT
from sightrail.guardrails import CachedDetector, Picture
from sightrail.guardrails.carriers.loop import ask, ask_again
from sightrail.guardrails.deadline import check_time
from sightrail.guardrails.screening.asking import (
    Detector,
    LooksAgain,
    categories_of,
    wants_request,
)
from sightrail.guardrails.screening.cascade import Cascade, Together
from sightrail.guardrails.verdict import Box, Region, Threshold, Verdict

OWN = Threshold(value=0.5, source="test")
COVERED = ((1, 1, 5, 5), (6, 0, 8, 8))


def picture(value: int = 0, request: str = "") -> Picture:
    image = Image.new("RGB", (8, 8), (value, value, value))
    return Picture(image, (image,), request=request)


def verdict(score: float) -> Verdict:
    flagged = not score < OWN.value
    return Verdict(
        status="flagged" if flagged else "clean",
        category="knife",
        score=score,
        threshold=OWN,
        regions=(Region(box=(1, 1, 4, 4), category="knife", score=score),) if flagged else (),
        image_size=(8, 8),
    )


@dataclass
class Whole:
    """Looks at whole pictures alone; a score is given, or what to do in its place."""

    score: float | Callable[[], float] = 0.1
    wants_request: bool = False
    categories: frozenset[str] | None = frozenset({"knife"})
    told: list[tuple[str, Any]] = field(default_factory=list)

    def screen(self, images: Sequence[Picture], /) -> list[Verdict]:
        self.told += [("whole", image.request) for image in images]
        return [self._verdict() for _ in images]

    def _verdict(self) -> Verdict:
        return verdict(self.score() if callable(self.score) else self.score)


@dataclass
class Twice(Whole):
    """Has a second look of its own, with another score."""

    again: float | Callable[[], float] = 0.1

    def screen_again(
        self, pictures: Sequence[Picture], covered: Sequence[Sequence[Box]], /
    ) -> list[Verdict]:
        self.told += [("again", tuple(boxes)) for boxes in covered]
        score = self.again
        return [verdict(score() if callable(score) else score) for _ in pictures]


class _Memory:
    """A memory of verdicts as an actor has it, in this process."""

    def __init__(self) -> None:
        self.known: dict[bytes, str] = {}
        self.recall = self.remember = self

    def remote(self, told: Any) -> Any:
        if isinstance(told, dict):
            return self.known.update(told)
        return [self.known.get(key) for key in told]


def _shared(inner: Detector) -> Detector:
    replicas = pytest.importorskip(
        "sightrail.integrations.ray.replicas", reason="the ray extra is not installed"
    )

    class Shared(replicas.SharedVerdicts):  # type: ignore[misc, name-defined]
        def _recalled(self, keys: Sequence[bytes]) -> list[str | None]:
            return list(self._memory.recall.remote(list(keys)))

    detector: Detector = Shared(inner, _Memory())
    return detector


Make = Callable[[Detector], Detector]
MADE: dict[str, Make] = {
    "CachedDetector": CachedDetector,
    "Together": lambda inner: Together(inner, Whole()),
    "Together, second": lambda inner: Together(Whole(), inner),
    "Cascade": lambda inner: Cascade(inner, Whole(), band=(0.5, 0.9)),
    "SharedVerdicts": _shared,
    "Cascade of cached": lambda inner: Cascade(CachedDetector(inner), Whole(), band=(0.5, 0.9)),
    "cached Together": lambda inner: CachedDetector(Together(inner, Whole())),
}
LEAVES = {"RiskDetector", "TextInPicture", "JudgeDetector", "StubDetector", "Blind"}


@pytest.fixture(params=MADE)
def make(request: pytest.FixtureRequest) -> Make:
    return MADE[request.param]


def _detector_classes() -> Iterable[str]:
    for root in ("guardrails", "runnables", "integrations"):
        for path in (ROOT / root).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    screens = (
                        item
                        for item in node.body
                        if isinstance(item, ast.FunctionDef) and item.name == "screen"
                    )
                    if any(
                        "images" in {a.arg for a in (*s.args.args, *s.args.posonlyargs)}
                        for s in screens
                    ):
                        yield node.name


def test_no_detector_is_left_out() -> None:
    assert {*_detector_classes()} - {"Detector"} == LEAVES | {
        name.split(",")[0] for name in MADE if " of " not in name and not name[0].islower()
    }


def test_a_mask_is_checked_by_the_second_look_of_what_is_inside(make: Make) -> None:
    inner = Twice(score=0.7)
    detector = make(inner)
    assert isinstance(detector, LooksAgain)
    first, _ = ask(detector, [picture(), picture(9)])
    assert [found.status for found in first] in (["flagged"] * 2, ["clean"] * 2)  # Cascade's second
    found, cause = ask_again(detector, picture(5), COVERED)
    assert (found.status, cause) == ("clean", None)
    assert inner.told == [("whole", ""), ("whole", ""), ("again", COVERED)]


def test_what_has_no_second_look_looks_anew(make: Make) -> None:
    inner = Whole(score=0.95)
    found, _ = ask_again(make(inner), picture(), COVERED)
    assert (found.status, inner.told) == ("flagged", [("whole", "")])


def test_what_a_second_look_finds_is_told(make: Make) -> None:
    found, _ = ask_again(make(Twice(again=0.95)), picture(), COVERED)
    assert found.status == "flagged"
    assert [region.box for region in found.regions] == [(1, 1, 4, 4)]


def test_a_second_look_at_nothing_is_nothing(make: Make) -> None:
    detector: Any = make(Twice())
    assert detector.screen_again([], []) == []


def _broken() -> float:
    raise OSError("gone")


def _late() -> float:
    raise TimeoutError("late")


@pytest.mark.parametrize("score", [_broken, _late, math.nan])
def test_what_breaks_inside_fails_in_either_look(make: Make, score: Any) -> None:
    detector = make(Twice(score=score, again=score))
    (first,), _ = ask(detector, [picture()])
    again, _ = ask_again(detector, picture(), COVERED)
    assert (first.status, again.status) == ("failed", "failed")


def test_too_few_verdicts_are_none(make: Make) -> None:
    @dataclass
    class Silent(Twice):
        def screen(self, images: Sequence[Picture], /) -> list[Verdict]:
            return []

        def screen_again(
            self, pictures: Sequence[Picture], covered: Sequence[Sequence[Box]], /
        ) -> list[Verdict]:
            return []

    (first,), _ = ask(make(Silent()), [picture()])
    again, _ = ask_again(make(Silent()), picture(), COVERED)
    assert (first.status, again.status) == ("failed", "failed")


@pytest.mark.parametrize("wants", [False, True])
def test_words_reach_those_that_want_them(make: Make, wants: bool) -> None:
    inner = Whole(wants_request=wants)
    detector = make(inner)
    assert wants_request(detector) is wants
    ask(detector, [picture(request="what is it")])
    ask_again(detector, picture(7, request="what is it"), COVERED)
    assert [words for _, words in inner.told] == (["what is it"] * 2 if wants else ["", ""])


@pytest.mark.parametrize("known", [frozenset({"knife", "axe"}), None])
def test_categories_are_told_on(make: Make, known: frozenset[str] | None) -> None:
    detector = make(Whole(categories=known))
    assert categories_of((detector,)) == known


def test_a_deadline_ends_it(make: Make) -> None:
    def slow() -> float:
        while True:
            check_time()

    (first,), _ = ask(make(Twice(score=slow)), [picture()], timeout_s=0.05)
    again, _ = ask_again(make(Twice(again=slow)), picture(), COVERED, timeout_s=0.05)
    assert (first.status, again.status) == ("failed", "failed")


@pytest.mark.parametrize("name", [name for name in MADE if name != "SharedVerdicts"])
def test_a_pickled_one_is_still_there(name: str) -> None:
    detector = pickle.loads(pickle.dumps(MADE[name](Twice(again=0.95))))
    assert ask_again(detector, picture(), COVERED)[0].status == "flagged"


@pytest.mark.parametrize(
    ("score", "limit", "status", "asked"),
    [
        (0.1, 0.2, "clean", False),  # below the band, and the first is sure there
        (0.1, 0.5, "flagged", True),  # the first's own threshold is higher: its score is rough here
        (0.6, 0.2, "flagged", True),  # in the band
        (0.95, 0.2, "flagged", False),  # above it
    ],
)
def test_a_cascade_takes_the_firsts_quick_word_only_where_it_is_exact(
    score: float, limit: float, status: str, asked: bool
) -> None:
    def quick(pictures: Sequence[Picture], covered: Sequence[Sequence[Box]]) -> list[Verdict]:
        own = OWN.model_copy(update={"value": limit})
        flagged = "flagged" if score >= limit else "clean"
        return [verdict(score).model_copy(update={"threshold": own, "status": flagged})]

    first, then = Twice(), Whole(score=0.9)
    first.screen_again = quick  # type: ignore[method-assign]
    [found] = Cascade(first, then, band=(0.3, 0.9)).screen_again([picture()], [COVERED])
    assert (found.status, bool(then.told)) == (status, asked)
