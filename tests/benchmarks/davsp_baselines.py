"""What DAVSP is compared with, trained by the same code on the same data.

    python tests/benchmarks/davsp_baselines.py --kind answers --out out/davsp/answers
    python tests/benchmarks/davsp_baselines.py --kind additive --out out/davsp/additive

``answers`` is a border of the same width, trained without deep alignment: by the cross-entropy of
the wished-for answers alone, refusals included every time. ``additive`` is deep alignment on a
perturbation that is added to the whole picture, at most ``--bound`` levels of 255 a pixel, in place
of a border. Both go on where they were interrupted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from rich.progress import Progress as Bar

from sightrail.guardrails import LocalLVLM, SafetyPrefix
from sightrail.guardrails.davsp.fit import BorderLearner, BorderLoss, find_direction, fit_davsp
from sightrail.guardrails.davsp.placement import OverPicture, levels_to_pixels
from sightrail.guardrails.davsp.preprocess import DifferentiablePreprocessing
from sightrail.guardrails.davsp.requests import Reader, prepare_requests
from sightrail.guardrails.fitting.run import FitRun
from sightrail.guardrails.model.interventions import Interventions
from sightrail.guardrails.progress import Progress
from sightrail.testbed.davsp import SETTINGS as TESTBED_SETTINGS
from sightrail.testbed.davsp import fit_data

VALUES = "additive.pt"
SIZE = (96, 96)


@dataclass(frozen=True)
class AdditivePrompt:
    """The perturbation as a guardrail: added to every picture, the text in front."""

    values: torch.Tensor
    bound: float
    text: str
    needs: frozenset[str] = frozenset({"pixels", "prompt"})
    stage: ClassVar[str] = "picture"

    def apply(self, messages: Any) -> Any:
        changed = messages.with_images([self._part(part) for part in messages.image_parts])
        return SafetyPrefix(self.text).apply(changed)

    def check(self, host: Any) -> None:
        """Any model takes it."""

    def interventions(self, prompt: Any, host: Any) -> Interventions:
        return Interventions()

    def _part(self, part: Any) -> Any:
        placed = OverPicture(SIZE, self.bound).place(self.values, part.screened)
        return replace(part, screened=Image.fromarray(levels_to_pixels(placed)))


def load_additive(folder: Path) -> AdditivePrompt:
    kept = torch.load(folder / VALUES, weights_only=True)
    return AdditivePrompt(kept["values"], kept["bound"], kept["text"])


def fit_answers(out: Path, tick: Progress) -> None:
    settings = replace(
        TESTBED_SETTINGS, alignment_weight=0.0, answer_weight=1.0, harmful_answers=1.0
    )
    lvlm, data = LocalLVLM.from_pretrained("testbed", device="cpu"), fit_data(settings)
    where = out / "partial"
    fit_davsp(lvlm, data, settings, progress=tick, checkpoint=where).save_pretrained(out)


def fit_additive(out: Path, bound: float, tick: Progress) -> None:
    lvlm, settings = LocalLVLM.from_pretrained("testbed", device="cpu"), TESTBED_SETTINGS
    run = FitRun.begin(
        "additive",
        lvlm,
        fit_data(settings),
        settings,
        progress=tick,
        checkpoint=out / "partial",
        resources=None,
    )
    reader = Reader(lvlm.model, lvlm.processor)
    requests = prepare_requests(run, run.data.examples, settings.text, least=8)
    loss = BorderLoss(
        reader,
        DifferentiablePreprocessing(lvlm.processor.image_processor),
        OverPicture(SIZE, bound),
        find_direction(reader, requests, settings, run),
        settings,
    )
    values = BorderLearner.trained(loss, requests, run)
    torch.save({"values": values, "bound": bound, "text": settings.text}, out / VALUES)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=["answers", "additive"], required=True)
    parser.add_argument("--bound", type=float, default=16.0)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    with Bar() as progress:
        task = progress.add_task("starting", total=None)

        def tick(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        if chosen.kind == "answers":
            fit_answers(chosen.out, tick)
        else:
            fit_additive(chosen.out, chosen.bound, tick)


if __name__ == "__main__":
    main()
