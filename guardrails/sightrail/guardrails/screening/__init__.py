"""Screening: where a picture is risky, by optimal transport between its patches and concepts."""

from .concepts import ConceptBank
from .detector import RiskDetector
from .encoder import Encoder, load_encoder
from .settings import ScreeningSettings

__all__ = ["ConceptBank", "Encoder", "RiskDetector", "ScreeningSettings", "load_encoder"]
