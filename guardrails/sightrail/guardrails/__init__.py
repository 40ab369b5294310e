"""Guardrails that look inside the picture and act inside the model.

Importing this package imports no torch: every name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    __version__: str
    from .carriers.carrier import Marker
    from .casa import Casa, CasaSettings
    from .datasets import Example, read_examples
    from .davsp import DavspSettings, VisualSafetyPrompt
    from .errors import (
        Abandoned,
        ArtifactError,
        CheckpointError,
        ConfigurationError,
        DeadlineExceeded,
        FitMemoryError,
        ImageError,
        ImageRefused,
        MissingDependencyError,
        ModelLoadError,
        PromptError,
        RequestRefused,
        SightrailError,
        UnsupportedModelError,
    )
    from .evidence import Evidence
    from .fitting import FitData, Fitted, fit
    from .intake import Limits, Picture, RemotePolicy, read_picture
    from .judging import Endpoint, EndpointJudge, LocalJudge
    from .model import Answer, AnswerChunk, Gathering, LocalLVLM, Place
    from .moras import Moras, MorasSettings
    from .policy import Applied, CallRules, Policy, SurfaceRules, apply_policy
    from .prefix import AttentiveCalibration, SafetyPrefix
    from .screening import (
        CachedDetector,
        Cascade,
        ConceptBank,
        JudgeDetector,
        Lexicon,
        RiskDetector,
        ScreeningSettings,
        TextInPicture,
        Together,
        VerdictStore,
    )
    from .verdict import NotInspected, Region, RiskMap, Verdict

_HOME: Final = {
    "ScreeningSettings": "screening",
    "MorasSettings": "moras",
    "DavspSettings": "davsp",
    "CasaSettings": "casa",
    "Abandoned": "errors",
    "Answer": "model",
    "AnswerChunk": "model",
    "Applied": "policy",
    "ArtifactError": "errors",
    "AttentiveCalibration": "prefix",
    "CachedDetector": "screening",
    "CallRules": "policy",
    "Casa": "casa",
    "Cascade": "screening",
    "CheckpointError": "errors",
    "ConceptBank": "screening",
    "ConfigurationError": "errors",
    "DeadlineExceeded": "errors",
    "Endpoint": "judging",
    "EndpointJudge": "judging",
    "Evidence": "evidence",
    "Example": "datasets",
    "FitData": "fitting",
    "FitMemoryError": "errors",
    "Fitted": "fitting",
    "Gathering": "model",
    "ImageError": "errors",
    "ImageRefused": "errors",
    "JudgeDetector": "screening",
    "Lexicon": "screening",
    "Limits": "intake",
    "LocalJudge": "judging",
    "LocalLVLM": "model",
    "Marker": "carriers.carrier",
    "MissingDependencyError": "errors",
    "ModelLoadError": "errors",
    "Moras": "moras",
    "NotInspected": "verdict",
    "Picture": "intake",
    "Place": "model",
    "Policy": "policy",
    "PromptError": "errors",
    "Region": "verdict",
    "RemotePolicy": "intake",
    "RequestRefused": "errors",
    "RiskDetector": "screening",
    "RiskMap": "verdict",
    "SafetyPrefix": "prefix",
    "SightrailError": "errors",
    "SurfaceRules": "policy",
    "TextInPicture": "screening",
    "Together": "screening",
    "UnsupportedModelError": "errors",
    "Verdict": "verdict",
    "VerdictStore": "screening",
    "VisualSafetyPrompt": "davsp",
    "apply_policy": "policy",
    "fit": "fitting",
    "read_examples": "datasets",
    "read_picture": "intake",
}

__all__ = [
    "Abandoned",
    "Answer",
    "AnswerChunk",
    "Applied",
    "ArtifactError",
    "AttentiveCalibration",
    "CachedDetector",
    "CallRules",
    "Casa",
    "CasaSettings",
    "Cascade",
    "CheckpointError",
    "ConceptBank",
    "ConfigurationError",
    "DavspSettings",
    "DeadlineExceeded",
    "Endpoint",
    "EndpointJudge",
    "Evidence",
    "Example",
    "FitData",
    "FitMemoryError",
    "Fitted",
    "Gathering",
    "ImageError",
    "ImageRefused",
    "JudgeDetector",
    "Lexicon",
    "Limits",
    "LocalJudge",
    "LocalLVLM",
    "Marker",
    "MissingDependencyError",
    "ModelLoadError",
    "Moras",
    "MorasSettings",
    "NotInspected",
    "Picture",
    "Place",
    "Policy",
    "PromptError",
    "Region",
    "RemotePolicy",
    "RequestRefused",
    "RiskDetector",
    "RiskMap",
    "SafetyPrefix",
    "ScreeningSettings",
    "SightrailError",
    "SurfaceRules",
    "TextInPicture",
    "Together",
    "UnsupportedModelError",
    "Verdict",
    "VerdictStore",
    "VisualSafetyPrompt",
    "apply_policy",
    "fit",
    "read_examples",
    "read_picture",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)


def _version() -> str:
    """The version that is installed; pyproject.toml is where it is written."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sightrail")
    except PackageNotFoundError:
        return "not installed"


def __dir__() -> list[str]:
    return sorted(__all__)
