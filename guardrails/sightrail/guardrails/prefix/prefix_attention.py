"""How much of the instruction's attention goes to the safety prefix, layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ..errors import ConfigurationError, PromptError
from ..model.doorway import AttentionCall, AttentionEdit
from ..model.interventions import Interventions, Stage
from .instruction_rows import CalibratedRows
from .safety_prefix import AttentiveCalibration, SafetyPrefix, resolve_layers

if TYPE_CHECKING:
    from ..model.families import Host
    from ..model.local_lvlm import LocalLVLM
    from ..model.messages import Conversation
    from ..model.prompt import Prompt


def prefix_attention_mass(lvlm: LocalLVLM, messages: Any) -> list[float]:
    """Attention mass on the prefix, while the model reads the prompt.

    For each decoder layer: the attention weights from instruction tokens to prefix tokens, summed
    over the prefix, averaged over heads and instruction tokens. With a model whose prefix is
    calibrated it is the mass after calibration, otherwise the model's own.

    Args:
        lvlm: a local model with a ``SafetyPrefix`` among its guardrails.
        messages: one conversation.

    Returns:
        One value in [0, 1] per decoder layer; NaN for a cross-attention layer.

    Raises:
        ConfigurationError: the model has no safety prefix.
        PromptError: a guardrail refused the conversation before the model read it.
        UnsupportedModelError: the inside of this model is not known.
    """
    prefix = next((guard for guard in lvlm.guardrails if isinstance(guard, SafetyPrefix)), None)
    if prefix is None:
        raise ConfigurationError(
            "The model has no safety prefix to measure; add SafetyPrefix() to its guardrails."
        )
    observer = _Observer(prefix.calibration or AttentiveCalibration(gamma=0))
    answer = lvlm.with_guardrails([*lvlm.guardrails, observer]).chat(messages, max_new_tokens=1)
    if answer.refused:
        raise PromptError("A guardrail refused this conversation, so the model never read it.")
    return [observer.mass.get(layer, math.nan) for layer in range(observer.depth)]


@dataclass
class _Observer:
    """A guardrail for one call: measures, and changes nothing."""

    calibration: AttentiveCalibration
    mass: dict[int, float] = field(default_factory=dict)
    depth: int = 0
    needs: frozenset[str] = frozenset({"attention"})

    stage: ClassVar[Stage] = "prefill"

    def apply(self, messages: Conversation) -> Conversation:
        return messages

    def check(self, host: Host) -> None:
        """Nothing to check: the prefix has checked the same settings."""

    def interventions(self, prompt: Prompt, host: Host) -> Interventions:
        tower = host.inside("Measuring attention")
        assert prompt.spans is not None, "needs holds attention"
        self.depth = tower.depth
        calibrated = resolve_layers(self.calibration, tower.depth, tower.self_attention)
        bare = CalibratedRows(AttentiveCalibration(gamma=0), prompt.spans)
        changed = CalibratedRows(self.calibration, prompt.spans)
        return Interventions(
            attention={
                layer: self._edit(changed if layer in calibrated else bare)
                for layer in tower.self_attention
            }
        )

    def _edit(self, rows: CalibratedRows) -> AttentionEdit:
        def measure(call: AttentionCall, output: Tensor) -> Tensor:
            if (plan := rows.plan(call)) is not None:
                on_prefix = rows.weights(call, plan) * plan.columns[:, None, None, None, :]
                self.mass[call.layer] = float(on_prefix.sum(dim=-1).mean())
            return output

        return measure
