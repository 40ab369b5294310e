"""A callback handler: an audit of every picture that LangChain's events show, and a tripwire."""

from __future__ import annotations

import datetime
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from pydantic import BaseModel, ConfigDict

from sightrail.guardrails.carriers.carrier import Marker
from sightrail.guardrails.carriers.conversation import asked_in
from sightrail.guardrails.carriers.loop import PictureLoop
from sightrail.guardrails.carriers.words import words_in
from sightrail.guardrails.errors import ImageRefused
from sightrail.guardrails.intake import Limits
from sightrail.guardrails.policy import Policy, Surface
from sightrail.guardrails.screening.asking import Detector
from sightrail.guardrails.screening.cache import CachedDetector
from sightrail.guardrails.telemetry import LOGGER
from sightrail.guardrails.verdict import Verdict
from sightrail.runnables.walk import EVENT, LANGCHAIN, read_marker


class GuardrailCallbackHandler(BaseCallbackHandler):
    """Looks at every picture on chat model, tool and retriever events.

    It audits: what it sees is written to ``log``, one line of JSON an event, without pictures,
    texts or names of files. Beside a guard it writes down what the guard says that it did, so that
    what was masked, and what was refused before any model ran, is on record as that. With
    ``raise_error=True`` it is a tripwire as well: where the policy says anything but allow it
    raises ``ImageRefused`` and LangChain stops the run.

    What a callback cannot do, whoever wrote it:

    - It changes nothing. It cannot mask or drop a picture; ``ScreenImages`` and
      ``ImageGuardMiddleware`` can. As a tripwire it therefore stops what they would mask.
    - Without ``raise_error`` LangChain catches all that a handler raises, an unwritable log
      included, and goes on with a warning.
    - It sees what has callbacks: a model that is called outside of LangChain is not seen, nor is
      a run to which the handler was not handed (``config={"callbacks": [handler]}`` is inherited by
      the runs inside, a handler given to one model is not).
    - Tokens that are streamed have gone out before the end of the model's run can be looked at.
    - Whoever handles errors of tools inside the graph (``ToolNode(handle_tool_errors=True)``)
      catches the tripwire of a tool's result too: the run goes on, without the result.
    - It serves asynchronous runs as well: LangChain calls it in a worker thread, and as a
      tripwire in the event loop, which waits, so that nothing overtakes it. There is no twin with
      ``async def`` methods on purpose: what such a handler raises is dropped wherever a run is
      synchronous, and a tool without a coroutine is run so inside of asynchronous agents.

    Args:
        detector: has ``screen(images) -> list[Verdict]``; wrapped in a ``CachedDetector``, so that
            history costs nothing.
        policy: what a verdict would lead to.
        limits: what intake is willing to decode.
        log: the file to append to.
        raise_error: whether to be a tripwire.
    """

    def __init__(
        self,
        *,
        detector: Detector,
        policy: Policy | None = None,
        limits: Limits | None = None,
        log: str | os.PathLike[str] | None = None,
        raise_error: bool = False,
    ) -> None:
        self.raise_error = raise_error
        self.run_inline = raise_error
        self._audit = ImageAudit(
            detector, policy or Policy(), limits or Limits(), log, tripwire=raise_error
        )

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """The messages that a chat model is about to get."""
        given = [message for batch in messages for message in batch]
        self._audit.look("on_chat_model_start", given, run_id, parent_run_id)

    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """What a guard in the run (``ScreenImages``, ``ImageGuardMiddleware``) found and did."""
        if name == EVENT:
            self._audit.note(data, run_id)

    def on_llm_start(
        self,
        serialized: dict[str, Any],
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """Prompts that are a picture, written as text."""
        self._audit.look("on_llm_start", prompts, run_id, parent_run_id)

    def on_llm_end(
        self,
        response: LLMResult,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """What a model answered."""
        self._audit.look("on_llm_end", _answers(response), run_id, parent_run_id)

    def on_tool_start(
        self,
        serialized: dict[str, Any],
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        inputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """The arguments of a tool."""
        self._audit.look("on_tool_start", [inputs or input_str], run_id, parent_run_id)

    def on_tool_end(
        self, output: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """What a tool gave back."""
        self._audit.look("on_tool_end", _results(output), run_id, parent_run_id)

    def on_retriever_end(
        self,
        documents: Sequence[Document],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """The documents that a retriever found."""
        self._audit.look("on_retriever_end", list(documents), run_id, parent_run_id)


def _answers(response: LLMResult) -> list[Any]:
    generations = (generation for several in response.generations for generation in several)
    return [
        generation.message if isinstance(generation, ChatGeneration) else generation.text
        for generation in generations
    ]


def _results(output: Any) -> list[Any]:
    """What of a tool's output could be shown to a model: of a command, the messages in it."""
    update = getattr(output, "update", None)
    if isinstance(output, dict | list | tuple | str | BaseMessage) or update is None:
        return [output]
    values = list(update.values()) if isinstance(update, dict) else [update]
    items = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return [item for item in items if isinstance(item, BaseMessage)]


_SURFACES: Final[dict[str, Surface]] = {
    "on_tool_start": "ai",
    "on_tool_end": "tool",
    "on_llm_end": "ai",
    "on_retriever_end": "retrieval",
}
"""Where a bare value came from: a model writes the arguments of a tool. Messages say it themselves.
"""


class AuditRecord(BaseModel):
    """One line of the audit log: an event in which there were pictures. No content of any kind.

    Attributes:
        time: when the event was seen, in UTC.
        event: LangChain's name of it, such as ``on_tool_end``; ``on_custom_event`` is what a guard
            says that it did.
        component: the guard that says it.
        run_id: LangChain's id of the run.
        parent_run_id: of the run it belongs to.
        verdicts: one per picture, in order, without risk maps. The action is what the policy
            says, a callback changes nothing; on a message that a guard has marked, and in what a
            guard says, it is what the guard did.
        tripped: whether the run was stopped because of it.
    """

    model_config = ConfigDict(frozen=True)

    time: datetime.datetime
    event: str
    component: str | None = None
    run_id: UUID
    parent_run_id: UUID | None
    verdicts: tuple[Verdict, ...]
    tripped: bool

    def to_line(self) -> str:
        """As one line of JSON."""
        left_out = {"verdicts": {"__all__": {"risk_map", "timings_ms"}}}
        return self.model_dump_json(exclude=left_out)


@dataclass(eq=False)
class ImageAudit:
    """Looks at the pictures of events.

    Attributes:
        detector: see ``CachedDetector``; wrapped in one unless it is one.
        policy: what a verdict would lead to.
        limits: what intake is willing to decode.
        log: the file to append a line to for each event; None keeps no log.
        tripwire: raise where the policy allows a picture less than to pass as it is.
    """

    detector: Detector
    policy: Policy
    limits: Limits
    log: str | os.PathLike[str] | None
    tripwire: bool
    _writing: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.detector, CachedDetector):
            self.detector = CachedDetector(self.detector)

    def __getstate__(self) -> dict[str, Any]:
        """Without the lock."""
        return {**self.__dict__, "_writing": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _writing=threading.Lock())

    def look(
        self, event: str, values: Sequence[Any], run_id: UUID, parent_run_id: UUID | None
    ) -> None:
        """Screen whatever pictures an event holds and write them down.

        Raises:
            ImageRefused: as a tripwire, for any picture that may not pass unchanged. A callback
                cannot mask, so a picture that the policy would mask is not let through either.
            OSError: the log cannot be written.
        """
        watching = PictureLoop(
            (self.detector,),
            self.policy.model_copy(update={"monitor": True}),
            self.limits,
            component="GuardrailCallbackHandler",
        )
        surface = _SURFACES.get(event, "user")
        words: Sequence[str] = ()
        if watching.wants_request:
            words = list(map(words_in, values))
            if event == "on_chat_model_start":
                words = [asked_in(values, LANGCHAIN)] * len(values)
        found = [LANGCHAIN.carriers(value, surface) for value in values]
        looks = watching.look(found, words=words)
        stopped = [v for look in looks for v in look.verdicts if v.action != "allow"]
        verdicts = tuple(
            verdict
            for value, look in zip(values, looks, strict=True)
            for verdict in _on_record(value, look.verdicts)
        )
        if not verdicts:
            return
        tripped = self.tripwire and bool(stopped) and not self.policy.monitor
        now = datetime.datetime.now(datetime.UTC)
        self._write(
            AuditRecord(
                time=now,
                event=event,
                run_id=run_id,
                parent_run_id=parent_run_id,
                verdicts=verdicts,
                tripped=tripped,
            )
        )
        if tripped:
            raise ImageRefused(f"{event}: {stopped[0].summary()}", verdicts=verdicts)

    def note(
        self, said: Mapping[str, Any], run_id: UUID, parent_run_id: UUID | None = None
    ) -> None:
        """Write down what a guard says that it found and did."""
        try:
            verdicts = tuple(Verdict.model_validate(verdict) for verdict in said["verdicts"])
            component = str(said["component"])
        except (KeyError, TypeError, ValueError) as error:
            LOGGER.warning("an event that says it is a guard's is none", exc_info=error)
            return
        now = datetime.datetime.now(datetime.UTC)
        self._write(
            AuditRecord(
                time=now,
                event="on_custom_event",
                component=component,
                run_id=run_id,
                parent_run_id=parent_run_id,
                verdicts=verdicts,
                tripped=False,
            )
        )

    def _write(self, record: AuditRecord) -> None:
        if self.log is None:
            return
        with self._writing, open(self.log, "a", encoding="utf-8") as file:
            file.write(record.to_line() + "\n")


def _on_record(value: Any, found: tuple[Verdict, ...]) -> tuple[Verdict, ...]:
    """What was found on a value, and before on a message that a guard has marked.

    What a guard has masked looks clean, and what it has taken out is not there to be looked at. A
    marker never makes a finding less than it is: see ``Marker.after``.
    """
    marker = read_marker(value) if isinstance(value, BaseMessage) else None
    return found if marker is None else Marker(refused=False, verdicts=found).after(marker).verdicts
