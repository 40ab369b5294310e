"""One decision from all evidence: the parts of a stack merged into one risk with one promise.

A stack whose parts decide each by itself adds up their false alarms. Here each part gives a p-value
("how often does a benign request score this high"), the p-values are merged by a rule that holds
however the parts depend on each other, and the merged risk gets one threshold with one promise.
What is masked, steered or refused follows from that risk: see :class:`JointDecision`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict

from .errors import ConfigurationError, RequestRefused
from .fitting.artifacts import Artifact, Manifest, ModelIdentity, load_artifact, save_artifact
from .guarantees import ALARMS, CONFIDENCE, conformal_p_value, guaranteed_threshold
from .model.answers import Answer, Usage
from .model.messages import Conversation, ImagePart, Messages, read_messages
from .model.preprocessing import seen_by
from .model.screening_step import screen_conversation
from .model.stack import build_stack
from .model.stopping import in_thread
from .policy import Policy
from .verdict import Action, NotInspected, Threshold, Verdict

if TYPE_CHECKING:
    from .model import LocalLVLM

__all__ = ["Evidence", "JointDecision", "merge_p_values"]

Rule = Literal["bonferroni", "average", "geometric"]
NAME: Final = "evidence"
_FINISHED: Final = ("clean", "flagged")


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
        if not names:
            raise ConfigurationError("No verdict has a score; evidence needs parts that have.")
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
        missing = [verdict for verdict in verdicts if verdict.status not in _FINISHED]
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
        if strange := sorted(scores.keys() - self.weights.keys()):
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
    """The highest score of every part that has one, by its name."""
    found: dict[str, float] = {}
    for verdict in verdicts:
        if verdict.score is not None and verdict.status in _FINISHED:
            name = _part(verdict)
            found[name] = max(verdict.score, found.get(name, verdict.score))
    return found


def _part(verdict: Verdict) -> str:
    return verdict.guardrail or "screening"


@dataclass(frozen=True)
class JointDecision:
    """A local model whose guardrails give evidence and do not decide: one decision from all.

    The parts look at a request as they do in a stack. Where the merged risk stays below the
    threshold, the bare model answers: a benign answer is the bare model's, token for token. Where
    it does not, what can be covered is covered, and the whole is judged again:

    - masked and steered: a detector that flags a picture says where, the policy masks, and what is
      left of the request is below the threshold. The model answers about the masked picture, and
      ``Moras``, if it is among the parts, steers the answer by the risk that it still reads;
    - refused: everything else, with the policy's text. A model that declines in its own words may
      begin with an apology and go on to comply, so nobody relies on that here.

    Answers like a LocalLVLM (`chat`, `batch`), and stands in `RefusalGate` where one stands: what
    it lets through is then answered by whatever is behind the gate.

    Attributes:
        model: a LocalLVLM with the parts as guardrails, under a policy that only monitors.
        evidence: fitted to the verdicts of this model.
        policy: what a finding leads to (`on_flagged` and `mask` for pictures, `on_unsafe_request`,
            `on_error`, `on_not_inspected`).

    Raises:
        ConfigurationError: the model's policy decides by itself.
        ArtifactError: the evidence was fitted on another model.
    """

    model: LocalLVLM
    evidence: Evidence
    policy: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        """Make sure that the parts only tell, and about the right model."""
        if not self.model.policy.monitor:
            raise ConfigurationError(
                "The parts would each decide by themselves: give the model Policy(monitor=True)."
            )
        if self.evidence.base is not None:
            self.evidence.artifact.require_model(self.model.model, self.model.name)

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    @property
    def guardrails(self) -> tuple[Any, ...]:
        """What gives evidence."""
        return tuple(self.model.guardrails)

    def with_guardrails(self, guardrails: Sequence[Any], **settings: Any) -> JointDecision:
        """The same with other guardrails or limits."""
        return replace(self, model=self.model.with_guardrails(guardrails, **settings))

    def chat(self, messages: Messages, **options: Any) -> Answer:
        """Answer one conversation; as ``LocalLVLM.chat``."""
        return self.batch([messages], **options)[0]

    async def achat(self, messages: Messages, **options: Any) -> Answer:
        """`chat` in a thread of its own."""
        return await in_thread(partial(self.chat, messages, **options))

    def batch(self, messages: Sequence[Messages], **options: Any) -> list[Answer]:
        """Answer several conversations; as ``LocalLVLM.batch``.

        Raises:
            RequestRefused: the policy asks for an exception.
        """
        looks = self._look(messages, masks=True)
        for looked in looks:
            if looked.action == "raise":
                told = looked.verdicts[-1].summary()
                raise RequestRefused(
                    f"The policy refuses this request: {told}", verdicts=looked.verdicts
                )
        answers: dict[int, Answer] = {}
        for action, model in (("allow", self._bare), ("mask", self._steering)):
            asked = {
                row: looked.conversation
                for row, looked in enumerate(looks)
                if looked.action == action and looked.conversation is not None
            }
            if asked:
                made = model.batch(list(asked.values()), **options)
                answers |= zip(asked, made, strict=True)
        return [self._answer(looked, answers.get(row)) for row, looked in enumerate(looks)]

    def assess_batch(self, messages: Sequence[Messages]) -> list[tuple[Verdict, ...]]:
        """The verdicts of all parts on each request, then the one decision, with its action."""
        return [looked.verdicts for looked in self._look(messages, masks=False)]

    # Looking

    def _look(self, messages: Sequence[Messages], *, masks: bool) -> list[_Looked]:
        looks = self._judged([read_messages(asked) for asked in messages])
        if not masks or self.policy.monitor:
            return looks
        masked = {row: c for row, look in enumerate(looks) if (c := self._masked(look))}
        for row, again in zip(masked, self._judged(list(masked.values())), strict=True):
            if again.action == "allow":
                verdicts = (*looks[row].verdicts[:-1], again.verdicts[-1].taken("mask"))
                looks[row] = _Looked(again.conversation, verdicts)
        return looks

    def _judged(self, conversations: Sequence[Conversation]) -> list[_Looked]:
        """Every part's verdicts and the decision; the conversations with their pictures decoded."""
        looks = [self._screened(conversation) for conversation in conversations]
        rows = [row for row, look in enumerate(looks) if look.conversation is not None]
        asked = [c for row in rows if (c := looks[row].conversation) is not None]
        inside = self._inside.assess_batch(asked) if self._inside.guardrails and asked else ()
        for row, verdicts in zip(rows, inside or [()] * len(rows), strict=True):
            looks[row] = replace(looks[row], verdicts=(*looks[row].verdicts, *verdicts))
        shown = [bool(conversation.image_parts) for conversation in conversations]
        return [
            replace(look, verdicts=(*_told(look.verdicts), self._decided(look, pictures)))
            for look, pictures in zip(looks, shown, strict=True)
        ]

    def _screened(self, conversation: Conversation) -> _Looked:
        found = screen_conversation(
            conversation, self._detectors, self.model.policy, self.model.limits, self._scaling
        )
        return _Looked(found.conversation, found.verdicts)

    def _masked(self, looked: _Looked) -> Conversation | None:
        """The conversation with what the detectors point at covered; None where that is nothing."""
        verdict = looked.verdicts[-1]
        if verdict.status != "flagged" or looked.conversation is None:
            return None
        pointing = self._pointing(looked.verdicts)
        if not pointing:
            return None
        found = screen_conversation(
            looked.conversation, pointing, self.policy, self.model.limits, self._scaling
        )
        if found.conversation is None:
            return None
        parts = [
            ImagePart(part.screened, part.surface) if part.screened is not None else part
            for part in found.conversation.image_parts
        ]
        return found.conversation.with_images(parts)

    def _pointing(self, verdicts: Sequence[Verdict]) -> list[Any]:
        """The detectors that flag a picture of this request and say where."""
        told = [verdict for verdict in verdicts if verdict.subject == "picture"]
        count = len(self._detectors)  # of each picture every detector has told, in their order
        return [
            detector
            for number, detector in enumerate(self._detectors)
            if any(v.status == "flagged" and v.regions for v in told[number::count])
        ]

    # Deciding

    def _decided(self, looked: _Looked, pictures: bool) -> Verdict:
        verdict = self.evidence.judge(looked.verdicts, pictures=pictures)
        if verdict.status == "flagged":
            wanted = self.policy.request_action
            action: Action = "refuse" if wanted == "decline" else wanted
            return verdict.taken(action)
        return verdict.taken(self.policy.decide(verdict))

    def _answer(self, looked: _Looked, made: Answer | None) -> Answer:
        if made is None:
            text = self.policy.refusal_for(looked.verdicts[-1:])
            return Answer(text, True, looked.verdicts, Usage(0, 0), "refused")
        return replace(made, verdicts=looked.verdicts)

    # The same model, otherwise guarded

    @cached_property
    def _detectors(self) -> Sequence[Any]:
        return build_stack(self.model.guardrails).detectors

    @cached_property
    def _inside(self) -> LocalLVLM:
        return self.model.with_guardrails(build_stack(self.model.guardrails).inner)

    @cached_property
    def _bare(self) -> LocalLVLM:
        return self.model.with_guardrails([], policy=self.policy)

    @cached_property
    def _steering(self) -> LocalLVLM:
        from .moras import Moras

        steers = [guard for guard in self.model.guardrails if isinstance(guard, Moras)]
        return self.model.with_guardrails(steers, policy=self.policy)

    def _scaling(self, image: Any) -> tuple[Any, ...]:
        return seen_by(self.model.processor, image)


@dataclass(frozen=True)
class _Looked:
    """A request on its way: what the model may see, and what was found; the decision comes last."""

    conversation: Conversation | None
    verdicts: tuple[Verdict, ...]

    @property
    def action(self) -> Action | None:
        return self.verdicts[-1].action


def _told(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """Verdicts that gave evidence and decided nothing."""
    return tuple(verdict.taken("allow") for verdict in verdicts)
