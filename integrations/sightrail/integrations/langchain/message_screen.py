"""An agent's transcript, of which every step sends the whole: each message is screened once."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langgraph.types import Command

from sightrail.guardrails.carriers.loop import Screened, passed
from sightrail.guardrails.intake import Limits
from sightrail.guardrails.policy import Policy
from sightrail.guardrails.screening.asking import Detector
from sightrail.guardrails.screening.cache import CachedDetector
from sightrail.guardrails.verdict import Verdict
from sightrail.runnables import ScreenImages
from sightrail.runnables.walk import is_refused, marked_verdicts, read_marker


@dataclass(frozen=True)
class SeenMessage:
    """One message after screening.

    Attributes:
        message: what may travel on; the very object that came in if nothing had to change.
        verdicts: one per picture; those on its marker if it was screened at an earlier step.
        new: it was looked at now, and not at an earlier step.
    """

    message: BaseMessage
    verdicts: tuple[Verdict, ...] = ()
    new: bool = False


@dataclass(frozen=True)
class SeenMessages:
    """A transcript after screening.

    Attributes:
        seen: one per message, in order.
        changed: the messages that have to be replaced, with the ids they had.
        refused: the policy refuses what is to be answered now.
    """

    seen: tuple[SeenMessage, ...]
    changed: tuple[BaseMessage, ...] = ()
    refused: bool = False

    @property
    def messages(self) -> list[BaseMessage]:
        """The transcript that may travel on."""
        return [item.message for item in self.seen]

    @property
    def refusal_verdicts(self) -> tuple[Verdict, ...]:
        """The verdicts on what is to be answered now, or just found."""
        fresh = tuple(v for item in self.seen if item.new for v in item.verdicts)
        return fresh or marked_verdicts(unanswered(self.messages))


@dataclass(eq=False)
class MessageScreen:
    """Screens transcripts; remembers, by content, which messages it has let through.

    What comes out of screening (masked pictures, notes, markers) must not be screened again at
    the next step: a masked picture would be masked twice and its verdict lost. The memory holds
    digests of this screen's own results, so no marker written by others is ever believed.

    Attributes:
        detector: see ``CachedDetector``; wrapped in one unless it is one.
        policy: what a verdict leads to.
        limits: what intake is willing to decode.
        max_items: messages to remember.
    """

    detector: Detector
    policy: Policy
    limits: Limits
    max_items: int = 4096
    _passed: OrderedDict[bytes, None] = field(default_factory=OrderedDict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.detector, CachedDetector):
            self.detector = CachedDetector(self.detector)
        self._screen = ScreenImages(detector=self.detector, policy=self.policy, limits=self.limits)

    def __call__(self, messages: Sequence[BaseMessage]) -> SeenMessages:
        """Screen a transcript with one call of the detector.

        Refused is what screening refuses now, and what an earlier step of the chain marked as
        refused and nobody has answered yet. A refusal that was answered is history: the picture is
        gone, and the conversation may go on.

        Raises:
            ImageRefused: the policy's action is ``raise``.
        """
        known = [self._knows(message) for message in messages]
        fresh = [message for message, is_known in zip(messages, known, strict=True) if not is_known]
        outcomes = iter(self._screen.screen(fresh, together=True))
        seen = tuple(
            SeenMessage(message, _verdicts_on(message))
            if is_known
            else self._taken(message, passed(next(outcomes)))
            for message, is_known in zip(messages, known, strict=True)
        )
        found = [v for item in seen if item.new for v in item.verdicts]
        refuses = not self.policy.monitor and any(v.action == "refuse" for v in found)
        return SeenMessages(
            seen,
            changed=tuple(
                s.message for s, m in zip(seen, messages, strict=True) if s.message is not m
            ),
            refused=refuses or is_refused(unanswered(messages)),
        )

    def remember(self, message: BaseMessage) -> None:
        """Let this very message through from now on; for what screening itself has made."""
        key = message_key(message)
        if key is None:
            return
        with self._lock:
            self._passed[key] = None
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
        self.remember(screened.value)
        return SeenMessage(screened.value, screened.verdicts, new=True)

    def _knows(self, message: BaseMessage) -> bool:
        key = message_key(message)
        with self._lock:
            if key is None or key not in self._passed:
                return False
            self._passed.move_to_end(key)
            return True


def message_key(message: BaseMessage) -> bytes | None:
    """A digest of everything in a message that screening looks at; None where there is none.

    Ids are left out: LangGraph gives a tool's message its id after it has been screened.
    """
    content = [
        *(message.type, message.content, message.additional_kwargs),
        getattr(message, "artifact", None),
    ]
    try:
        text = json.dumps(content, default=_bytes_as_text)
    except (TypeError, ValueError, RecursionError):
        return None  # an artifact of any other kind: screened at every step
    return blake2b(text.encode(), digest_size=32).digest()


def unanswered(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """The messages behind the last one that a model wrote."""
    for index in range(len(messages) - 1, -1, -1):
        if isinstance(messages[index], AIMessage):
            return list(messages[index + 1 :])
    return list(messages)


def _verdicts_on(message: BaseMessage) -> tuple[Verdict, ...]:
    marker = read_marker(message)
    return marker.verdicts if marker else ()


def _bytes_as_text(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    raise TypeError(f"{type(value).__name__} has no digest")


def screen_result(result: Any, screen: MessageScreen) -> Any:
    """The same result with its pictures screened; ids and tool call ids stay.

    Of a command, the messages that a dict of updates holds are looked at. Whatever else brings
    messages into the state is looked at before the model is called.
    """
    if isinstance(result, ToolMessage):
        return screen([result]).messages[0]
    if isinstance(result, list):
        return [screen_result(item, screen) for item in result]
    if isinstance(result, Command) and isinstance(result.update, dict):
        update = {key: _screen_value(value, screen) for key, value in result.update.items()}
        return replace(result, update=update)
    return result


def _screen_value(value: Any, screen: MessageScreen) -> Any:
    if isinstance(value, BaseMessage):
        return screen([value]).messages[0]
    if isinstance(value, list) and value and all(isinstance(v, BaseMessage) for v in value):
        return screen(value).messages
    return value
