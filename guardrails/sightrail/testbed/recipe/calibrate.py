"""Fitting the mini encoder's screening thresholds on the calibration split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.progress import track

from sightrail.guardrails import (
    Casa,
    JudgeDetector,
    LocalJudge,
    LocalLVLM,
    Moras,
    Policy,
    TextInPicture,
    Verdict,
)
from sightrail.guardrails.casa.casa import THRESHOLD
from sightrail.guardrails.evidence import Evidence
from sightrail.guardrails.fitting import identify, load_artifact, save_artifact
from sightrail.guardrails.fitting.calibration import scores_of
from sightrail.guardrails.guarantees import guaranteed_threshold
from sightrail.guardrails.intake import read_picture
from sightrail.guardrails.roc import share_reaching
from sightrail.guardrails.screening import RiskDetector, ScreeningSettings
from sightrail.guardrails.screening.calibration import fit_bands
from sightrail.guardrails.screening.settings import SETTINGS_FILE, Score

from ..casa import HELD_OUT
from ..casa import SETTINGS as CASA
from ..concepts import SAFE_NAMES, UNSAFE
from ..fit_data import Group, draw_examples
from ..picture_judge import judge_profile
from ..reading import concept_reader
from ..scenes import Scene, draw_objects, draw_words
from ..source import SCENES as KINDS
from ..source import as_messages, draw_requests, draw_scenes
from ..splits import SPLITS, SplitName

SCENES: Final = 1000
EVIDENCE_SEED: Final = 11
UNSAFE_SCENES: Final = 120
FALSE_ALARMS: Final = 0.03
"""Promised with 95 % confidence; a thousand scenes let the threshold lie at 2.1 % of them."""
CALIBRATED: Final[tuple[Score, ...]] = ("ot", "ot_printed", "patch_cosine", "whole_cosine")
SETTINGS: Final = ScreeningSettings(
    patches="tokens",
    scales=((0.5, 3), (1 / 3, 5)),
    epsilon=1.0,
    share=0.02,
    whole_share=0.08,
    seen_at=((96, 96),),
)
"""What measured best on the calibration split; the model card says beside what. The model of this
world sees every picture at 96 x 96."""


def write_bank(folder: Path) -> None:
    """The mini world's concept bank, in the file form that users write."""
    lines = [
        "# The concept bank of the embedded testbed: what its mini encoder is asked about.",
        "",
        "benign = [",
        '  "a plain background",',
    ]
    for name in SAFE_NAMES:
        lines.append(f'  "a photo of a {name}", "the word {name}",')
    lines += ["]", "", "[unsafe]"]
    for category, concepts in UNSAFE.items():
        lines.append(f"{category} = [")
        lines += [f'  "a photo of a {name}", "the word {name}",' for name in concepts]
        lines.append("]")
    (folder / "concepts.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def benign_scenes(n: int, where: SplitName = "calibration") -> list[Scene]:
    """Safe scenes of a split: 1 to 9 objects, look-alikes among them, and words."""
    split = SPLITS[where]
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
    """Fit a threshold for every score, from one encoding, and write the settings beside it."""
    write_bank(folder)
    detector = RiskDetector.from_pretrained(f"local-dir:{folder}", settings=SETTINGS)
    scores: dict[Score, list[float]] = {score: [] for score in CALIBRATED}
    for scene in track(benign_scenes(SCENES), "screening thresholds"):
        found = detector.picture_scores([read_picture(scene.image)], CALIBRATED)
        for score, risks in found.items():
            scores[score] += risks
    source = "sightrail testbed, benign scenes of the calibration split"
    fitted = SETTINGS
    for score in CALIBRATED:
        fitted = fitted.model_copy(update={"score": score}).with_calibration(
            scores[score], false_alarms=FALSE_ALARMS, source=source
        )
    fitted = fitted.model_copy(update={"score": SETTINGS.score})
    fitted = with_bands(replace(detector, settings=fitted))
    (folder / SETTINGS_FILE).write_text(fitted.model_dump_json(indent=2) + "\n", encoding="utf-8")


def with_bands(detector: RiskDetector) -> ScreeningSettings:
    """The detector's settings with the bands for looking coarse to fine."""
    scenes = (
        read_picture(scene.image)
        for kind in KINDS
        for scene, unsafe in draw_scenes(kind, UNSAFE_SCENES // len(KINDS), "calibration", 5)
        if unsafe
    )
    source = "sightrail testbed, unsafe scenes of the calibration split"
    bands = fit_bands(detector, track(scenes, "bands", total=UNSAFE_SCENES), source)
    return detector.settings.model_copy(update={"bands": bands})


def calibrate_requests(folder: Path) -> None:
    """The threshold of CASA, and what benign requests score with CASA and MoRAS, into their files.

    MoRAS as published flags nothing, so that its scores give p-values alone.
    """
    lvlm = LocalLVLM.from_pretrained("testbed")
    examples = draw_examples(HELD_OUT, split="calibration", seed=CASA.seed)
    benign = [example for example in examples if not example.harmful]
    harmful = [example for example in examples if example.harmful]
    moras = load_artifact("testbed", "moras")
    scores = sorted(scores_of(lvlm.with_guardrails([Moras(moras)]), benign))
    save_artifact(folder / "moras", moras.with_manifest(benign=tuple(scores)))
    casa = load_artifact("testbed", "casa")
    deciding = lvlm.with_guardrails([Casa(casa)])
    scores, attacks = sorted(scores_of(deciding, benign)), list(scores_of(deciding, harmful))
    limit = guaranteed_threshold(
        scores,
        false_alarms=CASA.over_refusal,
        source="sightrail testbed, benign requests of the calibration split",
        attacks=attacks,
    )
    results = {
        **casa.manifest.results,
        THRESHOLD: limit.value,
        "harmful_refused": share_reaching(attacks, limit.value),
        "benign_refused": share_reaching(scores, limit.value),
    }
    changed = casa.with_manifest(threshold=limit, benign=tuple(scores), results=results)
    save_artifact(folder / "casa", changed)


def calibrate_evidence(folder: Path) -> None:
    """One decision from screening, reading, the judge, CASA and MoRAS; see `guardrails.evidence`.

    On benign and look-alike requests about pictures and on benign ones in text alone. The rule, the
    weights (alike) and the split in halves were chosen on this split: `geometric` missed 1 % of its
    attacks through objects, `bonferroni` 3 to 49 %.
    """
    detector = RiskDetector.from_pretrained("testbed")
    parts: list[Any] = [
        detector,
        TextInPicture(concept_reader(detector.encoder, detector.concepts)),
        JudgeDetector(LocalJudge.from_pretrained("testbed", judge_profile("object"))),
        Casa.from_pretrained("testbed"),
        Moras.from_pretrained("testbed"),
    ]
    lvlm = LocalLVLM.from_pretrained("testbed", guardrails=parts, policy=Policy(monitor=True))

    def found(counts: dict[str, int], texts: dict[Group, int]) -> list[tuple[Verdict, ...]]:
        drawn = [
            as_messages(talk)
            for group, n in counts.items()
            for talk in draw_requests(group, n, "calibration", EVIDENCE_SEED)
        ]
        drawn += [
            e.messages() for e in draw_examples(texts, split="calibration", seed=EVIDENCE_SEED)
        ]
        return [
            verdicts
            for start in track(range(0, len(drawn), 25), "evidence")
            for verdicts in lvlm.assess_batch(drawn[start : start + 25])
        ]

    benign = found({"benign": 225, "lookalike": 225}, {"benign_text": 60, "kind_text": 60})
    order = np.random.default_rng(0).permutation(len(benign))
    Evidence.fit(
        [benign[i] for i in order],
        false_alarms=CASA.over_refusal,
        source="sightrail testbed, benign requests of the calibration split",
        attacks=found({"object": 125, "typographic": 125}, {"text": 50}),
        base=identify(lvlm.model, lvlm.name),
    ).save_pretrained(folder / "evidence")
