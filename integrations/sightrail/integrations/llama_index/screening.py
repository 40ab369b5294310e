"""Screening LlamaIndex values: find the pictures, look at all of them at once, act on each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from llama_index.core.base.llms.types import ChatMessage

from sightrail.guardrails.carriers.carrier import Marker
from sightrail.guardrails.carriers.loop import (
    Framework,
    OnVerdict,
    PictureLoop,
    Screened,
    tell_nobody,
)
from sightrail.guardrails.errors import ImageRefused
from sightrail.guardrails.intake import Limits
from sightrail.guardrails.policy import Policy, Surface
from sightrail.guardrails.screening.asking import Detector, check_categories, checked_detector

from .events import report
from .marks import is_refused, read_marker, write_marker
from .walk import Walk, surface_of


@dataclass(frozen=True)
class ImageScreen:
    """A detector and what is done about its verdicts, for any LlamaIndex value.

    Takes messages, blocks, nodes, tool outputs, responses, and lists and dicts of them; gives the
    same kind back. The other parts of this package are made of it, and so are a workflow's steps.

    Args:
        detector: has ``screen(images) -> list[Verdict]``, such as ``RiskDetector``.
        policy: what a verdict leads to. Under ``monitor`` the values go on as they came.
        limits: what intake is willing to read.
        surface: where what stands in no message, tool output or node came from.
        component: who screens, for LlamaIndex's instrumentation, traces and logs.
        on_verdict: called with every verdict, in the thread that screens.
        reports: whether LlamaIndex's instrumentation is told; what an agent sends again with every
            step was reported when it was new.

    Raises:
        ConfigurationError: that is no detector.

    Example:
        ``[outcome] = ImageScreen(detector).screen([messages])``
    """

    detector: Detector
    policy: Policy = field(default_factory=Policy)
    limits: Limits = field(default_factory=Limits)
    surface: Surface = "user"
    component: str = "ImageScreen"
    on_verdict: OnVerdict | None = None
    reports: bool = True

    def __post_init__(self) -> None:
        check_categories((checked_detector(self.detector),), self.policy)

    def screen(
        self, values: Sequence[Any], *, together: bool = False
    ) -> list[Screened | ImageRefused]:
        """Screen several values with one call of the detector.

        Args:
            values: nothing in them is changed.
            together: the limits on one request hold for all values, not for each.

        Returns:
            One outcome per value, in order; ImageRefused where the policy's action is ``raise``.
        """
        return self.loop.screen(values, together=together)

    async def ascreen(
        self, values: Sequence[Any], *, together: bool = False
    ) -> list[Screened | ImageRefused]:
        """``screen`` in a worker thread."""
        return await asyncio.to_thread(self.screen, values, together=together)

    @property
    def loop(self) -> PictureLoop:
        """What looks at pictures here."""
        return PictureLoop(
            (self.detector,),
            self.policy,
            self.limits,
            LLAMA_INDEX if self.reports else _IN_SILENCE,
            component=self.component,
            surface=self.surface,
            on_verdict=self.on_verdict,
        )


def _was_refused(value: Any) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return is_refused([item for item in values if isinstance(item, ChatMessage)])


def _marker_on(value: Any) -> Marker | None:
    return read_marker(value) if isinstance(value, ChatMessage) else None


LLAMA_INDEX: Final = Framework(
    Walk, write_marker, _was_refused, report, surface_of, read=_marker_on
)
_IN_SILENCE: Final = replace(LLAMA_INDEX, report=tell_nobody)
