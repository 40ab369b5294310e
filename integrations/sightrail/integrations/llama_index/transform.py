"""Screening on the way into an index, as a step of an ingestion pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from llama_index.core.schema import BaseNode, TransformComponent

from sightrail.guardrails.errors import ImageRefused

from .nodes import NodeGuard, Sorted


class ImageRiskTransform(NodeGuard, TransformComponent, extra="forbid"):
    """Looks at the pictures of nodes before they are indexed; acts as ``ImageRiskPostprocessor``.

    A picture that passes is stored as the pixels that were looked at, in the node itself: a file
    or page that changes later changes nothing in the index. A clean one keeps its bytes where
    these can be read as nothing else (see ``Encoding``).

    Readers such as ``SimpleDirectoryReader`` name files: ``Limits(folders=[the reader's folder])``
    says that they may.

    Where to put it:

    - in front of the pipeline, ``pipeline.run(documents=guard(documents))``: its docstore and cache
      then hold what was screened alone, and a document that was left out is unknown to both and
      comes again with the next run. A docstore keeps documents as they were given to the pipeline,
      raw pictures included, whatever its steps do.
    - as a step, before or behind a splitter. Splitters copy an ImageDocument's picture into every
      node they make of its text.

    The pipeline's cache keys a step by its settings, the detector's and the policy's included, and
    a node by its text and metadata and not by its picture: give nodes metadata that tells their
    pictures apart (``SimpleDirectoryReader`` does), or run without a cache.

    Args:
        detector: has ``screen(images) -> list[Verdict]``, such as ``RiskDetector``.
        policy: what a verdict leads to.
        limits: what intake is willing to read from one node.
        batch_size: nodes whose pictures are in memory, and in one call of the detector, at a time.
        on_verdict: called with every verdict, in the thread that screens.
        on_failed: what is done where a screening failed (the detector raised, or took too long) and
            the policy refuses what it could not see. ``raise``, once all nodes were looked at, so
            that no cache and no docstore takes the failure for the end of a document;
            ``leave_out`` goes on without these nodes. Both are logged with the nodes' ids.

    Raises:
        ImageRefused: from a call: see `on_failed`, with the detector's error as its cause; or the
            policy's action is ``raise``.

    Example:
        ``IngestionPipeline(transformations=[ImageRiskTransform(detector=detector), embedding])``
    """

    on_failed: Literal["raise", "leave_out"] = "raise"

    @classmethod
    def class_name(cls) -> str:
        """The name in LlamaIndex's serialised form."""
        return "ImageRiskTransform"

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[BaseNode]:
        """The nodes that may be indexed."""
        return self._kept(self._sort(nodes))

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[BaseNode]:
        """The same, in a worker thread."""
        return self._kept(await self._asort(nodes))

    def _kept(self, found: Sorted) -> list[BaseNode]:
        failed = [left for left in found.left_out if left.failed]
        if failed and self.on_failed == "raise":
            verdicts = tuple(verdict for left in failed for verdict in left.verdicts)
            raise ImageRefused(
                f"Screening failed on {len(failed)} nodes ({verdicts[0].summary()}). Run again "
                "when the detector works. To go on without them, set on_failed='leave_out', and "
                "call the transform in front of the pipeline, so that its docstore does not know "
                "them.",
                verdicts=verdicts,
            ) from failed[0].cause
        return [self._signed(node) for node in found.kept]
