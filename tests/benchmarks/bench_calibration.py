"""What attentive calibration costs: prefill, a whole answer, and memory.

    python tests/benchmarks/bench_calibration.py --size testbed --out calibration.json

The model has random weights of the real size, which cost what trained ones cost. Four ways answer
the same prompt, taking turns: ``bare`` (the model's own sdpa), ``inert`` (our attention function,
no request), ``calibrated``, and ``dense`` (every row with a dense mask in eager attention, the way
one would write it first). Ratios are of medians, to ``bare`` of the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers

from dense_calibration import Setting, dense
from sightrail.guardrails.model import doorway
from sightrail.guardrails.model.families import Host, TextTower, text_tower
from sightrail.guardrails.model.generation import generate
from sightrail.guardrails.model.messages import GenerationOptions
from sightrail.guardrails.model.prompt import Prompt
from sightrail.guardrails.model.template import Spans
from sightrail.guardrails.prefix import AttentiveCalibration, SafetyPrefix
from sightrail.guardrails.prefix.safety_prefix import resolve_layers

CALIBRATION = AttentiveCalibration()
WAYS = ("bare", "inert", "calibrated", "dense")
# Tokens around the picture, as a chat template, the default prefix and a question have them.
BEFORE, PREFIX, INSTRUCTION, AFTER = 24, 12, 24, 6


def testbed() -> tuple[Any, dict[str, torch.Tensor], int]:
    """The embedded model's size: 96-pixel pictures, 64 picture tokens, six layers."""
    config = transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "hidden_size": 192}
        | {"intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6}
        | {"image_size": 96, "patch_size": 12},
        text_config={"model_type": "llama", "vocab_size": 400, "hidden_size": 192}
        | {"intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 6}
        | {"max_position_embeddings": 512, "eos_token_id": None, "bos_token_id": None},
        image_token_index=5,
        vision_feature_layer=-1,
        image_seq_length=64,
    )
    return config, {"pixel_values": torch.randn(1, 3, 96, 96)}, 64


def llava_7b() -> tuple[Any, dict[str, torch.Tensor], int]:
    """LLaVA-1.5-7B: CLIP ViT-L/14-336 and Llama-2-7B; 576 picture tokens."""
    config = transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "hidden_size": 1024}
        | {"intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        | {"image_size": 336, "patch_size": 14},
        text_config={"model_type": "llama", "vocab_size": 32064, "hidden_size": 4096}
        | {"intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
        | {"max_position_embeddings": 4096, "eos_token_id": None, "bos_token_id": None},
        image_token_index=5,
    )
    return config, {"pixel_values": torch.randn(1, 3, 336, 336)}, 576


def qwen2_5_vl_7b() -> tuple[Any, dict[str, torch.Tensor], int]:
    """Qwen2.5-VL-7B with a picture of 672 x 672 pixels: 576 picture tokens."""
    config = transformers.Qwen2_5_VLConfig(
        vision_config={"out_hidden_size": 3584, "hidden_size": 1280},
        text_config={"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944}
        | {"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
        | {"eos_token_id": None, "bos_token_id": None}
        | {"rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24]}},
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=7,
        vision_end_token_id=8,
    )
    extra = {
        "pixel_values": torch.randn(48 * 48, 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([[1, 48, 48]]),
    }
    return config, extra, 576


SIZES: dict[str, Callable[[], tuple[Any, dict[str, torch.Tensor], int]]] = {
    "testbed": testbed,
    "llava-7b": llava_7b,
    "qwen2.5-vl-7b": qwen2_5_vl_7b,
}


def make_prompt(extra: dict[str, torch.Tensor], pictures: int, model: Any) -> tuple[Prompt, Spans]:
    """Random text around one picture, with its spans."""
    length = BEFORE + pictures + PREFIX + INSTRUCTION + AFTER
    at = torch.arange(length)[None]
    image = (at >= BEFORE) & (at < BEFORE + pictures)
    first = BEFORE + pictures
    ids = torch.randint(10, 400, (1, length)).masked_fill(image, 5)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **extra}
    if "image_grid_thw" in extra:
        inputs["mm_token_type_ids"] = image.long()
    spans = Spans(
        image=image,
        prefix=(at >= first) & (at < first + PREFIX),
        instruction=(at >= first + PREFIX) & (at < first + PREFIX + INSTRUCTION),
        padding=torch.zeros(1, dtype=torch.long),
        answer=length - 1,
    )
    return Prompt(inputs, (), spans).to(model.device, model.dtype), spans


@contextlib.contextmanager
def switched(name: str, model: Any, tower: TextTower, spans: Spans) -> Iterator[None]:
    """The model on the attention that a way uses."""
    if name == "bare":
        model.set_attn_implementation({tower.config_key: "sdpa"})
        yield
        model.set_attn_implementation({tower.config_key: doorway.ATTENTION})
    elif name == "dense":
        layers = resolve_layers(CALIBRATION, tower.depth, tower.self_attention)
        where = (spans.prefix.to(model.device), spans.instruction.to(model.device))
        with dense(model, Setting(*where, layers, CALIBRATION.gamma, CALIBRATION.rule)):
            yield
    else:
        yield


def clock(run: Callable[[], object], device: str) -> tuple[float, float | None]:
    """Seconds, and peak MiB above what was there before (GPU only).

    On a CPU it is the process's own CPU time, which a busy machine distorts less.
    """
    cuda = device.startswith("cuda")
    before = 0
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    now = time.perf_counter if cuda else time.process_time
    start = now()
    run()
    if cuda:
        torch.cuda.synchronize()
    seconds = now() - start
    return seconds, (torch.cuda.max_memory_allocated() - before) / 2**20 if cuda else None


def cut(config: Any, decoder_layers: int | None) -> None:
    """Leave only some decoder layers, each as wide as it was, where memory holds no more.

    What a layer costs, and what is changed in it, is the same in all of them.
    """
    if decoder_layers is not None:
        text = config.text_config
        text.num_hidden_layers = decoder_layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:decoder_layers]


def measure(
    size: str,
    *,
    device: str,
    dtype: torch.dtype,
    repeats: int,
    new_tokens: int,
    decoder_layers: int | None = None,
) -> dict[str, Any]:
    """Run all ways in turn and report medians and ratios."""
    torch.manual_seed(0)
    config, extra, pictures = SIZES[size]()
    cut(config, decoder_layers)
    with torch.device(device):
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    prompt, spans = make_prompt(extra, pictures, model)
    guard = SafetyPrefix(calibration=CALIBRATION)
    tower = text_tower(model, wanted_by="benchmark")
    doorway.install(tower, model)
    host = Host(model, None, size, None, None, tower)

    def run(name: str, tokens: int) -> tuple[float, float | None]:
        options = GenerationOptions(max_new_tokens=tokens, extra={"min_new_tokens": tokens})

        def once() -> object:
            # Made inside the clock: it is part of the request.
            made = [guard.interventions(prompt, host)] if name == "calibrated" else []
            return generate(
                model,
                prompt,
                options,
                decode=str,
                pad_token_id=0,
                interventions=made,
                tower=tower,
            )

        with switched(name, model, tower, spans):
            return clock(once, device)

    parts: dict[str, Any] = {}
    for part, tokens in (("prefill", 1), ("whole", new_tokens)):
        samples: dict[str, list[tuple[float, float | None]]] = {name: [] for name in WAYS}
        for repeat in range((repeats if tokens > 1 else 5 * repeats) + 1):
            for name in WAYS if repeat % 2 else reversed(WAYS):
                sample = run(name, tokens)
                if repeat:  # the first round warms up
                    samples[name].append(sample)
        parts[part] = summary(samples)
    return {
        "size": size,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine(),
        "threads": torch.get_num_threads(),
        "clock": "wall" if device.startswith("cuda") else "CPU time of the process",
        "dtype": str(dtype).removeprefix("torch."),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "prompt_tokens": prompt.length,
        "picture_tokens": pictures,
        "instruction_tokens": INSTRUCTION,
        "new_tokens": new_tokens,
        "decoder_layers": tower.depth,
        "layers": list(resolve_layers(CALIBRATION, tower.depth, tower.self_attention)),
        "repeats": {"prefill": 5 * repeats, "whole": repeats},
        **parts,
    }


def summary(samples: dict[str, list[tuple[float, float | None]]]) -> dict[str, Any]:
    """Median milliseconds, its ratio to bare round by round, and peak memory, for each way."""
    out: dict[str, Any] = {}
    for name, pairs in samples.items():
        seconds = [pair[0] for pair in pairs]
        rounds = [one / other[0] for one, other in zip(seconds, samples["bare"], strict=True)]
        out[name] = {
            "median_ms": round(1000 * statistics.median(seconds), 3),
            "fastest_ms": round(1000 * min(seconds), 3),
            "ratio_to_bare": round(statistics.median(rounds), 4),
            "peak_mib": None if pairs[0][1] is None else round(max(p[1] or 0 for p in pairs), 1),
        }
    return out


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure one size, print the result as JSON, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", choices=SIZES, default="testbed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument(
        "--decoder-layers", type=int, help="of this width; a multiple of 3 keeps the band's share"
    )
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    name = given.dtype or ("bfloat16" if given.device.startswith("cuda") else "float32")
    result = measure(
        given.size,
        device=given.device,
        dtype=getattr(torch, name),
        repeats=given.repeats,
        new_tokens=given.new_tokens,
        decoder_layers=given.decoder_layers,
    )
    text = json.dumps(result, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")
    return result


if __name__ == "__main__":
    main()
