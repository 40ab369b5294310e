"""`sightrail calibrate`: thresholds from benign pictures or requests; whether they still fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .batches import screen_files
from .consoles import printable, progress, stderr, stdout
from .errors import CLEAN, FLAGGED, NOT_INSPECTED
from .files import find_files
from .models import (
    CasaFolder,
    Device,
    DeviceMap,
    Dtype,
    MorasFolder,
    Quantization,
    Revision,
    ScreeningEncoder,
    TrustRemoteCode,
    load_detector,
    load_model,
)

if TYPE_CHECKING:
    from sightrail.guardrails import Casa, Moras, RiskDetector, Verdict
    from sightrail.guardrails.fitting import Example
    from sightrail.guardrails.guarantees import Drift
    from sightrail.guardrails.screening.asking import Detector
    from sightrail.guardrails.verdict import Threshold


_PICTURES_OUT = "screening.json"
_REQUESTS_OUT = "calibrated"


def calibrate(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Pictures without unsafe content, and folders of them; with --model, files of "
            "labelled requests as for fit."
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="What these pictures are; every verdict will say so.")
    ] = None,
    encoder: ScreeningEncoder = None,
    false_alarms: Annotated[
        float, typer.Option(help="The share of such pictures that may be flagged.")
    ] = 0.01,
    confidence: Annotated[float, typer.Option(help="Of that promise.")] = 0.95,
    bound: Annotated[
        Literal["confidence", "mean"],
        typer.Option(help="With that confidence, or on average over calibrations alone."),
    ] = "confidence",
    attacks: Annotated[
        list[Path] | None,
        typer.Option(help="Labelled unsafe pictures: bounds how many are missed. Repeat."),
    ] = None,
    check: Annotated[
        list[Path] | None,
        typer.Option(
            help="Instead: are these benign pictures like those of --settings (with --model: these "
            "requests like those of the artifact)? Repeat."
        ),
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(dir_okay=False, help="What a calibration wrote, for --check.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Instead of pictures: what this model's guardrails decide.")
    ] = None,
    stack: Annotated[
        str | None,
        typer.Option(
            help="With --model: casa or moras; or parts joined by +, such as screen+read+casa, for "
            "one decision from all their evidence."
        ),
    ] = None,
    moras: MorasFolder = None,
    casa: CasaFolder = None,
    out: Annotated[
        Path | None,
        typer.Option(help=f"Where it goes: {_PICTURES_OUT}, or the folder {_REQUESTS_OUT}."),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    quantization: Quantization = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Fit the decision threshold to pictures of the kind that will be screened.

    1 % at 95 % confidence needs 299 pictures, 99 on average; with fewer, the message says what can
    be promised. Use the result with `sightrail screen --settings FILE`, or put it beside the
    encoder's weights as screening.json. With --model it is the threshold of CASA or MoRAS on
    requests, or that of one decision from all evidence, and an artifact is written. Without it,
    --device and --dtype are the encoder's.

    Exit status: 0; 1 when --check finds others than those of the calibration; 2 when some pictures
    could not be read and do not count; 69 too few, or something cannot be loaded; 74 the file
    cannot be written.
    """
    deciding = None
    of_models = {
        "device_map": device_map,
        "quantization": quantization,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
    }
    if model is not None and stack is not None:
        named = {"moras": moras, "casa": casa}
        given = {kind: folder for kind, folder in named.items() if folder is not None}
        loading = {"device": device, "dtype": dtype, **of_models}
        deciding = Deciding(model, stack, given, encoder, loading)
    elif model is not None or stack is not None:
        raise typer.BadParameter("--model and --stack go together.")
    elif asked := [f"--{name.replace('_', '-')}" for name, value in of_models.items() if value]:
        raise typer.BadParameter(f"{', '.join(asked)}: only a --model is loaded that way.")
    if check:
        status = (
            _check(load_detector(encoder, device, settings=settings, dtype=dtype), check)
            if deciding is None
            else deciding.check(check)
        )
        raise typer.Exit(status)
    if not paths or source is None:
        raise typer.BadParameter("Name files and say what they are (--source), or use --check.")
    promise = Promise(false_alarms, confidence if bound == "confidence" else None, source)
    if deciding is not None:
        deciding.calibrate(paths, promise, out or Path(_REQUESTS_OUT))
        raise typer.Exit(CLEAN)
    detector = load_detector(encoder, device, dtype=dtype)
    raise typer.Exit(_fit(detector, paths, attacks or [], promise, out or Path(_PICTURES_OUT)))


def _fit(
    detector: RiskDetector,
    paths: Iterable[Path],
    attacks: Iterable[Path],
    promise: Promise,
    out: Path,
) -> int:
    """Fit the threshold on pictures and write the settings; the exit status."""
    benign, unread = _scores(detector, paths)
    labelled, unread_attacks = _scores(detector, attacks)
    fitted = detector.settings.with_calibration(
        benign,
        false_alarms=promise.false_alarms,
        confidence=promise.confidence,
        source=promise.source,
        attacks=labelled,
    )
    out.write_text(fitted.model_dump_json(indent=2) + "\n", encoding="utf-8")
    show_threshold(fitted.thresholds().picture, len(labelled))
    stderr().print(f"settings: {printable(out)}", markup=False)
    return NOT_INSPECTED if unread + unread_attacks else CLEAN


def _scores(detector: RiskDetector, paths: Iterable[Path]) -> tuple[list[float], int]:
    """The score of every picture that can be read, and how many cannot; those are named."""
    files = find_files(paths).files
    scores: list[float] = []
    with progress("scoring", len(files)) as bar:
        for screened in screen_files(detector, files):
            if screened.verdict.score is not None:
                scores.append(screened.verdict.score)
            else:
                told = f"not used: {printable(screened.path)}: {screened.verdict.summary()}"
                stderr().print(told, markup=False, style="yellow")
            bar.advance(bar.task_ids[0])
    return scores, len(files) - len(scores)


def _check(detector: RiskDetector, paths: Iterable[Path]) -> int:
    """Say whether the calibration still fits; the exit status."""
    from sightrail.guardrails.guarantees import check_drift

    known = detector.settings.thresholds()
    scores, unread = _scores(detector, paths)
    drift = check_drift(known.benign, scores, known.picture)
    status = show_drift(drift, known.picture, len(known.benign))
    return NOT_INSPECTED if unread else status


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
        from sightrail.guardrails.fitting.run import conversation_of

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
                told = lvlm.assess_batch([conversation_of(example) for example in part])
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
