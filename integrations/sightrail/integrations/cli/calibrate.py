"""`sightrail calibrate`: a threshold from your own benign pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .batches import Screened, screen_files
from .consoles import progress, stderr, stdout
from .errors import CLEAN, NOT_INSPECTED
from .files import find_files
from .models import load_detector
from .screen import printable

if TYPE_CHECKING:
    from sightrail.guardrails import RiskDetector


def calibrate(
    paths: Annotated[
        list[Path], typer.Argument(help="Pictures without unsafe content, and folders of them.")
    ],
    source: Annotated[
        str, typer.Option(help="What these pictures are; every verdict will say so.")
    ],
    encoder: Annotated[
        str | None,
        typer.Option(envvar="SIGHTRAIL_ENCODER", help="The screening encoder, as for screen."),
    ] = None,
    false_positive_rate: Annotated[
        float, typer.Option(min=0, max=1, help="The share of such pictures that may be flagged.")
    ] = 0.01,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Where the settings go.")] = Path(
        "screening.json"
    ),
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps ...")] = None,
) -> None:
    """Fit the decision threshold to pictures of the kind that will be screened.

    Use the result with `sightrail screen --settings FILE`, or put it beside the encoder's weights
    as screening.json. Exit status: 0; 2 when some pictures could not be read and do not count;
    69 too few pictures, or the encoder cannot be loaded; 74 the file cannot be written.
    """
    files = find_files(paths).files
    detector = load_detector(encoder, device)
    with progress("scoring", len(files)) as bar:
        seen = []
        for screened in screen_files(detector, files):
            seen.append(screened)
            bar.advance(bar.task_ids[0])
    fitted = _fit(detector, seen, false_positive_rate, source)
    out.write_text(fitted.settings.model_dump_json(indent=2) + "\n", encoding="utf-8")
    threshold = fitted.settings.thresholds().picture
    stdout().print(f"threshold {threshold.value:.4f} ({threshold.source})", markup=False)
    stderr().print(f"settings: {printable(out)}", markup=False)
    raise typer.Exit(_tell_unread(seen))


def _fit(detector: RiskDetector, seen: list[Screened], rate: float, source: str) -> RiskDetector:
    """The detector with the threshold that its own scores give.

    Raises:
        ConfigurationError: too few pictures, or the rate is not possible.
    """
    from sightrail.guardrails.screening.settings import fit_threshold

    scores = [one.verdict.score for one in seen if one.verdict.score is not None]
    value, note = fit_threshold(scores, rate, source)
    settings = detector.settings.with_threshold(value, value, note)
    return detector.with_settings(**settings.model_dump())


def _tell_unread(seen: list[Screened]) -> int:
    unread = [one for one in seen if one.verdict.score is None]
    for one in unread:
        stderr().print(
            f"not used: {printable(one.path)}: {one.verdict.summary()}",
            markup=False,
            style="yellow",
        )
    return NOT_INSPECTED if unread else CLEAN
