"""The public names: pinned, sorted, importable, and light to import."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from repository import environment

PUBLIC = {
    "sightrail.guardrails": [
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
    ],
    "sightrail.runnables": [
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
    ],
    "sightrail.integrations.langchain": [
        "GuardedState",
        "GuardrailCallbackHandler",
        "ImageGuardMiddleware",
        "ImageGuardNodes",
        "ImageRecord",
    ],
}
HEAVY = {
    "sightrail.guardrails": "torch transformers open_clip ot matplotlib langchain_core llama_index",
    "sightrail.runnables": "torch transformers open_clip ot matplotlib llama_index",
    "sightrail.integrations.cli": "torch transformers open_clip ot langchain_core llama_index",
}


@pytest.mark.parametrize("package", PUBLIC)
def test_the_public_names_are_pinned_and_sorted(package: str) -> None:
    module = import_module(package)
    assert module.__all__ == PUBLIC[package]
    assert sorted(module.__all__) == module.__all__
    assert dir(module) == module.__all__


@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package, names in PUBLIC.items() for name in names]
)
def test_every_public_name_can_be_imported_and_says_what_it_is(package: str, name: str) -> None:
    value = getattr(import_module(package), name)
    assert value.__name__ == name
    assert value.__doc__
    assert value.__module__.startswith((package, "sightrail.guardrails"))  # at home, or below


@pytest.mark.parametrize("package", PUBLIC)
def test_an_unknown_name_is_an_attribute_error(package: str) -> None:
    with pytest.raises(AttributeError, match=f"'{package}' has no attribute 'Nothing'"):
        _ = import_module(package).Nothing


@pytest.mark.parametrize("package", HEAVY)
def test_importing_a_package_loads_nothing_heavy(package: str) -> None:
    code = (
        f"import sys, {package}; print(*sorted(set({HEAVY[package].split()}) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == ""
