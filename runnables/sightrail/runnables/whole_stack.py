"""GuardAlign as one Runnable: screen, mask, put the prefix in, strengthen its pull."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.runnables import Runnable

from .chat_lvlm import ChatLVLM
from .screen_images import ScreenImages

if TYPE_CHECKING:
    from langchain_core.messages import AIMessage

    from sightrail.guardrails import AttentiveCalibration, LocalLVLM, Policy, RiskDetector


def guardalign(
    model: LocalLVLM,
    detector: RiskDetector,
    *,
    calibration: AttentiveCalibration | None = None,
    policy: Policy | None = None,
) -> Runnable[Any, AIMessage]:
    """The whole of GuardAlign (arXiv 2602.24027) in front of and inside a local model.

    `ScreenImages(detector) | ChatLVLM(model, guardrails=[SafetyPrefix(calibration)])`: whatever
    `ScreenImages` takes comes in, an AIMessage goes out. The same inside the model alone is
    `LocalLVLM(..., guardrails=[detector, SafetyPrefix(calibration=...)])`.

    Args:
        model: the local model; its weights are shared, its own guardrails replaced.
        detector: finds and names what is risky in the pictures.
        calibration: how strongly the instruction attends to the prefix; the defaults when None.
        policy: what a verdict leads to; masking by default.

    Raises:
        UnsupportedModelError: the model's attention is not known; the message lists what is.
    """
    from sightrail.guardrails import AttentiveCalibration, Policy, SafetyPrefix

    chosen = policy or Policy()
    prefix = SafetyPrefix(calibration=calibration or AttentiveCalibration())
    screen = ScreenImages(detector=detector, policy=chosen)
    return screen | ChatLVLM(model=model, guardrails=[prefix], policy=chosen)
