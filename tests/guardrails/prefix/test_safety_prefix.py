"""SafetyPrefix as a pure function on messages, and its settings' errors."""

from __future__ import annotations

import copy
import math
import subprocess
import sys

import pytest

from lvlm_helpers import picture, user
from sightrail.guardrails.errors import ConfigurationError, PromptError
from sightrail.guardrails.model import LocalLVLM
from sightrail.guardrails.prefix import DEFAULT_PREFIX, AttentiveCalibration, SafetyPrefix
from sightrail.guardrails.prefix.prefix_attention import prefix_attention_mass
from sightrail.guardrails.prefix.safety_prefix import resolve_layers
from tiny_models import tiny

PREFIX = SafetyPrefix("Stay safe.")


def test_default_text() -> None:
    assert SafetyPrefix().text == DEFAULT_PREFIX
    assert DEFAULT_PREFIX == "As an AI assistant, I must keep every answer safe."


def test_stands_after_the_picture_and_before_the_instruction() -> None:
    image = picture()
    content = PREFIX.apply(user("What is this?", image))[0]["content"]
    assert content[0]["image"] is image
    assert content[1] == {"type": "text", "text": "Stay safe. What is this?"}


@pytest.mark.parametrize(
    "messages",
    [
        "What?",
        [{"role": "user", "content": "What?"}],
        [{"role": "user", "content": ["What?"]}],
        user("What?", picture()),
        [{"role": "user", "content": [{"type": "image", "image": picture()}]}],
        [
            {"role": "system", "content": "Be kind."},
            *user("One."),
            {"role": "assistant", "content": "Two."},
            *user("Three."),
        ],
    ],
)
def test_pure_and_idempotent(messages: object) -> None:
    before = copy.deepcopy(messages)
    once = PREFIX.apply(messages)
    assert PREFIX.apply(once) == once != messages
    assert type(once) is type(messages)
    assert messages == before


def test_only_the_last_user_turn() -> None:
    turns = [*user("One."), {"role": "assistant", "content": "Two."}, *user("Three.")]
    turns.append({"role": "assistant", "content": "Sure"})
    texts = [str(turn["content"]) for turn in PREFIX.apply(turns)]
    assert ["Stay safe." in text for text in texts] == [False, False, True, False]


def test_no_user_message() -> None:
    with pytest.raises(PromptError, match="no user message"):
        PREFIX.apply([{"role": "system", "content": "x"}])


@pytest.mark.parametrize("text", ["", "  ", " x", "x\n", None])
def test_bad_text(text: object) -> None:
    with pytest.raises(ConfigurationError, match="safety prefix"):
        SafetyPrefix(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gamma": -0.1}, "-0.1"),
        ({"gamma": math.nan}, "nan"),
        ({"gamma": math.inf}, "inf"),
        ({"gamma": "high"}, "high"),
        ({"rule": "sum"}, "product, indicator"),
        ({"band": (0.5, 0.5)}, "0.5"),
        ({"band": (-0.1, 0.5)}, "-0.1"),
        ({"band": (0.5, 1.1)}, "1.1"),
        ({"layers": ()}, "at least one"),
        ({"layers": (1, 1)}, "different"),
    ],
)
def test_bad_settings_say_what_was_given_and_what_is_possible(
    settings: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        AttentiveCalibration(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({}, (2, 3)),
        ({"band": (0.0, 1.0)}, (0, 1, 2, 3, 4, 5)),
        ({"band": (0.5, 0.51)}, (3,)),
        ({"band": (0.99, 1.0)}, (5,)),
        ({"layers": [4, 1]}, (1, 4)),
    ],
)
def test_layers_of_six(settings: dict[str, object], layers: tuple[int, ...]) -> None:
    calibration = AttentiveCalibration(**settings)  # type: ignore[arg-type]
    assert resolve_layers(calibration, 6, range(6)) == layers


def test_layers_that_are_not_there() -> None:
    for layer in (6, -1):
        with pytest.raises(ConfigurationError, match=r"6 layers, of which 0-5"):
            resolve_layers(AttentiveCalibration(layers=(layer,)), 6, range(6))


def test_cross_attention_layers_are_refused_at_construction() -> None:
    for calibration in (
        AttentiveCalibration(layers=(1,)),
        AttentiveCalibration(band=(0.6, 0.7)),
    ):
        with pytest.raises(ConfigurationError, match="self-attention"):
            LocalLVLM(*tiny("mllama"), guardrails=[SafetyPrefix(calibration=calibration)])


def test_attention_mass_before_and_after() -> None:
    bare = LocalLVLM(*tiny("llava"), guardrails=[SafetyPrefix()])
    strong = AttentiveCalibration(gamma=5.0, layers=(1, 2))
    calibrated = bare.with_guardrails([SafetyPrefix(calibration=strong)])
    messages = user("What is in the image?", picture())
    before = prefix_attention_mass(bare, messages)
    after = prefix_attention_mass(calibrated, messages)
    assert len(before) == len(after) == 6
    assert all(0 < mass < 1 for mass in before + after)
    assert after[0] == before[0], "layers before the first calibrated one are untouched"
    assert after[1] > before[1]
    assert prefix_attention_mass(bare, messages) == before


def test_attention_mass_of_cross_attention_is_nan() -> None:
    lvlm = LocalLVLM(*tiny("mllama"), guardrails=[SafetyPrefix()])
    mass = prefix_attention_mass(lvlm, user("What?", picture()))
    assert [math.isnan(value) for value in mass] == [False, True, False, False, True, False]


def test_attention_mass_needs_a_prefix() -> None:
    with pytest.raises(ConfigurationError, match="SafetyPrefix"):
        prefix_attention_mass(LocalLVLM(*tiny("llava")), "What?")


def test_the_prefix_alone_needs_no_torch() -> None:
    code = (
        "import sys; from sightrail.guardrails.prefix import SafetyPrefix; "
        "SafetyPrefix().apply('x'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
