"""What a guardrail does inside the model during one request, and the contract it follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import LogitsProcessor

    from .doorway import AttentionEdit, HiddenEdit
    from .families import TextTower
    from .prompt import Prompt

#: What a guardrail can ask of a model.
NEEDS = frozenset({"pixels", "prompt", "attention", "hidden_states", "logits"})
#: What only a model whose inside is known can give.
INSIDE = frozenset({"attention", "hidden_states"})


@dataclass(frozen=True)
class Interventions:
    """One request's changes inside the model.

    Attributes:
        attention: decoder layer -> edit of its attention output.
        hidden_states: decoder layer -> edit of its output.
        logits: processors, applied in order before sampling.
    """

    attention: Mapping[int, AttentionEdit] = field(default_factory=dict)
    hidden_states: Mapping[int, HiddenEdit] = field(default_factory=dict)
    logits: Sequence[LogitsProcessor] = ()


@runtime_checkable
class ModelGuardrail(Protocol):
    """A guardrail that acts on the prompt or inside the model.

    ``check`` runs once, when the guardrail is put on a model; ``interventions`` once per batch.
    Both get the text tower only if ``needs`` holds ``"attention"`` or ``"hidden_states"``.
    """

    @property
    def needs(self) -> frozenset[str]:
        """What it asks of the model, out of ``NEEDS``."""

    def apply(self, messages: Any) -> Any:
        """The messages as the model shall see them; the given ones stay as they are."""

    def check(self, tower: TextTower | None) -> None:
        """Raise a typed error when this model cannot serve the settings."""

    def interventions(self, prompt: Prompt, tower: TextTower | None) -> Interventions:
        """What to do inside the model for this batch of prompts."""


@dataclass(frozen=True)
class GuardrailSet:
    """The guardrails of one model, sorted by where they act.

    Attributes:
        detectors: look at pictures before the prompt is made.
        inner: act on the prompt or inside the model.
    """

    detectors: tuple[Any, ...]
    inner: tuple[ModelGuardrail, ...]

    @property
    def needs(self) -> frozenset[str]:
        """Everything the inner guardrails ask for."""
        return frozenset[str]().union(*(guardrail.needs for guardrail in self.inner))

    @property
    def inside(self) -> list[str]:
        """Names of the guardrails that need the inside of the model."""
        return [type(guard).__name__ for guard in self.inner if guard.needs & INSIDE]


def sort_guardrails(guardrails: Sequence[Any]) -> GuardrailSet:
    """Sort guardrails by where they act.

    Raises:
        ConfigurationError: one is neither a detector nor a model guardrail, or a kind that may
            stand only once is there twice.
    """
    if not isinstance(guardrails, Sequence) or isinstance(guardrails, str):
        raise ConfigurationError(
            f"guardrails must be a list, got {type(guardrails).__name__}; write guardrails=[...]."
        )
    detectors = tuple(guard for guard in guardrails if hasattr(guard, "screen"))
    inner = tuple(guard for guard in guardrails if not hasattr(guard, "screen"))
    for guard in inner:
        if isinstance(guard, type) or not isinstance(guard, ModelGuardrail):
            raise ConfigurationError(
                f"{guard!r} is not a guardrail; pass objects such as RiskDetector or SafetyPrefix "
                "(a class must be called first)."
            )
        if unknown := guard.needs - NEEDS:
            raise ConfigurationError(f"{type(guard).__name__} has unknown needs {sorted(unknown)}.")
    kinds = [type(guard) for guard in inner]
    if doubled := {kind.__name__ for kind in kinds if kinds.count(kind) > 1}:
        raise ConfigurationError(f"{', '.join(sorted(doubled))} stands twice; keep one of each.")
    return GuardrailSet(detectors, inner)
