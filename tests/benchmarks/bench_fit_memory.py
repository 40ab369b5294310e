"""What the fits take at their peak on growing models, and what that makes of 7 billion parameters.

    python tests/benchmarks/bench_fit_memory.py --json docs/fit_memory.json \\
        --plot docs/fit_memory.png

Every allocation of a training step's gradient is counted by torch's own profiler (what is there
before the step, such as the weights, is counted apart). The models have random weights in bfloat16
and LLaVA-1.5's proportions. With L layers of width h, heads of 128 as there, N = B T tokens in a
piece, R positions whose logits are kept and V words, a peak is taken to be

    a L N h + b N h + c B H T^2 + d R V + e,

what is kept of all layers, one layer at work, its attention where it is computed densely (as on the
CPU here; a GPU's sdpa does not), the logits, and the rest. The factors come from non-negative least
squares on relative errors; the largest of these is told. For 7 B, c counts as 0; a as 2 at
least, since a layer's input in bfloat16 takes no less; d as the largest of all, since in a small
vocabulary the logits hardly show; and DAVSP, whose gradient goes on through the vision tower, gets
a and b once more for that. Nothing here was measured at 7 B: it is extrapolated, by a factor of ten
in width and of five in depth beyond the largest model that was measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import transformers as hf
from scipy.optimize import nnls

import tiny_models
from lvlm_helpers import picture
from sightrail.guardrails import Example, FitData, LocalLVLM
from sightrail.guardrails.casa.fit import fitting_host, method_settings
from sightrail.guardrails.casa.fit_rows import Batches, Row
from sightrail.guardrails.casa.settings import FitSettings
from sightrail.guardrails.casa.training import CasaLearner
from sightrail.guardrails.davsp import DavspSettings
from sightrail.guardrails.davsp.fit import BorderLearner, BorderLoss
from sightrail.guardrails.davsp.harmfulness import Direction
from sightrail.guardrails.davsp.placement import AroundPicture
from sightrail.guardrails.davsp.preprocess import DifferentiablePreprocessing
from sightrail.guardrails.davsp.requests import PictureRequest, Reader
from sightrail.guardrails.fitting import Resources
from sightrail.guardrails.fitting.memory import frozen, layers_computed_twice, peak_bytes
from sightrail.guardrails.fitting.run import FitRun
from sightrail.guardrails.progress import silent

GIB = 2**30
SIZES = [(128, 2), (128, 6), (256, 2), (256, 6), (384, 4)]
SHAPES = [(4, 40), (8, 40), (4, 120)]  # rows, words of a question
SEVEN = {"width": 4096, "layers": 32, "parameters": 7_063_000_000, "words": 32_064}
VISION = {"width": 1024, "layers": 24, "tokens": 577}  # of LLaVA-1.5
CARD = 24 * GIB
ANSWER = 64  # tokens of an answer that are trained on
PICTURE = 576  # tokens of one in LLaVA-1.5


@dataclass(frozen=True)
class Measured:
    """One training step of one size.

    Attributes:
        fit: casa or davsp.
        twice: whether layers are computed twice.
        width, layers, rows, length, kept, words, heads: of the model and the piece.
        peak: bytes beyond what was there before.
        seconds: of the step, CPU time.
    """

    fit: str
    twice: bool
    width: int
    layers: int
    rows: int
    length: int
    kept: int
    words: int
    heads: int
    peak: int
    seconds: float

    def terms(self, *, dense: bool = True) -> list[float]:
        """What the factors stand before."""
        tokens = self.rows * self.length
        scores = self.rows * self.heads * self.length**2 if dense else 0
        logits = self.rows * self.kept * self.words
        return [self.layers * tokens * self.width, tokens * self.width, scores, logits, 1.0]


def a_model(width: int, layers: int) -> LocalLVLM:
    """LLaVA's classes, with its proportions: heads of 128, an inner width of 2.6875."""
    _, processor = tiny_models.fresh("llava")
    heads = max(1, width // 128)
    config = hf.LlavaConfig(
        vision_config=tiny_models.vision_config("clip_vision_model"),
        text_config=tiny_models.text_config(
            "llama",
            hidden_size=width,
            intermediate_size=int(2.6875 * width),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=128,
        ),
        image_token_index=processor.tokenizer.image_token_id,
        vision_feature_layer=-2,
        image_seq_length=16,
    )
    model = hf.LlavaForConditionalGeneration(config).to(torch.bfloat16).eval()
    return LocalLVLM(model, processor, name=f"{width} x {layers}")


def examples(rows: int, words: int) -> list[Example]:
    text = " ".join(["object"] * words)
    return [Example(text, at % 2 == 0, (picture(at),), "A dog.") for at in range(rows)]


def a_run(kind: str, lvlm: LocalLVLM, settings: Any) -> FitRun:
    return FitRun.begin(
        kind,
        lvlm,
        FitData([]),
        settings,
        progress=silent,
        checkpoint=None,
        resources=Resources(tokens_at_once=10**9),
    )


def casa_step(lvlm: LocalLVLM, rows: int, words: int) -> tuple[Callable[[], object], int, int]:
    """One gradient, the length of its rows and the positions whose logits are kept."""
    settings = FitSettings(batch=rows, prefixed=0.0, begun=0.0, forced=0.0)
    host = fitting_host(lvlm)
    method = method_settings(host, settings)
    answer = tuple(range(20, 20 + ANSWER))
    drawn_from = [Row(example, answer) for example in examples(rows, words)]
    batches = Batches(host, drawn_from, (method.safe_token, method.unsafe_token), settings)
    learner = CasaLearner(host, batches, method, settings, a_run("casa", lvlm, settings))
    length = batches.prompt(batches[0]).length + ANSWER + 1
    return lambda: learner.gradient(0), length, ANSWER + 2


def davsp_step(lvlm: LocalLVLM, rows: int, words: int) -> tuple[Callable[[], object], int, int]:
    settings = DavspSettings(batch=rows, width=0.2)
    width = lvlm.model.config.text_config.hidden_size
    vector = torch.nn.functional.normalize(torch.ones(width), dim=0)
    loss = BorderLoss(
        Reader(lvlm.model, lvlm.processor),
        DifferentiablePreprocessing(lvlm.processor.image_processor),
        AroundPicture((28, 28), 0.2, relative=False, mean=(120.0, 120.0, 120.0)),
        Direction(1, vector, 50.0, -50.0, ()),
        settings,
    )
    requests = [PictureRequest(each, None, "A dog.") for each in examples(rows, words)]
    learner = BorderLearner(loss, requests, a_run("davsp", lvlm, settings))
    kept = loss.reader.labels(["A dog."]).shape[1] + 1
    return lambda: learner.gradient(0), loss.length(requests), kept


STEPS = {"casa": casa_step, "davsp": davsp_step}


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of this process, whatever else the machine does."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def measure(fit: str, twice: bool, size: tuple[int, int], shape: tuple[int, int]) -> Measured:
    lvlm = a_model(*size)
    config = lvlm.model.config.text_config
    work, length, kept = STEPS[fit](lvlm, *shape)
    with frozen(lvlm.model), layers_computed_twice(lvlm.model, twice):
        work()  # what is made once is there from here on
        seconds = min(cpu_seconds(work) for _ in range(2))
        peak = peak_bytes(work, lvlm.model.device)
    return Measured(
        fit=fit,
        twice=twice,
        width=size[0],
        layers=size[1],
        rows=shape[0],
        length=length,
        kept=kept,
        words=config.vocab_size,
        heads=config.num_attention_heads,
        peak=peak,
        seconds=seconds,
    )


def factors(found: list[Measured]) -> tuple[list[float], float]:
    """The factors, and the largest relative error."""
    terms = np.array([each.terms() for each in found])
    peaks = np.array([each.peak for each in found], dtype=np.float64)
    solved, _ = nnls(terms / peaks[:, None], np.ones(len(peaks)))
    error = np.abs(terms @ solved / peaks - 1).max()
    return [float(each) for each in solved], float(error)


def at_seven(fit: str, twice: bool, solved: list[float], tokens: int) -> dict[str, Any]:
    """The peak of a step at 7 B on a piece of so many tokens, with the arithmetic."""
    length = PICTURE + 60 + (ANSWER if fit == "casa" else 24)
    rows = max(1, tokens // length)
    piece = Measured(
        fit=fit,
        twice=twice,
        width=SEVEN["width"],
        layers=SEVEN["layers"],
        rows=rows,
        length=length,
        kept=(ANSWER if fit == "casa" else 24) + 2,
        words=SEVEN["words"],
        heads=32,
        peak=0,
        seconds=0.0,
    )
    parts = [f * t / GIB for f, t in zip(solved, piece.terms(dense=False), strict=True)]
    seen = rows * VISION["tokens"] * VISION["width"] if fit == "davsp" else 0
    parts.append(seen * (solved[0] * VISION["layers"] + solved[1]) / GIB)
    weights = 2 * SEVEN["parameters"] / GIB
    # Four maps a layer, rank 8: matrices, gradients and both moments of Adam in float32.
    learnt = SEVEN["layers"] * 4 * 8 * 2 * SEVEN["width"] * 16 / GIB if fit == "casa" else 0.0
    total = weights + learnt + sum(parts)
    names = ("all layers", "one layer at work", "dense attention", "logits", "the rest", "vision")
    told = " + ".join(f"{part:.2f} ({name})" for part, name in zip(parts, names, strict=True))
    return {
        "rows": rows,
        "length": length,
        "gib": round(total, 2),
        "fits_in_24_gib": total < CARD / GIB,
        "arithmetic": f"{weights:.2f} (weights, bfloat16) + {learnt:.2f} (trained) + {told} GiB",
    }


def same(one: Measured, other: Measured) -> bool:
    """Whether both are of one fit, done in one way."""
    return (one.fit, one.twice) == (other.fit, other.twice)


def report(found: list[Measured], tokens: int) -> dict[str, Any]:
    told: dict[str, Any] = {}
    ways = {(e.fit, e.twice): factors([o for o in found if same(o, e)]) for e in found}
    logits = max(solved[3] for solved, _ in ways.values())
    for fit in STEPS:
        for twice in (False, True):
            solved, error = ways[fit, twice]
            cautious = [max(2.0, solved[0]), solved[1], solved[2], logits, solved[4]]
            name = f"{fit}, {'layers computed twice' if twice else 'everything kept'}"
            told[name] = {
                "factors": dict(zip("abcde", (round(each, 3) for each in solved), strict=True)),
                "largest_error": round(error, 3),
                "at_7b": at_seven(fit, twice, cautious, tokens),
                "at_7b_one_request": at_seven(fit, twice, cautious, 1),
            }
        pairs = zip(
            (e.seconds for e in found if e.fit == fit and e.twice),
            (e.seconds for e in found if e.fit == fit and not e.twice),
            strict=True,
        )
        told[f"{fit}, time of twice / once"] = round(statistics.median(a / b for a, b in pairs), 2)
    return told


def draw(found: list[Measured], file: Path) -> None:
    """Peaks against L N h, for both fits and both ways."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, fit in zip(figure.subplots(1, 2), STEPS, strict=True):
        for twice, label in ((False, "everything kept"), (True, "layers computed twice")):
            some = [each for each in found if each.fit == fit and each.twice == twice]
            across = [each.terms()[0] for each in some]
            axes.loglog(across, [each.peak / 2**20 for each in some], "o", label=label)
        axes.set(title=fit, xlabel="layers x tokens x width", ylabel="peak beyond weights, MiB")
        axes.legend()
    figure.savefig(file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--tokens", type=int, default=Resources().tokens_at_once)
    parser.add_argument("--quick", action="store_true", help="the smallest models alone")
    given = parser.parse_args()
    torch.manual_seed(0)
    sizes, shapes = (SIZES[:3], SHAPES[:2]) if given.quick else (SIZES, SHAPES)
    found = [
        measure(fit, twice, size, shape)
        for fit in STEPS
        for twice in (False, True)
        for size in sizes
        for shape in shapes
    ]
    told = {
        "command": "python tests/benchmarks/bench_fit_memory.py --json docs/fit_memory.json",
        "device": f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "tokens_at_once": given.tokens,
        "seven_billion": SEVEN,
        "fits": report(found, given.tokens),
        "measured": [asdict(replace(each, seconds=round(each.seconds, 3))) for each in found],
    }
    text = json.dumps(told, indent=2) + "\n"
    print(json.dumps(told["fits"], indent=2))
    if given.json:
        given.json.write_text(text, encoding="utf-8")
    if given.plot:
        draw(found, given.plot)


if __name__ == "__main__":
    main()
