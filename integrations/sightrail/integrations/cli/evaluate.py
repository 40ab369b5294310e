"""`sightrail eval`: one table of what every stack of defences changes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .consoles import progress, stderr, stdout
from .screen import printable
from .tables import report_tables


def evaluate(
    model: Annotated[str, typer.Option(help="A model by name or folder.")] = "testbed",
    encoder: Annotated[str, typer.Option(help="The screening encoder.")] = "testbed",
    stack: Annotated[
        list[str] | None,
        typer.Option(help="Defences joined by +, such as prefix+screen. Repeat for more rows."),
    ] = None,
    moras: Annotated[str | None, typer.Option(help="Folder of a MoRAS artifact.")] = None,
    casa: Annotated[str | None, typer.Option(help="Folder of a CASA artifact.")] = None,
    davsp: Annotated[str | None, typer.Option(help="Folder of a DAVSP artifact.")] = None,
    n: Annotated[int, typer.Option(min=1, help="Scenes per cell.")] = 200,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    split: Annotated[Literal["train", "calibration", "test"], typer.Option()] = "test",
    json_file: Annotated[
        Path | None, typer.Option("--json", dir_okay=False, help="Write the report here.")
    ] = None,
) -> None:
    """Measure attack success, over-refusal, accuracy, detection and time.

    Every figure carries its 95 % interval and n; the same seeds, prompts and decoding for each row.
    """
    from sightrail.guardrails import evaluation  # loads torch

    with progress("evaluating", None) as bar:
        report = evaluation.evaluate(
            model=model,
            encoder=encoder,
            stacks=stack or None,
            artifacts=_named(moras=moras, casa=casa, davsp=davsp),
            n=n,
            seed=seed,
            split=split,
            progress=lambda label, done, total: bar.update(
                bar.task_ids[0], description=label, completed=done, total=total
            ),
        )
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
        stderr().print(f"report: {printable(json_file)}", markup=False)
    for table in report_tables(report):
        stdout().print(table)
    about = (
        f"model {report.model}, encoder {report.encoder}, split {report.split}, seed {report.seed}"
    )
    stdout().print(
        f"{about}, {report.device}, sightrail {report.version}", style="dim", markup=False
    )


def _named(**folders: str | None) -> dict[Any, str | Path]:
    return {kind: folder for kind, folder in folders.items() if folder is not None}
