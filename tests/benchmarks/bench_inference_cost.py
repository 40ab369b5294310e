"""What each defence costs against the bare model, over model size, and what that makes at 7 B.

    python tests/benchmarks/bench_inference_cost.py --json docs/inference_cost.json \\
        --plot docs/inference_cost.png

A request with one picture (576 tokens) is answered with 128 tokens, bare and behind each defence,
by growing models of LLaVA-1.5's and Qwen2.5-VL's classes and proportions, with random weights.
torch's FlopCounterMode counts every matrix product of whole calls with 4, 6 and 8 tokens of answer;
since each further token attends to one more, the count is quadratic in them, and known for 128. The
time is this process's on one thread, for all 128. Only matrix products count, so with L layers of
width h and V words, the count outside of the vision tower is exactly

    a L h^2 + b L h + c h^2 + d h + e V h,

the layers' maps; attention and adapters; the projector; what works at one width alone; the logits.
The factors come from least squares on relative errors, the largest of which is told. At 7 B the
formula is filled in; the vision tower and the screening encoder are counted at their real sizes on
torch's meta device, which needs no memory. So is a bare answer of the whole 7 B model, which the
formula has to meet. Calibration acts on a quarter of the layers where it is measured, and on six of
32 at 7 B, so its count there is an upper bound.

How long that takes lies between two bounds: a GPU that waits for its arithmetic takes as many times
as long as there are operations; one that waits for its memory, as there are passes, since each
reads all weights once. Long prompts are of the first kind, answers token by token of the second.
Nothing at 7 B was measured in seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import open_clip
import torch
import transformers as hf
from torch.utils.flop_counter import FlopCounterMode

import tiny_models
import tiny_tokenizers as tt
from decision_helpers import untrained_on
from defences import border
from lvlm_helpers import picture, user
from moras_helpers import artifact
from sightrail.guardrails import AttentiveCalibration, LocalLVLM, Policy, SafetyPrefix
from sightrail.guardrails.casa.fit import fitting_host, method_settings
from sightrail.guardrails.casa.settings import FitSettings
from sightrail.guardrails.model.families import text_tower
from sightrail.guardrails.moras import Moras, MorasSettings
from sightrail.guardrails.screening.encoder import crop_levels
from sightrail.guardrails.screening.settings import ScreeningSettings

ANSWER = 128
SHORT = (4, 6, 8)  # tokens of the answers that are counted; MoRAS steers the first three
TERMS = ("L h^2", "L h", "h^2", "h", "V h")
HEAD = 16  # of the models that are measured: the count does not depend on it


@dataclass(frozen=True)
class Family:
    """Proportions of a released model of 7 billion parameters.

    Attributes:
        width, layers, words, inner, heads, kv_heads: its language model; inner in widths.
        measured: (width, layers, words) of the models that are measured.
    """

    width: int
    layers: int
    words: int
    inner: float
    heads: int
    kv_heads: int
    measured: tuple[tuple[int, int, int], ...]

    def text(self, width: int, layers: int, words: int, head: int) -> dict[str, Any]:
        heads = width // head
        return {
            "hidden_size": width,
            "intermediate_size": int(self.inner * width),
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads * self.kv_heads // self.heads,
            "head_dim": head,
            "vocab_size": words,
            "max_position_embeddings": 4096,
        }


FAMILIES = {
    "LLaVA-1.5-7B": Family(
        *(4096, 32, 32_064, 2.6875, 32, 32),
        (
            *((64, n, 1024) for n in (4, 8)),
            (128, 4, 4096),
            (128, 8, 1024),
            (256, 4, 1024),
            (256, 4, 4096),
        ),
    ),
    "Qwen2.5-VL-7B": Family(
        *(3584, 28, 152_064, 18_944 / 3584, 28, 4),
        (
            *((112, n, 1024) for n in (4, 8)),
            (224, 4, 4096),
            (224, 8, 1024),
            (112, 4, 4096),
            (224, 4, 1024),
        ),
    ),
}


def llava(text: dict[str, Any], *, real: bool) -> Any:
    tokenizer = tiny_models.tiny("llava")[1].tokenizer
    vision: dict[str, Any] = tiny_models.vision_config(
        "clip_vision_model", image_size=336, patch_size=14
    )
    if real:
        vision |= {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
        vision |= {"num_attention_heads": 16}
    config = hf.LlavaConfig(
        vision_config=vision,
        text_config=tiny_models.text_config("llama", **text),
        image_token_index=tokenizer.image_token_id,
        vision_feature_layer=-2,
        image_seq_length=576,
    )
    return hf.LlavaForConditionalGeneration(config)


def qwen(text: dict[str, Any], *, real: bool) -> Any:
    half = text["head_dim"] // 2
    sections = [half // 4, half * 3 // 8, half * 3 // 8]
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48}
    vision |= {"patch_size": 14, "window_size": 112, "out_hidden_size": text["hidden_size"]}
    vision |= {"fullatt_block_indexes": [1]}
    if real:
        vision |= {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420}
        vision |= {"fullatt_block_indexes": [7, 15, 23, 31]}
    config = hf.Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=tiny_models.text_config(
            "qwen2_5_vl_text",
            rope_parameters={**tiny_models.ROPE, "mrope_section": sections},
            **text,
        ),
        **tiny_models.qwen_ids(tiny_models.tiny("qwen2_5_vl")[1].tokenizer),
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config)


def processor_of(name: str) -> Any:
    """The family's processor with pictures of 576 tokens."""
    if name.startswith("LLaVA"):
        made = tiny_models.fresh("llava")[1]
        side = {"height": 336, "width": 336}
        made.image_processor = hf.CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=side)
        made.patch_size = 14
        return made
    made = tiny_models.fresh("qwen2_5_vl")[1]
    pixels = {"shortest_edge": 672 * 672, "longest_edge": 672 * 672}
    made.image_processor = hf.Qwen2VLImageProcessor(size=pixels, patch_size=14)
    return made


BUILD: dict[str, Callable[..., Any]] = {"LLaVA-1.5-7B": llava, "Qwen2.5-VL-7B": qwen}


def a_model(name: str, width: int, layers: int, words: int) -> LocalLVLM:
    torch.manual_seed(0)
    model = BUILD[name](FAMILIES[name].text(width, layers, words, HEAD), real=False).eval()
    policy = Policy(monitor=True, timeout_s=None)
    return LocalLVLM(model, processor_of(name), policy=policy, name=name, gather=False)


def stacks(lvlm: LocalLVLM) -> dict[str, list[Any]]:
    """The defences, with their default sizes and random weights; published where that says more."""
    model = lvlm.model
    host = fitting_host(lvlm)
    method = method_settings(host, FitSettings())
    casa = untrained_on(model, host.inside("test"), method, lvlm.name, threshold=2.0)
    steering = Moras(artifact(model), MorasSettings(base=0.5))
    calibrated = SafetyPrefix(calibration=AttentiveCalibration.published())
    return {
        "bare": [],
        "safety prefix": [SafetyPrefix()],
        "calibration": [calibrated],
        "CASA": [casa],
        "MoRAS": [steering],
        "DAVSP": [border(text=None)],
    }


@dataclass(frozen=True)
class Measured:
    """One answer of one size.

    Attributes:
        model, defence: what answered.
        width, layers, words: of the language model.
        flops: outside of the vision tower.
        vision: times that the vision tower ran.
        passes: of the language model.
        tokens: that went through it, over all passes.
        seconds: CPU time.
    """

    model: str
    defence: str
    width: int
    layers: int
    words: int
    flops: int
    vision: int
    passes: int
    tokens: int
    seconds: float

    @property
    def terms(self) -> list[float]:
        return terms(self.width, self.layers, self.words)


def terms(width: int, layers: int, words: int) -> list[float]:
    """What the factors stand before, in the order of TERMS."""
    return [layers * width**2, layers * width, width**2, width, words * width]


@contextmanager
def watched(model: Any) -> Iterator[dict[str, int]]:
    """Passes and tokens of the language model, runs of the vision tower."""
    seen = {"passes": 0, "tokens": 0, "vision": 0}

    def text(module: Any, args: Any, given: Any) -> None:
        states = given.get("inputs_embeds")
        seen["passes"] += 1
        seen["tokens"] += states.shape[0] * states.shape[1]

    def vision(module: Any, args: Any) -> None:
        seen["vision"] += 1

    tower = text_tower(model, wanted_by="the benchmark").module
    hooks = [
        tower.register_forward_pre_hook(text, with_kwargs=True),
        vision_of(model).register_forward_pre_hook(vision),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def vision_of(model: Any) -> Any:
    return getattr(model.model, "vision_tower", None) or model.model.visual


def measure(name: str, size: tuple[int, int, int]) -> list[Measured]:
    """Every defence on one size."""
    lvlm = a_model(name, *size)
    found = []
    question = user("What is in the image?", picture(1, width=672, height=672))
    tower = vision_of(lvlm.model)
    inner = next(key for key, part in lvlm.model.named_modules() if part is tower)
    # It runs by itself where pictures are encoded before the model is called.
    places = (f"{type(lvlm.model).__name__}.{inner}", type(tower).__name__)
    for defence, guards in stacks(lvlm).items():
        guarded = lvlm.with_guardrails(guards)

        def work(tokens: int, guarded: LocalLVLM = guarded) -> None:
            answer = guarded.chat(question, max_new_tokens=tokens, min_new_tokens=tokens)
            assert answer.usage.output_tokens == tokens, answer
            assert not any(verdict.status == "failed" for verdict in answer.verdicts)

        with watched(lvlm.model) as seen:
            begun = time.process_time()
            work(ANSWER)
            seconds = time.process_time() - begun
        counts = []
        for tokens in SHORT:
            with FlopCounterMode(display=False) as counter:
                work(tokens)
            told = counter.get_flop_counts()
            looked = sum(sum(told.get(place, {}).values()) for place in places)
            counts.append(counter.get_total_flops() - looked)
        found.append(
            Measured(
                *(name, defence, *size),
                flops=round(float(np.polyval(np.polyfit(SHORT, counts, 2), ANSWER))),
                seconds=seconds,
                **seen,
            )
        )
    return found


def factors(found: list[Measured]) -> tuple[list[float], float]:
    """The factors, and the largest relative error."""
    rows = np.array([each.terms for each in found], dtype=np.float64)
    counts = np.array([each.flops for each in found], dtype=np.float64)
    solved, *_ = np.linalg.lstsq(rows / counts[:, None], np.ones(len(counts)), rcond=None)
    return [float(each) for each in solved], float(np.abs(rows @ solved / counts - 1).max())


def counted(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return int(counter.get_total_flops())


def on_meta(name: str) -> Any:
    family = FAMILIES[name]
    text = family.text(family.width, family.layers, family.words, family.width // family.heads)
    with torch.device("meta"):
        return BUILD[name](text, real=True).to(torch.bfloat16).eval()


def vision_flops(name: str, model: Any) -> int:
    """One picture through the vision tower of the real size, its projector left out."""
    tower = vision_of(model)
    if name.startswith("LLaVA"):
        pixels = torch.empty(1, 3, 336, 336, device="meta", dtype=torch.bfloat16)
        return counted(lambda: tower(pixels))
    # Qwen's tower reads its grid as numbers, which meta has none of: its parts by themselves.
    patches, wide = 2304, tower.config.hidden_size
    states = torch.empty(patches, wide, device="meta", dtype=torch.bfloat16)
    linear = sum(
        2 * patches * part.in_features * part.out_features
        for block in tower.blocks
        for part in block.modules()
        if isinstance(part, torch.nn.Linear)
    )
    window = (tower.config.window_size // tower.config.patch_size) ** 2
    full = len(tower.config.fullatt_block_indexes)
    windows = len(tower.blocks) - full
    attention = 4 * patches * wide * (full * patches + windows * window)
    embedded = counted(lambda: tower.patch_embed(states.new_empty(patches, 3 * 2 * 14 * 14)))
    ends = counted(lambda: tower.merger(states))
    return linear + attention + embedded + ends


def bare_flops(model: Any, prompt: int) -> int:
    """A bare answer by the real language model: the prompt, then token by token."""
    tower = text_tower(model, wanted_by="the benchmark").module
    wide = model.config.get_text_config().hidden_size
    head = model.get_output_embeddings()

    def run(new: int, past: int) -> int:
        states = torch.empty(1, new, wide, device="meta", dtype=torch.bfloat16)
        cache = hf.DynamicCache()
        if past:
            text = model.config.get_text_config()
            kept = [1, text.num_key_value_heads, past, wide // text.num_attention_heads]
            for layer in range(text.num_hidden_layers):
                value = torch.empty(kept, device="meta", dtype=torch.bfloat16)
                cache.update(value, value, layer)
        places = torch.arange(past, past + new, device="meta")[None]
        out = counted(
            lambda: tower(inputs_embeds=states, past_key_values=cache, position_ids=places)
        )
        return out + counted(lambda: head(states[:, -1]))

    first, last = run(1, prompt), run(1, prompt + ANSWER - 2)
    return run(prompt, 0) + (ANSWER - 1) * (first + last) // 2


def screening_flops() -> dict[str, Any]:
    """One crop through ViT-L-14-336, and a picture with the crops of two settings."""
    encoder = open_clip.create_model("ViT-L-14-336", device="meta").eval()
    pixels = torch.empty(1, 3, 336, 336, device="meta")
    crop = counted(lambda: encoder.encode_image(pixels))
    ways = {
        "defaults": ScreeningSettings(),
        "published": ScreeningSettings.published(9),
    }
    crops = {way: sum(map(len, crop_levels((672, 672), each.scales))) for way, each in ways.items()}
    return {
        "one_crop": crop,
        "crops": {**crops, "coarse to fine, settled at once": 1},
        "encoder": "ViT-L-14-336",
    }


def report(found: list[Measured]) -> dict[str, Any]:
    screening = screening_flops()
    told: dict[str, Any] = {"screening": screening}
    for name, family in FAMILIES.items():
        mine = [each for each in found if each.model == name]
        if not mine:
            continue
        model = on_meta(name)
        vision = vision_flops(name, model)
        size = (family.width, family.layers, family.words)
        rows: dict[str, Any] = {}
        for defence in dict.fromkeys(each.defence for each in mine):
            some = [each for each in mine if each.defence == defence]
            solved, error = factors(some)
            parts = [f * t for f, t in zip(solved, terms(*size), strict=True)]
            looks = some[0].vision
            rows[defence] = {
                "tflops": round((sum(parts) + looks * vision) / 1e12, 4),
                "passes": some[0].passes,
                "tokens": some[0].tokens,
                "factors": dict(zip(TERMS, (round(each, 2) for each in solved), strict=True)),
                "largest_error": round(error, 5),
                "arithmetic": " + ".join(
                    f"{part / 1e12:.3f} ({term})" for part, term in zip(parts, TERMS, strict=True)
                )
                + f" + {looks} x {vision / 1e12:.3f} (vision tower) TFLOP",
            }
        bare = rows["bare"]
        for row in rows.values():
            row["operations_to_bare"] = round(row["tflops"] / bare["tflops"], 4)
            row["passes_to_bare"] = round(row["passes"] / bare["passes"], 4)
        prompt = bare["tokens"] - (ANSWER - 1)
        direct = (bare_flops(model, prompt) + projector(model) + vision) / 1e12
        looks = {
            way: round(count * screening["one_crop"] / 1e12 / bare["tflops"], 4)
            for way, count in screening["crops"].items()
        }
        whole = rows["calibration"]["operations_to_bare"]
        told[name] = {
            "prompt_tokens": prompt,
            "answer_tokens": ANSWER,
            "defences": rows,
            "bare_counted_at_full_size": round(direct, 4),
            "formula_to_count": round(bare["tflops"] / direct, 5),
            "screening_to_bare": looks,
            "GuardAlign whole": {way: round(whole + more, 4) for way, more in looks.items()},
            "cpu_time_to_bare": times(mine),
        }
    return told


def projector(model: Any) -> int:
    """What brings a picture into the width of the text; Qwen's is part of its vision tower."""
    part = getattr(model.model, "multi_modal_projector", None)
    if part is None:
        return 0
    seen = torch.empty(1, 576, 1024, device="meta", dtype=torch.bfloat16)
    return counted(lambda: part(seen))


def times(found: list[Measured]) -> dict[str, dict[str, float]]:
    """Defence -> size -> times as long as bare."""
    bare = {(e.width, e.layers, e.words): e.seconds for e in found if e.defence == "bare"}
    told: dict[str, dict[str, float]] = {}
    for each in found:
        size = (each.width, each.layers, each.words)
        name = f"{each.width} x {each.layers}, {each.words} words"
        told.setdefault(each.defence, {})[name] = round(each.seconds / bare[size], 2)
    return told


def draw(told: dict[str, Any], file: Path) -> None:
    """Operations and passes of every defence as ratios to bare, at 7 B."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2, sharey=True), FAMILIES, strict=True):
        part = told[name]
        bars = {k: v["operations_to_bare"] for k, v in part["defences"].items() if k != "bare"}
        bars |= {f"screening, {k}": 1 + v for k, v in part["screening_to_bare"].items()}
        bars |= {"GuardAlign, defaults": part["GuardAlign whole"]["defaults"]}
        axes.barh(list(bars), [value - 1 for value in bars.values()], left=1, color="tab:blue")
        passes = {k: part["defences"].get(k, {}).get("passes_to_bare") for k in bars}
        known = {k: v for k, v in passes.items() if v is not None}
        axes.plot(list(known.values()), list(known), "k|", markersize=12, label="passes")
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set(title=f"{name}, {ANSWER} tokens", xlabel="operations, bare = 1")
        axes.legend(loc="lower right")
    figure.savefig(file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for name, family in FAMILIES.items():
        for size in family.measured:
            found += measure(name, size)
            print(name, size, {e.defence: f"{e.flops:.3e}" for e in found[-6:]}, flush=True)
    told = report(found)
    whole = {
        "command": "python tests/benchmarks/bench_inference_cost.py --json docs/inference_cost.json"
        " --plot docs/inference_cost.png",
        "device": f"CPU, 1 thread, torch {torch.__version__}, transformers {hf.__version__}",
        "vocabulary_of_the_tokenizer": tt.VOCABULARY,
        **told,
        "measured": [asdict(each) for each in found],
    }
    print(json.dumps(told, indent=2))
    if given.json:
        given.json.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    if given.plot:
        draw(told, given.plot)


if __name__ == "__main__":
    main()
