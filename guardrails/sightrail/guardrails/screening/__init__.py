"""Screening: where a picture is risky, by optimal transport between its patches and concepts.

Exports are loaded when first used: covering a region needs Pillow alone, not torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .cache import CachedDetector
    from .concepts import ConceptBank
    from .detector import RiskDetector
    from .encoder import Encoder, load_encoder
    from .settings import ScreeningSettings

__all__ = [
    "CachedDetector",
    "ConceptBank",
    "Encoder",
    "RiskDetector",
    "ScreeningSettings",
    "load_encoder",
]

_HOME: Final = {
    "CachedDetector": "cache",
    "ConceptBank": "concepts",
    "Encoder": "encoder",
    "RiskDetector": "detector",
    "ScreeningSettings": "settings",
    "load_encoder": "encoder",
}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)
