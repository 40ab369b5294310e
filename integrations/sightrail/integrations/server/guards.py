"""What the server puts around a model, made from its settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sightrail.guardrails import CachedDetector, Policy, SafetyPrefix, VisualSafetyPrompt
from sightrail.guardrails.carriers.loop import Framework, PictureLoop
from sightrail.guardrails.errors import ConfigurationError
from sightrail.guardrails.evaluation.stacks import (
    ALL,
    Blind,
    Supplies,
    artifacts_for,
    build_stack,
    calibration_for,
    joint_evidence,
    parts_of,
    screens,
)

from .wire import OpenAIWalk

if TYPE_CHECKING:
    from sightrail.guardrails import Evidence, Limits, LocalLVLM
    from sightrail.guardrails.policy import Surface
    from sightrail.guardrails.screening.asking import Detector

    from .settings import ServerSettings

FRAMEWORK = Framework(walk=OpenAIWalk)


@dataclass(frozen=True)
class Guards:
    """The guardrails of a server.

    Attributes:
        detectors: look at pictures.
        prefix: stands before the last words of the user.
        border: is put around every picture.
        inside: all of them that need the model itself.
        evidence: what makes one decision of all of theirs; None where each decides by itself.
        policy: what a verdict leads to.
        limits: what intake is willing to read.
    """

    detectors: tuple[Any, ...]
    prefix: SafetyPrefix | None
    border: VisualSafetyPrompt | None
    inside: tuple[Any, ...]
    evidence: Evidence | None
    policy: Policy
    limits: Limits

    def loop(self, surface: Surface = "user") -> PictureLoop:
        """The loop over the pictures of requests, or of answers."""
        return PictureLoop(
            self.detectors, self.policy, self.limits, FRAMEWORK, "sightrail.serve", surface
        )


def build_guards(
    settings: ServerSettings, around_detector: Callable[[Detector], Detector] | None = None
) -> Guards:
    """The guardrails of a stack, screening with a memory that all requests share.

    Args:
        settings: of the server.
        around_detector: wraps the detector, below its memory.

    Raises:
        ConfigurationError: a stack that does not exist, or cannot work in this mode.
        ModelLoadError, ArtifactError: something cannot be loaded.
    """
    supplies = _supplies(settings, around_detector)
    evidence = joint_evidence(supplies) if settings.stack == ALL else None
    guards = parts_of(evidence, supplies) if evidence else build_stack(settings.stack, supplies)
    detectors = tuple(guard for guard in guards if hasattr(guard, "screen"))
    prefix = next((guard for guard in guards if isinstance(guard, SafetyPrefix)), None)
    border = next((guard for guard in guards if isinstance(guard, VisualSafetyPrompt)), None)
    inside = tuple(guard for guard in guards if guard not in detectors)
    if settings.upstream is not None:
        _check_outside(inside, evidence)
    return Guards(detectors, prefix, border, inside, evidence, settings.policy, settings.limits)


def _supplies(
    settings: ServerSettings, around_detector: Callable[[Detector], Detector] | None
) -> Supplies:
    from sightrail.guardrails import RiskDetector
    from sightrail.guardrails.screening.settings import ScreeningSettings

    own = None if settings.screening is None else ScreeningSettings.from_file(settings.screening)
    detector: Detector = Blind()  # an encoder takes seconds to load, and not every stack has one
    if screens(settings.stack):
        made = RiskDetector.from_pretrained(
            settings.encoder, settings=own, limits=settings.limits, device=settings.device
        )
        seen = made if around_detector is None else around_detector(made)
        detector = CachedDetector(seen, max_items=max(1, settings.remembered))
    model = settings.model or ""
    named = {str(kind): place for kind, place in settings.artifacts.items()}
    found = artifacts_for(model, named)
    return Supplies(detector, found, calibration_for(model), settings.encoder)


def _check_outside(guards: Sequence[Any], evidence: Evidence | None) -> None:
    """Before an upstream there is no inside to act on."""
    if evidence is not None:
        raise ConfigurationError(
            f"The stack {ALL} decides with what goes on inside the model, which a gateway cannot "
            "reach: serve the model itself (--model)."
        )
    for guard in guards:
        if guard.needs - {"pixels", "prompt"}:
            raise ConfigurationError(
                f"{type(guard).__name__} acts inside the model, which a gateway cannot reach: "
                "serve the model itself (--model), or use screen, prefix and davsp."
            )


def load_local(settings: ServerSettings, guards: Guards) -> LocalLVLM:
    """The local model with its guardrails.

    Raises:
        ModelLoadError: it cannot be loaded.
        ConfigurationError, UnsupportedModelError: a guardrail does not fit it.
    """
    from sightrail.guardrails import Gathering, LocalLVLM

    if settings.model is None:
        raise ConfigurationError("There is no model to load; the settings name an upstream.")
    return LocalLVLM.from_pretrained(
        settings.model,
        guardrails=[*guards.detectors, *guards.inside],
        evidence=guards.evidence,
        policy=settings.policy,
        limits=settings.limits,
        device=settings.device,
        dtype=settings.dtype,
        device_map=settings.device_map,
        quantization=settings.quantization,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
        gather=Gathering(max_rows=settings.max_rows, max_wait_s=settings.max_wait_s),
    )
