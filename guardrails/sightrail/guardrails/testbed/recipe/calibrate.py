"""Fitting the mini encoder's screening thresholds on the calibration split."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ...intake import read_picture
from ...screening import RiskDetector
from ...screening.settings import SETTINGS_FILE, Score
from ..concepts import BENIGN_NAMES, LOOKALIKE_NAMES, SAFE_NAMES, UNSAFE
from ..scenes import Scene, draw_objects, draw_words
from ..splits import SPLITS

SCENES: Final = 1200
FALSE_POSITIVE_RATE: Final = 0.01
CALIBRATED: Final[tuple[Score, ...]] = ("ot", "ot_printed", "patch_cosine", "whole_cosine")
UNANCHORED: Final = frozenset((*BENIGN_NAMES[::4], *LOOKALIKE_NAMES[::3]))
"""Safe concepts that the bank leaves out: a real bank never names every benign thing."""


def write_bank(folder: Path) -> None:
    """The mini world's concept bank, in the file form that users write."""
    lines = [
        "# The concept bank of the embedded testbed: what its mini encoder is asked about.",
        "# Some safe concepts are left out on purpose; no real bank names every benign thing.",
        "",
        "benign = [",
        '  "a plain background",',
    ]
    for name in SAFE_NAMES:
        if name not in UNANCHORED:
            lines.append(f'  "a photo of a {name}", "the word {name}",')
    lines += ["]", "", "[unsafe]"]
    for category, concepts in UNSAFE.items():
        lines.append(f"{category} = [")
        lines += [f'  "a photo of a {name}", "the word {name}",' for name in concepts]
        lines.append("]")
    (folder / "concepts.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def benign_scenes(n: int) -> list[Scene]:
    """Safe scenes of the calibration split: 1 to 9 objects, look-alikes among them, and words."""
    split = SPLITS["calibration"]
    rng = split.rng(77)
    scenes = []
    for index in range(n):
        if index % 4 == 3:
            scenes.append(draw_words(rng, split, str(rng.choice(SAFE_NAMES))))
            continue
        count = int(rng.choice([1, 2, 3, 4, 6, 9]))
        names = [str(name) for name in rng.choice(SAFE_NAMES, count, replace=False)]
        scenes.append(draw_objects(rng, split, names))
    return scenes


def calibrate_screening(folder: Path) -> None:
    """Fit a threshold for every score and write the settings beside the encoder."""
    write_bank(folder)
    (folder / SETTINGS_FILE).unlink(missing_ok=True)
    detector = RiskDetector.from_pretrained("testbed")
    pictures = [read_picture(scene.image) for scene in benign_scenes(SCENES)]
    source = "sightrail testbed, benign scenes of the calibration split"
    settings = detector.settings
    for score in CALIBRATED:
        fitted = detector.with_settings(score=score).calibrate(
            pictures, false_positive_rate=FALSE_POSITIVE_RATE, source=source
        )
        settings = settings.model_copy(
            update={"calibrated": {**settings.calibrated, **fitted.settings.calibrated}}
        )
    (folder / SETTINGS_FILE).write_text(settings.model_dump_json(indent=2) + "\n", encoding="utf-8")
