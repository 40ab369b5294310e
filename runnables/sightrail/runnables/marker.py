"""What screening leaves on a message: the verdicts, and whether the request is refused.

It stands in ``message.additional_kwargs["sightrail"]``, which every message class has and every
chat model integration leaves alone (in ``metadata["sightrail"]`` of a document and under the key
``"sightrail"`` of a dict). Anybody who may write messages may write a marker, so a marker is only
ever read to make things stricter: one that says "refused" refuses, one that says anything else is
history and permits nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage
from pydantic import BaseModel, ConfigDict, ValidationError

from sightrail.guardrails.verdict import Verdict

KEY: Final = "sightrail"


class Marker(BaseModel):
    """What was found on one message, document or dict.

    Attributes:
        refused: the policy refuses the request that this belongs to.
        verdicts: one per picture found there, in order.
    """

    model_config = ConfigDict(frozen=True)

    refused: bool
    verdicts: tuple[Verdict, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON; without timings, so that equal inputs give equal messages and caches hit."""
        return self.model_dump(mode="json", exclude={"verdicts": {"__all__": {"timings_ms"}}})


def read_marker(message: BaseMessage) -> Marker | None:
    """The marker on a message, for display and for audits; None where there is no readable one."""
    try:
        return Marker.model_validate(message.additional_kwargs.get(KEY))
    except ValidationError:
        return None


def is_refused(messages: Iterable[Any]) -> bool:
    """Whether any message is marked as refused, however damaged the rest of its marker is."""
    return any(_says_refused(m.additional_kwargs) for m in messages if isinstance(m, BaseMessage))


def marked_verdicts(messages: Iterable[Any]) -> tuple[Verdict, ...]:
    """The verdicts on all messages, in order."""
    markers = [read_marker(m) for m in messages if isinstance(m, BaseMessage)]
    return tuple(verdict for marker in markers if marker for verdict in marker.verdicts)


def write_marker(holder: Any, verdicts: Sequence[Verdict], *, refused: bool) -> Any:
    """A copy of the message, document or dict with a marker; "refused" is never taken back."""
    if isinstance(holder, BaseMessage):
        extra = _with_marker(holder.additional_kwargs, verdicts, refused)
        return holder.model_copy(update={"additional_kwargs": extra})
    if isinstance(holder, Document):
        metadata = _with_marker(holder.metadata, verdicts, refused)
        return holder.model_copy(update={"metadata": metadata})
    return _with_marker(holder, verdicts, refused)


def _with_marker(
    holder: Mapping[str, Any], verdicts: Sequence[Verdict], refused: bool
) -> dict[str, Any]:
    marker = Marker(refused=refused or _says_refused(holder), verdicts=tuple(verdicts))
    return {**holder, KEY: marker.to_json()}


def _says_refused(holder: Mapping[str, Any]) -> bool:
    marker = holder.get(KEY)
    return isinstance(marker, Mapping) and bool(marker.get("refused"))
