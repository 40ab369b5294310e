"""What Casa refuses at construction, and which tokens it takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from decision_helpers import untrained
from lvlm_helpers import ROWS
from sightrail.guardrails import AttentiveCalibration, Casa, LocalLVLM
from sightrail.guardrails.casa.fit import fitting_host, method_settings
from sightrail.guardrails.casa.settings import CasaSettings, FitSettings
from sightrail.guardrails.casa.weights import safety_tokens
from sightrail.guardrails.errors import ArtifactError, ConfigurationError
from sightrail.guardrails.verdict import Threshold
from tiny_models import FAMILIES, fresh, tiny


def test_without_an_artifact_the_error_says_how_to_fit_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="sightrail fit casa"):
        Casa(None)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="sightrail fit casa"):
        Casa.from_pretrained(tmp_path)


def test_on_another_model_the_error_names_both() -> None:
    with pytest.raises(ArtifactError, match=r"'?llava.*qwen2_vl.*sightrail fit casa"):
        LocalLVLM(*tiny("qwen2_vl"), guardrails=[untrained("llava")], name="qwen2_vl")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"threshold": -0.1}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"strength": 0.5}, "strength"),
        ({"targets": (), "attention": False}, "attention"),
    ],
)
def test_values_out_of_range(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        untrained(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"batch": 1},
        {"beta": 1.5},
        {"begun": 0.7, "forced": 0.6},
        {"over_refusal": -1},
        {"calibrated": 0.5},
        {"calibration": AttentiveCalibration()},
    ],
)
def test_fit_settings_out_of_range(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        FitSettings(**changes)


@pytest.mark.parametrize("changes", [{"rank": 0}, {"layer": -1}, {"alpha": 0.0}, {"heads": 0}])
def test_method_settings_out_of_range(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        CasaSettings(**{"safe_token": 1, "unsafe_token": 2, "layer": 1, **changes})


def test_a_layer_that_is_not_there() -> None:
    host = fitting_host(LocalLVLM(*tiny("llava"), name="llava"))
    with pytest.raises(ConfigurationError, match="6 decoder layers"):
        method_settings(host, FitSettings(layer=7))


def test_layers_that_some_requests_skip_are_not_read() -> None:
    """Mllama leaves its cross-attention layers out where there is no picture."""
    host = fitting_host(LocalLVLM(*tiny("mllama"), name="mllama"))
    assert method_settings(host, FitSettings()).layer == 3
    with pytest.raises(ConfigurationError, match="see every request"):
        method_settings(host, FitSettings(layer=4))


@pytest.mark.parametrize("damage", ["missing", "rank", "settings"])
def test_a_damaged_artifact_is_an_error_at_construction(damage: str) -> None:
    casa = untrained()
    tensors, manifest = dict(casa.artifact.tensors), casa.artifact.manifest
    if damage == "missing":
        del tensors["attention.queries"]
    elif damage == "rank":
        name = next(name for name in tensors if name.endswith(".lora_A"))
        tensors[name] = tensors[name][:1]
    else:
        manifest = manifest.model_copy(update={"settings": {"layer": 1}})
    broken = Casa(replace(casa.artifact, tensors=tensors, manifest=manifest), threshold=0.5)
    with pytest.raises(ArtifactError):
        LocalLVLM(*tiny("llava"), guardrails=[broken], name="llava")


def test_saved_and_loaded_it_decides_the_same(tmp_path: Path) -> None:
    casa = untrained(threshold=Threshold(value=0.25, source="test"))
    lvlm = LocalLVLM(*tiny("llava"), guardrails=[casa], name="llava")
    again = Casa.from_pretrained(casa.save_pretrained(tmp_path))
    assert again.limit.value == 0.25
    assert again.settings == casa.settings
    (before,), (after,) = lvlm.assess(ROWS[0]), lvlm.with_guardrails([again]).assess(ROWS[0])
    assert (before.score, before.measures) == (after.score, after.measures)


def test_the_representation_tells_settings_apart_without_spelling_tensors_out() -> None:
    casa = untrained()
    others = [replace(casa, threshold=0.7), replace(casa, attention=False), untrained(seed=1)]
    shown = {repr(one) for one in (casa, *others)}
    assert len(shown) == 4
    assert all(len(text) < 150 for text in shown)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"smolvlm"}))
def test_two_spare_tokens_are_found_in_every_family(family: str) -> None:
    model, processor = tiny(family)
    host = fitting_host(LocalLVLM(model, processor, name=family))
    safe, unsafe = safety_tokens(host)
    taken = set(processor.tokenizer.get_vocab().values())
    assert safe != unsafe
    assert not {safe, unsafe} & taken
    assert max(safe, unsafe) < len(model.get_output_embeddings().weight)


def test_reserved_tokens_come_first_and_equal_rows_do_not_serve() -> None:
    model, processor = fresh("llava")
    processor.tokenizer.add_tokens(["<|reserved_special_token_0|>", "<|reserved_special_token_1|>"])
    host = fitting_host(LocalLVLM(model, processor, name="llava"))
    texts = ["<|reserved_special_token_0|>", "<|reserved_special_token_1|>"]
    ids = tuple(processor.tokenizer.convert_tokens_to_ids(texts))
    assert safety_tokens(host) == ids
    with torch.no_grad():
        model.lm_head.weight[list(ids)] = 0.5  # rows that nobody has trained
    assert safety_tokens(host) != ids


def test_a_full_vocabulary_asks_for_two_tokens() -> None:
    lvlm = LocalLVLM.from_pretrained("testbed")
    host = fitting_host(lvlm)
    with pytest.raises(ConfigurationError, match="--tokens SAFE UNSAFE"):
        safety_tokens(host)
    known = lvlm.processor.tokenizer.get_vocab()
    assert safety_tokens(host, ("safe", "sorry")) == (known["safe"], known["sorry"])
    for chosen, said in (
        (("safe", "safe"), "two different"),
        (("safe", "two words"), "2 tokens"),
        (("safe", "<eos>"), "neither end"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            safety_tokens(host, chosen)
