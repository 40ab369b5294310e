"""`sightrail eval`: one table of what every stack of defences changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from .consoles import printable, progress, stderr, stdout
from .judges import judge_named
from .models import (
    CasaFolder,
    DavspFolder,
    Device,
    DeviceMap,
    Dtype,
    EvidenceFolder,
    MorasFolder,
    Quantization,
    Revision,
    TrustRemoteCode,
)

if TYPE_CHECKING:
    from sightrail.guardrails.evaluation import EvalReport, Source


def evaluate(
    model: Annotated[str, typer.Option(help="A model by name or folder.")] = "testbed",
    encoder: Annotated[str, typer.Option(help="The screening encoder.")] = "testbed",
    benchmark: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER of a published benchmark, in its own layout. Repeat."),
    ] = None,
    stack: Annotated[
        list[str] | None,
        typer.Option(help="Defences joined by +, such as prefix+screen. Repeat for more rows."),
    ] = None,
    moras: MorasFolder = None,
    casa: CasaFolder = None,
    davsp: DavspFolder = None,
    evidence: EvidenceFolder = None,
    n: Annotated[
        int | None,
        typer.Option(min=1, help="Scenes per cell (200); of a benchmark, at most so many items."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    split: Annotated[Literal["train", "calibration", "test"], typer.Option()] = "test",
    run: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Keep every answer here; given again, the run goes on, or is judged anew.",
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="keywords, keywords-gcg, or llama-guard, md-judge, harmbench, one-word."),
    ] = None,
    judge_url: Annotated[
        str | None,
        typer.Option(
            help="Where that judge model is asked, OpenAI-compatible. SIGHTRAIL_JUDGE_API_KEY."
        ),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="Its name there.")] = None,
    judge_local: Annotated[str | None, typer.Option(help="Or a judge model to load here.")] = None,
    judge_prompt: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            exists=True,
            help="Your own prompt with {request} and {answer}; --judge is yes-no or safe-unsafe.",
        ),
    ] = None,
    judge_pictures: Annotated[
        bool, typer.Option("--judge-pictures", help="Show the judge model the pictures too.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 48,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    quantization: Quantization = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    timing: Annotated[bool, typer.Option(help="Measure time against the bare model.")] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", dir_okay=False, help="Write the report here.")
    ] = None,
) -> None:
    """Measure attack success, over-refusal, accuracy, detection and time.

    Every figure carries its 95 % interval and n; the same items, prompts and decoding for each row.
    What a judge could not judge counts against the stack, and is shown. --judge-local is loaded as
    --model is, but for --revision.
    """
    from sightrail.guardrails import evaluation  # loads torch

    loading = _named(
        device=device,
        dtype=dtype,
        device_map=device_map,
        quantization=quantization,
        trust_remote_code=trust_remote_code or None,
    )
    judged_by = judge_named(
        judge,
        judge_url,
        judge_model,
        judge_local,
        judge_prompt,
        pictures=judge_pictures,
        loading=loading,
    )
    with progress("evaluating", None) as bar:
        report = evaluation.evaluate(
            model=model,
            encoder=encoder,
            source=_source(benchmark, n, seed),
            judge=judged_by,
            stacks=stack or None,
            artifacts=_named(moras=moras, casa=casa, davsp=davsp, evidence=evidence),
            n=200 if n is None else n,
            seed=seed,
            split=split,
            timing=timing,
            max_new_tokens=max_new_tokens,
            folder=run,
            loading={**loading, **_named(revision=revision)},
            progress=lambda label, done, total: bar.update(
                bar.task_ids[0], description=label, completed=done, total=total
            ),
        )
    if json_file is not None:
        _write(report, json_file)
    _show(report)


def _write(report: EvalReport, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    stderr().print(f"report: {printable(file)}", markup=False)


def _show(report: EvalReport) -> None:
    for table in report_tables(report):
        stdout().print(table)
    for note in report.notes:
        stdout().print(f"note: {note}", style="yellow", markup=False)
    about = (
        f"model {report.model}, encoder {report.encoder}, split {report.split}, seed {report.seed}"
    )
    for line in (
        f"{about}, {report.device}, sightrail {report.version}",
        f"judge {report.judge}; calibration {report.calibration}",
    ):
        stdout().print(line, style="dim", markup=False)


def _source(benchmarks: list[str] | None, n: int | None, seed: int) -> Source | None:
    """The benchmarks that are named; None for the testbed.

    Raises:
        ConfigurationError: one of them is not there.
    """
    from sightrail.guardrails.evaluation.sources import Benchmark, Together

    found = []
    for named in benchmarks or ():
        name, equals, folder = named.partition("=")
        if not equals or not folder:
            raise typer.BadParameter(f"{named!r} is not NAME=FOLDER.")
        found.append(Benchmark(name, Path(folder), n, seed))
    return None if not found else found[0] if len(found) == 1 else Together(found)


def _named(**given: str | bool | None) -> dict[Any, Any]:
    """What was given on the command line."""
    return {name: value for name, value in given.items() if value is not None}


def report_tables(report: EvalReport) -> list[Table]:
    """One table per section of the report that has figures."""
    tables = []
    for section in report.tables():
        table = Table(title=section.title, title_justify="left")
        for number, name in enumerate(section.columns):
            table.add_column(Text(name), justify="left" if number < 2 else "right")
        for line in section.lines:
            table.add_row(*map(Text, line))
        tables.append(table)
    return tables
