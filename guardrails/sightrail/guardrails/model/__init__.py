"""The local model: conversations in, guarded answers out.

``local_lvlm`` wires the parts; the order of work is messages, pictures, prompt (with its spans),
doorway, generation, answer. Names are loaded when first used: a conversation needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .answers import Answer, AnswerChunk, Usage
    from .families import FAMILIES
    from .gathering import Gathering, Place
    from .local_lvlm import LocalLVLM
    from .messages import GenerationOptions

__all__ = [
    "FAMILIES",
    "Answer",
    "AnswerChunk",
    "Gathering",
    "GenerationOptions",
    "LocalLVLM",
    "Place",
    "Usage",
]

_HOME: Final = {
    "FAMILIES": "families",
    "Answer": "answers",
    "AnswerChunk": "answers",
    "Gathering": "gathering",
    "GenerationOptions": "messages",
    "LocalLVLM": "local_lvlm",
    "Place": "gathering",
    "Usage": "answers",
}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)
