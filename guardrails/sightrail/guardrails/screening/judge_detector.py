"""A judge model as a detector: a second opinion on pictures, alone or with the request."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from PIL import Image
from pydantic import PositiveInt, TypeAdapter, ValidationError

from ..errors import ConfigurationError
from ..intake import Limits, Picture, PictureSource
from ..judging.judges import Judge, JudgeCase
from ..judging.profiles import Judged
from ..verdict import NotInspected, Threshold, Verdict
from .asking import decoded
from .calibration import Calibration, OnOneScale
from .looking import renderings

__all__ = ["JudgeDetector"]

NAME: Final = "judge"
_OWN: Final = Threshold(value=0.5, source="the judge's own decision")
_COUNT: Final = TypeAdapter(PositiveInt)


@dataclass(frozen=True, eq=False)
class JudgeDetector(OnOneScale):
    """Asks a judge model about every picture.

    It has the interface of every detector. It says whether a picture is harmful, and not where, so
    a flagged picture is refused where it could have been masked. What the judge did not answer, or
    not as its profile reads it, is not inspected.

    Example:
        >>> from sightrail.guardrails.judging import Endpoint, EndpointJudge
        >>> served = Endpoint(base_url="http://127.0.0.1:8000/v1", model="llama-guard")
        >>> JudgeDetector(EndpointJudge(served, "llama-guard-4")).name
        'judge llama-guard-4 llama-guard'

    Attributes:
        judge: EndpointJudge, LocalJudge, ShieldGemmaJudge, or anything with their interface.
        with_request: show the judge the request's words beside the picture: harm that only both
            together make. Surfaces then hand them on.
        max_side: larger pictures are made smaller before they are sent, in pixels.
        max_views: a picture that can be shown in more ways (frames of an animation) is not
            inspected beyond them.
        limits: what intake is willing to decode.
        calibration: a threshold on the judge's score in place of its decision; see `calibrate`.

    Raises:
        ConfigurationError: the judge is none, or a number is not possible.
    """

    judge: Judge
    with_request: bool = False
    max_side: int = 1536
    max_views: int = 4
    limits: Limits = field(default_factory=Limits)
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if not callable(getattr(self.judge, "judge", None)):
            raise ConfigurationError(
                f"{type(self.judge).__name__} is no judge: it has no method judge(cases)"
            )
        try:
            _COUNT.validate_python(self.max_side), _COUNT.validate_python(self.max_views)
        except ValidationError as error:
            raise ConfigurationError("max_side and max_views are at least 1") from error

    @property
    def name(self) -> str:
        """What to call it in verdicts."""
        return f"{NAME} {self.judge.name}"

    @property
    def wants_request(self) -> bool:
        """See asking.Detector."""
        return self.with_request

    def screen(self, images: Iterable[PictureSource | Picture]) -> list[Verdict]:
        """Ask the judge about pictures, about all of them at once.

        Args:
            images: anything `read_picture` takes, or pictures it has read.

        Returns:
            One verdict a picture, in order.
        """
        started = time.perf_counter()
        taken = [decoded(image, self.limits) for image in images]
        cases = [self._cases(item) if isinstance(item, Picture) else [] for item in taken]
        opinions = iter(self.judge.judge([case for own in cases for case in own]))
        timings = {"judge": 1000 * (time.perf_counter() - started)}
        return [
            item
            if isinstance(item, Verdict)
            else self._verdict(item, list(islice(opinions, len(own)))).model_copy(
                update={"timings_ms": timings}
            )
            for item, own in zip(taken, cases, strict=True)
        ]

    def _cases(self, picture: Picture) -> list[JudgeCase]:
        text = picture.request if self.with_request and picture.request else None
        shown = islice(renderings(picture), self.max_views)
        return [JudgeCase(_shrunk(view, self.max_side), text) for view in shown]

    def _verdict(self, picture: Picture, opinions: Sequence[Judged | NotInspected]) -> Verdict:
        found = [opinion for opinion in opinions if isinstance(opinion, Judged)]
        gaps = [opinion for opinion in opinions if isinstance(opinion, NotInspected)]
        if len(list(islice(renderings(picture), self.max_views + 1))) > self.max_views:
            gaps.append(NotInspected(reason="too_many_views", detail="not all frames were judged"))
        if not found:
            return Verdict(
                status="not_inspected",
                guardrail=NAME,
                not_inspected=tuple(dict.fromkeys(gaps)),
                image_size=picture.image.size,
            )
        worst = max(found, key=lambda judged: judged.score)
        limit = self.calibration.threshold if self.calibration else _OWN
        scores: dict[str, float] = {}
        for judged in found:
            scores[judged.category] = max(judged.score, scores.get(judged.category, 0.0))
        return Verdict(
            status="flagged" if worst.score >= limit.value else "clean",
            guardrail=NAME,
            category=worst.category,
            score=worst.score,
            p_value=self.p_value(worst.score),
            threshold=limit,
            scores=scores,
            measures={"from_probabilities": sum(j.from_probabilities for j in found) / len(found)},
            not_inspected=tuple(dict.fromkeys(gaps)),
            image_size=picture.image.size,
            frames=len(opinions),
            encoder=self.judge.name,
        )


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    if max(image.size) <= side:
        return image
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small
