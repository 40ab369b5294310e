"""Screening nodes for retrieval and ingestion, some at a time: what stays, and why the rest not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

from llama_index.core.schema import BaseNode, NodeWithScore
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

from .events import report
from .marks import with_metadata
from .screening import LLAMA_INDEX, ImageScreen

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
