"""`sightrail calibrate`: a threshold from your own benign pictures, and whether it still fits."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .batches import screen_files
from .calibrate_requests import Deciding, Promise, show_drift, show_threshold
from .consoles import printable, progress, stderr
from .errors import CLEAN, NOT_INSPECTED
from .files import find_files
from .models import (
    Device,
    DeviceMap,
    Dtype,
    Quantization,
    Revision,
    TrustRemoteCode,
    load_detector,
)

if TYPE_CHECKING:
    from sightrail.guardrails import RiskDetector

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
    encoder: Annotated[
        str | None,
        typer.Option(envvar="SIGHTRAIL_ENCODER", help="The screening encoder, as for screen."),
    ] = None,
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
    moras: Annotated[str | None, typer.Option(help="Folder of a MoRAS artifact.")] = None,
    casa: Annotated[str | None, typer.Option(help="Folder of a CASA artifact.")] = None,
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
