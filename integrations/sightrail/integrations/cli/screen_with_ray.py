"""`sightrail screen --ray`: a corpus on a cluster, into a Parquet folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import typer

from .consoles import progress, stderr
from .detectors import Wanted, build_detector
from .errors import CLEAN, FLAGGED, NOT_INSPECTED

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
