"""What a guardrail says about a picture or a request: one pydantic model, safe for logs.

A verdict holds numbers, boxes and names; never pixels and never a user's text.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, NoReturn, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from .errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

Key = TypeVar("Key")
Value = TypeVar("Value")


class FrozenDict(dict[Key, Value]):
    """A dict that is read, compared, copied, pickled and serialised like any other, never changed.

    Example:
        >>> FrozenDict(weapons=0.4)["weapons"]
        0.4
        >>> FrozenDict(weapons=0.4).update(weapons=0.0)
        Traceback (most recent call last):
        TypeError: this mapping cannot be changed
    """

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("this mapping cannot be changed")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[FrozenDict[Key, Value]], tuple[dict[Key, Value]]]:
        return FrozenDict, (dict(self),)


def _freeze(value: Mapping[Any, Any]) -> FrozenDict[Any, Any]:
    return FrozenDict(value)


FrozenMap = Annotated[Mapping[Key, Value], AfterValidator(_freeze)]
"""The type of a pydantic field that holds a ``FrozenDict``, whatever mapping it was given."""


__all__ = [
    "Action",
    "NotInspected",
    "Region",
    "RiskMap",
    "Status",
    "Threshold",
    "Transport",
    "Verdict",
]

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels of the picture that travels on; right, bottom excluded."""

Status = Literal["clean", "flagged", "not_inspected", "failed"]
Action = Literal["allow", "mask", "drop", "refuse", "raise"]
Taken = Action | Literal["ask"]
"""What was done; `ask`: tool calls wait for a person."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NotInspected(_Frozen):
    """Why a picture, or a part of an input, was not looked at.

    `reason` is a stable code (`truncated`, `too_large`, `remote_url` ...), `detail` one sentence
    without file names or content.
    """

    reason: str
    detail: str = ""

    @classmethod
    def because(cls, error: ImageError) -> Self:
        """What intake's error says."""
        return cls(reason=error.reason, detail=error.detail)


class Region(_Frozen):
    """A place that looks unsafe.

    Attributes:
        box: where, in pixels of the picture.
        category: of what.
        score: higher is riskier, on the detector's own scale.
        cut_off: whether the processor of the model behind it cuts this place off, so that it is
            found in the whole picture, and not in what the model sees.
    """

    box: Box
    category: str
    score: float
    cut_off: bool = False


class Cells(NamedTuple):
    """A risk map as a grid of unequal cells: cell [j, i] lies between the edges ys[j], ys[j + 1]
    and xs[i], xs[i + 1] (pixels) and has the risk risk[j, i].
    """

    xs: NDArray[np.int64]
    ys: NDArray[np.int64]
    risk: NDArray[np.float32]


class RiskMap(_Frozen):
    """The risk of every patch looked at: `boxes[i]` has risk `scores[i]` (higher is riskier)."""

    size: tuple[int, int] = Field(description="width and height of the picture in pixels")
    boxes: tuple[Box, ...]
    scores: tuple[float, ...]

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.boxes) != len(self.scores):
            raise ValueError(f"{len(self.boxes)} boxes but {len(self.scores)} scores")
        return self

    def cells(self) -> Cells:
        """The map without loss, in as many cells as its boxes have different edges.

        A cell's risk is the mean over the patches that cover it, each weighted by the inverse of
        its area, so that the finest look at a place says most; where no patch lies, the lowest.
        """
        width, height = self.size
        boxes = np.asarray(self.boxes, dtype=np.int64).reshape(-1, 4)
        xs = np.unique(np.clip(np.append(boxes[:, [0, 2]], [0, width]), 0, width))
        ys = np.unique(np.clip(np.append(boxes[:, [1, 3]], [0, height]), 0, height))
        columns, rows = np.searchsorted(xs, boxes[:, [0, 2]]), np.searchsorted(ys, boxes[:, [1, 3]])
        total = np.zeros((len(ys) - 1, len(xs) - 1))
        weight = np.zeros_like(total)
        for box, (x0, x1), (y0, y1), score in zip(boxes, columns, rows, self.scores, strict=True):
            share = 1.0 / max(1, int((box[2] - box[0]) * (box[3] - box[1])))
            total[y0:y1, x0:x1] += share * score
            weight[y0:y1, x0:x1] += share
        lowest = min(self.scores, default=0.0)
        risk = np.where(weight > 0, total / np.maximum(weight, 1e-30), lowest)
        return Cells(xs, ys, risk.astype(np.float32))

    def to_array(self, size: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """The map in pixels, [height, width]; takes four bytes a pixel and no more.

        Args:
            size: (width, height) of the result; the picture's own when None. A large picture's map
                says no more in all of its pixels than in a few hundred a side.
        """
        cells = self.cells()
        width, height = size or self.size
        columns = _cell_of(cells.xs, width, self.size[0])
        rows = _cell_of(cells.ys, height, self.size[1])
        return cells.risk[rows[:, None], columns]


def _cell_of(edges: NDArray[np.int64], count: int, length: int) -> NDArray[np.int64]:
    """The cell in which the middle of each of `count` equal parts of the length lies."""
    middles = (np.arange(count) + 0.5) * (length / max(1, count))
    found: NDArray[np.int64] = np.searchsorted(edges, middles, side="right") - 1
    return found


class Threshold(_Frozen):
    """A decision threshold and where it came from.

    Attributes:
        value: flagged when the score reaches it.
        source: names the data and the rule.
        false_alarms: the promised share of benign ones that reach it; None promises nothing.
        confidence: of that promise; None beside a share: it holds on average over calibrations.
        n: how many benign scores the promise rests on.
        missed: at most this share of attacks like the labelled ones stays below, with the same
            confidence (0.95 where the promise holds on average); None where none were labelled.
    """

    value: float
    source: str
    false_alarms: float | None = None
    confidence: float | None = None
    n: int | None = None
    missed: float | None = None


class Transport(_Frozen):
    """Whether the optimal transport behind a score converged.

    `marginal_error` is the largest deviation of a plan's marginals from the ones asked for.
    """

    converged: bool
    marginal_error: float = Field(ge=0)


class Verdict(_Frozen):
    """The verdict on one picture, or on one request as a whole.

    Attributes:
        subject: what was judged: a picture by screening, a request by a guardrail in the model, or
            the tool calls that an answer proposed, by the policy's `calls`.
        guardrail: the name of the guardrail that judged a request.
        status: `clean` and `flagged` come from a finished inspection; `not_inspected` and `failed`
            are never to be read as safe.
        category: the riskiest unsafe category (None where nothing was inspected).
        score: its risk, higher is riskier; flagged when >= threshold.value.
        p_value: how often a benign one of the calibration would score this high or higher; None
            where no calibration is known. Not the chance that this one is benign.
        scores: the risk of every unsafe category.
        measures: what else a guardrail measured on the way to its score, by name.
        regions: where the picture is risky, riskiest first.
        action: what the policy did about it; None as long as none was applied.
        frames: how many views of the picture were looked at (animation frames, alpha on black, the
            sizes at which a model will see it).
        seen_at: the rendering that the score comes from: the picture as it came (None), or what a
            model's processor leaves of it at this width and height.
        kept: the part of the picture that the processor of the model behind it leaves, in pixels;
            None where that is all of it, or no model is known.
        timings_ms: milliseconds by step, for the whole batch that the picture was part of.
    """

    status: Status
    subject: Literal["picture", "request", "calls"] = "picture"
    guardrail: str | None = None
    category: str | None = None
    score: float | None = None
    p_value: float | None = None
    threshold: Threshold | None = None
    scores: FrozenMap[str, float] = Field(default_factory=FrozenDict)
    measures: FrozenMap[str, float] = Field(default_factory=FrozenDict)
    regions: tuple[Region, ...] = ()
    risk_map: RiskMap | None = None
    transport: Transport | None = None
    not_inspected: tuple[NotInspected, ...] = ()
    action: Taken | None = None
    image_size: tuple[int, int] | None = None
    frames: int = 1
    seen_at: tuple[int, int] | None = None
    kept: Box | None = None
    encoder: str | None = None
    timings_ms: FrozenMap[str, float] = Field(default_factory=FrozenDict)

    @classmethod
    def on_request(
        cls,
        guardrail: str,
        score: float,
        threshold: Threshold | None,
        measures: Mapping[str, float] | None = None,
        p_value: float | None = None,
    ) -> Verdict:
        """The verdict on a whole request, flagged when the score reaches the threshold.

        Without a threshold nothing is flagged: the score is there to be read. A score that is no
        number is a failure.
        """
        if isnan(score):
            return cls.failed_request(guardrail, "the score is not a number")
        flagged = threshold is not None and score >= threshold.value
        return cls(
            status="flagged" if flagged else "clean",
            subject="request",
            guardrail=guardrail,
            score=score,
            p_value=p_value,
            threshold=threshold,
            measures=FrozenDict(measures or {}),
        )

    @classmethod
    def uninspected(cls, reason: str, detail: str = "") -> Verdict:
        """The verdict on a picture that could not be looked at."""
        return cls(
            status="not_inspected", not_inspected=(NotInspected(reason=reason, detail=detail),)
        )

    @classmethod
    def failed(cls, reason: str) -> Verdict:
        """The verdict when the inspection itself broke: failed, never safe."""
        return cls(status="failed", not_inspected=(NotInspected(reason="failed", detail=reason),))

    @classmethod
    def failed_request(cls, guardrail: str, reason: str) -> Verdict:
        """The verdict on a request when the guardrail that judges it broke."""
        why = (NotInspected(reason="failed", detail=reason),)
        return cls(status="failed", subject="request", guardrail=guardrail, not_inspected=why)

    @property
    def flagged_categories(self) -> tuple[str, ...]:
        """Every category that reached the threshold, riskiest first."""
        if self.status != "flagged" or self.threshold is None:
            return ()
        reached = {c: s for c, s in self.scores.items() if s >= self.threshold.value}
        return tuple(sorted(reached, key=lambda category: -reached[category]))

    def beside(self, kept: Box | None) -> Verdict:
        """This verdict, saying of each region whether a model that is shown this part sees it."""
        if kept is None:
            return self
        left, top, right, bottom = kept

        def cut_off(box: Box) -> bool:
            return box[2] <= left or box[0] >= right or box[3] <= top or box[1] >= bottom

        regions = tuple(
            region.model_copy(update={"cut_off": cut_off(region.box)}) for region in self.regions
        )
        return self.model_copy(update={"kept": kept, "regions": regions})

    def taken(self, action: Taken) -> Verdict:
        """This verdict with the action that was taken on it."""
        return self.model_copy(update={"action": action})

    def summary(self) -> str:
        """One line for people: what was found and what was done."""
        if self.status in ("not_inspected", "failed"):
            why = "; ".join(
                f"{n.reason}: {n.detail}" if n.detail else n.reason for n in self.not_inspected
            )
            found = f"{self.status.replace('_', ' ')} ({why})"
        elif self.score is None or self.threshold is None:
            found = self.status
        else:
            relation = ">=" if self.status == "flagged" else "<"
            compared = f"{self.score:.3f} {relation} {self.threshold.value:.3f}"
            found = f"{self.status}: {self.category or self.guardrail} {compared}"
            if self.seen_at is not None:
                found += " (as a model sees it at {} x {})".format(*self.seen_at)
            if self.regions and all(region.cut_off for region in self.regions):
                found += " (in a part that the model is not shown)"
        return f"{found} -> {self.action}" if self.action else found

    def draw(self, image: Image) -> Image:
        """A copy of the picture that this verdict is about, its regions outlined and named."""
        from .verdict_drawing import draw_regions

        return draw_regions(self, image)

    def _repr_html_(self) -> str:
        """What a notebook shows: the summary, the risk map, the regions."""
        from .verdict_drawing import verdict_html

        return verdict_html(self)

    def _repr_png_(self) -> bytes | None:
        """The risk map where a front end shows pictures only; None where there is no map."""
        from .verdict_drawing import risk_map_png

        return risk_map_png(self)
