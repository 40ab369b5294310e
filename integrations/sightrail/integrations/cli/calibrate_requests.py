"""`sightrail calibrate --model ...`: thresholds of what decides on requests, and their drift."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .consoles import printable, progress, stderr, stdout
from .errors import CLEAN, FLAGGED
from .models import load_detector, load_model

if TYPE_CHECKING:
    from sightrail.guardrails import Casa, Moras, Verdict
    from sightrail.guardrails.fitting import Example
    from sightrail.guardrails.guarantees import Drift
    from sightrail.guardrails.screening.asking import Detector
    from sightrail.guardrails.verdict import Threshold

_TOGETHER = 25


@dataclass(frozen=True)
class Promise:
    """What a threshold is to promise, and about what.

    Attributes:
        false_alarms: the share of benign ones to come that may be flagged.
        confidence: of that; None for the average over calibrations.
        source: what the benign ones are.
    """

    false_alarms: float
    confidence: float | None
    source: str


@dataclass(frozen=True)
class Deciding:
    """What decides on requests.

    Attributes:
        model: by name or folder.
        stack: `casa` or `moras` for the threshold of that one; several parts joined by + for one
            decision from all of their evidence.
        artifacts: folders of fitted defences, by kind.
        encoder: of a part that screens.
        loading: how the model is loaded, as ``load_model`` takes it; the encoder is on its device.
    """

    model: str
    stack: str
    artifacts: Mapping[str, str]
    encoder: str | None
    loading: Mapping[str, Any]

    def calibrate(self, paths: Sequence[Path], promise: Promise, out: Path) -> None:
        """Fit on labelled requests, and write what `eval`, `serve` and the classes read."""
        examples = _examples(paths)
        threshold = (
            self._one(examples, promise, out)
            if self.stack in ("casa", "moras")
            else self._joint(examples, promise, out)
        )
        show_threshold(threshold, sum(example.harmful for example in examples))
        stderr().print(f"written: {printable(out)}", markup=False)

    def check(self, paths: Sequence[Path]) -> int:
        """Whether benign requests are like those of the calibration; the exit status."""
        from sightrail.guardrails.fitting.calibration import check_requests

        guard = self._guard()
        lvlm = load_model(self.model, [guard], **self.loading)
        drift = check_requests(lvlm, _examples(paths), guard.artifact)
        return show_drift(
            drift, guard.artifact.manifest.threshold, len(guard.artifact.manifest.benign)
        )

    def _guard(self) -> Casa | Moras:
        from sightrail.guardrails import Casa, Moras
        from sightrail.guardrails.evaluation.stacks import Blind, Supplies, artifacts_for

        if self.stack not in ("casa", "moras"):
            raise typer.BadParameter("--check takes --stack casa or --stack moras.")
        kind = Casa if self.stack == "casa" else Moras
        named = Supplies(Blind(), artifacts_for(self.model, self.artifacts))
        return kind.from_pretrained(named.artifact("casa" if kind is Casa else "moras"))

    def _one(self, examples: Sequence[Example], promise: Promise, out: Path) -> Threshold | None:
        lvlm = load_model(self.model, **self.loading)
        fitted = self._guard().calibrate(
            lvlm,
            examples,
            false_alarms=promise.false_alarms,
            confidence=promise.confidence,
            source=promise.source,
        )
        fitted.save_pretrained(out)
        return fitted.artifact.manifest.threshold

    def _joint(self, examples: Sequence[Example], promise: Promise, out: Path) -> Threshold:
        import numpy as np

        from sightrail.guardrails import Policy
        from sightrail.guardrails.evaluation.stacks import (
            Blind,
            Supplies,
            artifacts_for,
            build_stack,
            calibration_for,
            screens,
        )
        from sightrail.guardrails.evidence import Evidence
        from sightrail.guardrails.fitting import identify

        looks = screens(self.stack)
        detector: Detector = (
            load_detector(self.encoder, self.loading["device"]) if looks else Blind()
        )
        supplies = Supplies(
            detector,
            artifacts_for(self.model, self.artifacts),
            calibration_for(self.model),
            self.encoder,
        )
        guards = build_stack(self.stack, supplies)
        lvlm = load_model(self.model, guards, policy=Policy(monitor=True), **self.loading)
        found: dict[bool, list[tuple[Verdict, ...]]] = {True: [], False: []}
        order = np.random.default_rng(0).permutation(len(examples))
        with progress("asking", len(examples)) as bar:
            for start in range(0, len(examples), _TOGETHER):
                part = [examples[i] for i in order[start : start + _TOGETHER]]
                told = lvlm.assess_batch([example.messages() for example in part])
                for example, verdicts in zip(part, told, strict=True):
                    found[example.harmful].append(verdicts)
                bar.advance(bar.task_ids[0], len(part))
        evidence = Evidence.fit(
            found[False],
            attacks=found[True],
            false_alarms=promise.false_alarms,
            confidence=promise.confidence,
            source=promise.source,
            base=identify(lvlm.model, lvlm.name),
        )
        evidence.save_pretrained(out)
        return evidence.threshold


def show_threshold(threshold: Threshold | None, attacks: int) -> None:
    """What was fitted, and what it promises."""
    if threshold is None:
        return
    stdout().print(f"threshold {threshold.value:.4f} ({threshold.source})", markup=False)
    if threshold.missed is not None:
        told = f"of attacks like the {attacks} given, at most {threshold.missed:.1%} missed"
        stdout().print(told, markup=False)


def show_drift(drift: Drift, threshold: Threshold | None, known: int) -> int:
    """Say whether a calibration still fits; the exit status."""
    lines = [
        f"scores: largest distance {drift.statistic:.3f}, p = {drift.p_value:.3g} "
        f"({known} of the calibration, {drift.n} new ones)",
        f"flagged: {drift.flagged:.2%} of the new ones",
    ]
    if drift.alarm_p_value is not None and threshold is not None:
        promised = f"promised at most {threshold.false_alarms:.2%}"
        lines[-1] += f", {promised} (p = {drift.alarm_p_value:.3g})"
    lines.append(
        "These are not like those of the calibration: calibrate anew on such ones."
        if drift.drifted
        else "Nothing speaks against the calibration."
    )
    for line in lines:
        stdout().print(line, markup=False)
    return FLAGGED if drift.drifted else CLEAN


def _examples(paths: Iterable[Path]) -> list[Example]:
    from sightrail.guardrails.fitting import read_examples

    found: list[Example] = []
    for path in paths:
        read = read_examples(path)
        stderr().print(read.summary(), markup=False)
        found += read.examples
    return found
