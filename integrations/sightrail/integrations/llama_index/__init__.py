"""The guardrails as parts of LlamaIndex apps: retrieval, ingestion, tools, workflows, the model.

Importing this package imports neither torch nor llama-index-core: every name is loaded when it is
first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .call_review import CallReviewedEvent, CallReviewRequestedEvent, review_tool
    from .guarded_llm import guard_llm
    from .lvlm import LVLM
    from .nodes import ImageRiskPostprocessor, ImageRiskTransform
    from .screening import ImageScreen, ImagesScreenedEvent, read_marker
    from .tools import guard_tool
    from .traces import hide_images_from
    from .visual_prompt import ImageBorderPostprocessor
    from .workflow import (
        AnswerStream,
        AskEvent,
        ImageGuardWorkflow,
        ReviewedEvent,
        ReviewRequestedEvent,
    )

_HOME: Final = {
    "AnswerStream": "workflow",
    "AskEvent": "workflow",
    "CallReviewRequestedEvent": "call_review",
    "CallReviewedEvent": "call_review",
    "ImageBorderPostprocessor": "visual_prompt",
    "ImageGuardWorkflow": "workflow",
    "ImageRiskPostprocessor": "nodes",
    "ImageRiskTransform": "nodes",
    "ImageScreen": "screening",
    "ImagesScreenedEvent": "screening",
    "LVLM": "lvlm",
    "ReviewRequestedEvent": "workflow",
    "ReviewedEvent": "workflow",
    "guard_llm": "guarded_llm",
    "guard_tool": "tools",
    "hide_images_from": "traces",
    "read_marker": "screening",
    "review_tool": "call_review",
}

__all__ = [  # noqa: RUF022 - in plain order, as every package here has it
    "AnswerStream",
    "AskEvent",
    "CallReviewRequestedEvent",
    "CallReviewedEvent",
    "ImageBorderPostprocessor",
    "ImageGuardWorkflow",
    "ImageRiskPostprocessor",
    "ImageRiskTransform",
    "ImageScreen",
    "ImagesScreenedEvent",
    "LVLM",
    "ReviewRequestedEvent",
    "ReviewedEvent",
    "guard_llm",
    "guard_tool",
    "hide_images_from",
    "read_marker",
    "review_tool",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
