"""What screening leaves behind: the verdicts, on the message or node they belong to.

On a node they stand as one text among ``excluded_llm_metadata_keys``. Splitters hand that list on
and every store keeps it, and it is told to nobody; an entry of ``metadata`` would be, wherever
texts are made with ``MetadataMode.ALL`` (prompts of metadata extractors, by default).

Whatever a message holds is written into prompts (LlamaIndex's history strings) or sent to a
provider, and so its marker stands beside its fields: copies, pickles and memories in this process
keep it, its JSON does not. A marker permits nothing: one that says "refused" refuses, any other is
history.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.core.tools import ToolOutput

from sightrail.guardrails.carriers.carrier import KEY, Marker, says_refused, with_marker
from sightrail.guardrails.verdict import Verdict

Holder = ChatMessage | ToolOutput | BaseNode

_ON_NODE: Final = f"{KEY}:"


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
