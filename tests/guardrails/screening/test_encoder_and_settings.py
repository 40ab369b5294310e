"""Encoders through open_clip's own loaders, on a small random model in a folder."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import torch
from PIL import Image

from sightrail.guardrails import ConfigurationError, ModelLoadError, RiskDetector
from sightrail.guardrails.screening import ConceptBank, ScreeningSettings, load_encoder
from sightrail.guardrails.screening.encoder import ENCODER_VARIABLE, Encoder

BANK = ConceptBank(unsafe={"weapons": ("a knife", "the word knife")}, benign=("a cat", "a tree"))


@pytest.mark.parametrize("form", ["local-dir:{}", "{}"])
def test_a_folder_is_an_encoder(random_encoder_folder: Path, form: str) -> None:
    encoder = load_encoder(form.format(random_encoder_folder))

    assert encoder.side == (96, 96)
    assert not encoder.is_testbed


def test_embeddings_are_unit_and_of_one_space(random_encoder: Encoder) -> None:
    image = Image.effect_noise((200, 100), 80).convert("RGB")
    pixels = random_encoder.pixels(image, [(0, 0, 200, 100), (10, 10, 60, 60)])

    crops = random_encoder.embed_pixels(pixels)
    tokens = random_encoder.embed_tokens(pixels, "tokens")
    values = random_encoder.embed_tokens(pixels, "values")
    texts = random_encoder.embed_texts(["a knife", "a cat"])

    assert crops.shape == (2, 128)
    assert tokens.shape == values.shape == (2, 64, 128)
    assert texts.shape == (2, 128)
    for found in (crops, tokens, values, texts):
        torch.testing.assert_close(found.norm(dim=-1), torch.ones(found.shape[:-1]))
    assert not torch.allclose(tokens, values)


def test_a_pass_gives_each_crop_what_it_gets_alone(random_encoder: Encoder) -> None:
    image = Image.effect_noise((120, 90), 80).convert("RGB")
    boxes = [(0, 0, 120, 90), (0, 0, 40, 40), (60, 30, 120, 90)]

    together = random_encoder.embed_pixels(random_encoder.pixels(image, boxes))
    alone = torch.cat(
        [random_encoder.embed_pixels(random_encoder.pixels(image, [box])) for box in boxes]
    )

    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_without_a_name_the_environment_decides(
    random_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENCODER_VARIABLE, f"local-dir:{random_encoder_folder}")

    assert load_encoder().name == f"local-dir:{random_encoder_folder}"


def test_without_a_name_nothing_falls_back_to_the_testbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENCODER_VARIABLE, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # read on import

    with pytest.raises(ModelLoadError, match="ViT-L-14-336/openai"):
        load_encoder()


@pytest.mark.parametrize("name", ["ViT-L-14-336", "nonsense", "/openai", "ViT-B-32/"])
def test_a_name_without_weights_is_an_error_that_says_what_to_write(name: str) -> None:
    with pytest.raises(ConfigurationError, match="architecture/weights"):
        load_encoder(name)


@pytest.mark.parametrize(
    "name", ["NoSuchNet/openai", "ViT-B-32/no-such-weights", "local-dir:/none"]
)
def test_an_encoder_that_cannot_be_had_is_a_load_error(name: str) -> None:
    with pytest.raises(ModelLoadError, match="could not be loaded"):
        load_encoder(name)


def test_an_uncalibrated_encoder_decides_at_the_neutral_point_and_says_so(
    random_encoder: Encoder,
) -> None:
    (verdict,) = RiskDetector(random_encoder, BANK).screen([Image.new("RGB", (64, 64), "red")])

    assert verdict.threshold is not None
    assert verdict.threshold.value == 0.0
    assert "not calibrated" in verdict.threshold.source


def test_a_cosine_needs_a_threshold_before_it_can_decide(random_encoder: Encoder) -> None:
    detector = RiskDetector(random_encoder, BANK).with_settings(score="patch_cosine", scales=())
    pictures = [Image.effect_noise((64, 64), s).convert("RGB") for s in range(10, 40)]

    with pytest.raises(ConfigurationError, match="calibrate"):
        detector.screen(pictures)

    fitted = detector.calibrate(pictures, false_alarms=0.1, source="noise")
    assert [v.status for v in fitted.screen(pictures)] == ["clean"] * 30
    threshold = fitted.screen(pictures)[0].threshold
    assert threshold is not None
    assert "noise; n=30" in threshold.source


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_calibration_flags_no_more_than_was_asked_for(random_encoder: Encoder, rate: float) -> None:
    pictures = [Image.effect_noise((64, 64), s).convert("RGB") for s in range(10, 60)]

    fitted = RiskDetector(random_encoder, BANK, ScreeningSettings(scales=())).calibrate(
        pictures, false_alarms=rate, confidence=None, source="noise", attacks=pictures
    )

    verdicts = fitted.screen(pictures)
    flagged = [verdict for verdict in verdicts if verdict.status == "flagged"]
    assert rate * len(pictures) - 2 <= len(flagged) <= rate * len(pictures)
    assert all((v.p_value or 0) <= (1 + len(flagged)) / 51 for v in flagged)
    threshold = verdicts[0].threshold
    assert threshold is not None
    assert (threshold.false_alarms, threshold.confidence, threshold.n) == (rate, None, 50)
    assert threshold.missed is not None  # of these "attacks" nearly all
    assert threshold.missed > 1 - rate


def test_calibration_on_too_little_or_at_an_impossible_rate_is_an_error(
    random_encoder: Encoder,
) -> None:
    detector = RiskDetector(random_encoder, BANK)

    with pytest.raises(ConfigurationError, match=r"at least 299 .* the least that 19 can promise"):
        detector.calibrate([Image.new("RGB", (64, 64))] * 19, source="x")
    with pytest.raises(ConfigurationError, match="between 0 and 1"):
        detector.calibrate([], false_alarms=1.0, source="x")


def test_anchors_are_needed_by_the_score_that_compares_with_them(random_encoder: Encoder) -> None:
    bare = ConceptBank(unsafe={"weapons": ("a knife",)})

    with pytest.raises(ConfigurationError, match="benign anchors"):
        RiskDetector(random_encoder, bare)
    # Two patches for one category: the paper's tau means something.
    settings = ScreeningSettings(score="ot_printed", scales=((1.0, 1),))
    printed = RiskDetector(random_encoder, bare, settings)
    assert printed.screen([Image.new("RGB", (64, 64))])[0].status in ("clean", "flagged")


@pytest.mark.parametrize(
    "change", [{"score": "best"}, {"share": 0}, {"epsilon": -1}, {"nothing": 1}]
)
def test_an_impossible_setting_is_an_error(
    random_encoder: Encoder, change: dict[str, object]
) -> None:
    with pytest.raises(ConfigurationError):
        RiskDetector(random_encoder, BANK).with_settings(**change)


def test_users_add_their_own_concepts(tmp_path: Path) -> None:
    file = tmp_path / "bank.toml"
    file.write_text('benign = ["a cat"]\n[unsafe]\nweapons = ["a knife"]\n', encoding="utf-8")

    bank = ConceptBank.from_file(file).with_unsafe("logos", "a rival logo").with_benign("a dog")

    assert bank.unsafe == {"weapons": ("a knife",), "logos": ("a rival logo",)}
    assert bank.benign == ("a cat", "a dog")
    assert ConceptBank.from_file(file).unsafe == {"weapons": ("a knife",)}


@pytest.mark.parametrize(
    "text",
    ["not toml [", "[unsafe]\n", "[unsafe]\nweapons = []\n", "[unsafe]\nx = [1]\n", "a = 1\n"],
)
def test_a_file_that_is_no_bank_is_an_error_that_says_what_one_is(
    tmp_path: Path, text: str
) -> None:
    file = tmp_path / "bank.toml"
    file.write_text(text, encoding="utf-8")

    with pytest.raises(ConfigurationError, match="concept bank"):
        ConceptBank.from_file(file)


def test_the_default_bank_reads_and_has_anchors() -> None:
    bank = ConceptBank.default()

    assert {"weapons", "explosives", "drugs", "gore"} <= set(bank.unsafe)
    assert len(bank.benign) > 20
