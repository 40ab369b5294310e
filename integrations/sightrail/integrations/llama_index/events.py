"""What LlamaIndex's instrumentation is told: the verdicts, no picture and no text."""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.instrumentation.events import BaseEvent
from llama_index_instrumentation import get_dispatcher

from sightrail.guardrails.verdict import Verdict

_dispatcher = get_dispatcher(__name__)


class ImagesScreenedEvent(BaseEvent):
    """Pictures were screened.

    Attributes:
        component: which part of this package met them, by the name users know it.
        verdicts: one per picture, in order, with the action taken.
        refused: whether the policy refused the request, a node or the tool's output.
        node_ids: the node of each verdict, where nodes were screened.
        left_out: the ids of nodes that did not pass.
    """

    component: str
    verdicts: tuple[Verdict, ...]
    refused: bool
    node_ids: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @classmethod
    def class_name(cls) -> str:
        """The name by which handlers and exporters know the event."""
        return "ImagesScreenedEvent"


def report(
    component: str,
    verdicts: Sequence[Verdict],
    *,
    refused: bool,
    node_ids: Sequence[str] = (),
    left_out: Sequence[str] = (),
) -> None:
    """Tell LlamaIndex's handlers; silent where no picture was met."""
    if verdicts:
        _dispatcher.event(
            ImagesScreenedEvent(
                component=component,
                verdicts=tuple(verdicts),
                refused=refused,
                node_ids=tuple(node_ids),
                left_out=tuple(left_out),
            )
        )
