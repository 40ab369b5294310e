"""Screening: what looks at pictures: the risk detector, the reader of text, judges, cascades.

Exports are loaded when first used: covering a region needs Pillow alone, not torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .cache import CachedDetector
    from .cascade import Band, Cascade, Together
    from .concepts import ConceptBank
    from .detector import RiskDetector
    from .encoder import Encoder, load_encoder
    from .judge_detector import JudgeDetector
    from .reading import Lexicon, TextInPicture
    from .settings import ScreeningSettings
    from .verdict_store import VerdictStore

__all__ = [
    "Band",
    "CachedDetector",
    "Cascade",
    "ConceptBank",
    "Encoder",
    "JudgeDetector",
    "Lexicon",
    "RiskDetector",
    "ScreeningSettings",
    "TextInPicture",
    "Together",
    "VerdictStore",
    "load_encoder",
]

_HOME: Final = {
    "Band": "cascade",
    "CachedDetector": "cache",
    "Cascade": "cascade",
    "ConceptBank": "concepts",
    "Encoder": "encoder",
    "JudgeDetector": "judge_detector",
    "Lexicon": "reading",
    "RiskDetector": "detector",
    "ScreeningSettings": "settings",
    "TextInPicture": "reading",
    "Together": "cascade",
    "VerdictStore": "verdict_store",
    "load_encoder": "encoder",
}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)
