"""What a callback handler finds out about the pictures of one event, and writes down."""

from __future__ import annotations

import datetime
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from sightrail.guardrails.carriers.loop import PictureLoop
from sightrail.guardrails.carriers.words import words_in
from sightrail.guardrails.errors import ImageRefused
from sightrail.guardrails.intake import Limits
from sightrail.guardrails.policy import Policy, Surface
from sightrail.guardrails.screening.asking import Detector
from sightrail.guardrails.screening.cache import CachedDetector
from sightrail.guardrails.verdict import Verdict
from sightrail.runnables.walk import LANGCHAIN

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
        event: LangChain's name of it, such as ``on_tool_end``.
        run_id: LangChain's id of the run.
        parent_run_id: of the run it belongs to.
        verdicts: one per picture, in order, without risk maps. The action is what the policy
            says; a callback changes nothing.
        tripped: whether the run was stopped because of it.
    """

    model_config = ConfigDict(frozen=True)

    time: datetime.datetime
    event: str
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
        words = list(map(words_in, values)) if watching.wants_request else ()
        found = [LANGCHAIN.carriers(value, surface) for value in values]
        looks = watching.look(found, words=words)
        verdicts = tuple(verdict for look in looks for verdict in look.verdicts)
        if not verdicts:
            return
        stopped = [v for v in verdicts if v.action != "allow"]
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

    def _write(self, record: AuditRecord) -> None:
        if self.log is None:
            return
        with self._writing, open(self.log, "a", encoding="utf-8") as file:
            file.write(record.to_line() + "\n")
