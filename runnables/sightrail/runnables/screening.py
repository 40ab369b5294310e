"""Screening whole values: find the pictures, look at all of them at once, act on each.

No LangChain Runnable here: values in, values out. ``ScreenImages`` puts it into chains, and other
frameworks bring a walk over their own values.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.messages import BaseMessage
from langchain_core.prompt_values import PromptValue

from sightrail.guardrails.errors import ImageError, ImageRefused
from sightrail.guardrails.intake import Limits, Picture, RequestReader
from sightrail.guardrails.policy import Policy, apply_policy
from sightrail.guardrails.screening.asking import Detector, ask
from sightrail.guardrails.telemetry import record_verdicts, screening_span
from sightrail.guardrails.verdict import NotInspected, Verdict

from .carriers import Carrier, Stamp, Walk
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


Mark = Callable[..., Any]
"""(holder, its verdicts, refused=...) -> a copy of the holder that says so."""


@dataclass(frozen=True)
class Framework:
    """How the values of one framework are walked, and how a verdict is written on them.

    Attributes:
        walk: makes a walk from what stands in a carrier's place, and what is stamped on holders.
        mark: see Mark.
        was_refused: whether a value was marked as refused at an earlier step.
    """

    walk: Callable[[Callable[[Carrier], Any], Stamp], Callable[[Any], Any]]
    mark: Mark
    was_refused: Callable[[Any], bool]


def screen_values(
    values: Sequence[Any],
    detector: Detector,
    policy: Policy,
    limits: Limits,
    *,
    together: bool = False,
) -> list[Screened | ImageRefused]:
    """Screen several values of LangChain with one call of the detector.

    Args:
        values: anything ``Walk`` can look into; nothing in them is changed.
        detector: its exceptions count as a failed inspection, never as a safe picture.
        policy: what a verdict leads to. Under ``monitor`` the values go on as they came.
        limits: what intake is willing to decode.
        together: the limits on one request hold for all values, not for each.

    Returns:
        One outcome per value, in order; ImageRefused where the policy's action is ``raise``.
    """
    with screening_span() as span:
        outcomes = screen_any(values, detector, policy, limits, _LANGCHAIN, together=together)
        verdicts = [verdict for outcome in outcomes for verdict in outcome.verdicts]
        record_verdicts(span, verdicts)
    note_on_run(verdicts)
    return outcomes


def screen_any(
    values: Sequence[Any],
    detector: Detector,
    policy: Policy,
    limits: Limits,
    framework: Framework,
    *,
    together: bool = False,
) -> list[Screened | ImageRefused]:
    """``screen_values`` for any framework's values, and untraced."""
    shared = RequestReader(limits)
    found = [
        _find(value, framework, shared if together else RequestReader(limits)) for value in values
    ]
    pictures = [f.seen for one in found for f in one if isinstance(f.seen, Picture)]
    verdicts = iter(ask(detector, pictures, policy.timeout_s))
    outcomes: list[Screened | ImageRefused] = []
    for value, one in zip(values, found, strict=True):
        judged = [
            next(verdicts) if isinstance(f.seen, Picture) else _uninspected(f.seen) for f in one
        ]
        try:
            outcomes.append(_apply(value, one, judged, policy, framework))
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
    """Every carrier of a LangChain value in order, each decoded once."""
    return _find(value, _LANGCHAIN, RequestReader(limits))


def _find(value: Any, framework: Framework, reader: RequestReader) -> list[Found]:
    carriers: list[Carrier] = []
    holders: dict[int, object] = {}

    def note_down(carrier: Carrier) -> Any:
        carriers.append(carrier)
        return carrier.original

    def belong_together(holder: Any, found: Sequence[int]) -> Any:
        holders.update(dict.fromkeys(found, object()))
        return holder

    framework.walk(note_down, belong_together)(value)
    loose = object()
    return [
        Found(carrier, decode(carrier, reader, message=holders.get(number, loose)))
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
    value: Any,
    found: Sequence[Found],
    verdicts: Sequence[Verdict],
    policy: Policy,
    framework: Framework,
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
        return framework.mark(holder, mine, refused=_refuses(mine, policy))

    seen = framework.walk(lambda carrier: next(supply), stamp)(value)
    return Screened(seen, _refuses(taken, policy) or framework.was_refused(value), tuple(taken))


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


def _was_refused(value: Any) -> bool:
    return is_refused(messages_of(value))


_LANGCHAIN: Final = Framework(Walk, write_marker, _was_refused)
