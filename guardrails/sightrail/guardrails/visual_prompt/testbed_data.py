"""What the testbed's border is trained on, and what it is measured on while it is being made."""

from __future__ import annotations

from ..fitting import Example
from ..testbed.fit_data import Group, draw_examples

TRAINED: dict[Group, int] = {"object": 300, "typographic": 250, "benign": 600, "lookalike": 200}
"""More benign ones than harmful: most of what can be lost is counting, reading and describing."""

KEPT: dict[Group, int] = {"object": 60, "typographic": 60, "benign": 80, "lookalike": 40}


def examples_of_the_testbed(seed: int) -> tuple[list[Example], list[Example]]:
    """Examples of the train split, and of the calibration split to measure on.

    Neither holds a held-out unsafe concept; those belong to the test split alone.
    """
    trained = draw_examples(TRAINED, split="train", seed=seed)
    return trained, draw_examples(KEPT, split="calibration", seed=seed)
