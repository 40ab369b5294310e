"""MoRAS as a guardrail: fitted once for a model, then at work in every request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch

from ..errors import ArtifactError, ConfigurationError, UnsupportedModelError
from ..fitting import Artifact, load_artifact, save_artifact
from ..fitting.calibration import calibrated
from ..guarantees import ALARMS, CONFIDENCE
from ..model.families import Host, capped_logits, device_of
from ..model.interventions import Decision, Interventions, Settled, Stage
from ..model.messages import Conversation
from ..model.prompt import Prompt
from ..model.shared_prefill import Prefilled
from ..policy import RequestAction
from ..verdict import Threshold, Verdict
from .passes import Assessment, RiskSteering, VisualContext, assess
from .settings import MorasSettings

if TYPE_CHECKING:
    from ..datasets import Example
    from ..model import LocalLVLM

PROTOTYPES: Final = "prototypes"
_NEEDS: Final = frozenset({"hidden_states", "logits"})
NOT_FITTED: Final = frozenset({"refuse_above", "share", "context_risk", "binary", "draft"})


@dataclass(frozen=True, eq=False)
class Moras:
    """Refuse in proportion to the risk that the model itself reads from a request.

    See :class:`MorasSettings` for the method. Every verdict carries S and r, and the risk of the
    visual context alone. What ``refuse_above`` flags goes by the policy's ``on_unsafe_request``:

    - ``decline``: the answer is steered with full risk, r = 1;
    - ``refuse``, ``raise``: no answer token is generated;
    - ``allow``, and any policy that only monitors: r is told and no answer is steered.

    >>> guard = Moras.from_pretrained("testbed", refuse_above=0.9)
    >>> guard.settings.steps
    3

    Attributes:
        artifact: prototypes mu [N, C] and the settings they were fitted with.
        chosen: settings of the method in place of the artifact's; ``settings`` are those in use.
        threshold: on r, with its provenance; in place of ``refuse_above``, which is in place of the
            artifact's, if it was calibrated.

    Raises:
        ArtifactError: the artifact is not one of MoRAS.
        ConfigurationError: the settings ask for more steps than there are prototypes.
    """

    artifact: Artifact
    chosen: MorasSettings | None = None
    threshold: Threshold | None = None

    stage: ClassVar[Stage] = "decoding"

    def __post_init__(self) -> None:
        """Check artifact and settings."""
        manifest = self.artifact.manifest
        prototypes = self.artifact.tensors.get(PROTOTYPES)
        if manifest.kind != "moras" or prototypes is None or prototypes.ndim != 2:
            raise ArtifactError(
                f"This {manifest.kind} artifact holds no MoRAS prototypes; make one with "
                "`sightrail fit moras`."
            )
        if self.settings.steps > len(prototypes):
            raise ConfigurationError(
                f"steps={self.settings.steps}, but the artifact holds {len(prototypes)} "
                "prototypes; fit again with more steps, or ask for fewer."
            )

    @cached_property
    def settings(self) -> MorasSettings:
        """Of the method, as they are in use."""
        return self.chosen or read_settings(self.artifact.manifest.settings)

    @classmethod
    def from_pretrained(cls, name: str | Path, **changes: Any) -> Moras:
        """Load what was fitted: ``"testbed"``, a folder, or a repository on the Hub.

        Args:
            name: where it is.
            changes: settings in place of the fitted ones; see :class:`MorasSettings`.

        Raises:
            ArtifactError: there is none, or it is unreadable.
            ConfigurationError: a setting does not exist or is out of its range.
        """
        artifact = load_artifact(name, "moras")
        return cls(artifact, read_settings({**artifact.manifest.settings, **changes}))

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the artifact, with the settings as they are now."""
        limit = self.threshold or self.artifact.manifest.threshold
        changed = self.artifact.with_manifest(
            settings=fitted_settings(self.settings), threshold=limit
        )
        return save_artifact(folder, changed)

    @property
    def _threshold(self) -> Threshold | None:
        if self.threshold is not None:
            return self.threshold
        if self.settings.refuse_above is not None:
            return Threshold(value=self.settings.refuse_above, source="refuse_above")
        return self.artifact.manifest.threshold

    def calibrate(
        self,
        lvlm: LocalLVLM,
        examples: Sequence[Example],
        *,
        false_alarms: float = ALARMS,
        confidence: float | None = CONFIDENCE,
        source: str,
    ) -> Moras:
        """The same with a threshold on r that promises how many benign requests it will flag.

        Args:
            lvlm: the model it is for.
            examples: kept apart from those it was fitted on. The benign ones choose the threshold;
                the harmful ones, if any, give a bound on how many are missed.
            false_alarms: the share of benign requests to come that may be flagged, in (0, 1).
            confidence: of that promise; None promises the average over calibrations alone.
            source: what the examples are, for the threshold's provenance.

        Raises:
            ConfigurationError: too few benign examples for this promise, or it is not possible.
        """
        artifact = calibrated(
            lvlm.with_guardrails([self]),
            self.artifact,
            examples,
            false_alarms=false_alarms,
            confidence=confidence,
            source=source,
        )
        return replace(self, artifact=artifact, threshold=None)

    @property
    def needs(self) -> frozenset[str]:
        """The states after the final norm, and the logits."""
        return _NEEDS

    def apply(self, messages: Conversation) -> Conversation:
        """The messages as they are: only calls before the answer ask something else."""
        return messages

    def check(self, host: Host) -> None:
        """Make sure that the artifact was fitted on this model and that its LM head is linear.

        Raises:
            ArtifactError: it was fitted on another model; the message names both.
            UnsupportedModelError: there is no LM head, or it is not a linear map.
        """
        host.inside("MoRAS")
        if not isinstance(host.head, torch.nn.Linear):
            raise UnsupportedModelError(
                f"MoRAS mixes logits, which needs a linear LM head; {host.name} has a "
                f"{type(host.head).__name__}. Use SafetyPrefix or a defence on pixels."
            )
        if capped_logits(host.model):
            raise UnsupportedModelError(
                f"MoRAS mixes logits, which needs a linear LM head; {host.name} soft-caps its "
                "logits (final_logit_softcapping). Use SafetyPrefix or a defence on pixels."
            )
        self.artifact.require_model(host.model, host.name)
        width = self.artifact.tensors[PROTOTYPES].shape[1]
        if width != host.head.in_features:
            raise ArtifactError(
                f"The prototypes are {width} wide, and the hidden states of {host.name} "
                f"{host.head.in_features}; make them anew with `sightrail fit moras`."
            )

    def interventions(self, prompt: Prompt, host: Host) -> Interventions:
        """Run both calls before the answer and steer its first tokens by what they find.

        Raises:
            PromptError, UnsupportedModelError: see :func:`passes.assess`.
        """
        unsafe = self._unsafe(host)
        written = prompt.originals or prompt.conversations
        found = assess(written, host, self.settings, unsafe, prompt)
        verdicts = self._verdicts(found)
        decisions = [Decision.following(verdict, host.policy) for verdict in verdicts]
        applied = self._applied(found.risks, verdicts, host.policy.request_action)
        steering = RiskSteering(unsafe, applied)
        answered = any(decision.answered for decision in decisions)
        return Interventions(
            answer_logits=[steering],
            decisions=Settled(decisions),
            prefilled=_begun(found.context, prompt, host, steering) if answered else None,
        )

    def _unsafe(self, host: Host) -> torch.Tensor:
        """W mu, [N, V]."""
        dtype = next(host.head.parameters()).dtype
        prototypes = self.artifact.tensors[PROTOTYPES][: self.settings.steps]
        with torch.no_grad():
            logits: torch.Tensor = host.head(prototypes.to(device_of(host.head), dtype))
        return logits

    def _applied(
        self, risks: torch.Tensor, verdicts: Sequence[Verdict], action: RequestAction
    ) -> torch.Tensor:
        """The strength of the steering, [B]."""
        if action == "allow":
            return torch.zeros_like(risks)
        if self.settings.binary:
            risks = (risks >= 0.5).to(risks)
        flagged = torch.tensor([v.status == "flagged" for v in verdicts], device=risks.device)
        return risks.masked_fill(flagged, 1.0)

    def _verdicts(self, found: Assessment) -> list[Verdict]:
        return [self._verdict(found, row) for row in range(len(found.risks))]

    def _verdict(self, found: Assessment, row: int) -> Verdict:
        """What the calls before the answer say about one request."""
        measures = {
            "similarity": float(found.similarities[row]),
            "risk": float(found.risks[row]),
            "text_only": float(found.text_only),
        }
        if found.context_risks is not None:
            measures["context_risk"] = float(found.context_risks[row])
        if not all(map(math.isfinite, measures.values())):
            return Verdict.failed_request("moras", "the model's hidden states are not numbers")
        risk, known = measures["risk"], self.artifact.p_value(measures["risk"])
        return Verdict.on_request("moras", risk, self._threshold, measures, p_value=known)


def _begun(
    context: VisualContext, prompt: Prompt, host: Host, steering: RiskSteering
) -> Prefilled | None:
    """What the answer can begin from."""
    if context.shared is None:
        return None
    begun = context.shared.begin(prompt, host.pad_token_id)
    if begun is None or context.draft is None:
        return begun
    return context.draft.begun(steering, begun)


def read_settings(values: dict[str, Any]) -> MorasSettings:
    """Settings from a manifest or from keyword arguments.

    Raises:
        ConfigurationError: a setting does not exist or is out of its range.
    """
    try:
        return MorasSettings(**values)
    except TypeError as error:
        names = ", ".join(each.name for each in fields(MorasSettings))
        raise ConfigurationError(f"MoRAS settings: {error}. There are: {names}.") from error


def fitted_settings(settings: MorasSettings) -> dict[str, Any]:
    """What belongs to the fitted artifact; how it is applied is said where it is loaded."""
    values = {each.name: getattr(settings, each.name) for each in fields(settings)}
    return {name: value for name, value in values.items() if name not in NOT_FITTED}
