"""What a guardrail says about a picture or a request: one pydantic model, safe for logs.

A verdict holds numbers, boxes and names; never pixels and never a user's text.
"""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

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


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NotInspected(_Frozen):
    """Why a picture, or a part of an input, was not looked at.

    `reason` is a stable code (`truncated`, `too_large`, `remote_url` ...), `detail` one sentence
    without file names or content.
    """

    reason: str
    detail: str = ""


class Region(_Frozen):
    """A place that looks unsafe. Score: higher is riskier, on the detector's own scale."""

    box: Box
    category: str
    score: float


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

    def to_array(self) -> NDArray[np.float32]:
        """The map in pixels, [height, width]: the mean over the patches that cover a pixel, each
        weighted by the inverse of its area, so that the finest look at a place says most.
        """
        width, height = self.size
        total = np.zeros((height, width), dtype=np.float64)
        weight = np.zeros((height, width), dtype=np.float64)
        for (left, top, right, bottom), score in zip(self.boxes, self.scores, strict=True):
            share = 1.0 / max(1, (right - left) * (bottom - top))
            total[top:bottom, left:right] += share * score
            weight[top:bottom, left:right] += share
        lowest = min(self.scores, default=0.0)
        risk = np.where(weight > 0, total / np.maximum(weight, 1e-30), lowest)
        return risk.astype(np.float32)


class Threshold(_Frozen):
    """A decision threshold and where it came from (`source` names the data and the rule)."""

    value: float
    source: str


class Transport(_Frozen):
    """Whether the optimal transport behind a score converged.

    `marginal_error` is the largest deviation of a plan's marginals from the ones asked for.
    """

    converged: bool
    marginal_error: float = Field(ge=0)


class Verdict(_Frozen):
    """The verdict on one picture, or on one request as a whole.

    Attributes:
        subject: what was judged: a picture by screening, a request by a guardrail in the model.
        guardrail: the name of the guardrail that judged a request.
        status: `clean` and `flagged` come from a finished inspection; `not_inspected` and `failed`
            are never to be read as safe.
        category: the riskiest unsafe category (None where nothing was inspected).
        score: its risk, higher is riskier; flagged when >= threshold.value.
        scores: the risk of every unsafe category.
        measures: what else a guardrail measured on the way to its score, by name.
        regions: where the picture is risky, riskiest first.
        action: what the policy did about it; None as long as none was applied.
        frames: how many views of the picture were looked at (animation frames, alpha on black, the
            sizes at which a model will see it).
        timings_ms: milliseconds by step, for the whole batch that the picture was part of.
    """

    status: Status
    subject: Literal["picture", "request"] = "picture"
    guardrail: str | None = None
    category: str | None = None
    score: float | None = None
    threshold: Threshold | None = None
    scores: dict[str, float] = Field(default_factory=dict)
    measures: dict[str, float] = Field(default_factory=dict)
    regions: tuple[Region, ...] = ()
    risk_map: RiskMap | None = None
    transport: Transport | None = None
    not_inspected: tuple[NotInspected, ...] = ()
    action: Action | None = None
    image_size: tuple[int, int] | None = None
    frames: int = 1
    encoder: str | None = None
    timings_ms: dict[str, float] = Field(default_factory=dict)

    @classmethod
    def on_request(
        cls,
        guardrail: str,
        score: float,
        threshold: Threshold | None,
        measures: dict[str, float] | None = None,
    ) -> Verdict:
        """The verdict on a whole request, flagged when the score reaches the threshold.

        Without a threshold nothing is flagged: the score is there to be read.
        """
        flagged = threshold is not None and score >= threshold.value
        return cls(
            status="flagged" if flagged else "clean",
            subject="request",
            guardrail=guardrail,
            score=score,
            threshold=threshold,
            measures=measures or {},
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

    @property
    def flagged_categories(self) -> tuple[str, ...]:
        """Every category that reached the threshold, riskiest first."""
        if self.status != "flagged" or self.threshold is None:
            return ()
        reached = {c: s for c, s in self.scores.items() if s >= self.threshold.value}
        return tuple(sorted(reached, key=lambda category: -reached[category]))

    def taken(self, action: Action) -> Verdict:
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
        return f"{found} -> {self.action}" if self.action else found

    def _repr_html_(self) -> str:
        """What a notebook shows: the summary, the risk map, the regions."""
        from .verdict_drawing import verdict_html

        return verdict_html(self)

    def _repr_png_(self) -> bytes | None:
        """The risk map where a front end shows pictures only; None where there is no map."""
        from .verdict_drawing import risk_map_png

        return risk_map_png(self)
