"""Screening LlamaIndex values: find the pictures, look at all of them at once, act on each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from llama_index.core.base.llms.types import ChatMessage

from sightrail.guardrails.errors import ImageRefused
from sightrail.guardrails.intake import Limits
from sightrail.guardrails.policy import Policy, Surface
from sightrail.guardrails.screening.asking import Detector
from sightrail.runnables.screening import Framework, Screened, screen_any

from .detectors import checked
from .events import report
from .marks import is_refused, write_marker
from .walk import Walk


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
        component: who screens, for LlamaIndex's instrumentation.

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

    def __post_init__(self) -> None:
        checked(self.detector)

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
        outcomes = screen_any(
            values, self.detector, self.policy, self.limits, self._framework, together=together
        )
        self._report(outcomes)
        return outcomes

    async def ascreen(
        self, values: Sequence[Any], *, together: bool = False
    ) -> list[Screened | ImageRefused]:
        """``screen`` in a worker thread."""
        return await asyncio.to_thread(self.screen, values, together=together)

    @property
    def _framework(self) -> Framework:
        return Framework(partial(Walk, surface=self.surface), write_marker, _was_refused)

    def _report(self, outcomes: Sequence[Screened | ImageRefused]) -> None:
        verdicts = [verdict for outcome in outcomes for verdict in outcome.verdicts]
        refused = any(isinstance(one, ImageRefused) or one.refused for one in outcomes)
        report(self.component, verdicts, refused=refused)


def _was_refused(value: Any) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return is_refused([item for item in values if isinstance(item, ChatMessage)])
