"""`sightrail fit davsp`: a visual safety prompt for a model, from examples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from .consoles import progress, stderr, stdout
from .models import load_model
from .screen import printable

if TYPE_CHECKING:
    from sightrail.guardrails.fitting import Example
    from sightrail.guardrails.visual_prompt import DavspSettings

CHECKPOINT: Final = "davsp.partial.pt"
PICTURE: Final = "projections.png"


def fit_davsp(
    model: Annotated[str, typer.Option(help="A model by name or folder, or testbed.")],
    data: Annotated[
        str, typer.Option(help="JSONL with text, label, image, optional answer; or testbed.")
    ],
    out: Annotated[Path, typer.Option(file_okay=False, help="The folder for the border.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Updates of the border.")] = None,
    width: Annotated[
        float | None, typer.Option(help="Border on each side, as a share of the sides.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=2, help="Requests a step, half of them harmful.")
    ] = None,
    layer: Annotated[
        int | None, typer.Option(min=1, help="Decoder layer; chosen by separation if not given.")
    ] = None,
    margin: Annotated[float | None, typer.Option(help="Quantile of the margins, 0 to 1.")] = None,
    answer_weight: Annotated[
        float | None, typer.Option(min=0, help="Weight of the cross-entropy.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="The safety prompt that goes with it.")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    held_out: Annotated[
        float, typer.Option(min=0.05, max=0.5, help="Share of a file's examples kept to measure.")
    ] = 0.2,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps ...")] = None,
) -> None:
    """Train a border that goes around every picture, and measure it on examples kept apart.

    What is not given is as published; for the testbed, as chosen on its calibration split. A run
    that was interrupted goes on where it was when the same command is given again. The folder gets
    the artifact, border.png for any client, and the projections before and after as a picture.
    """
    from sightrail.guardrails.visual_prompt.fit import fit_visual_prompt  # loads torch
    from sightrail.guardrails.visual_prompt.report import (
        draw_report,
        measure_held_out,
        with_results,
    )

    given = {
        "steps": steps,
        "width": width,
        "batch": batch,
        "layer": layer,
        "margin": margin,
        "answer_weight": answer_weight,
        "text": text,
        "seed": seed,
    }
    settings = _settings(model, given)
    examples, kept = _examples(data, held_out, settings.seed)
    lvlm = load_model(model, device=device)
    with progress("starting", None) as bar:

        def tick(what: str, done: int, total: int) -> None:
            bar.update(bar.task_ids[0], description=what, completed=done, total=total)

        fitted = fit_visual_prompt(
            lvlm.model,
            lvlm.processor,
            examples,
            settings,
            name=model,
            tick=tick,
            checkpoint=out / CHECKPOINT,
        )
        measured = measure_held_out(fitted, kept, tick)
    prompt = with_results(fitted.prompt, measured.results)
    prompt.save_pretrained(out)
    prompt.to_png(out / "border.png")
    draw_report(measured, fitted, out / PICTURE)
    (out / CHECKPOINT).unlink(missing_ok=True)
    for name, value in measured.results.items():
        stdout().print(f"{name:<24} {value:.3f}", markup=False)
    stderr().print(f"border: {printable(out)}", markup=False)


def _settings(model: str, given: dict[str, Any]) -> DavspSettings:
    from sightrail.guardrails.visual_prompt.settings import TESTBED_SETTINGS, DavspSettings

    base = TESTBED_SETTINGS if model == "testbed" else DavspSettings()
    return replace(base, **{name: value for name, value in given.items() if value is not None})


def _examples(data: str, held_out: float, seed: int) -> tuple[list[Example], list[Example]]:
    """What is trained on, and what is kept apart to measure."""
    import numpy as np

    from sightrail.guardrails.fitting import load_examples
    from sightrail.guardrails.visual_prompt.testbed_data import examples_of_the_testbed

    if data == "testbed":
        return examples_of_the_testbed(seed)
    found = load_examples(data)
    order = np.random.default_rng(seed).permutation(len(found))
    cut = round(held_out * len(found))
    return [found[i] for i in order[cut:]], [found[i] for i in order[:cut]]
