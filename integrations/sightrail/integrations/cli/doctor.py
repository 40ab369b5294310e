"""`sightrail doctor`: what each defence needs, tried on the user's own model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.table import Table

from .consoles import stdout
from .detectors import Wanted, build_detector
from .errors import CLEAN, FLAGGED
from .models import (
    Device,
    DeviceMap,
    Dtype,
    Quantization,
    Revision,
    TrustRemoteCode,
    load_detector,
    load_model,
)
from .screen import JudgeModel, JudgeNamed, JudgeProfile

if TYPE_CHECKING:
    from sightrail.guardrails import Picture

_COLOURS: Final = {"ok": "green", "does not hold": "red", "could not be tried": "yellow"}
_PICTURES: Final = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def doctor(
    model: Annotated[str, typer.Option(help="A model by name or folder, or testbed.")],
    encoder: Annotated[
        str | None,
        typer.Option(envvar="SIGHTRAIL_ENCODER", help="The screening encoder; left out if none."),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="A folder of your own benign pictures.", exists=True)
    ] = None,
    judge: JudgeNamed = None,
    judge_model: JudgeModel = "default",
    judge_profile: JudgeProfile = "yes-no",
    as_json: Annotated[bool, typer.Option("--json", help="Findings as JSON.")] = False,
    casa: Annotated[Path | None, typer.Option(help="A fitted CASA; its cost is told.")] = None,
    moras: Annotated[Path | None, typer.Option(help="A fitted MoRAS, likewise.")] = None,
    davsp: Annotated[
        Path | None, typer.Option(help="A fitted border, likewise, and whether it is cut off.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    quantization: Quantization = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Examine a model: line by line what holds, what does not, and what to do about it."""
    from sightrail.guardrails import (  # loads torch
        Casa,
        Moras,
        TextInPicture,
        VisualSafetyPrompt,
    )
    from sightrail.guardrails.doctor import examine

    how: dict[str, Any] = {
        "dtype": dtype,
        "device_map": device_map,
        "quantization": quantization,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
    }
    lvlm = load_model(model, device=device, **how)
    detector = None if encoder is None else load_detector(encoder, device)
    asked = None
    if judge is not None:
        asked = build_detector(
            Wanted(judge=judge, judge_model=judge_model, judge_profile=judge_profile)
        )
    own = _own_pictures(pictures)
    kinds: list[tuple[Any, Path | None]] = [
        (Casa, casa),
        (Moras, moras),
        (VisualSafetyPrompt, davsp),
    ]
    defences = [kind.from_pretrained(folder) for kind, folder in kinds if folder is not None]
    findings = examine(lvlm, detector, own, reader=TextInPicture(), judge=asked, defences=defences)
    if as_json:
        typer.echo(json.dumps({"model": model, "findings": [asdict(f) for f in findings]}))
    else:
        table = Table("check", "", "found", "remedy", title=f"sightrail doctor: {model}")
        for found in findings:
            mark = f"[{_COLOURS[found.status]}]{found.status}[/]"
            table.add_row(found.check, mark, found.detail, found.remedy)
        stdout().print(table)
    broken = any(found.status == "does not hold" for found in findings)
    raise typer.Exit(FLAGGED if broken else CLEAN)


def _own_pictures(folder: Path | None) -> list[Picture]:
    from sightrail.guardrails import read_picture

    if folder is None:
        return []
    return [
        read_picture(path) for path in sorted(folder.iterdir()) if path.suffix.lower() in _PICTURES
    ]
