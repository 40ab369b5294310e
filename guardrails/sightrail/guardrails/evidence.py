"""One decision from all evidence: the parts of a stack merged into one risk with one promise.

A stack whose parts decide each by itself adds up their false alarms. Here each part gives a p-value
("how often does a benign request score this high"), the p-values are merged by a rule that holds
however the parts depend on each other, and the merged risk gets one threshold with one promise.
What is masked, steered or refused follows from that risk: see `model.joint_decision`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict

from .errors import ConfigurationError
from .fitting.artifacts import Artifact, Manifest, ModelIdentity, load_artifact, save_artifact
from .guarantees import ALARMS, CONFIDENCE, conformal_p_value, guaranteed_threshold
from .verdict import NotInspected, Threshold, Verdict

__all__ = ["Evidence", "merge_p_values"]

Rule = Literal["bonferroni", "average", "geometric"]
NAME: Final = "evidence"
FINISHED: Final = ("clean", "flagged")


def merge_p_values(
    values: Mapping[str, float], weights: Mapping[str, float], rule: Rule = "bonferroni"
) -> float:
    """One p-value from several, valid whatever the dependence between them.

    `bonferroni`: min p_i / w_i, which asks for one part that is sure. `average`: 2 sum w_i p_i
    (Rueschendorf 1982) and `geometric`: e prod p_i^w_i (both: Vovk and Wang, "Combining p-values
    via averaging", Biometrika 2020), which ask for parts that agree.

    Args:
        values: by part.
        weights: by part, summing to 1.
        rule: which.
    """
    if rule == "average":
        return min(1.0, 2 * sum(weights[name] * p for name, p in values.items()))
    if rule == "geometric":
        logs = sum(weights[name] * math.log(p) for name, p in values.items())
        return min(1.0, math.exp(1 + logs))
    return min(1.0, *(p / weights[name] for name, p in values.items()))


class Evidence(BaseModel):
    """What was learnt of a stack's parts from benign requests, and the promise on their union.

    The p-values come from one half of the benign requests and the threshold on the merged risk from
    the other, so that the promise holds exactly, whatever the parts are and however they depend on
    each other. A part's p-value is among the requests in which it had something to look at; parts
    without leave their weight to the others. The risk is -log10 of the merged p-value; ties between
    p-values at the resolution of the first half are broken by how far scores lie beyond all benign
    ones.

    Attributes:
        benign: scores of the first half by part, ascending.
        risks: merged risks of the second half, ascending: for the p-value of the whole.
        weights: of the parts, summing to 1.
        pictures: the parts that look at pictures; the others tell about every request.
        rule: how p-values are merged.
        threshold: on the merged risk.
        base: the model whose verdicts these are; None where nobody said.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    benign: dict[str, tuple[float, ...]]
    risks: tuple[float, ...] = ()
    weights: dict[str, float]
    pictures: tuple[str, ...] = ()
    rule: Rule = "geometric"
    threshold: Threshold
    base: ModelIdentity | None = None

    @classmethod
    def fit(
        cls,
        benign: Sequence[Sequence[Verdict]],
        *,
        weights: Mapping[str, float] | None = None,
        rule: Rule = "geometric",
        false_alarms: float = ALARMS,
        confidence: float | None = CONFIDENCE,
        source: str,
        attacks: Sequence[Sequence[Verdict]] = (),
        base: ModelIdentity | None = None,
    ) -> Self:
        """From the verdicts that a stack gives on benign requests (LocalLVLM.assess_batch).

        Args:
            benign: the verdicts on each request, in random order.
            weights: how much each part's word counts, by name; alike when None.
            rule: see `merge_p_values`.
            false_alarms: the share of benign requests to come that the whole stack may flag.
            confidence: of that promise; None promises the average over calibrations alone.
            source: what the requests are.
            attacks: the verdicts on harmful requests; they choose nothing, and give a bound on how
                many are missed.
            base: the model (`fitting.identify`), for an artifact that knows it again.

        Raises:
            ConfigurationError: too few requests for this promise, no part with a score, or weights
                for other parts.
        """
        scored = [part_scores(verdicts) for verdicts in benign]
        names = sorted({name for scores in scored for name in scores})
        told = {_part(v) for verdicts in benign for v in verdicts if v.status in FINISHED}
        if not names or told - {*names}:
            raise ConfigurationError(
                f"No verdict of {', '.join(sorted(told - {*names})) or 'any part'} has a score; "
                "evidence needs parts that have, and benign requests that let them have one."
            )
        known = dict.fromkeys(names, 1.0) if weights is None else dict(weights)
        if sorted(known) != names or not all(value > 0 for value in known.values()):
            raise ConfigurationError(f"weights are for {sorted(known)}; the parts are {names}")
        share = {name: value / sum(known.values()) for name, value in known.items()}
        first, second = scored[0::2], scored[1::2]
        ranked = {n: tuple(sorted(s[n] for s in first if n in s)) for n in names}
        nothing = Threshold(value=0, source=source)
        seen = {_part(v) for verdicts in benign for v in verdicts if v.subject == "picture"}
        unbound = cls(
            benign=ranked,
            weights=share,
            pictures=tuple(sorted(seen & share.keys())),
            rule=rule,
            threshold=nothing,
            base=base,
        )
        risks = sorted(unbound.risk(scores) for scores in second)
        threshold = guaranteed_threshold(
            risks,
            false_alarms=false_alarms,
            confidence=confidence,
            source=source,
            attacks=[unbound.risk(part_scores(verdicts)) for verdicts in attacks],
        )
        return unbound.model_copy(update={"threshold": threshold, "risks": tuple(risks)})

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Self:
        """What `save_pretrained` wrote: a folder, ``"testbed"`` or a repository on the Hub.

        Raises:
            ArtifactError: there is none, or it is unreadable.
        """
        artifact = load_artifact(name, NAME)
        manifest = artifact.manifest
        return cls.model_validate(
            {
                **manifest.settings,
                "benign": {part: found.tolist() for part, found in artifact.tensors.items()},
                "risks": manifest.benign,
                "threshold": manifest.threshold,
                "base": manifest.base,
            }
        )

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write it as an artifact.

        Raises:
            ConfigurationError: nobody said which model it belongs to.
        """
        return save_artifact(folder, self.artifact)

    @property
    def artifact(self) -> Artifact:
        """As an artifact, bound to its model.

        Raises:
            ConfigurationError: nobody said which model that is.
        """
        if self.base is None:
            raise ConfigurationError("Fit the evidence with base=identify(lvlm.model, lvlm.name).")
        settings = {"weights": self.weights, "pictures": self.pictures, "rule": self.rule}
        manifest = Manifest(
            kind=NAME,
            base=self.base,
            settings=settings,
            threshold=self.threshold,
            benign=self.risks,
        )
        tensors = {
            part: torch.tensor(found, dtype=torch.float64) for part, found in self.benign.items()
        }
        return Artifact(manifest, tensors)

    def p_values(self, scores: Mapping[str, float]) -> dict[str, float]:
        """The p-value of every part that had something to look at."""
        found = {n: conformal_p_value(score, self.benign.get(n, ())) for n, score in scores.items()}
        return {name: 1.0 if value is None else value for name, value in found.items()}

    def risk(self, scores: Mapping[str, float]) -> float:
        """-log10 of the merged p-value, and a little for scores beyond all benign ones."""
        if not scores:
            return 0.0
        share = sum(self.weights[name] for name in scores)
        weights = {name: self.weights[name] / share for name in scores}
        merged = merge_p_values(self.p_values(scores), weights, self.rule)
        beyond = sum(weights[name] * self._beyond(name, score) for name, score in scores.items())
        return -math.log10(merged) + beyond

    def judge(self, verdicts: Sequence[Verdict], *, pictures: bool | None = None) -> Verdict:
        """One verdict on a request from those of all parts.

        What one of them could not see stays unseen, and a part that is silent has failed: it may
        have been left out of the stack.

        Args:
            verdicts: of all parts on the request and its pictures.
            pictures: whether the request shows any; None takes it from the verdicts.
        """
        scores = part_scores(verdicts)
        missing = [verdict for verdict in verdicts if verdict.status not in FINISHED]
        gaps = tuple(dict.fromkeys(gap for v in verdicts for gap in v.not_inspected))
        if missing:
            return Verdict(
                status=missing[0].status,
                subject="request",
                guardrail=NAME,
                not_inspected=gaps or (NotInspected(reason="failed"),),
            )
        if pictures is None:
            pictures = any(verdict.subject == "picture" for verdict in verdicts)
        wanted = self.weights.keys() if pictures else self.weights.keys() - set(self.pictures)
        if silent := sorted(wanted - {_part(verdict) for verdict in verdicts}):
            return Verdict.failed_request(NAME, f"no word from {', '.join(silent)}")
        if strange := sorted({_part(verdict) for verdict in verdicts} - self.weights.keys()):
            return Verdict.failed_request(NAME, f"no evidence was fitted for {', '.join(strange)}")
        risk = self.risk(scores)
        verdict = Verdict.on_request(
            NAME,
            risk,
            self.threshold,
            self.p_values(scores),
            p_value=conformal_p_value(risk, self.risks),
        )
        return verdict.model_copy(update={"not_inspected": gaps})

    def _beyond(self, name: str, score: float) -> float:
        highest = self.benign[name][-1] if self.benign[name] else math.inf
        return math.tanh(max(0.0, score - highest))


def part_scores(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """The highest score of every part that has one, by its name.

    A part that flags without a score is as sure as one can be.
    """
    found: dict[str, float] = {}
    for verdict in verdicts:
        score = math.inf if verdict.score is None and verdict.status == "flagged" else verdict.score
        if score is not None and verdict.status in FINISHED:
            name = _part(verdict)
            found[name] = max(score, found.get(name, score))
    return found


def _part(verdict: Verdict) -> str:
    return verdict.guardrail or "screening"
