"""An agent's transcript, of which every step sends the whole: each message is screened once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, SystemMessage, ToolMessage
from langgraph.types import Command

from sightrail.guardrails.carriers.carrier import KEY
from sightrail.guardrails.carriers.conversation import (
    AT_A_TIME,
    answered,
    asked_in,
    without_raise,
)
from sightrail.guardrails.carriers.loop import OnVerdict, PictureLoop, Screened, passed
from sightrail.guardrails.errors import ImageRefused
from sightrail.guardrails.intake import Limits
from sightrail.guardrails.policy import Policy
from sightrail.guardrails.screening.asking import Detector, check_categories
from sightrail.guardrails.screening.cache import CachedDetector
from sightrail.guardrails.verdict import Verdict
from sightrail.runnables.walk import (
    LANGCHAIN,
    as_json,
    is_refused,
    marked_verdicts,
    read_marker,
    with_record,
)

_LOOKED_AT: Final = (
    *("type", "role", "content", "additional_kwargs", "artifact"),
    *("tool_calls", "invalid_tool_calls"),
)
"""The fields of messages that screening looks into, and those that say where they came from."""

_DEEPEST: Final = 200


@dataclass(frozen=True)
class SeenMessage:
    """One message after screening.

    Attributes:
        message: what may travel on; the very object that came in if nothing had to change.
        verdicts: its record, one per picture: what was masked once stays recorded as masked.
        found: what was found on it as it came.
        new: the record says more than before.
    """

    message: BaseMessage
    verdicts: tuple[Verdict, ...] = ()
    found: tuple[Verdict, ...] = ()
    new: bool = False


@dataclass(frozen=True)
class SeenMessages:
    """A transcript after screening.

    Attributes:
        seen: one per message, in order.
        changed: the messages that have to be replaced, with the ids they had.
        refused: the policy refuses what is to be answered now.
        refusal_verdicts: the verdicts on that.
    """

    seen: tuple[SeenMessage, ...]
    changed: tuple[BaseMessage, ...] = ()
    refused: bool = False
    refusal_verdicts: tuple[Verdict, ...] = ()

    @property
    def messages(self) -> list[BaseMessage]:
        """The transcript that may travel on."""
        return [item.message for item in self.seen]


@dataclass(eq=False)
class MessageScreen:
    """Screens transcripts; remembers, by content, which messages it has let through.

    What comes out of screening (masked pictures, notes, markers) must not be screened again at
    the next step: a masked picture would be masked twice and its verdict lost. The memory holds
    digests of this screen's own results, so no marker written by others is ever believed.

    Where the policy says ``raise`` it refuses, and the verdict's action says ``raise``: whoever
    screens raises when the transcript is safe (see ``transcript.raised_by``).

    Attributes:
        detector: see ``CachedDetector``; wrapped in one unless it is one.
        policy: what a verdict leads to.
        limits: what intake is willing to decode.
        component: who screens, for traces and logs.
        on_verdict: called with every verdict, in the thread that screens.
        max_items: messages to remember.
    """

    detector: Detector
    policy: Policy
    limits: Limits
    component: str
    on_verdict: OnVerdict | None = None
    max_items: int = 4096
    _passed: OrderedDict[bytes, tuple[Verdict, ...]] = field(
        default_factory=OrderedDict, init=False, repr=False
    )
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.detector, CachedDetector):
            self.detector = CachedDetector(self.detector)
        check_categories((self.detector,), self.policy)

    def __call__(
        self,
        messages: Sequence[BaseMessage],
        *,
        all_open: bool = False,
        said: Sequence[BaseMessage] = (),
    ) -> SeenMessages:
        """Screen a transcript, what is to be answered with one call of the detector.

        Refused is what screening refuses now in what is to be answered, and what an earlier step of
        the chain marked as refused there. What turns before brought, and was refused, is taken out,
        and the conversation may go on. The limits on one request hold for what is to be answered,
        and for every earlier message by itself.

        Args:
            messages: in order; nothing in them is changed.
            all_open: all of them are to be answered, or are an answer themselves.
            said: the transcript that these messages are going into, for detectors that want the
                words of the request.
        """
        start = 0 if all_open else answered(messages, LANGCHAIN)
        known = [self._known(message) for message in messages]
        fresh = [number for number, found in enumerate(known) if found is None]
        asked = asked_in([*said, *messages], LANGCHAIN) if self.loop.wants_request else ""
        looked: dict[int, Screened] = {}
        for group in _groups(fresh, start):
            some = [messages[number] for number in group]
            outcomes = self._look(some, asked, together=group[0] >= start)
            looked.update(zip(group, outcomes, strict=True))
        seen = tuple(
            self._taken(message, looked[number])
            if found is None
            else SeenMessage(message, marked_verdicts([message]), found)
            for number, (message, found) in enumerate(zip(messages, known, strict=True))
        )
        now = [
            item
            for number, item in enumerate(seen)
            if number >= start or isinstance(item.message, SystemMessage)
        ]
        pairs = zip(seen, messages, strict=True)
        return SeenMessages(
            seen,
            changed=tuple(item.message for item, message in pairs if item.message is not message),
            refused=is_refused(item.message for item in now),
            refusal_verdicts=tuple(verdict for item in now for verdict in item.verdicts),
        )

    @property
    def loop(self) -> PictureLoop:
        """What looks at pictures here."""
        return PictureLoop(
            (self.detector,),
            self.policy,
            self.limits,
            LANGCHAIN,
            component=self.component,
            on_verdict=self.on_verdict,
        )

    def _look(
        self, messages: Sequence[BaseMessage], asked: str, *, together: bool
    ) -> list[Screened]:
        """What comes out of each; refused with the action ``raise`` where that is asked for."""
        words = [asked] * len(messages)
        outcomes = self.loop.screen(messages, together=together, requests=words)
        if not any(isinstance(outcome, ImageRefused) for outcome in outcomes):
            return [passed(outcome) for outcome in outcomes]
        quiet = replace(self.loop, policy=without_raise(self.policy), on_verdict=None)
        again = quiet.screen(messages, together=together, requests=words)
        return [
            _raising(passed(second), first) if isinstance(first, ImageRefused) else first
            for first, second in zip(outcomes, again, strict=True)
        ]

    def remember(self, message: BaseMessage, found: tuple[Verdict, ...] = ()) -> None:
        """Let this very message through from now on; for what screening itself has made."""
        key = message_key(message)
        if key is None:
            return
        with self._lock:
            self._passed[key] = found
            if len(self._passed) > self.max_items:
                self._passed.popitem(last=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without the memory and its lock: what another process has let through is its own."""
        return {**self.__dict__, "_passed": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _taken(self, message: BaseMessage, screened: Screened) -> SeenMessage:
        if not screened.verdicts:
            return SeenMessage(message)
        self.remember(screened.value, screened.verdicts)
        verdicts = marked_verdicts([screened.value])
        new = verdicts != marked_verdicts([message])
        return SeenMessage(screened.value, verdicts, screened.verdicts, new)

    def _known(self, message: BaseMessage) -> tuple[Verdict, ...] | None:
        """What was found on a message that was let through; None for one that was not."""
        key = message_key(message) if read_marker(message) else None  # the others say nothing yet
        with self._lock:
            if key is None or key not in self._passed:
                return None
            self._passed.move_to_end(key)
            return self._passed[key]


def _groups(fresh: Sequence[int], start: int) -> Iterator[Sequence[int]]:
    """What is looked at at once: some earlier messages at a time, and then all that is new."""
    earlier = [number for number in fresh if number < start]
    for at in range(0, len(earlier), AT_A_TIME):
        yield earlier[at : at + AT_A_TIME]
    if newest := fresh[len(earlier) :]:
        yield newest


def _raising(screened: Screened, raised: ImageRefused) -> Screened:
    """A refused message whose verdicts say ``raise`` where the policy does."""
    asked = as_json(verdict.taken("refuse") for verdict in raised.verdicts)

    def action(verdict: Verdict) -> Verdict:
        return verdict.taken("raise") if as_json([verdict])[0] in asked else verdict

    verdicts = tuple(map(action, marked_verdicts([screened.value])))
    told = with_record(screened.value, verdicts, refused=True)
    return replace(screened, value=told, verdicts=tuple(map(action, screened.verdicts)))


def message_key(message: BaseMessage) -> bytes | None:
    """A digest of everything in a message that screening looks at; None where there is none.

    Different values never look alike: each part says its type and its length. Ids are left out:
    LangGraph gives a tool's message its id after it has been screened. So are markers, which
    another guard may have written since; one that is more than a marker is not left out.
    """
    digest = blake2b(digest_size=32)
    fields = {name: getattr(message, name, None) for name in _LOOKED_AT}
    extra = message.additional_kwargs
    if read_marker(message) is not None and not LANGCHAIN.carriers(extra[KEY]):
        fields["additional_kwargs"] = {key: extra[key] for key in extra if key != KEY}
    try:
        _feed(digest.update, list(fields.values()), 0)
    except TypeError:
        return None  # something of another kind: screened at every step
    return digest.digest()


def _feed(put: Callable[[bytes], None], value: Any, depth: int) -> None:
    """Write a value down.

    Raises:
        TypeError: it, or something in it, is no JSON, no bytes and no document, or lies too deep.
    """
    kind = type(value)
    if depth > _DEEPEST:
        raise TypeError("too deep")
    if kind in (list, tuple, dict):
        items = [part for pair in value.items() for part in pair] if kind is dict else value
        put(f"{kind.__name__}:{len(items)};".encode())
        for item in items:
            _feed(put, item, depth + 1)
        return
    if kind is Document:
        put(b"Document;")
        return _feed(put, [value.page_content, value.metadata], depth + 1)
    if kind is str:
        data = value.encode("utf-8", "surrogatepass")
    elif kind is bytes:
        data = value
    elif kind in (type(None), bool, int, float):
        data = repr(value).encode()
    else:
        raise TypeError(f"{kind.__name__} has no digest")
    put(f"{kind.__name__}:{len(data)};".encode())
    put(data)
    return None


def unanswered(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """The messages behind the last one that a model wrote."""
    for index in range(len(messages) - 1, -1, -1):
        if isinstance(messages[index], AIMessage):
            return list(messages[index + 1 :])
    return list(messages)


def screen_result(result: Any, screen: MessageScreen, said: Sequence[BaseMessage]) -> Any:
    """The same result with its pictures screened; ids and tool call ids stay.

    Of a command, the messages that a dict of updates holds are looked at. Whatever else brings
    messages into the state is looked at before the model is called.

    Args:
        result: of a tool.
        screen: looks at it.
        said: the transcript so far.
    """
    if isinstance(result, ToolMessage):
        return screen([result], all_open=True, said=said).messages[0]
    if isinstance(result, list):
        return [screen_result(item, screen, said) for item in result]
    if isinstance(result, Command) and isinstance(result.update, dict):
        update = {key: _screen_value(value, screen, said) for key, value in result.update.items()}
        return replace(result, update=update)
    return result


def _screen_value(value: Any, screen: MessageScreen, said: Sequence[BaseMessage]) -> Any:
    if isinstance(value, BaseMessage):
        return screen([value], said=said).messages[0]
    if isinstance(value, list) and value and all(isinstance(v, BaseMessage) for v in value):
        return screen(value, said=said).messages
    return value
