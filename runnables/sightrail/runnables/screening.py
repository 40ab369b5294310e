"""Screening whole values: find the pictures, look at all of them at once, act on each.

No LangChain Runnable here: values in, values out. ``ScreenImages`` puts it into chains.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.prompt_values import PromptValue

from sightrail.guardrails.errors import ImageError, ImageRefused
from sightrail.guardrails.intake import Limits, Picture, RequestReader
from sightrail.guardrails.policy import Policy, apply_policy
from sightrail.guardrails.screening.asking import Detector, ask
from sightrail.guardrails.telemetry import record_verdicts, screening_span
from sightrail.guardrails.verdict import NotInspected, Verdict

from .carriers import Carrier, Walk
from .marker import is_refused, write_marker
from .run_metadata import note_on_run


@dataclass(frozen=True)
class Found:
    """A carrier and what intake made of it."""

    carrier: Carrier
    seen: Picture | NotInspected


@dataclass(frozen=True)
class Screened:
    """A value after screening.

    Attributes:
        value: the same kind of value; whatever was refused is no longer in it.
        refused: the policy refuses the request, now or at an earlier step of the chain.
        verdicts: one per picture, in order.
    """

    value: Any
    refused: bool
    verdicts: tuple[Verdict, ...]


def screen_values(
    values: Sequence[Any], detector: Detector, policy: Policy, limits: Limits
) -> list[Screened | ImageRefused]:
    """Screen several values with one call of the detector.

    Args:
        values: anything ``Walk`` can look into; nothing in them is changed.
        detector: its exceptions count as a failed inspection, never as a safe picture.
        policy: what a verdict leads to. Under ``monitor`` the values go on as they came.
        limits: what intake is willing to decode.

    Returns:
        One outcome per value, in order; ImageRefused where the policy's action is ``raise``.
    """
    with screening_span() as span:
        outcomes = _screened(values, detector, policy, limits)
        verdicts = [verdict for outcome in outcomes for verdict in outcome.verdicts]
        record_verdicts(span, verdicts)
    note_on_run(verdicts)
    return outcomes


def _screened(
    values: Sequence[Any], detector: Detector, policy: Policy, limits: Limits
) -> list[Screened | ImageRefused]:
    found = [find_pictures(value, limits) for value in values]
    pictures = [f.seen for one in found for f in one if isinstance(f.seen, Picture)]
    verdicts = iter(ask(detector, pictures, policy.timeout_s))
    outcomes: list[Screened | ImageRefused] = []
    for value, one in zip(values, found, strict=True):
        judged = [
            next(verdicts) if isinstance(f.seen, Picture) else _uninspected(f.seen) for f in one
        ]
        try:
            outcomes.append(_apply(value, one, judged, policy))
        except ImageRefused as refused:
            outcomes.append(refused)
    return outcomes


def passed(outcome: Screened | ImageRefused) -> Screened:
    """The screened value.

    Raises:
        ImageRefused: the policy asked for an exception.
    """
    if isinstance(outcome, ImageRefused):
        raise outcome
    return outcome


def find_pictures(value: Any, limits: Limits) -> list[Found]:
    """Every carrier of a value in order, each decoded once."""
    carriers: list[Carrier] = []
    holders: dict[int, int] = {}

    def note_down(carrier: Carrier) -> Any:
        carriers.append(carrier)
        return carrier.original

    def belong_together(holder: Any, found: Sequence[int]) -> Any:
        holders.update(dict.fromkeys(found, found[0]))
        return holder

    Walk(note_down, belong_together)(value)
    reader = RequestReader(limits)
    return [
        Found(carrier, decode(carrier, reader, message=holders.get(number)))
        for number, carrier in enumerate(carriers)
    ]


def decode(
    carrier: Carrier, reader: RequestReader, message: Hashable = None
) -> Picture | NotInspected:
    """The picture that a carrier holds, or why there is none to look at."""
    if isinstance(carrier.source, NotInspected):
        return carrier.source
    try:
        return reader.read(carrier.source, message)
    except ImageError as error:
        return NotInspected(reason=error.reason, detail=str(error).partition(": ")[2])


def _uninspected(why: NotInspected) -> Verdict:
    return Verdict(status="not_inspected", not_inspected=(why,))


def _apply(
    value: Any, found: Sequence[Found], verdicts: Sequence[Verdict], policy: Policy
) -> Screened:
    replacements: list[Any] = []
    taken: list[Verdict] = []
    for one, verdict in zip(found, verdicts, strict=True):
        image = one.seen.image if isinstance(one.seen, Picture) else None
        applied = apply_policy(image, verdict, policy, one.carrier.surface)
        taken.append(applied.verdict)
        replacements.append(_replacement(one.carrier, applied.action, applied.image, policy))
    supply = iter(replacements)

    def stamp(holder: Any, found: Sequence[int]) -> Any:
        mine = [taken[number] for number in found]
        return write_marker(holder, mine, refused=_refuses(mine, policy))

    seen = Walk(lambda carrier: next(supply), stamp)(value)
    refused = _refuses(taken, policy) or is_refused(messages_of(value))
    return Screened(seen, refused, tuple(taken))


def _replacement(carrier: Carrier, action: str, image: Any, policy: Policy) -> Any:
    if policy.monitor:
        return carrier.original
    if image is not None:
        return carrier.rebuild(image)
    if action == "allow":  # the policy lets the unseen pass
        return carrier.original
    return carrier.note(policy.note)


def _refuses(verdicts: Sequence[Verdict], policy: Policy) -> bool:
    return not policy.monitor and any(verdict.action == "refuse" for verdict in verdicts)


def messages_of(value: Any) -> list[BaseMessage]:
    """The messages of a message, a list of them, a prompt value, or a dict of these."""
    if isinstance(value, BaseMessage):
        return [value]
    if isinstance(value, PromptValue):
        return value.to_messages()
    if isinstance(value, dict):
        return [message for item in value.values() for message in messages_of(item)]
    if isinstance(value, list | tuple):
        return [item for item in value if isinstance(item, BaseMessage)]
    return []
