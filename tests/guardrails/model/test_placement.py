"""Number formats, several devices, packed weights, adapters: a guarded model stays what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import save_file
from transformers import BitsAndBytesConfig

from decision_helpers import untrained
from defences import REFUSED
from lvlm_helpers import ROWS, Recorder
from moras_helpers import moras
from more_devices import FIRST, SECOND, more_devices, spread
from sightrail.guardrails.errors import (
    ArtifactError,
    ConfigurationError,
    ModelLoadError,
    UnsupportedModelError,
)
from sightrail.guardrails.model import LocalLVLM
from sightrail.guardrails.model.loading import load_model
from sightrail.guardrails.prefix import AttentiveCalibration, SafetyPrefix
from tiny_models import Pair, every_family, fresh, tiny

SHORT = {"max_new_tokens": 4}
#: One with positions of its own, one with a sliding window, one that crosses over to pictures.
SOME = ["llava", "qwen2_vl", "gemma3", "mllama"]


def inside(pair: Pair, family: str, *, strength: float = 1.0) -> list[Any]:
    """Every defence that keeps state inside the model."""
    model, _ = pair
    steers = strength and (family, "moras") not in REFUSED
    return [
        SafetyPrefix("Stay safe.", AttentiveCalibration(gamma=2.0 * strength, decode=True)),
        untrained(family, pair=pair, threshold=2.0, strength=strength),
        *([moras(model, context_tokens=3)] if steers else []),
    ]


def logits(lvlm: LocalLVLM) -> tuple[Any, torch.Tensor]:
    recorder = Recorder()
    answers = lvlm.with_guardrails([*lvlm.guardrails, recorder]).batch(ROWS[:1], **SHORT)
    return answers, recorder.logits


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float16, marks=pytest.mark.shows("fp16")), torch.bfloat16], ids=str
)
@pytest.mark.parametrize("family", every_family(*SOME))
@pytest.mark.filterwarnings("ignore:Complex modules", "ignore:Casting complex")  # Llama 4's
def test_half_precision(family: str, dtype: torch.dtype) -> None:
    model, processor = fresh(family)
    pair = (model.to(dtype), processor)
    bare = LocalLVLM(*pair, name=family)
    prefixed = bare.with_guardrails([SafetyPrefix("Stay safe.")])
    off = bare.with_guardrails(inside(pair, family, strength=0.0))
    assert torch.equal(logits(off)[1], logits(prefixed)[1])
    (answer,), found = logits(bare.with_guardrails(inside(pair, family)))
    assert found.dtype in (dtype, torch.float32)
    assert {verdict.status for verdict in answer.verdicts} == {"clean"}
    assert bool(found[1:].isfinite().all())


def test_large_products_of_half_precision_stay_numbers() -> None:
    model, processor = fresh("llava")
    model.half()
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.self_attn.q_proj.weight.mul_(200)
            layer.self_attn.k_proj.weight.mul_(200)
    guard = SafetyPrefix("Stay safe.", AttentiveCalibration(gamma=0.5))
    _, found = logits(LocalLVLM(model, processor, guardrails=[guard]))
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("family", SOME)
@pytest.mark.parametrize("kind", ["offloaded", "dispatched"])
def test_weights_that_are_fetched_when_needed(family: str, kind: str) -> None:
    if (family, kind) == ("mllama", "offloaded"):
        pytest.skip("accelerate cannot offload its vision tower, bare or guarded")
    pair = tiny(family)
    guards = inside(pair, family)
    expected, there = logits(LocalLVLM(*pair, guardrails=guards, name=family))
    model, processor = fresh(family)
    if kind == "offloaded":
        cpu_offload(model, execution_device=torch.device("cpu"))
        assert {weight.device.type for weight in model.parameters()} == {"meta"}
    else:
        names = [name for name, _ in model.model.named_children()]
        spread = {f"model.{name}": "cpu" for name in names} | {"lm_head": "cpu"}
        dispatch_model(model, spread, main_device="cpu", force_hooks=True)
    lvlm = LocalLVLM(model, processor, guardrails=guards, name=family)
    found, here = logits(lvlm)
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)
    assert [answer.text for answer in found] == [answer.text for answer in expected]


@pytest.mark.shows("device map")
@pytest.mark.filterwarnings("ignore:The following device_map keys")  # LLaVA-NeXT's lone weight
@pytest.mark.parametrize("family", every_family("llava", "qwen2_vl", "mllama"))
def test_state_follows_each_layer_to_its_device(family: str) -> None:
    pair = tiny(family)
    guards = inside(pair, family)
    expected, there = logits(LocalLVLM(*pair, guardrails=guards, name=family))
    model, processor = fresh(family)
    with more_devices():
        spread(model)
        assert {weight.device for weight in model.parameters()} >= {FIRST, SECOND}
        lvlm = LocalLVLM(model, processor, guardrails=guards, name=family, gather=False)
        found, here = logits(lvlm)
    torch.testing.assert_close(here.cpu(), there, rtol=1e-4, atol=1e-4)
    assert [answer.text for answer in found] == [answer.text for answer in expected]
    assert [answer.verdicts[0].measures for answer in found] == [
        pytest.approx(answer.verdicts[0].measures, abs=1e-4) for answer in expected
    ]


#: What is not a multiple of 64 wide does not go into blocks of 64 weights.
KEPT = ["model.vision_tower", "model.multi_modal_projector", "down_proj", "lm_head"]
FOUR_BIT = BitsAndBytesConfig(
    load_in_4bit=True, llm_int8_skip_modules=KEPT, bnb_4bit_compute_dtype=torch.float32
)


def save(family: str, folder: Path) -> Path:
    model, processor = tiny(family)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llava", tmp_path_factory.mktemp("llava"))


def test_of_an_omni_checkpoint_the_thinker_is_loaded(tmp_path: Path) -> None:
    model, processor = tiny("qwen2_5_omni")
    processor.save_pretrained(tmp_path)
    whole = {"model_type": "qwen2_5_omni", "thinker_config": model.config.to_dict()}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    weights = {f"thinker.{key}": value for key, value in model.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = LocalLVLM.from_pretrained(tmp_path, device="cpu")
    expected = LocalLVLM(model, processor).chat(ROWS[0], **SHORT)
    assert loaded.chat(ROWS[0], **SHORT).text == expected.text


@pytest.mark.filterwarnings("ignore")  # bitsandbytes' own, about kernels
@pytest.mark.parametrize("quantization", ["8bit", FOUR_BIT], ids=["8bit", "4bit"])
def test_packed_weights(saved: Path, quantization: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes", reason="the quantized extra is not installed")
    model, processor = load_model(saved, quantization=quantization, device="cpu")
    assert type(model.model.language_model.layers[0].mlp.down_proj).__name__.startswith("Linear")
    assert model.is_quantized
    bare = LocalLVLM(model, processor, name="llava")
    guards = inside(tiny("llava"), "llava")  # fitted before the weights were packed
    (answer,), found = logits(bare.with_guardrails(guards))
    assert [verdict.status for verdict in answer.verdicts] == ["clean", "clean"]
    _, before = logits(bare.with_guardrails([SafetyPrefix("Stay safe.")]))
    _, zero = logits(bare.with_guardrails(inside(tiny("llava"), "llava", strength=0.0)))
    assert torch.equal(zero, before)
    assert not torch.allclose(found[1], before[1])


@pytest.mark.shows("quantised")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", every_family("qwen2_vl"))
def test_eight_bits(family: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the quantized extra is not installed")
    pair = tiny(family)
    kept = ["vision_model", "multi_modal_projector", "lm_head"] if family == "mllama" else None
    eight = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    model, processor = load_model(save(family, tmp_path), quantization=eight, device="cpu")
    packed = [module for module in model.modules() if type(module).__name__ == "Linear8bitLt"]
    assert packed
    bare = LocalLVLM(model, processor, name=family)
    if family in ("gemma3n", "kimi_k25"):
        with pytest.raises(RuntimeError, match="must match the size"):
            bare.chat(ROWS[0], **SHORT)
        pytest.skip("bitsandbytes' kernel for CPUs takes no states of four dimensions")
    (answer,), found = logits(bare.with_guardrails(inside(pair, family)))
    assert {verdict.status for verdict in answer.verdicts} == {"clean"}
    _, before = logits(bare.with_guardrails([SafetyPrefix("Stay safe.")]))
    _, zero = logits(bare.with_guardrails(inside(pair, family, strength=0.0)))
    assert torch.equal(zero, before)
    assert not torch.allclose(found[1], before[1])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's own
def test_an_adapter_of_peft_stays_at_work_under_the_guards() -> None:
    model, processor = fresh("qwen2_vl")
    guards = inside(tiny("qwen2_vl"), "qwen2_vl")
    _, before = logits(LocalLVLM(*tiny("qwen2_vl"), guardrails=guards, name="qwen2_vl"))
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wrapped = get_peft_model(model, config)
    with pytest.raises(ArtifactError, match="with the adapter default"):
        LocalLVLM(wrapped, processor, guardrails=guards, name="qwen2_vl")
    own = inside((wrapped, processor), "qwen2_vl")
    lvlm = LocalLVLM(wrapped, processor, guardrails=own, name="qwen2_vl")
    _, adapted = logits(lvlm)
    assert not torch.allclose(adapted[1], before[1], atol=1e-3)  # the first is the hidden token's
    with wrapped.disable_adapter():
        torch.testing.assert_close(logits(lvlm)[1], before, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_a_learned_prompt_of_peft_is_refused() -> None:
    model, processor = fresh("llava")
    model.config.num_layers = 2
    wrapped = get_peft_model(
        model,
        PromptTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=2,
            token_dim=64,
            num_attention_heads=4,
            num_layers=2,
        ),
    )
    with pytest.raises(UnsupportedModelError, match="learned prompt"):
        LocalLVLM(wrapped, processor)


@pytest.mark.parametrize(
    ("settings", "error", "why"),
    [
        ({"device": "cpu", "device_map": "auto"}, ConfigurationError, "not both"),
        ({"dtype": "int3"}, ConfigurationError, "Unknown dtype 'int3'; use one of auto, float32"),
        ({"quantization": "3bit"}, ConfigurationError, "use one of 4bit, 8bit"),
        ({"revision": "v1", "local_files_only": True, "name": "a/b"}, ModelLoadError, "'a/b'"),
    ],
)
def test_what_cannot_be_loaded_says_why(
    saved: Path, settings: dict[str, Any], error: type[Exception], why: str
) -> None:
    name = settings.pop("name", saved)
    with pytest.raises(error, match=why):
        LocalLVLM.from_pretrained(name, **settings)


@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
def test_another_attention_is_refused_at_construction(saved: Path, implementation: str) -> None:
    guards = [SafetyPrefix(calibration=AttentiveCalibration())]
    with pytest.raises(UnsupportedModelError, match=f"it has '{implementation}'"):
        LocalLVLM.from_pretrained(
            saved, guardrails=guards, device="cpu", attn_implementation=implementation
        )
    plain = LocalLVLM.from_pretrained(
        saved, guardrails=[SafetyPrefix()], device="cpu", attn_implementation=implementation
    )
    assert plain.model.config._attn_implementation == implementation
