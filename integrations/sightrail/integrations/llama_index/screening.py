"""Screening LlamaIndex values: find the pictures, look at all of them at once, act on each.

The verdicts stay on the message or node they belong to, and LlamaIndex's instrumentation is told
of them, without picture or text.

On a node they stand as one text among ``excluded_llm_metadata_keys``. Splitters hand that list on
and every store keeps it, and no model is shown it; an entry of ``metadata`` would be shown wherever
texts are made with ``MetadataMode.ALL`` (prompts of metadata extractors, by default).

Whatever a message holds is written into prompts (LlamaIndex's history strings) or sent to a
provider, and so its marker stands beside its fields: copies, pickles and memories in this process
keep it, its JSON does not. A marker permits nothing: one that says "refused" refuses, any other is
history.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.core.tools import ToolOutput
from llama_index_instrumentation import get_dispatcher

from sightrail.guardrails.carriers.carrier import KEY, Marker, says_refused, with_marker
from sightrail.guardrails.carriers.loop import (
    Framework,
    OnVerdict,
    PictureLoop,
    Screened,
    tell_nobody,
)
from sightrail.guardrails.errors import ImageRefused
from sightrail.guardrails.intake import Limits
from sightrail.guardrails.policy import Policy, Surface
from sightrail.guardrails.screening.asking import Detector, check_categories, checked_detector
from sightrail.guardrails.verdict import Verdict

from .walk import Holder, Walk, surface_of

_ON_NODE: Final = f"{KEY}:"

_dispatcher = get_dispatcher(__name__)


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
        component: who screens, for LlamaIndex's instrumentation, traces and logs.
        on_verdict: called with every verdict, in the thread that screens.
        reports: whether LlamaIndex's instrumentation is told; what an agent sends again with every
            step was reported when it was new.

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
    on_verdict: OnVerdict | None = None
    reports: bool = True

    def __post_init__(self) -> None:
        check_categories((checked_detector(self.detector),), self.policy)

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
        return self.loop.screen(values, together=together)

    async def ascreen(
        self, values: Sequence[Any], *, together: bool = False
    ) -> list[Screened | ImageRefused]:
        """``screen`` in a worker thread."""
        return await asyncio.to_thread(self.screen, values, together=together)

    @property
    def loop(self) -> PictureLoop:
        """What looks at pictures here."""
        return PictureLoop(
            (self.detector,),
            self.policy,
            self.limits,
            LLAMA_INDEX if self.reports else _IN_SILENCE,
            component=self.component,
            surface=self.surface,
            on_verdict=self.on_verdict,
        )


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


def read_marker(holder: Holder | NodeWithScore) -> Marker | None:
    """The marker on a message, a tool's output or a node; None where none is readable."""
    if isinstance(holder, ChatMessage | ToolOutput):
        return Marker.read(_beside(holder).get(KEY))
    node = holder.node if isinstance(holder, NodeWithScore) else holder
    found = [key for key in node.excluded_llm_metadata_keys if key.startswith(_ON_NODE)]
    return Marker.read(found[-1].removeprefix(_ON_NODE)) if found else None


def is_refused(messages: Sequence[ChatMessage]) -> bool:
    """Whether a message is marked as refused, however damaged the rest of its marker is."""
    return any(says_refused(_beside(message)) for message in messages)


def marked_verdicts(messages: Sequence[ChatMessage]) -> tuple[Verdict, ...]:
    """The verdicts on all messages, in order."""
    markers = [read_marker(message) for message in messages]
    return tuple(verdict for marker in markers if marker for verdict in marker.verdicts)


def write_marker(holder: Holder, verdicts: Sequence[Verdict], *, refused: bool) -> Holder:
    """A copy with a marker; on a message, "refused" is never taken back."""
    if isinstance(holder, ChatMessage | ToolOutput):
        marked = holder.model_copy()
        marked.__dict__[KEY] = with_marker(_beside(holder), verdicts, refused=refused)[KEY]
        return marked
    return _mark_node(holder, Marker(refused=refused, verdicts=tuple(verdicts)))


def _beside(holder: ChatMessage | ToolOutput) -> Mapping[str, Any]:
    """Where a message's marker stands; one that somebody sent along is read as well."""
    sent = holder.additional_kwargs if isinstance(holder, ChatMessage) else {}
    return {**sent, **holder.__dict__}


def _mark_node(node: BaseNode, marker: Marker) -> BaseNode:
    text = json.dumps(marker.after(read_marker(node)).to_json())
    others = [key for key in node.excluded_llm_metadata_keys if not key.startswith(_ON_NODE)]
    keys = [*others, _ON_NODE + text]
    return node.model_copy(update={"excluded_llm_metadata_keys": keys})


def with_metadata(node: BaseNode, key: str, text: str) -> BaseNode:
    """A copy with an entry of ours in its metadata, kept from models and embeddings."""
    update = {
        "metadata": {**node.metadata, key: text},
        "excluded_llm_metadata_keys": _with_key(node.excluded_llm_metadata_keys, key),
        "excluded_embed_metadata_keys": _with_key(node.excluded_embed_metadata_keys, key),
    }
    return node.model_copy(update=update)


def _with_key(keys: Sequence[str], ours: str) -> list[str]:
    return [*(key for key in keys if key != ours), ours]


def _was_refused(value: Any) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return is_refused([item for item in values if isinstance(item, ChatMessage)])


def _marker_on(value: Any) -> Marker | None:
    return read_marker(value) if isinstance(value, ChatMessage) else None


LLAMA_INDEX: Final = Framework(
    Walk, write_marker, _was_refused, report, surface_of, read=_marker_on
)
_IN_SILENCE: Final = replace(LLAMA_INDEX, report=tell_nobody)
