"""Conditional decoding with safety attention, as a guardrail of a local model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch

from ..errors import ArtifactError, ConfigurationError
from ..fitting import Artifact, load_artifact, save_artifact
from ..fitting.calibration import calibrated
from ..guarantees import ALARMS, CONFIDENCE
from ..model import doorway
from ..model.generation import request_state
from ..model.interventions import Decision, Interventions, Stage
from ..verdict import Threshold, Verdict
from .request import ChooseToken, Pieces, PromptWatch, WatchEdit, decision_positions, seen_positions
from .safety_attention import unsafe_logit
from .settings import CasaSettings
from .weights import CasaWeights, check_tokens, unpack

if TYPE_CHECKING:
    from ..fitting import Example
    from ..model import LocalLVLM
    from ..model.families import Host
    from ..model.messages import Conversation
    from ..model.prompt import Prompt
    from ..policy import Policy

#: Key of the manifest's results that holds the threshold chosen in fitting.
THRESHOLD: Final = "threshold"
#: Who judged, in verdicts.
NAME: Final = "casa"


@dataclass(frozen=True, repr=False)
class Casa:
    """Decide about every request before its answer; see :class:`CasaSettings` for the method.

    One token, which nobody sees, stands before every answer. What follows an unsafe request is the
    policy's ``on_unsafe_request``:

    - ``decline``: C_unsafe is set, and the model declines in its own words;
    - ``refuse``, ``raise``: the run ends after the prompt was read;
    - ``allow``, and any request under ``monitor``: the decision is told, and the answer is the
      bare model's. With an adapter, that takes a second reading of the prompt.

    Without an adapter (``attention_only``) the model has never learnt what C_unsafe means: there is
    no hidden token, ``decline`` is carried out as ``refuse``, and the answer to every other request
    is the bare model's, bit by bit.

    Attributes:
        artifact: made by ``sightrail fit casa``; see :meth:`from_pretrained`.
        threshold: on P(unsafe); None takes the one chosen in fitting.
        attention: whether the safety attention has a say; without it the token decides alone.
        strength: 1, or 0 to leave the guardrail out of the request.

    Raises:
        ConfigurationError: a value is out of its range.
        ArtifactError: the artifact belongs to another defence.

    Example:
        ``LocalLVLM.from_pretrained(name, guardrails=[Casa.from_pretrained("my-casa")])``
    """

    artifact: Artifact
    threshold: float | Threshold | None = None
    attention: bool = True
    strength: float = 1.0
    _ready: dict[tuple[str, str], CasaWeights] = field(
        default_factory=dict, init=False, compare=False
    )

    stage: ClassVar[Stage] = "decision"

    def __post_init__(self) -> None:
        """Check every value."""
        if not isinstance(self.artifact, Artifact):
            raise ConfigurationError(
                "Casa needs what training gave: Casa.from_pretrained(FOLDER), after "
                "`sightrail fit casa --model ... --data ... --out FOLDER`."
            )
        if self.artifact.manifest.kind != "casa":
            raise ArtifactError(
                f"This is a {self.artifact.manifest.kind} artifact, not a casa one."
            )
        if self.strength not in (0, 1):
            raise ConfigurationError(f"strength must be 0 or 1, got {self.strength}.")
        if not self.attention and self.settings.attention_only:
            raise ConfigurationError("This Casa has nothing but its attention; leave it on.")
        if isinstance(self.threshold, int | float) and not 0 <= self.threshold < math.inf:
            raise ConfigurationError(f"The threshold must be 0 or more, got {self.threshold}.")

    @classmethod
    def from_pretrained(cls, name: str | Path, **changes: Any) -> Casa:
        """From a folder, ``"testbed"`` or a repository on the Hub.

        Args:
            name: what ``sightrail fit casa`` wrote.
            changes: other values for the attributes.

        Raises:
            ArtifactError: there is none, it is unreadable, or another defence's.
        """
        return cls(load_artifact(name, "casa"), **changes)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the artifact, with the threshold in use."""
        manifest = self.artifact.manifest
        results = {**manifest.results, THRESHOLD: self.limit.value}
        changed = self.artifact.with_manifest(results=results, threshold=self.limit)
        return save_artifact(folder, changed)

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(self.artifact.manifest.model_dump_json().encode())
        for name in sorted(self.artifact.tensors):
            digest.update(self.artifact.tensors[name].float().numpy().tobytes())
        return digest.hexdigest()[:12]

    @cached_property
    def settings(self) -> CasaSettings:
        """What it was trained with."""
        return CasaSettings.from_json(self.artifact.manifest.settings)

    @property
    def limit(self) -> Threshold:
        """The threshold in use, and where it came from."""
        if isinstance(self.threshold, Threshold):
            return self.threshold
        if self.threshold is not None:
            return Threshold(value=self.threshold, source="set by hand")
        if self.artifact.manifest.threshold is not None:
            return self.artifact.manifest.threshold
        value = self.artifact.manifest.results.get(THRESHOLD, 0.5)
        return Threshold(value=value, source="chosen in fitting, on examples kept apart")

    # What a model asks of a guardrail

    @property
    def needs(self) -> frozenset[str]:
        """Nothing at strength 0; else the inside of the model, as far as it is touched."""
        if self.strength == 0:
            return frozenset()
        own = frozenset({"hidden_states"})
        return own if self.settings.attention_only else own | {"linear", "logits", "first_token"}

    @property
    def linear_names(self) -> Sequence[str]:
        """The maps that the adapter goes on."""
        if "linear" not in self.needs:
            return ()
        end = ".lora_A"
        return [name.removesuffix(end) for name in self.artifact.tensors if name.endswith(end)]

    def apply(self, messages: Conversation) -> Conversation:
        """The messages as they are."""
        return messages

    def check(self, host: Host) -> None:
        """Make sure that this is the model it was trained for.

        Raises:
            ArtifactError: it is another one; the message says how to train for this one.
        """
        if self.strength == 0:
            return
        self.artifact.require_model(host.model, host.name)
        tower = host.inside("Casa")
        if self.settings.layer not in (*tower.self_attention, tower.depth):
            raise ArtifactError(
                f"Layer {self.settings.layer} of {host.name} sees not every request."
            )
        check_tokens(host, self._tokens)
        if (adapter := self._weights(host).adapter) is not None:
            adapter.check(tower)

    def interventions(self, prompt: Prompt, host: Host) -> Interventions:
        """What decides about this batch, and carries it out."""
        if self.strength == 0:
            return Interventions()
        watch = self._watch(prompt, host)
        if self.settings.attention_only:
            return Interventions(
                hidden_states=self._looks(watch, prompt.length, host), decisions=watch
            )
        if host.policy.request_action == "allow":
            self._read(prompt, host, watch)
            return Interventions(decisions=watch)
        return self._acting(prompt, host, watch)

    # Deciding without an answer

    def scores(self, prompt: Prompt, host: Host) -> list[float]:
        """P(unsafe) of every row, from one reading of the prompts."""
        watch = self._watch(prompt, host)
        self._read(prompt, host, watch)
        return [float(one.verdict.score or 0.0) for one in watch.decided() or ()]

    def calibrate(
        self,
        lvlm: LocalLVLM,
        examples: Sequence[Example],
        *,
        false_alarms: float = ALARMS,
        confidence: float | None = CONFIDENCE,
        source: str,
    ) -> Casa:
        """The same with a threshold that promises how many benign requests it will refuse.

        Args:
            lvlm: the model it is for.
            examples: kept apart from those it was trained on. The benign ones choose the
                threshold; the harmful ones, if any, give a bound on how many are missed.
            false_alarms: the share of benign requests to come that may be refused, in (0, 1).
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

    # One request

    @property
    def _tokens(self) -> tuple[int, int]:
        return self.settings.safe_token, self.settings.unsafe_token

    def _weights(self, host: Host) -> CasaWeights:
        """On the model's device, unpacked once."""
        where = (str(host.device), str(host.model.dtype))
        if where not in self._ready:
            self._ready[where] = unpack(
                self.artifact.tensors, self.settings, host.device, host.model.dtype
            )
        return self._ready[where]

    def _watch(self, prompt: Prompt, host: Host) -> PromptWatch:
        decided_at = decision_positions(prompt, host)
        seen = seen_positions(prompt, decided_at)
        attention = self._weights(host).attention

        def look(states: torch.Tensor) -> torch.Tensor:
            here = attention.queries.device
            with torch.no_grad():
                logit: torch.Tensor = attention(states.to(here), seen.to(here))
            return logit

        return PromptWatch(
            attended=Pieces(prompt.length, prompt.rows),
            final=Pieces(prompt.length, prompt.rows),
            look=look,
            weigh=partial(self._weigh, host.head),
            settle=partial(self._settle, policy=host.policy),
            decided_at=decided_at,
        )

    def _weigh(
        self, head: torch.nn.Module, final: torch.Tensor, attended: torch.Tensor
    ) -> torch.Tensor:
        if self.settings.attention_only:
            return attended
        logits = head(final)[:, list(self._tokens)]
        said = attended.to(logits.device) if self.attention else None
        return unsafe_logit(logits, said, self.settings.rule)

    def _settle(
        self, unsafe: Sequence[float], attended: Sequence[float], *, policy: Policy
    ) -> tuple[Decision, ...]:
        # Without an adapter nobody has taught the model what to say after C_unsafe.
        own_words = not self.settings.attention_only
        return tuple(
            Decision.following(self._verdict(score, v), policy, own_words=own_words)
            for score, v in zip(unsafe, attended, strict=True)
        )

    def _verdict(self, score: float, v: float) -> Verdict:
        """What one score says."""
        if not math.isfinite(score + v):  # a model that computed no number has found nothing safe
            return Verdict.failed_request(NAME, "the model's hidden states are not numbers")
        known = self.artifact.p_value(score)
        return Verdict.on_request(NAME, score, self.limit, {"attention": v}, p_value=known)

    def _looks(self, watch: PromptWatch, length: int, host: Host) -> dict[int, Any]:
        layer, depth = self.settings.layer, host.inside("Casa").depth
        if layer == depth:
            return {depth: WatchEdit([watch.see_attended, watch.see_final], length)}
        return {
            layer: WatchEdit([watch.see_attended], length),
            depth: WatchEdit([watch.see_final], length),
        }

    def _acting(self, prompt: Prompt, host: Host, watch: PromptWatch) -> Interventions:
        adapter = self._weights(host).adapter
        return Interventions(
            hidden_states=self._looks(watch, prompt.length, host),
            # One more position than the prompt: the safety token itself.
            linear={} if adapter is None else adapter.edits(prompt.length + 1),
            logits=[ChooseToken(watch, prompt.length, self._tokens, _is_unsafe)],
            hidden_tokens=1,
            decisions=watch,
        )

    def _read(self, prompt: Prompt, host: Host, watch: PromptWatch) -> None:
        """Let the prompt pass once, adapter on, for the decision alone."""
        reading = replace(self._acting(prompt, host, watch), logits=(), hidden_tokens=0)
        with torch.no_grad(), doorway.request(request_state([reading], host.tower)):
            host.model(**prompt.inputs, use_cache=False, logits_to_keep=1)

    def __repr__(self) -> str:
        base = self.artifact.manifest.base
        return (
            f"Casa(for {base.name!r}, {self._digest}, threshold={self.limit.value:.4g}, "
            f"attention={self.attention}, strength={self.strength})"
        )


def _is_unsafe(decision: Decision) -> bool:
    return decision.verdict.status != "clean"
