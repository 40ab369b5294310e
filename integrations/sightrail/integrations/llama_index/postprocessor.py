"""Screening what was retrieved, between the retriever and the model."""

from __future__ import annotations

from typing import Literal

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from sightrail.guardrails.errors import ImageRefused

from .marks import write_marker
from .nodes import NodeGuard, Sorted


class ImageRiskPostprocessor(NodeGuard, BaseNodePostprocessor, extra="forbid"):
    """Looks at the pictures of retrieved nodes, those of ``batch_size`` nodes in one call.

    What the policy says of a node's picture:

    - ``mask``: it is covered where it is risky, and the node passes;
    - ``drop``: ``policy.note`` stands in its place, and the node passes with its text;
    - ``refuse``: the node is left out;
    - ``raise``: the retrieval ends with ImageRefused;
    - ``allow``, and anything under ``monitor``: the node passes, tagged.

    Every node that passes and held something to look at is tagged with its verdicts; see
    ``read_marker``. What could not be looked at (remote addresses, files outside of
    ``limits.folders``, broken ones, sound, film) goes by ``policy.on_not_inspected`` and is left
    out by default. What is left out is logged, and named in the ImagesScreenedEvent. Nodes are
    copied, never changed, and a picture that passes holds the very pixels that were looked at.

    The same pictures come back with every query: give a ``CachedDetector``, whose ``VerdictStore``
    may be ingestion's (a file, or a key-value store of LlamaIndex's), or trust what ingestion has
    written on the nodes.

    Args:
        detector: has ``screen(images) -> list[Verdict]``, such as ``RiskDetector``.
        policy: what a verdict leads to.
        limits: what intake is willing to read of each node; ``Limits(folders=["photos"])`` lets
            nodes name files of that folder.
        batch_size: nodes whose pictures are in memory, and in one call of the detector, at a time.
        on_verdict: called with every verdict, in the thread that screens.
        when_all_refused: what a query gets whose nodes were all left out: a node that says so in
            the policy's words, nothing, or ImageRefused.
        trust_ingested: let a node pass that an ``ImageRiskTransform`` with the same detector and
            policy has tagged, if its pictures are the very bytes of then. Whoever can write to the
            store can write such a tag: trust it only where ingestion alone does.

    Example:
        ``index.as_query_engine(node_postprocessors=[ImageRiskPostprocessor(detector=detector)])``
    """

    when_all_refused: Literal["note", "nothing", "raise"] = "note"
    trust_ingested: bool = False

    @classmethod
    def class_name(cls) -> str:
        """The name in LlamaIndex's serialised form."""
        return "ImageRiskPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return self._left(self._sort(nodes, self.trust_ingested))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return self._left(await self._asort(nodes, self.trust_ingested))

    def _left(self, found: Sorted) -> list[NodeWithScore]:
        if found.kept or not found.left_out or self.when_all_refused == "nothing":
            return found.kept
        text = self.policy.refusal_for(found.verdicts)
        if self.when_all_refused == "raise":
            raise ImageRefused(text, verdicts=found.verdicts) from found.left_out[0].cause
        note = write_marker(TextNode(text=text), found.verdicts, refused=True)
        return [NodeWithScore(node=note, score=0.0)]
