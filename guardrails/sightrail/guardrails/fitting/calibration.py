"""A threshold with a promise for a guardrail that decides on requests, and whether it holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final

from ..guarantees import Drift, check_drift, guaranteed_threshold
from .artifacts import Artifact

if TYPE_CHECKING:
    from ..datasets import Example
    from ..model import LocalLVLM

_TOGETHER: Final = 32


def calibrated(
    lvlm: LocalLVLM,
    artifact: Artifact,
    examples: Sequence[Example],
    *,
    false_alarms: float,
    confidence: float | None,
    source: str,
) -> Artifact:
    """The artifact with a threshold and the scores it came from.

    Args:
        lvlm: with the one guardrail whose score is meant.
        artifact: of that guardrail.
        examples: the benign ones choose the threshold, harmful ones bound what is missed; see
            :func:`guarantees.guaranteed_threshold`.
        false_alarms: the share of benign requests to come that may be flagged.
        confidence: of that promise; None for the average.
        source: what the examples are.

    Raises:
        ConfigurationError: too few benign examples for this promise, or it is not possible.
    """
    benign = list(scores_of(lvlm, (example for example in examples if not example.harmful)))
    threshold = guaranteed_threshold(
        benign,
        false_alarms=false_alarms,
        confidence=confidence,
        source=source,
        attacks=list(scores_of(lvlm, (example for example in examples if example.harmful))),
    )
    return artifact.with_manifest(threshold=threshold, benign=tuple(sorted(benign)))


def check_requests(lvlm: LocalLVLM, examples: Iterable[Example], artifact: Artifact) -> Drift:
    """Whether new benign requests are like those of an artifact's calibration, by their scores.

    Args:
        lvlm: with the one guardrail that the artifact belongs to.
        examples: benign ones; harmful ones among them are passed over.
        artifact: calibrated.

    Raises:
        ConfigurationError: it was not calibrated, or there are no benign examples.
    """
    new = list(scores_of(lvlm, (example for example in examples if not example.harmful)))
    return check_drift(artifact.manifest.benign, new, artifact.manifest.threshold)


def scores_of(lvlm: LocalLVLM, examples: Iterable[Example]) -> Iterator[float]:
    """The score of every request; one that could not be scored would be flagged: 1, the most."""
    from .run import conversation_of

    rest = iter(examples)
    while part := list(islice(rest, _TOGETHER)):
        for verdicts in lvlm.assess_batch([conversation_of(example) for example in part]):
            (score,) = (verdict.score for verdict in verdicts)
            yield 1.0 if score is None else score
