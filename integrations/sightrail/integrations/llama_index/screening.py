"""Screening LlamaIndex values: find the pictures, look at all of them at once, act on each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.base.llms.types import ChatMessage

from sightrail.guardrails.errors import ImageRefused
from sightrail.guardrails.intake import Limits, Picture, RequestReader
from sightrail.guardrails.policy import Policy, Surface, apply_policy
from sightrail.guardrails.screening.asking import Detector, ask
from sightrail.guardrails.verdict import Action, NotInspected, Verdict
from sightrail.runnables.carriers import Carrier
from sightrail.runnables.screening import Found, Screened, decode

from .detectors import checked
from .events import report
from .marks import Holder, is_refused, write_marker
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
        reader = RequestReader(self.limits)
        found = [
            self._find(value, reader if together else RequestReader(self.limits))
            for value in values
        ]
        pictures = [f.seen for one in found for f in one if isinstance(f.seen, Picture)]
        verdicts = iter(ask(self.detector, pictures, self.policy.timeout_s))
        outcomes: list[Screened | ImageRefused] = []
        for value, one in zip(values, found, strict=True):
            judged = [
                Verdict(status="not_inspected", not_inspected=(f.seen,))
                if isinstance(f.seen, NotInspected)
                else next(verdicts)
                for f in one
            ]
            outcomes.append(self._outcome(value, one, judged))
        self._report(outcomes)
        return outcomes

    async def ascreen(
        self, values: Sequence[Any], *, together: bool = False
    ) -> list[Screened | ImageRefused]:
        """``screen`` in a worker thread."""
        return await asyncio.to_thread(self.screen, values, together=together)

    def _find(self, value: Any, reader: RequestReader) -> list[Found]:
        """Every carrier of a value in order, each decoded once."""
        carriers: list[Carrier] = []
        holders: dict[int, object] = {}

        def note_down(carrier: Carrier) -> Any:
            carriers.append(carrier)
            return carrier.original

        def belong_together(holder: Holder, numbers: Sequence[int]) -> Holder:
            holders.update(dict.fromkeys(numbers, object()))
            return holder

        Walk(note_down, belong_together, self.surface)(value)
        loose = object()
        return [
            Found(carrier, decode(carrier, reader, holders.get(number, loose)))
            for number, carrier in enumerate(carriers)
        ]

    def _outcome(
        self, value: Any, found: Sequence[Found], verdicts: Sequence[Verdict]
    ) -> Screened | ImageRefused:
        replacements: list[Any] = []
        taken: list[Verdict] = []
        try:
            for one, verdict in zip(found, verdicts, strict=True):
                image = one.seen.image if isinstance(one.seen, Picture) else None
                applied = apply_policy(image, verdict, self.policy, one.carrier.surface)
                taken.append(applied.verdict)
                replacements.append(self._replacement(one.carrier, applied.action, applied.image))
        except ImageRefused as refused:
            return refused
        supply = iter(replacements)

        def stamp(holder: Holder, numbers: Sequence[int]) -> Holder:
            mine = [taken[number] for number in numbers]
            return write_marker(holder, mine, refused=self._refuses(mine))

        seen = Walk(lambda carrier: next(supply), stamp, self.surface)(value)
        return Screened(seen, self._refuses(taken) or _was_refused(value), tuple(taken))

    def _replacement(self, carrier: Carrier, action: Action, image: Any) -> Any:
        if self.policy.monitor:
            return carrier.original
        if image is not None:
            return carrier.rebuild(image)
        if action == "allow":  # the policy lets the unseen pass
            return carrier.original
        return carrier.note(self.policy.note)

    def _refuses(self, verdicts: Sequence[Verdict]) -> bool:
        return not self.policy.monitor and any(v.action == "refuse" for v in verdicts)

    def _report(self, outcomes: Sequence[Screened | ImageRefused]) -> None:
        verdicts = [verdict for outcome in outcomes for verdict in outcome.verdicts]
        refused = any(isinstance(one, ImageRefused) or one.refused for one in outcomes)
        report(self.component, verdicts, refused=refused)


def _was_refused(value: Any) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return is_refused([item for item in values if isinstance(item, ChatMessage)])
