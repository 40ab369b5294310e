"""How a detector looks and decides, with the thresholds that were calibrated for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from ..errors import ConfigurationError
from ..guarantees import ALARMS, CONFIDENCE, guaranteed_threshold
from ..published import Source
from ..verdict import Threshold
from .encoder import Scales
from .seen_by import SPARSE, Scaler, known_models

SETTINGS_FILE: Final = "screening.json"
"""Lies beside an encoder's weights when thresholds were calibrated for it."""

Score = Literal["ot", "ot_printed", "patch_cosine", "whole_cosine"]
Patches = Literal["crops", "tokens", "values"]
Side = Annotated[int, Field(ge=8)]
Weights = Literal["uniform", "printed", "confident"]

PAPER_TAU: Final = 0.42
_MOST_COST: Final = 1.2  # 1 - cos, where no cosine is below -0.2
_ROUNDING: Final = 1e-5  # what a score may differ by between batches of other sizes


class Calibrated(BaseModel):
    """What was calibrated for one score.

    Attributes:
        picture: the threshold of the picture's decision.
        patch: the one for a patch to join a region.
        benign: the benign scores that it came from, ascending: for p-values and checks of drift.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    picture: Threshold
    patch: float
    benign: tuple[float, ...] = ()


_UNCALIBRATED: Final[dict[Score, Calibrated]] = {
    "ot": Calibrated(
        picture=Threshold(
            value=0.0,
            source="not calibrated: the point where an unsafe concept fits as well as the best "
            "benign anchor; fit it on your own benign pictures with RiskDetector.calibrate",
        ),
        patch=0.0,
    ),
    "ot_printed": Calibrated(
        picture=Threshold(
            value=-PAPER_TAU, source="the paper's tau = 0.42 (arXiv 2602.24027), not portable"
        ),
        patch=-PAPER_TAU,
    ),
}


class Bands(BaseModel):
    """When looking coarse to fine is over, as a calibration found it: see ``fit_bands``.

    Attributes:
        clean_below: for each level but the finest, the risk of all patches together below which a
            picture is clean.
        look_closer: for each level but the whole, the margin (in cosines, of an unsafe text over
            the best benign one) that something seen in the place of a crop has to reach for the
            crop to be looked at.
        source: the data and the rule.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    clean_below: tuple[float, ...]
    look_closer: tuple[float, ...]
    source: str


class ScreeningSettings(BaseModel):
    """How a detector looks and decides.

    Attributes:
        score: `ot`, anchored partial transport (see transport.anchored_risk); `ot_printed`, the
            paper's patch score d(m), thresholded at the picture's riskiest patch; `patch_cosine`,
            the best cosine of any patch; `whole_cosine`, the best cosine of the whole picture.
        patches: `crops` takes one embedding a crop; `tokens` and `values` read every patch token of
            each crop (with `scales=()`, of one pass over the whole picture).
        scales: the crops, besides the whole picture: (share of the side, windows along a side).
        weights: the patch weights a^m: uniform, or softmax of the entropy with either sign.
            `ot_printed`, for which eq. 7 knows no uniform ones, takes `printed` then.
        masks: what a mask of `ot_printed` covers: `peaks` of the smoothed map, as for the other
            scores, or every one of the `patches` with d(m) <= tau, as the paper has it.
        epsilon: entropic strength of `ot`, in units of the encoder's temperature 1 / logit scale,
            so that one setting means the same for encoders with narrow and wide cosines.
        printed_epsilon: the same for `ot_printed`; the paper does not state it.
        share: the part of a picture's mass that is transported to a category.
        whole_share: the same in a second transport, over the patches of the whole picture alone;
            the riskier of the two counts. It finds what fills the picture and is cut up by crops,
            such as a rendered sentence. None leaves it out.
        tolerance: marginal error up to which a transport counts as converged.
        seen_by: models, by the names in ``seen_by.toml``, that may be behind this detector. What
            they see at their own size is looked at as closely as they do (see `max_crops`), and so
            is what only their scalers would show. `LocalLVLM` adds its own model's size.
        seen_at: sizes in place of these models': the shorter side, or (width, height).
        seen_through: the scalers by which the picture may be made smaller.
        max_crops: of one rendering. Where more would be needed to look as closely as the model
            does, the verdict says so (`not_resolved`), and the policy decides.
        look: `all` encodes every crop; `coarse_to_fine` begins with the whole picture and stops
            where `bands` allow it.
        bands: for `coarse_to_fine`, and for looking again at what was masked.
        calibrated: thresholds by score.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: Score = "ot"
    patches: Patches = "crops"
    scales: Scales = ((0.5, 3), (1 / 3, 5))
    weights: Weights = "uniform"
    masks: Literal["peaks", "patches"] = "peaks"
    epsilon: PositiveFloat = 1.0
    printed_epsilon: PositiveFloat = 0.1
    share: float = Field(default=0.1, gt=0, lt=1)
    whole_share: float | None = Field(default=None, gt=0, lt=1)
    tolerance: PositiveFloat = 1e-3
    seen_by: tuple[str, ...] = ("gpt-4o", "claude")
    seen_at: tuple[Side | tuple[Side, Side], ...] | None = None
    seen_through: tuple[Scaler, ...] = SPARSE
    max_crops: PositiveInt = 70
    look: Literal["all", "coarse_to_fine"] = "all"
    bands: Bands | None = None
    calibrated: dict[Score, Calibrated] = Field(default_factory=dict)

    SOURCES: ClassVar[Mapping[str, Source]] = {
        "score": "paper",
        "patches": "our reading",
        "scales": "our reading",
        "weights": "paper",
        "masks": "paper",
        "epsilon": "our reading",
        "printed_epsilon": "related code",
        "share": "our reading",
        "whole_share": "our reading",
        "tolerance": "our reading",
        "seen_by": "our reading",
        "seen_at": "our reading",
        "seen_through": "our reading",
        "max_crops": "our reading",
        "look": "our reading",
        "bands": "our reading",
        "calibrated": "paper",
    }

    @field_validator("seen_by")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := set(names) - known_models().keys():
            known = ", ".join(known_models())
            raise ValueError(f"unknown models {sorted(unknown)}; use {known}, or seen_at=sizes")
        return names

    @model_validator(mode="after")
    def _bands_for_levels(self) -> Self:
        if self.look == "coarse_to_fine" and self.bands is None:
            raise ValueError("look='coarse_to_fine' needs bands; fit them with fit_bands")
        return self

    @classmethod
    def published(cls, categories: int, *, side: int = 4, weights: Weights = "printed") -> Self:
        """The paper's patch score with its threshold, on patches that do not overlap.

        From the paper: the score d(m), tau = 0.42. Its eq. 7 prints `weights="printed"` and its
        sentence says `"confident"`; both are possible. Patches, the strength of the entropic
        regularisation (0.1, as AWT has it) and text weights are not stated; ours. The picture is
        flagged by its riskiest patch, where the paper only masks. Every patch with d(m) <= tau is
        masked, but never the whole picture, which is a patch here as well.

        d(m) is a^m times a sum over the C categories of a mean cost 1 - cos. With the usual weights
        near 1 / M and cosines above -0.2, no d(m) exceeds 1.2 C / M; a tau above that flags every
        patch of every picture.

        Args:
            categories: C, unsafe categories of the concept bank.
            side: patches along a side; the whole picture is one more, so M = side^2 + 1.
            weights: of the patches.

        Raises:
            ConfigurationError: tau = 0.42 says nothing for so many patches and so few categories.
        """
        made = cls(
            score="ot_printed",
            patches="crops",
            scales=((1 / side, side),),
            weights=weights,
            masks="patches",
        )
        made.limit_for(categories)
        return made

    @classmethod
    def beside(cls, folder: Path | None) -> Self:
        """The settings that lie in an encoder's folder; the defaults where none do.

        Raises:
            ConfigurationError: the file is there and cannot be read.
        """
        path = folder / SETTINGS_FILE if folder else None
        return cls() if path is None or not path.is_file() else cls.from_file(path)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """The settings that a calibration wrote.

        Raises:
            ConfigurationError: the file is missing or is none of these.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise ConfigurationError(f"{path.name} holds no usable settings: {error}") from error

    def looking(self) -> Self:
        """These settings with the patches that the score can use: `whole_cosine` takes one
        embedding of the whole picture, whatever `patches` and `scales` say.
        """
        if self.score != "whole_cosine":
            return self
        return self.model_copy(update={"patches": "crops", "scales": ()})

    def thresholds(self) -> Calibrated:
        """The thresholds of the chosen score.

        Raises:
            ConfigurationError: a plain cosine has no threshold that would hold for any encoder.
        """
        found = self.calibrated.get(self.score) or _UNCALIBRATED.get(self.score)
        if found is None:
            raise ConfigurationError(
                f"The score {self.score!r} has no calibrated threshold for this encoder; fit one "
                f"with RiskDetector.calibrate(benign pictures), or use score='ot'"
            )
        return found

    def limit_for(self, categories: int) -> Calibrated:
        """The thresholds of the chosen score, where they mean something for so many categories.

        Raises:
            ConfigurationError: there are none; or the paper's tau stands for what nobody
                calibrated, and no patch could lie above it (see ``published``).
        """
        patches = 1 + sum(windows * windows for _, windows in self.scales)
        most = _MOST_COST * categories / patches
        printed = self.score == "ot_printed" and self.score not in self.calibrated
        if printed and most <= PAPER_TAU:
            raise ConfigurationError(
                f"tau = {PAPER_TAU} flags every patch here: with C = {categories} categories and "
                f"M = {patches} patches, d(m) <= {_MOST_COST} * C / M = {most:.2f}. Take fewer "
                "patches, more categories, or fit a threshold with RiskDetector.calibrate."
            )
        return self.thresholds()

    def with_calibration(
        self,
        benign: Sequence[float],
        *,
        false_alarms: float = ALARMS,
        confidence: float | None = CONFIDENCE,
        source: str,
        attacks: Sequence[float] = (),
    ) -> Self:
        """These settings with a threshold for the chosen score; see
        :func:`guarantees.guaranteed_threshold`.

        Raises:
            ConfigurationError: too few scores for the promise, or it is not possible.
        """
        threshold = guaranteed_threshold(
            benign,
            false_alarms=false_alarms,
            confidence=confidence,
            source=source,
            attacks=attacks,
            margin=_ROUNDING,
        )
        kept = tuple(sorted(round(float(score), 6) for score in benign))
        new = Calibrated(picture=threshold, patch=threshold.value, benign=kept)
        return self.model_copy(update={"calibrated": {**self.calibrated, self.score: new}})
