"""What screening leaves behind: the verdicts, on the message or node they belong to.

In ``message.additional_kwargs["sightrail"]`` as JSON, and in ``node.metadata["sightrail"]`` as one
text, because many vector stores take flat metadata only; there it is kept from the texts that
models and embeddings see. A marker permits nothing: one that says "refused" refuses, any other is
history.
"""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import BaseNode, NodeWithScore
from pydantic import ValidationError

from sightrail.guardrails.verdict import Verdict
from sightrail.runnables.marker import KEY, Marker

Holder = ChatMessage | BaseNode


def read_marker(holder: ChatMessage | BaseNode | NodeWithScore) -> Marker | None:
    """The marker on a message or node, for display and audits; None where none is readable."""
    value = (holder.additional_kwargs if isinstance(holder, ChatMessage) else holder.metadata).get(
        KEY
    )
    try:
        if isinstance(value, str):
            return Marker.model_validate_json(value)
        return Marker.model_validate(value)
    except ValidationError:
        return None


def is_refused(messages: Sequence[ChatMessage]) -> bool:
    """Whether a message is marked as refused, however damaged the rest of its marker is."""
    markers = (message.additional_kwargs.get(KEY) for message in messages)
    return any(isinstance(marker, dict) and bool(marker.get("refused")) for marker in markers)


def write_marker(holder: Holder, verdicts: Sequence[Verdict], *, refused: bool) -> Holder:
    """A copy with a marker; on a message, "refused" is never taken back."""
    if isinstance(holder, ChatMessage):
        marker = Marker(refused=refused or is_refused([holder]), verdicts=tuple(verdicts))
        extra = {**holder.additional_kwargs, KEY: marker.to_json()}
        return holder.model_copy(update={"additional_kwargs": extra})
    return _mark_node(holder, Marker(refused=refused, verdicts=tuple(verdicts)))


def _mark_node(node: BaseNode, marker: Marker) -> BaseNode:
    """Without timings, which would change hashes, and risk maps, too long for an index's rows."""
    text = marker.model_dump_json(exclude={"verdicts": {"__all__": {"timings_ms", "risk_map"}}})
    update = {
        "metadata": {**node.metadata, KEY: text},
        "excluded_llm_metadata_keys": _with_key(node.excluded_llm_metadata_keys),
        "excluded_embed_metadata_keys": _with_key(node.excluded_embed_metadata_keys),
    }
    return node.model_copy(update=update)


def _with_key(keys: Sequence[str]) -> list[str]:
    return [*(key for key in keys if key != KEY), KEY]
