"""`sightrail screen`: files and folders through the detector."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.text import Text

from sightrail.guardrails import Limits, Verdict

from .batches import Screened, screen_files
from .consoles import printable, progress, shown_beside, stderr, stdout
from .detectors import JUDGE_KEY, Wanted, build_detector
from .errors import CLEAN, FLAGGED, NOT_INSPECTED
from .files import Found, find_files
from .models import Device, DeviceMap, Dtype, Quantization, Revision, TrustRemoteCode
from .panels import PanelFolder

_LIMITS: Final = Limits()
_STYLES: Final = {"clean": "green", "flagged": "bold red", "not_inspected": "bold yellow"}


class Mask(StrEnum):
    """How risky regions are covered."""

    fill = "fill"
    blur = "blur"


Encoder = Annotated[
    str | None,
    typer.Option(
        envvar="SIGHTRAIL_ENCODER",
        help="An open_clip name (ViT-L-14-336/openai, hf-hub:..., local-dir:...) or testbed.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        file_okay=False,
        help="Write original | risk map | what is passed on, per picture, here.",
    ),
]
Settings = Annotated[
    Path | None, typer.Option(dir_okay=False, help="What `sightrail calibrate` wrote.")
]
SeenAt = Annotated[
    list[int] | None,
    typer.Option(min=8, help="Look also at this shorter side, a model's own; repeat for more."),
]
Read = Annotated[
    bool, typer.Option(help="Read the text in pictures and judge it (needs sightrail[ocr]).")
]
JudgeNamed = Annotated[
    str | None,
    typer.Option(
        help="Ask a judge model: an OpenAI-compatible address (http://.../v1) or a local "
        f"model. The address's key is taken from {JUDGE_KEY}."
    ),
]
JudgeModel = Annotated[str, typer.Option(help="The judge's name at its address.")]
JudgeProfile = Annotated[
    str, typer.Option(help="How it is asked: yes-no, llama-guard-4, llavaguard ...")
]
JudgeBand = Annotated[
    tuple[float, float] | None,
    typer.Option(help="Ask it only where the screening's score lies from LOW to HIGH."),
]
MaxPixels = Annotated[
    int, typer.Option(min=1, help="Larger pictures, all frames together, are not inspected.")
]
MaxFrames = Annotated[
    int, typer.Option(min=1, help="Animations and documents with more are not inspected.")
]
OnRay = Annotated[
    bool,
    typer.Option(
        "--ray", help="On a Ray cluster; --out is a Parquet folder, and a run goes on there."
    ),
]


def screen(
    paths: Annotated[list[Path], typer.Argument(help="Pictures and folders (recursive).")],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON line per file: path and verdict.")
    ] = False,
    encoder: Encoder = None,
    out: Out = None,
    mask: Annotated[Mask, typer.Option(help="How --out covers risky regions.")] = Mask.fill,
    settings: Settings = None,
    seen_at: SeenAt = None,
    read: Read = False,
    judge: JudgeNamed = None,
    judge_model: JudgeModel = "default",
    judge_profile: JudgeProfile = "yes-no",
    judge_band: JudgeBand = None,
    max_pixels: MaxPixels = _LIMITS.max_pixels,
    max_frames: MaxFrames = _LIMITS.max_frames,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    quantization: Quantization = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    ray: OnRay = False,
    actors: Annotated[int, typer.Option(min=1, help="With --ray: detectors at work at once.")] = 1,
    gpus: Annotated[
        float, typer.Option(min=0, help="With --ray: GPUs of each; 0.25 puts four on one.")
    ] = 0.0,
) -> None:
    """Look for unsafe content inside pictures.

    With --read or --judge, screening by an encoder is done beside it where --encoder names one.
    The encoder and a local judge are loaded on --device in --dtype; --device-map, --quantization,
    --revision and --trust-remote-code are the judge's.

    Exit status: 0 everything is clean; 1 something is flagged;
    2 something could not be inspected (2 wins over 1);
    64 wrong usage; 69 a model cannot be loaded or used; 74 --out cannot be written.
    """
    wanted = Wanted(
        encoder=encoder,
        device=device,
        limits=Limits(max_pixels=max_pixels, max_frames=max_frames),
        settings=settings,
        seen_at=tuple(seen_at or ()),
        read=read,
        judge=judge,
        judge_model=judge_model,
        judge_profile=judge_profile,
        judge_band=judge_band,
        dtype=dtype,
        judge_loading={
            "device_map": device_map,
            "quantization": quantization,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
        },
    )
    if not ray:
        raise typer.Exit(_screen_here(paths, wanted, out, mask, as_json))
    if as_json:
        raise typer.BadParameter("--ray writes Parquet to --out, no JSON lines")
    raise typer.Exit(screen_with_ray(paths, out, wanted, actors, gpus))


def _screen_here(
    paths: Sequence[Path], wanted: Wanted, out: Path | None, mask: Mask, as_json: bool
) -> int:
    """Screen in this process, file by file; gives the exit status."""
    found = find_files(paths)
    _announce(found)
    if not found.files:
        return CLEAN
    panels = None if out is None else PanelFolder(out, mask.value, keep=found.files)
    detector = build_detector(wanted)
    verdicts: list[Verdict] = []
    with progress("screening", len(found.files)) as bar:
        for screened in screen_files(detector, found.files, wanted.limits):
            shown_beside(bar, lambda s=screened: _show(s, as_json))  # type: ignore[misc]
            if panels is not None:
                panels.write(screened)
            verdicts.append(screened.verdict)
            bar.advance(bar.task_ids[0])
    _summarise(verdicts, panels)
    return exit_status(verdicts)


def exit_status(verdicts: Iterable[Verdict]) -> int:
    """The status of a run: see `errors`."""
    status = CLEAN
    for verdict in verdicts:
        if verdict.not_inspected or verdict.status in ("not_inspected", "failed"):
            return NOT_INSPECTED
        if verdict.status == "flagged":
            status = FLAGGED
    return status


def _announce(found: Found) -> None:
    if found.hidden:
        plural = "entry" if found.hidden == 1 else "entries"
        stderr().print(f"note: skipped {found.hidden} hidden {plural}", style="yellow")
    if found.outside:
        plural = "link that leads" if found.outside == 1 else "links that lead"
        stderr().print(f"note: skipped {found.outside} {plural} out of the folder", style="yellow")
    if not found.files:
        stderr().print("note: nothing to screen", style="yellow")


def _show(screened: Screened, as_json: bool) -> None:
    if as_json:
        verdict = screened.verdict.model_dump(mode="json")
        typer.echo(json.dumps({"path": os.fspath(screened.path), "verdict": verdict}))
        return
    status = screened.verdict.status
    line = Text.assemble(
        (f"{status.replace('_', ' '):<13} ", _STYLES.get(status, "bold yellow")),
        (printable(screened.path), "bold"),
        (
            "  " + screened.verdict.summary().removeprefix(status.replace("_", " ")).lstrip(": "),
            "dim",
        ),
    )
    stdout().print(line, soft_wrap=True)


def _summarise(verdicts: list[Verdict], panels: PanelFolder | None) -> None:
    counts = Counter(verdict.status.replace("_", " ") for verdict in verdicts)
    total = f"{len(verdicts)} {'file' if len(verdicts) == 1 else 'files'}"
    stderr().print(
        f"{total}: " + ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
    )
    if panels is not None:
        stderr().print(f"{panels.written} pictures in {printable(panels.folder)}", markup=False)


_ADDRESS: Final = re.compile(r"([a-z][a-z0-9+.-]+):/(?!/)")


def screen_with_ray(
    paths: Sequence[Path], out: Path | None, wanted: Wanted, actors: int, gpus: float
) -> int:
    """Screen what earlier runs into the same folder have not; gives the exit status of all.

    Raises:
        ConfigurationError: the corpus or the folder cannot be used.
        MissingDependencyError: ray is not installed.
    """
    from sightrail.integrations.ray import CorpusSettings, screen_corpus, statuses

    if out is None:
        raise typer.BadParameter("--ray needs --out, such as --out verdicts.parquet")
    build = partial(build_detector, wanted)
    how = CorpusSettings(build=build, limits=wanted.limits, actors=actors, gpus=gpus)
    # A path holds an address with one slash too few.
    sources = [_ADDRESS.sub(r"\1://", str(path)) for path in paths]
    with progress("screening", None) as bar:
        task = bar.task_ids[0]
        screen_corpus(
            sources, out, how, tick=lambda n, total: bar.update(task, completed=n, total=total)
        )
    counts = statuses(out)
    told = ", ".join(f"{n} {status.replace('_', ' ')}" for status, n in sorted(counts.items()))
    stderr().print(f"{sum(counts.values())} files in {out}: {told}", markup=False)
    if counts.keys() & {"not_inspected", "failed"}:
        return NOT_INSPECTED
    return FLAGGED if counts.get("flagged") else CLEAN
