"""Guardrails as LangChain Runnables, and the guarded local model as a LangChain chat model.

Importing this package imports neither torch nor langchain-core: every name is loaded when it is
first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .chat_lvlm import ChatLVLM
    from .guarded_model import GuardedChatModel, GuardedModel
    from .refusal_gate import RefusalGate
    from .screen_images import ScreenImages
    from .visual_prompt import BorderImages
    from .walk import Marker, hide_images, read_marker
    from .whole_stack import guardalign

_HOME: Final = {
    "BorderImages": "visual_prompt",
    "ChatLVLM": "chat_lvlm",
    "GuardedChatModel": "guarded_model",
    "GuardedModel": "guarded_model",
    "Marker": "walk",
    "RefusalGate": "refusal_gate",
    "ScreenImages": "screen_images",
    "guardalign": "whole_stack",
    "hide_images": "walk",
    "read_marker": "walk",
}

__all__ = [
    "BorderImages",
    "ChatLVLM",
    "GuardedChatModel",
    "GuardedModel",
    "Marker",
    "RefusalGate",
    "ScreenImages",
    "guardalign",
    "hide_images",
    "read_marker",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
