"""Rebuild the testbed: `python -m sightrail.testbed.recipe [--font NotoColorEmoji.ttf]`.

Resumable: checkpoints lie in --runs, and a finished stage is not done again.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import torch
import typer

from ..sprites import ATLAS_PATH, render_atlas
from .train_clip import WEIGHTS_NAME

SEED = 7


def rebuild(
    out: Annotated[Path, typer.Option(help="Where the models go.")] = ATLAS_PATH.parent,
    runs: Annotated[Path, typer.Option(help="Checkpoints; delete it to start over.")] = Path(
        "runs"
    ),
    font: Annotated[
        Path | None, typer.Option(help="Noto Color Emoji, to redraw the atlas.")
    ] = None,
    clip_steps: int = 3100,
    lvlm_steps: int = 7400,
    threads: int = 3,
) -> None:
    """Draw the atlas (if a font is given), train the mini CLIP, calibrate, train the mini LVLM.

    What is fitted on the models comes after them: `sightrail fit`, then `calibrate_requests` and
    `calibrate_evidence` of `recipe.calibrate`.
    """
    from .calibrate import calibrate_screening
    from .train_clip import train_clip
    from .train_lvlm import train_lvlm

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(threads)
    if font is not None:
        render_atlas(font).save(ATLAS_PATH, optimize=True)
    train_clip(out / "clip", runs, steps=clip_steps, seed=SEED)
    calibrate_screening(out / "clip")
    train_lvlm(out / "clip", out / "lvlm", runs, steps=lvlm_steps, seed=SEED)
    sizes = {p.parent.name: p.stat().st_size for p in out.glob("*/*.safetensors")}
    typer.echo(f"weights, bytes: {sizes}; {WEIGHTS_NAME} is open_clip's, the other transformers'")


if __name__ == "__main__":
    typer.run(rebuild)
