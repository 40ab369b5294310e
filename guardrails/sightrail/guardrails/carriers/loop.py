"""The one loop over pictures: find, decode, ask, decide, put back.

Every surface of every framework goes through it, so limits, deadline, monitoring, tracing, logging
and the reasons of what was not inspected are here and nowhere else. A framework says how its values
are walked and how a verdict is written on them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic import BaseModel

from ..deadline import run_within, time_limit
from ..encoding import Encoding
from ..errors import ImageRefused
from ..intake import Limits, Picture, RequestReader
from ..policy import LookAgain, Policy, Surface, apply_policy
from ..screening.asking import (
    check_categories,
    looked_again,
    shown_to,
    sound_verdicts,
    wants_request,
)
from ..telemetry import LOGGER, record_verdicts, screening_span, tell
from ..verdict import Box, NotInspected, Verdict
from .carrier import Carrier, Encoded, Marker
from .walk import Place, Stamp, Walk, leave
from .words import words_in

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..screening.asking import Detector

_LATE: Final = NotInspected(reason="failed", detail="the pictures were not read in time")

_HIDDEN: Final = "[image]"


class Shown(NamedTuple):
    """What a model's processor makes of a picture.

    Attributes:
        scaled: the picture at its sizes, where those are smaller.
        kept: the part of the picture that it leaves, in its pixels; None where that is all of it.
    """

    scaled: tuple[Image, ...] = ()
    kept: Box | None = None


Scaling = Callable[["Image"], Shown]
"""A picture -> what a model's processor makes of it."""

OnVerdict = Callable[[Verdict], object]
"""Called with every verdict, with the action on it, in the thread that screens."""


@dataclass
class Found:
    """A carrier on its way through the loop.

    Attributes:
        carrier: as it was found.
        decoded: what intake made of it.
        image: the pixels that may travel on as far as is decided; None where none may.
        verdicts: one per detector that looked at it, with the action; one if nobody could.
    """

    carrier: Carrier
    decoded: Picture | NotInspected
    image: Image | None = None
    verdicts: list[Verdict] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Until somebody decides otherwise, what was decoded may travel on."""
        if isinstance(self.decoded, Picture):
            self.image = self.decoded.image

    def shown(self, scaling: Scaling | None, words: str = "") -> Picture | None:
        """What the next detector is to look at; None where nothing is left of it.

        A detector sees what the ones before it left over, so that a model sees only pixels that
        every detector has seen or has covered itself.
        """
        if self.image is None or not isinstance(self.decoded, Picture):
            return None
        shown = self.decoded
        if self.image is not shown.image:
            shown = replace(shown, image=self.image, views=(self.image,), scaled=())
        shown = replace(shown, request=words) if words else shown
        return shown if scaling is None else replace(shown, **scaling(self.image)._asdict())

    def encoded(self, encoding: Encoding) -> Encoded:
        """What travels on: the bytes it came in if nothing was changed and they may, else anew."""
        coded = self.decoded.coded if isinstance(self.decoded, Picture) else None
        if self.image is None:
            raise ValueError("nothing may travel on")
        whole = isinstance(self.decoded, Picture) and self.image is self.decoded.image
        return Encoded(self.image, encoding, coded if whole and encoding.keeps(coded) else None)

    def decide(self, verdict: Verdict, policy: Policy, look_again: LookAgain | None) -> None:
        """Carry the policy out; `look_again` checks what a mask leaves.

        Raises:
            ImageRefused: that is what it says.
        """
        applied = apply_policy(self.image, verdict, policy, self.carrier.surface, look_again)
        self.image = applied.image
        self.verdicts.append(applied.verdict)


@dataclass
class Look:
    """What was found in one value.

    Attributes:
        found: its carriers, in order.
        words: what the value says, where a detector wants to know.
        refused: the policy refuses the value.
        error: the policy asks for this exception in place of the value.
        cause: what a detector raised, if one failed.
    """

    found: tuple[Found, ...]
    words: str = field(default="", repr=False)
    refused: bool = False
    error: ImageRefused | None = None
    cause: Exception | None = None

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All verdicts, picture by picture."""
        if self.error is not None:
            return tuple(self.error.verdicts)
        return tuple(verdict for found in self.found for verdict in found.verdicts)

    @property
    def open(self) -> bool:
        """Whether anything may still travel on."""
        return self.error is None and not self.refused


@dataclass(frozen=True)
class Screened:
    """A value after screening.

    Attributes:
        value: the same kind of value; whatever was refused is no longer in it.
        refused: the policy refuses the request, now or at an earlier step of the chain.
        verdicts: one per picture, in order.
        cause: what the detector raised, where a verdict says that it failed.
    """

    value: Any
    refused: bool
    verdicts: tuple[Verdict, ...]
    cause: Exception | None = None

    def _repr_html_(self) -> str:
        """What a notebook shows: the outcome, and every verdict on the way to it."""
        from ..verdict_drawing import trace_html

        return trace_html("refused" if self.refused else "passed", self.verdicts)


def _mark_nothing(holder: Any, verdicts: Sequence[Verdict], *, refused: bool) -> Any:
    return holder


def _never(value: Any) -> bool:
    return False


def tell_nobody(component: str, verdicts: Sequence[Verdict], *, refused: bool) -> None:
    """The report of a framework that is not to hear of this."""


def _nothing(value: Any) -> None:
    return None


@dataclass(frozen=True)
class Framework:
    """How the values of one framework are walked, and how a verdict is written on them.

    Attributes:
        walk: makes a walk over one value.
        mark: (holder, its verdicts, refused=...) -> a copy of the holder that says so.
        was_refused: whether a value was marked as refused at an earlier step.
        report: tells the framework's own tracing (component, verdicts, refused=...).
        surface_of: where a message came from; None for what is no message.
        read: the marker on a message, where there is a readable one.
    """

    walk: Callable[[Place, Stamp, Surface], Walk] = Walk
    mark: Callable[..., Any] = _mark_nothing
    was_refused: Callable[[Any], bool] = _never
    report: Callable[..., None] = tell_nobody
    surface_of: Callable[[Any], Surface | None] = _nothing
    read: Callable[[Any], Marker | None] = _nothing

    def carriers(self, value: Any, surface: Surface = "user") -> list[Carrier]:
        """Every carrier of a value, in order."""
        found: list[Carrier] = []

        def note_down(carrier: Carrier) -> Any:
            found.append(carrier)
            return carrier.original

        self.walk(note_down, leave, surface)(value)
        return found

    def hidden(self, value: Any) -> Any:
        """A value of any kind for traces: ``[image]`` stands for whatever may be a picture."""
        return self.walk(lambda carrier: carrier.note(_HIDDEN), leave, "user")(value, opaque=True)


@dataclass(frozen=True)
class PictureLoop:
    """Detectors, and what is done about their verdicts.

    Attributes:
        detectors: asked one after the other.
        policy: what a verdict leads to. Under ``monitor`` everything goes on as it came.
        limits: what intake is willing to decode.
        framework: how values are walked and marked.
        component: who screens, for traces and logs.
        surface: where what stands in no message or document came from.
        scaling: adds what a model will see to what is screened.
        on_verdict: see OnVerdict; what it raises ends the screening.

    Raises:
        ConfigurationError: the policy rules a category that no detector has.
    """

    detectors: Sequence[Detector]
    policy: Policy
    limits: Limits
    framework: Framework = field(default_factory=Framework)
    component: str = "sightrail"
    surface: Surface = "user"
    scaling: Scaling | None = None
    on_verdict: OnVerdict | None = None

    def __post_init__(self) -> None:
        check_categories(self.detectors, self.policy)

    def screen(
        self,
        values: Sequence[Any],
        *,
        together: bool = False,
        requests: Sequence[str] | None = None,
    ) -> list[Screened | ImageRefused]:
        """Screen several values with one call of each detector.

        Args:
            values: anything the framework's walk can look into; nothing in them is changed.
            together: the limits on one request hold for all values, not for each.
            requests: the words that each value is a part of, for detectors that want them; its own
                by default.

        Returns:
            One outcome per value, in order; ImageRefused where the policy's action is ``raise``.
        """
        found = [self.framework.carriers(value, self.surface) for value in values]
        words: Sequence[str] = ()
        if self.wants_request:
            words = list(map(words_in, values)) if requests is None else requests
        looks = self.look(found, together=together, words=words)
        outcomes = [self._put_back(value, look) for value, look in zip(values, looks, strict=True)]
        verdicts = [verdict for look in looks for verdict in look.verdicts]
        refused = any(isinstance(one, ImageRefused) or one.refused for one in outcomes)
        self.framework.report(self.component, verdicts, refused=refused)
        return outcomes

    async def ascreen(
        self, values: Sequence[Any], *, together: bool = False
    ) -> list[Screened | ImageRefused]:
        """``screen`` in a worker thread."""
        return await asyncio.to_thread(self.screen, values, together=together)

    @property
    def wants_request(self) -> bool:
        """Whether any of the detectors looks at pictures together with the request's words."""
        return any(map(wants_request, self.detectors))

    def look(
        self,
        values: Sequence[Sequence[Carrier]],
        *,
        together: bool = False,
        words: Sequence[str] = (),
    ) -> list[Look]:
        """Decode, ask and decide, for the carriers of each value; nothing is put back.

        Args:
            values: the carriers of each.
            together: see ``screen``.
            words: what each value says, for detectors that want it; none where it is not known.
        """
        if not any(values):
            return [Look(()) for _ in values]
        with screening_span(self.component) as span, time_limit(self.policy.timeout_s):
            shared = RequestReader(self.limits)
            looks = [
                self._decoded(carriers, shared if together else RequestReader(self.limits))
                for carriers in values
            ]
            for look, said in zip(looks, words, strict=False):
                look.words = said
            for number, detector in enumerate(self.detectors):
                self._ask(detector, [look for look in looks if number == 0 or look.open])
            verdicts = [verdict for look in looks for verdict in look.verdicts]
            record_verdicts(span, verdicts)
        tell(self.component, verdicts)
        if self.on_verdict is not None:
            for verdict in verdicts:
                self.on_verdict(verdict)
        return looks

    def _decoded(self, carriers: Sequence[Carrier], reader: RequestReader) -> Look:
        late: Exception | None = None
        try:
            decoded = decode_all(carriers, reader)
        except TimeoutError as error:
            LOGGER.error("%s: the pictures were not read in time", self.component, exc_info=error)
            decoded, late = [_LATE] * len(carriers), error
        decoded = [self._fitted(picture) for picture in decoded]
        look = Look(tuple(map(Found, carriers, decoded)), cause=late)
        for found in look.found:
            if found.decoded is _LATE:
                self._decide(look, found, Verdict.failed(_LATE.detail))
            elif isinstance(found.decoded, NotInspected):
                verdict = Verdict(status="not_inspected", not_inspected=(found.decoded,))
                self._decide(look, found, verdict)
        return look

    def _fitted(self, decoded: Picture | NotInspected) -> Picture | NotInspected:
        """The picture at the size in which it will travel: what is looked at is what goes on."""
        if isinstance(decoded, NotInspected) or self.policy.monitor:
            return decoded
        image = self.policy.encoding.fitted(decoded.image, decoded.coded)
        if image is decoded.image:
            return decoded
        return replace(decoded, image=image, views=(image, *decoded.views[1:]), coded=None)

    def _ask(self, detector: Detector, looks: Sequence[Look]) -> None:
        """One call of a detector for all that may still travel on."""
        shown = [
            (look, found, picture)
            for look in looks
            for found in look.found
            if (picture := found.shown(self.scaling, look.words)) is not None
        ]
        pictures = [picture for _, _, picture in shown]
        verdicts, cause = ask(detector, pictures, self.policy.timeout_s)
        for (look, found, picture), verdict in zip(shown, verdicts, strict=True):
            if verdict.status == "failed":
                look.cause = look.cause or cause
            told = verdict.beside(picture.kept)
            self._decide(look, found, told, partial(self._look_again, detector, look, picture))

    def _look_again(
        self,
        detector: Detector,
        look: Look,
        before: Picture,
        image: Image,
        covered: Sequence[Box],
    ) -> Verdict:
        shown = Shown() if self.scaling is None else self.scaling(image)
        picture = replace(before, image=image, views=(image,), **shown._asdict())
        verdict, cause = ask_again(detector, picture, covered, self.policy.timeout_s)
        look.cause = look.cause or cause
        return verdict

    def _decide(
        self, look: Look, found: Found, verdict: Verdict, look_again: LookAgain | None = None
    ) -> None:
        if look.error is not None:
            return
        try:
            found.decide(verdict, self.policy, look_again)
        except ImageRefused as refused:
            refused.__cause__ = look.cause
            look.error = refused
            return
        look.refused |= found.verdicts[-1].action == "refuse" and not self.policy.monitor

    def _put_back(self, value: Any, look: Look) -> Screened | ImageRefused:
        if look.error is not None:
            return look.error
        supply = iter(look.found)

        def stamp(holder: Any, numbers: Sequence[int]) -> Any:
            mine = [verdict for number in numbers for verdict in look.found[number].verdicts]
            refused = not self.policy.monitor and any(v.action == "refuse" for v in mine)
            return self.framework.mark(holder, mine, refused=refused)

        walk = self.framework.walk(
            lambda carrier: self._replacement(carrier, next(supply)), stamp, self.surface
        )
        seen = walk(value)
        refused = look.refused or self.framework.was_refused(value)
        return Screened(seen, refused, look.verdicts, look.cause)

    def _replacement(self, carrier: Carrier, found: Found) -> Any:
        if self.policy.monitor:
            return carrier.original
        if found.image is not None:
            return _as_it_came(carrier, carrier.rebuild(found.encoded(self.policy.encoding)))
        if all(verdict.action == "allow" for verdict in found.verdicts):
            return carrier.original  # the policy lets the unseen pass
        return carrier.note(self.policy.note)


def _as_it_came(carrier: Carrier, rebuilt: Any) -> Any:
    """The very object that came, where what goes on in its place is the same to the letter."""
    same = type(rebuilt) is type(carrier.original) and _plain(rebuilt) and _plain(carrier.original)
    return carrier.original if same and rebuilt == carrier.original else rebuilt


def _plain(value: Any) -> bool:
    """Whether a value can be compared: JSON and bytes, or a model of these."""
    if isinstance(value, Mapping):
        return all(map(_plain, value.values()))
    return value is None or isinstance(value, str | bytes | int | float | BaseModel)


def passed(outcome: Screened | ImageRefused) -> Screened:
    """The screened value.

    Raises:
        ImageRefused: the policy asked for an exception.
    """
    if isinstance(outcome, ImageRefused):
        raise outcome
    return outcome


def decode_all(carriers: Sequence[Carrier], reader: RequestReader) -> list[Picture | NotInspected]:
    """The picture that each carrier holds, with the words beside it, or why there is none.

    Raises:
        TimeoutError: the deadline of the request passed.
    """
    asked = [
        (carrier.source, carrier.holder)
        for carrier in carriers
        if not isinstance(carrier.source, NotInspected | Picture)
    ]
    read = iter(reader.read_all(asked) if asked else ())
    decoded = [
        carrier.source if isinstance(carrier.source, NotInspected | Picture) else next(read)
        for carrier in carriers
    ]
    return [
        replace(item, request=carrier.words)
        if isinstance(item, Picture) and carrier.words
        else item
        for carrier, item in zip(carriers, decoded, strict=True)
    ]


def decode(carrier: Carrier, reader: RequestReader) -> Picture | NotInspected:
    """``decode_all`` for one."""
    return decode_all([carrier], reader)[0]


def ask(
    detector: Detector, pictures: Sequence[Picture], timeout_s: float | None = None
) -> tuple[list[Verdict], Exception | None]:
    """One verdict per picture, and what the detector raised if it did.

    A detector that raises, gives something else than one verdict each, or takes longer than
    `timeout_s` seconds has failed on all of them: failed, never a safe picture.
    """
    if not pictures:
        return [], None
    shown = shown_to(detector, pictures)
    return _asked(detector, lambda: detector.screen(shown), len(shown), timeout_s)


def ask_again(
    detector: Detector, picture: Picture, covered: Sequence[Box], timeout_s: float | None = None
) -> tuple[Verdict, Exception | None]:
    """The verdict on a picture in which these boxes were covered; as ``ask``."""
    [verdict], cause = _asked(
        detector, lambda: looked_again(detector, [picture], [covered]), 1, timeout_s
    )
    return verdict, cause


def _asked(
    detector: Detector, work: Callable[[], list[Verdict]], count: int, timeout_s: float | None
) -> tuple[list[Verdict], Exception | None]:
    name = type(detector).__name__
    try:
        verdicts: list[Any] = list(run_within(timeout_s, work))
    except Exception as error:
        LOGGER.error("%s failed on %d pictures", name, count, exc_info=error)
        return [Verdict.failed(f"{name} raised {type(error).__name__}")] * count, error
    return sound_verdicts(detector, verdicts, count), None
