"""The risk detector: pictures in, a verdict each, with where the risk is (GuardAlign, 3.1)."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import islice
from typing import Any, Final, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from ..deadline import check_time
from ..errors import ConfigurationError
from ..guarantees import ALARMS, CONFIDENCE, conformal_p_value
from ..intake import Limits, Picture, PictureSource
from ..verdict import Box, FrozenDict, Verdict
from .asking import decoded
from .concepts import ConceptBank
from .encoder import Encoder, load_encoder
from .looking import Look, Looker, Looking, View, find_all_regions, risk_of, views_of
from .regions import summarise
from .scoring import TextBank, embed_bank, score_patches, worst_transport
from .settings import Calibrated, Score, ScreeningSettings

_log = logging.getLogger(__name__)

_PICTURES_AT_ONCE: Final = 64
_PIXELS_AT_ONCE: Final = 50_000_000

_SCORED_TOGETHER: Final = 16


@dataclass(frozen=True, eq=False)
class RiskDetector:
    """Finds whether, and where, pictures show unsafe concepts.

    `screen` never raises on a bad picture: it becomes a verdict that says why it was not
    inspected. A detector keeps no state across calls and may be shared between threads.

    Example:
        >>> detector = RiskDetector.from_pretrained("testbed")
        >>> [verdict] = detector.screen(["holiday.png"])  # doctest: +SKIP
        >>> verdict.status, verdict.regions  # doctest: +SKIP

    Attributes:
        encoder: the open_clip model.
        concepts: what pictures are compared with.
        settings: how it looks and decides.
        limits: what it is willing to decode.
    """

    encoder: Encoder
    concepts: ConceptBank
    settings: ScreeningSettings = field(default_factory=ScreeningSettings)
    limits: Limits = field(default_factory=Limits)

    needs = frozenset({"pixels"})

    def __post_init__(self) -> None:
        if self.settings.score == "ot" and not self.concepts.benign:
            raise ConfigurationError(
                "The score 'ot' compares with benign anchors and the concept bank has none; add "
                "some (ConceptBank.with_benign) or choose score='ot_printed'"
            )

    @classmethod
    def from_pretrained(
        cls,
        name: str | None = None,
        *,
        concepts: ConceptBank | None = None,
        settings: ScreeningSettings | None = None,
        limits: Limits | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Load an encoder, its concept bank and its calibrated settings.

        Args:
            name: see load_encoder; None never means the testbed.
            concepts: the bank; the one beside the encoder, else the default one, when None.
            settings: how to look and decide; what lies beside the encoder, else the defaults.
            limits: bounds on pictures.
            device: a torch device; a GPU where there is one when None.
            dtype: of the weights; float32 when None.

        Raises:
            ModelLoadError: the encoder cannot be loaded.
            ConfigurationError: a setting, the bank or the name is not possible.
        """
        encoder = load_encoder(name, device=device, dtype=dtype)
        beside = encoder.folder / "concepts.toml" if encoder.folder else None
        own = (
            ConceptBank.from_file(beside) if beside and beside.is_file() else ConceptBank.default()
        )
        return cls(
            encoder,
            concepts or own,
            settings or ScreeningSettings.beside(encoder.folder),
            limits or Limits(),
        )

    @property
    def categories(self) -> frozenset[str]:
        """The unsafe categories of its bank, which are all that its verdicts can name."""
        return frozenset(self.concepts.unsafe)

    @property
    def encoder_name(self) -> str:
        """What the encoder was asked for by."""
        return self.encoder.name

    @property
    def is_testbed(self) -> bool:
        """Whether the encoder is the embedded one, which knows its own world only."""
        return self.encoder.is_testbed

    def with_settings(self, **changes: Any) -> Self:
        """This detector, on the same encoder, with some settings changed.

        Raises:
            ConfigurationError: an unknown setting, or a value that is not possible.
        """
        try:
            settings = ScreeningSettings.model_validate({**self.settings.model_dump(), **changes})
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
        return replace(self, settings=settings)

    def _limit(self) -> Calibrated:
        """The thresholds; that nobody calibrated them is logged once for each encoder and score."""
        settings = self.settings
        if settings.score not in settings.calibrated:
            _not_calibrated(self.encoder.name, settings.score)
        return settings.limit_for(len(self.concepts.unsafe))

    def screen(self, images: Iterable[PictureSource | Picture]) -> list[Verdict]:
        """Look at pictures of any sizes in one encoder pass.

        Args:
            images: anything `read_picture` takes, or pictures it has read.

        Returns:
            One verdict a picture, in order.

        Raises:
            ConfigurationError: the chosen score has no threshold yet (see `calibrate`).
            TimeoutError: the deadline of this context passed (see `deadline.time_limit`).
        """
        limit = self._limit()
        return [verdict for part in self._parts(images) for verdict in self._look(part, limit)]

    def screen_again(
        self, pictures: Sequence[Picture], covered: Sequence[Sequence[Box]]
    ) -> list[Verdict]:
        """Look at pictures whose risky places were covered, where the cover lies.

        Whatever the cover does not touch was looked at before and found to be clean (see
        `regions.find_all_regions`). Costs a fraction of a first look: it ends with the windows of
        the first scale where these are clean by more than the encoder's temperature. What is clean
        by less in the end is looked at in full.

        Args:
            pictures: as they are now.
            covered: for each the boxes that were covered, in its pixels.

        Returns:
            One verdict a picture, in order, without a risk map; its regions are what is still to
            be seen.

        Raises:
            ConfigurationError: the chosen score has no threshold yet.
            TimeoutError: the deadline of this context passed.
        """
        limit = self._limit()
        started = time.perf_counter()
        views = self.views(pictures)
        quick = self._looking
        if quick.bands is not None:
            quick = quick.model_copy(update={"look": "coarse_to_fine"})
        sure = limit.picture.value - 1 / self.encoder.logit_scale
        looker = Looker(self.encoder, self.texts, quick, stop_when_flagged=True, clean_below=sure)
        looks = list(looker.look(views, [covered[view.owner] for view in views]))
        for look in looks:
            risk = risk_of(look)  # the whole picture's own patches are known already
            if risk.picture.max() < limit.picture.value and risk.parts.max() > sure:
                looker.look_at_the_rest(look)
        timings = {"screen": 1000 * (time.perf_counter() - started)}
        return [
            self._verdict(
                picture,
                [look for look in looks if look.view.owner == i],
                limit,
                timings,
                mapped=False,
            )
            for i, picture in enumerate(pictures)
        ]

    def calibrate(
        self,
        benign: Iterable[PictureSource | Picture],
        *,
        false_alarms: float = ALARMS,
        confidence: float | None = CONFIDENCE,
        source: str,
        attacks: Iterable[PictureSource | Picture] = (),
    ) -> Self:
        """This detector with a threshold that promises how many benign pictures it will flag.

        Args:
            benign: pictures of the kind that will be screened, without unsafe content. What cannot
                be read does not count.
            false_alarms: the share of such pictures to come that may be flagged, in (0, 1).
            confidence: of that promise; None promises the average over calibrations alone. 1 % at
                95 % needs 299 pictures, 99 on average.
            source: what they are, for the threshold's provenance.
            attacks: labelled unsafe pictures; they give a bound on how many are missed.

        Raises:
            ConfigurationError: too few for this promise, or it is not possible; the message says
                which can be kept.
        """
        settings = self.settings.with_calibration(
            self._scores(benign),
            false_alarms=false_alarms,
            confidence=confidence,
            source=source,
            attacks=self._scores(attacks),
        )
        return replace(self, settings=settings)

    def _scores(self, images: Iterable[PictureSource | Picture]) -> list[float]:
        """The risk of every picture that can be read; a few are in memory at once."""
        scores: list[float] = []
        read = (
            item for image in images if isinstance(item := decoded(image, self.limits), Picture)
        )
        while part := list(islice(read, _SCORED_TOGETHER)):
            views = [view for i, picture in enumerate(part) for view in self._views(i, picture)]
            highest = [-np.inf] * len(part)
            for look in Looker(self.encoder, self.texts, self._looking).look(views):
                owner = look.view.owner
                highest[owner] = max(highest[owner], float(risk_of(look).picture.max()))
            scores += highest
        return scores

    @property
    def _looking(self) -> ScreeningSettings:
        return self.settings.looking()

    @property
    def whole_patches(self) -> int:
        """How many of a view's patches are the whole picture's own; they come first."""
        if self._looking.patches == "crops":
            return 1
        rows, columns = self.encoder.token_grid
        return rows * columns

    @cached_property
    def texts(self) -> TextBank:
        """The concept bank's embeddings, computed once."""
        return embed_bank(self.encoder, self.concepts)

    def views(self, pictures: Sequence[Picture]) -> list[View]:
        """What is looked at of these pictures, in order; see ``views.views_of``."""
        return [view for i, picture in enumerate(pictures) for view in self._views(i, picture)]

    def embed(self, pictures: Sequence[Picture]) -> list[Tensor]:
        """Unit embeddings of every patch of every view.

        Returns:
            One [M, D] a view, in order; a picture has one view, more if it is animated,
            transparent, or seen at other sizes as well.
        """
        views = self.views(pictures)
        everything = self._looking.model_copy(update={"look": "all"})
        looks = Looker(self.encoder, self.texts, everything).look(views)
        return [look.patches for look in looks if look.patches is not None]

    def picture_scores(
        self, pictures: Sequence[Picture], scores: Sequence[Score]
    ) -> dict[Score, list[float]]:
        """What several scores say of the same pictures, from one encoding and one of the wholes.

        Args:
            pictures: as intake decoded them.
            scores: which ones; see ``ScreeningSettings.score``.

        Returns:
            By score, one risk a picture: its riskiest rendering's, as in ``screen``.
        """
        looks = {score: self.with_settings(score=score, look="all") for score in scores}
        seen: dict[bool, list[tuple[int, Tensor]]] = {}
        found: dict[Score, list[float]] = {}
        for score, look in looks.items():
            alone = score == "whole_cosine"
            if alone not in seen:
                owners = [view.owner for view in look.views(pictures)]
                seen[alone] = list(zip(owners, look.embed(pictures), strict=True))
            best = [-np.inf] * len(pictures)
            for owner, patches in seen[alone]:
                whole = min(len(patches), look.whole_patches)
                (risk,) = score_patches(patches[None], self.texts, look.settings, whole=whole)
                best[owner] = max(best[owner], float(risk.picture.max()))
            found[score] = best
        return found

    def _parts(self, images: Iterable[PictureSource | Picture]) -> Iterator[list[_Read]]:
        """The pictures read, as many at a time as fit into memory together."""
        part: list[_Read] = []
        pixels = 0
        for image in images:
            check_time()
            started = time.perf_counter()
            read = decoded(image, self.limits)
            if isinstance(read, Picture):
                pixels += sum(view.width * view.height for view in read.views)
            part.append(_Read(read, 1000 * (time.perf_counter() - started)))
            if pixels >= _PIXELS_AT_ONCE or len(part) >= _PICTURES_AT_ONCE:
                yield part
                part, pixels = [], 0
        if part:
            yield part

    def _look(self, part: Sequence[_Read], limit: Calibrated) -> list[Verdict]:
        started = time.perf_counter()
        views = [
            view
            for i, read in enumerate(part)
            if isinstance(read.picture, Picture)
            for view in self._views(i, read.picture)
        ]
        looks = list(Looker(self.encoder, self.texts, self._looking).look(views))
        timings = {
            "decode": sum(read.milliseconds for read in part),
            "screen": 1000 * (time.perf_counter() - started),
        }
        return [
            read.picture
            if isinstance(read.picture, Verdict)
            else self._verdict(
                read.picture, [look for look in looks if look.view.owner == i], limit, timings
            )
            for i, read in enumerate(part)
        ]

    def _views(self, owner: int, picture: Picture) -> list[View]:
        grid = self.encoder.token_grid if self._looking.patches != "crops" else (1, 1)
        return views_of(owner, picture, Looking(self._looking, grid, self.encoder.side))

    def _verdict(
        self,
        picture: Picture,
        looks: Sequence[Look],
        limit: Calibrated,
        timings: dict[str, float],
        *,
        mapped: bool = True,
    ) -> Verdict:
        """The verdict of the riskiest view; regions of every view that has the picture's size."""
        texts = self.texts
        risks = [risk_of(look) for look in looks]
        per_category = np.max([risk.picture for risk in risks], axis=0)
        transport = worst_transport(risks)
        if not np.isfinite(per_category).all():
            return Verdict.failed("the encoder gave scores that are not numbers")
        if transport is not None and not transport.converged:
            failed = Verdict.failed("the optimal transport behind the score did not converge")
            return failed.model_copy(update={"transport": transport})
        worst = max(looks, key=lambda look: float(risk_of(look).picture.max()))
        score = float(per_category.max())
        flagged = score >= limit.picture.value
        shown = [look for look in looks if look.view.size == picture.image.size] if flagged else []
        regions = [
            region
            for look in shown
            for region in find_all_regions(look, texts, self._looking, limit)
        ]
        unresolved = {look.view.unresolved for look in looks} - {None}
        return Verdict(
            status="flagged" if flagged else "clean",
            category=texts.categories[int(per_category.argmax())],
            score=score,
            p_value=conformal_p_value(score, limit.benign),
            threshold=limit.picture,
            scores=FrozenDict(zip(texts.categories, map(float, per_category), strict=True)),
            regions=tuple(sorted(regions, key=lambda region: -region.score)),
            risk_map=summarise(worst.boxes, risk_of(worst).patches.max(1), worst.view.size)
            if mapped
            else None,
            transport=transport,
            not_inspected=tuple(why for why in unresolved if why is not None),
            image_size=picture.image.size,
            frames=len(looks),
            seen_at=worst.view.seen_at,
            encoder=self.encoder.name,
            timings_ms=FrozenDict(timings),
        )


@cache
def _not_calibrated(encoder: str, score: Score) -> None:
    _log.warning(
        "The threshold of %s on %s was not calibrated; fit it on your own benign pictures with "
        "RiskDetector.calibrate or `sightrail calibrate`.",
        score,
        encoder,
    )


class _Read(NamedTuple):
    """A picture that was read, or why it could not be, and how long that took."""

    picture: Picture | Verdict
    milliseconds: float
