"""A policy that rules a category which no detector has is an error, wherever both come together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from llama_index.core.llms import MockLLM

from chain_helpers import RedDetector
from sightrail.guardrails import (
    CachedDetector,
    Cascade,
    ConfigurationError,
    LocalLVLM,
    Policy,
    RiskDetector,
    Together,
)
from sightrail.guardrails.policy import SurfaceRules
from sightrail.guardrails.screening.asking import Detector, check_categories
from sightrail.integrations.langchain import ImageGuardMiddleware, ImageGuardNodes
from sightrail.integrations.llama_index import (
    ImageRiskPostprocessor,
    ImageRiskTransform,
    ImageScreen,
    guard_llm,
)
from sightrail.runnables import ScreenImages
from tiny_models import tiny


@dataclass
class Named(RedDetector):
    """Says which categories its verdicts can name."""

    categories: frozenset[str] = field(default_factory=lambda: frozenset({"red", "crimson"}))


MISSPELT = Policy(categories={"rde": "refuse"})
SURFACES: dict[str, Callable[[Detector, Policy], object]] = {
    "ScreenImages": lambda d, p: ScreenImages(detector=d, policy=p),
    "ImageGuardMiddleware": lambda d, p: ImageGuardMiddleware(detector=d, policy=p),
    "ImageGuardNodes": lambda d, p: ImageGuardNodes(detector=d, policy=p),
    "ImageRiskPostprocessor": lambda d, p: ImageRiskPostprocessor(detector=d, policy=p),
    "ImageRiskTransform": lambda d, p: ImageRiskTransform(detector=d, policy=p),
    "ImageScreen": lambda d, p: ImageScreen(d, p),
    "guard_llm": lambda d, p: guard_llm(MockLLM(), detector=d, policy=p),
    "LocalLVLM": lambda d, p: LocalLVLM(*tiny("llava"), guardrails=[d], policy=p),
}


@pytest.mark.parametrize("surface", SURFACES)
def test_a_misspelt_category_is_an_error_that_lists_those_there_are(surface: str) -> None:
    make = SURFACES[surface]
    with pytest.raises(ValueError, match=r"'rde'.*crimson, red"):
        make(Named(), MISSPELT)
    make(Named(), Policy(categories={"red": "refuse"}))
    make(RedDetector(), MISSPELT)  # says nothing of its categories


@pytest.mark.parametrize(
    "wrap",
    [
        CachedDetector,
        lambda detector: Together(detector, Named(categories=frozenset({"blue"}))),
        lambda detector: Cascade(detector, Named(categories=frozenset({"blue"})), band=(0.2, 0.8)),
    ],
    ids=["cached", "together", "cascade"],
)
def test_detectors_around_detectors_know_the_categories(wrap: Callable[..., Detector]) -> None:
    with pytest.raises(ConfigurationError, match="'rde'"):
        check_categories([wrap(Named())], MISSPELT)
    check_categories([wrap(Named())], Policy(categories={"red": "refuse"}))
    check_categories([wrap(RedDetector())], MISSPELT)


def test_rules_of_a_surface_and_a_real_bank_count_too() -> None:
    detector = RiskDetector.from_pretrained("testbed")
    check_categories([detector], Policy(categories={"explosives": "refuse"}))
    rules = Policy(surfaces={"tool": SurfaceRules(categories={"explosive": "refuse"})})
    with pytest.raises(ConfigurationError, match="explosives"):
        check_categories([detector], rules)
