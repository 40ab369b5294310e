"""Published settings in one call, each value with its origin."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from sightrail.guardrails import (
    AttentiveCalibration,
    CasaSettings,
    ConfigurationError,
    DavspSettings,
    MorasSettings,
    RiskDetector,
    ScreeningSettings,
)
from sightrail.guardrails.casa.safety_attention import unsafe_logit
from sightrail.guardrails.prefix.safety_prefix import resolve_layers
from sightrail.guardrails.published import Source
from sightrail.guardrails.screening.concepts import ConceptBank
from sightrail.guardrails.screening.regions import find_regions

METHODS: list[Any] = [AttentiveCalibration, CasaSettings, DavspSettings, MorasSettings]


@pytest.mark.parametrize("method", METHODS)
def test_every_field_says_where_its_value_comes_from(method: Any) -> None:
    assert set(method.SOURCES) == {field.name for field in dataclasses.fields(method)}
    assert set(method.SOURCES.values()) <= set(get_args(Source))


def test_screening_says_so_too() -> None:
    assert set(ScreeningSettings.SOURCES) == set(ScreeningSettings.model_fields)
    assert set(ScreeningSettings.SOURCES.values()) <= set(get_args(Source))


def test_calibration_is_vafs_layers_and_factor() -> None:
    made = AttentiveCalibration.published()
    assert (made.rule, made.gamma) == ("indicator", 0.15)
    assert resolve_layers(made, 32, range(32)) == tuple(range(9, 15))
    assert AttentiveCalibration.published("product").gamma == 0.01


def test_casa_weighs_logits_as_printed() -> None:
    made = CasaSettings.published(3, 4, depth=32)
    assert (made.layer, made.rule) == (32, "logits")
    assert CasaSettings.from_json(made.to_json()) == made
    safe, unsafe, v = -2.0, 1.5, 0.3
    found = unsafe_logit(torch.tensor([[safe, unsafe]]), torch.tensor([v]).logit(), made.rule)
    assert float(found) == pytest.approx(v * unsafe - (1 - v) * safe)
    with pytest.raises(ConfigurationError, match="probabilities or logits"):
        dataclasses.replace(made, rule="product")  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "base", "alpha"), [("7B", 0.712, 15.955), ("13B", 0.741, 17.811)])
def test_moras_has_the_constants_of_its_sizes(size: Any, base: float, alpha: float) -> None:
    made = MorasSettings.published(size)
    assert (made.base, made.slope) == (base, alpha)
    # Both are one measurement: alpha follows from S_base up to the rounding of three digits.
    assert alpha == pytest.approx(math.log(99) / (1 - base), rel=5e-3)
    assert not any((made.context_risk, made.draft, made.binary))


def test_no_constants_are_made_up() -> None:
    with pytest.raises(ConfigurationError, match="7B, 13B, not for '70B'"):
        MorasSettings.published("70B")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="mu_plus above mu_minus"):
        DavspSettings(mu=(-2.0, 27.0))


def test_davsp_is_the_authors_run() -> None:
    made = DavspSettings.published()
    assert (made.layer, made.mu, made.steps, made.batch) == (20, (27.0, -2.0), 1200, 2)
    assert made.step_at(0) == made.step_at(1199) == 1.0


@pytest.mark.parametrize("weights", ["printed", "confident"])
def test_screening_has_both_signs_of_the_weights(weights: Any) -> None:
    made = ScreeningSettings.published(9, weights=weights)
    assert (made.score, made.weights, made.scales) == ("ot_printed", weights, ((0.25, 4),))
    assert made.thresholds().picture.value == -0.42


def test_a_threshold_that_says_nothing_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(ConfigurationError, match=r"C = 9 .* M = 37 .* 1.2 \* C / M = 0.29"):
        ScreeningSettings.published(9, side=6)
    detector = RiskDetector.from_pretrained("testbed", device="cpu")
    unknown = detector.settings.calibrated
    printed = detector.with_settings(
        score="ot_printed", calibrated={k: v for k, v in unknown.items() if k != "ot_printed"}
    )
    with pytest.raises(ConfigurationError, match="flags every patch here"):
        printed.screen([Image.new("RGB", (96, 96))])


def test_published_masks_are_the_patches_below_tau() -> None:
    boxes = [(0, 0, 8, 8), (0, 0, 4, 4), (4, 0, 8, 4), (0, 4, 4, 8), (4, 4, 8, 8)]
    risk = -np.array([[0.3], [0.5], [0.41], [0.42], [0.6]], np.float32)
    found = find_regions(boxes, risk, ["weapon"], (8, 8), -0.42, each_patch=True)
    assert [region.box for region in found] == [(4, 0, 8, 4), (0, 4, 4, 8)]


def test_that_nobody_calibrated_is_in_the_verdict_and_once_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    encoder = replace(RiskDetector.from_pretrained("testbed", device="cpu").encoder, name="mine")
    detector = RiskDetector(encoder, ConceptBank.default(), ScreeningSettings())
    for _ in range(2):
        (verdict,) = detector.screen([Image.new("RGB", (96, 96))])
    assert verdict.threshold is not None
    assert "not calibrated" in verdict.threshold.source
    assert [record.args for record in caplog.records] == [("ot", "mine")]
