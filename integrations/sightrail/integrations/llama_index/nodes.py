"""Screening nodes for retrieval and ingestion, some at a time: what stays, and why the rest not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, Literal

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import (
    BaseNode,
    NodeWithScore,
    QueryBundle,
    TextNode,
    TransformComponent,
)
from pydantic import Field, PositiveInt

from sightrail.guardrails.carriers.loop import OnVerdict, Screened
from sightrail.guardrails.errors import ImageError, ImageRefused
from sightrail.guardrails.intake import Limits
from sightrail.guardrails.intake.pictures import read_bytes
from sightrail.guardrails.policy import Policy
from sightrail.guardrails.screening.cache import CachedDetector
from sightrail.guardrails.strict import DetectorField, StrictModel, fingerprint
from sightrail.guardrails.telemetry import LOGGER
from sightrail.guardrails.verdict import Verdict

from .screening import LLAMA_INDEX, ImageScreen, report, with_metadata, write_marker

SEEN: Final = "sightrail_seen"
"""The key under which a node says which very pictures were looked at, by whom.

A digest that stands in the metadata on purpose, unlike the verdicts: caches of ingestion pipelines
tell nodes apart by text and metadata alone, and by this they tell their pictures apart as well.
"""

_TOLD: Final = 20  # nodes that are named in one line of the log

Node = BaseNode | NodeWithScore


@dataclass(frozen=True)
class LeftOut:
    """A node that may not pass.

    Attributes:
        node: as it came.
        verdicts: on its pictures.
        cause: what the detector raised, if it failed.
    """

    node: Node
    verdicts: tuple[Verdict, ...]
    cause: Exception | None = None

    @property
    def failed(self) -> bool:
        """Whether nobody has looked at it because something broke, and may work the next time."""
        return any(verdict.status == "failed" for verdict in self.verdicts)


@dataclass
class Sorted:
    """Nodes after screening.

    Attributes:
        kept: may pass, in order; copies where something was changed or found.
        left_out: the others.
    """

    kept: list[Any] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """On the nodes that are left out."""
        return tuple(verdict for left in self.left_out for verdict in left.verdicts)


class NodeGuard(StrictModel):
    """What guards of nodes have in common; see there for the fields."""

    detector: DetectorField
    policy: Policy = Policy()
    limits: Limits = Limits()
    batch_size: PositiveInt = 16
    on_verdict: OnVerdict | None = Field(default=None, exclude=True)

    def _sort(self, nodes: Sequence[Any], trusting: bool = False) -> Sorted:
        found = Sorted()
        told: list[tuple[str, Verdict]] = []
        error: ImageRefused | None = None
        for some in self._batches(nodes):
            known = [trusting and self._was_seen(node) for node in some]
            asked = [node for node, seen in zip(some, known, strict=True) if not seen]
            outcomes = iter(self._screen.screen(asked))
            for node, seen in zip(some, known, strict=True):
                if seen:
                    found.kept.append(node)
                    continue
                outcome = next(outcomes)
                verdicts = outcome.verdicts
                told += [(_bare(node).node_id, verdict) for verdict in verdicts]
                if isinstance(outcome, ImageRefused):
                    error = error or outcome
                else:
                    _sort_in(found, node, outcome)
            if error is not None:
                break
        self._tell(len(nodes), found, told, refused=error is not None)
        if error is not None:
            raise error
        return found

    async def _asort(self, nodes: Sequence[Any], trusting: bool = False) -> Sorted:
        return await asyncio.to_thread(self._sort, nodes, trusting)

    def _batches(self, nodes: Sequence[Any]) -> Iterator[Sequence[Any]]:
        for start in range(0, len(nodes), self.batch_size):
            yield nodes[start : start + self.batch_size]

    @property
    def _screen(self) -> ImageScreen:
        return ImageScreen(
            self.detector,
            self.policy,
            self.limits,
            "retrieval",
            type(self).__name__,
            self.on_verdict,
            reports=False,
        )

    def _tell(
        self, count: int, found: Sorted, told: list[tuple[str, Verdict]], *, refused: bool
    ) -> None:
        left_out = tuple(_bare(left.node).node_id for left in found.left_out)
        report(
            type(self).__name__,
            [verdict for _, verdict in told],
            refused=refused or bool(left_out),
            node_ids=[node_id for node_id, _ in told],
            left_out=left_out,
        )
        if left_out:
            LOGGER.warning(
                "%s left out %d of %d nodes: %s",
                type(self).__name__,
                len(left_out),
                count,
                "; ".join(map(_line, found.left_out[:_TOLD])),
            )

    # Which pictures were looked at already

    def _signed(self, node: BaseNode) -> BaseNode:
        """A node that says which pictures were looked at; the same where it holds none."""
        signature = self._signature(node)
        return node if signature is None else with_metadata(node, SEEN, signature)

    def _was_seen(self, node: Node) -> bool:
        bare = _bare(node)
        signed = bare.metadata.get(SEEN)
        return signed is not None and signed == self._signature(bare)

    def _signature(self, node: BaseNode) -> str | None:
        """Of the bytes of every picture in a node, the detector and the policy."""
        detector = self.detector
        if isinstance(detector, CachedDetector):
            detector = detector.detector
        digest = sha256(f"{fingerprint(detector)} {self.policy!r}".encode())
        carriers = LLAMA_INDEX.carriers(node, "retrieval")
        for carrier in carriers:
            source = carrier.source
            held = isinstance(source, bytes) or (
                isinstance(source, str) and source[:5].lower() == "data:"
            )
            try:
                data = read_bytes(source, self.limits) if held else b""  # type: ignore[arg-type]
            except ImageError:
                data = b""
            if not data:
                return None
            digest.update(sha256(data).digest())
        return digest.hexdigest()[:32] if carriers else None


def _sort_in(found: Sorted, node: Any, outcome: Screened) -> None:
    if outcome.refused:
        found.left_out.append(LeftOut(node, outcome.verdicts, outcome.cause))
    else:
        found.kept.append(outcome.value)


def _bare(node: Node) -> BaseNode:
    return node.node if isinstance(node, NodeWithScore) else node


def _line(left: LeftOut) -> str:
    why = ", ".join(sorted({verdict.summary() for verdict in left.verdicts}))
    return f"{_bare(left.node).node_id} ({why})"


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
