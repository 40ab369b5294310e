"""The contract of detectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..errors import ConfigurationError, ImageError
from ..intake import Limits, Picture, PictureSource, read_picture
from ..verdict import Verdict

if TYPE_CHECKING:
    from ..policy import Policy, SurfaceRules
    from ..verdict import Box


class Detector(Protocol):
    """Anything that looks at pictures: one verdict each, in order.

    A detector that also wants the words of the request says so by an attribute `wants_request` that
    is True; the pictures it gets then have them (`Picture.request`). One that knows all the
    categories that its verdicts can name says so by an attribute `categories`; a policy that names
    another is then refused.
    """

    def screen(self, images: Sequence[Picture], /) -> list[Verdict]:
        """Look at decoded pictures."""


def wants_request(detector: object) -> bool:
    """Whether a detector looks at a picture together with the words of the request."""
    return getattr(detector, "wants_request", False) is True


def shown_to(detector: object, pictures: Sequence[Picture]) -> list[Picture]:
    """The pictures as a detector may see them: with the request's words only if it wants them."""
    if wants_request(detector):
        return list(pictures)
    if not any(getattr(picture, "request", "") for picture in pictures):
        return list(pictures)
    return [replace(picture, request="") for picture in pictures]


@runtime_checkable
class LooksAgain(Protocol):
    """A detector that can check a mask for less than a first look costs; others look anew."""

    def screen_again(
        self, pictures: Sequence[Picture], covered: Sequence[Sequence[Box]], /
    ) -> list[Verdict]:
        """Look where pictures were covered, at boxes in their pixels: one verdict each, in order.

        Whatever the covers do not touch was looked at before.
        """


def looked_again(
    detector: Detector, pictures: Sequence[Picture], covered: Sequence[Sequence[Box]]
) -> list[Verdict]:
    """A detector's verdicts on masked pictures: by its own second look, else by a whole one."""
    shown = shown_to(detector, pictures)
    if isinstance(detector, LooksAgain):
        return list(detector.screen_again(shown, covered))
    return list(detector.screen(shown))


def sound_verdicts(detector: object, verdicts: Sequence[Any], count: int) -> list[Verdict]:
    """What a detector gave for so many pictures; `failed` where that is no verdict to go by.

    One with a score that is no number says nothing: no comparison with it holds, and what was not
    flagged would pass.
    """
    name = type(detector).__name__
    if len(verdicts) != count:
        return [
            Verdict.failed(f"{name} gave {len(verdicts)} verdicts for {count} pictures")
        ] * count
    return [_sound(name, verdict) for verdict in verdicts]


def _sound(name: str, verdict: Any) -> Verdict:
    if not isinstance(verdict, Verdict):
        return Verdict.failed(f"{name} gave no verdict")
    scores = [*verdict.scores.values(), *(() if verdict.score is None else (verdict.score,))]
    if any(map(math.isnan, scores)):
        return Verdict.failed(f"{name} gave scores that are not numbers")
    return verdict


@runtime_checkable
class ReadsWords(Protocol):
    """A detector that can say what is written in pictures, such as TextInPicture."""

    def words(self, pictures: Sequence[Picture], /) -> list[str | None]:
        """The text of each picture, in order; None where it could not be read in substance.

        What is read is for the caller alone: it is never logged and stands in no verdict.
        """


def reader_in(*detectors: object) -> ReadsWords | None:
    """The first that reads, also within those that are made of others; None where none does."""
    for detector in detectors:
        if isinstance(detector, ReadsWords):
            return detector
        inner = [getattr(detector, name, None) for name in ("detector", "first", "then")]
        more = getattr(detector, "detectors", None)
        inner += more if isinstance(more, list | tuple) else []
        if (found := reader_in(*(part for part in inner if part is not None))) is not None:
            return found
    return None


def checked_detector(detector: Any) -> Detector:
    """The detector.

    Raises:
        ConfigurationError: it is none.
    """
    if isinstance(detector, type) or not callable(getattr(detector, "screen", None)):
        raise ConfigurationError(
            f"{type(detector).__name__} is no detector: it has no method screen(images). "
            'Pass one such as RiskDetector.from_pretrained("ViT-L-14-336/openai").'
        )
    valid: Detector = detector
    return valid


def categories_of(detectors: Sequence[object]) -> frozenset[str] | None:
    """All the categories that verdicts of these detectors can name; None where one does not say."""
    known = [getattr(detector, "categories", None) for detector in detectors]
    if not known or any(names is None for names in known):
        return None
    return frozenset(name for names in known for name in names or ())


def check_categories(detectors: Sequence[object], policy: Policy) -> None:
    """Make sure that a policy names categories that exist: a misspelt one would rule nothing.

    Raises:
        ConfigurationError: no detector can ever name one of them.
    """
    rules: tuple[Policy | SurfaceRules, ...] = (policy, *policy.surfaces.values())
    named = {name for rule in rules for name in rule.categories}
    known = categories_of(detectors) if named else None
    if known is not None and (strange := sorted(named - known)):
        raise ConfigurationError(
            f"The policy names {', '.join(map(repr, strange))}, and the detector has no such "
            f"category. It has: {', '.join(sorted(known))}."
        )


def decoded(image: PictureSource | Picture, limits: Limits) -> Picture | Verdict:
    """The picture, decoded unless it was; the verdict on one that cannot be."""
    try:
        return image if isinstance(image, Picture) else read_picture(image, limits)
    except ImageError as error:
        return Verdict.uninspected(error.reason, error.detail)
