"""A corpus of pictures through any number of detectors, on any number of machines.

Ray Data hands paths to actors that hold a detector each. Verdicts come back to the driver, which
writes them down in parts; a run that was broken off goes on where its parts end.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import pyarrow
import ray
from pyarrow import fs, parquet
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveInt, model_validator

from sightrail.guardrails import Limits, RiskDetector, Verdict
from sightrail.guardrails.errors import ConfigurationError
from sightrail.guardrails.screening.settings import ScreeningSettings

from ..cli.batches import screen_files
from ..cli.files import find_files

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA: Final = pyarrow.schema(
    [
        ("path", pyarrow.string()),
        ("status", pyarrow.string()),
        ("category", pyarrow.string()),
        ("score", pyarrow.float64()),
        ("threshold", pyarrow.float64()),
        ("verdict", pyarrow.string()),
    ]
)
"""One row per file; ``verdict`` is the whole of it as JSON, without its map."""

Rows = dict[str, list[Any]]


class CorpusSettings(BaseModel):
    """How a corpus is screened.

    Attributes:
        encoder: as for ``RiskDetector.from_pretrained``.
        screening: a file of screening settings.
        limits: what intake is willing to read.
        device: where each detector is loaded.
        build: makes a detector in place of all that, once in every actor: a function that can be
            pickled, such as ``functools.partial(make, "a-name")``.
        actors: detectors at work at once; each is a process of its own.
        cpus: of each actor.
        gpus: of each actor; 0.25 puts four on one GPU.
        batch: files handed to an actor at once, and in one part of what is written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str | None = None
    screening: Path | None = None
    limits: Limits = Limits()
    device: str | None = None
    build: Callable[[], Any] | None = None
    actors: PositiveInt = 1
    cpus: NonNegativeFloat = 1
    gpus: NonNegativeFloat = 0
    batch: PositiveInt = 32

    @model_validator(mode="after")
    def _one_detector(self) -> Self:
        if self.build is not None and (self.encoder, self.screening, self.device) != (None,) * 3:
            raise ConfigurationError("build makes the whole detector; leave encoder, screening out")
        return self


def screen_corpus(
    sources: Sequence[str | Path],
    out: Path,
    settings: CorpusSettings,
    *,
    tick: Callable[[int, int], None] | None = None,
) -> int:
    """Screen every file below some folders, into a folder of Parquet files.

    Args:
        sources: folders and files, or addresses that pyarrow opens (``s3://bucket/prefix``). All
            machines of the cluster have to reach them.
        out: a folder, named like ``verdicts.parquet``; what it holds already is not done again.
        settings: how.
        tick: called with how many files are done, and of how many.

    Returns:
        How many files were screened in this run.

    Raises:
        ConfigurationError: the corpus or the folder cannot be used.
    """
    names = list(_names(sources))
    out.mkdir(parents=True, exist_ok=True)
    done = _written(out)
    left = [name for name in names if name not in done]
    for part in _screened(left, settings):
        _write(part, out)
        done.update(part["path"])
        if tick is not None:
            tick(len(done), len(names))
    return len(left)


def statuses(out: Path) -> Counter[str]:
    """How many files of a corpus have which status, over all runs."""
    parts = [parquet.read_table(part, columns=["status"]) for part in out.glob("part-*.parquet")]
    return Counter(status for part in parts for status in part["status"].to_pylist())


def _names(sources: Sequence[str | Path]) -> Iterator[str]:
    """Every file, in a stable order, nothing twice."""
    local = [Path(source) for source in sources if "://" not in str(source)]
    yield from dict.fromkeys(os.fspath(path.absolute()) for path in find_files(local).files)
    for source in sources:
        if "://" in str(source):
            yield from _remote(str(source))


def _remote(address: str) -> Iterator[str]:
    try:
        filesystem, path = fs.FileSystem.from_uri(address)
        found = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    except (OSError, ValueError, NotImplementedError) as error:
        raise ConfigurationError(
            f"{address} cannot be listed: {error} Name a folder of this machine, or an address "
            "that pyarrow opens."
        ) from error
    scheme = address.partition("://")[0]
    for info in sorted(found, key=lambda info: info.path):
        if info.type == fs.FileType.File:
            yield f"{scheme}://{info.path}"


def _written(out: Path) -> set[str]:
    """The files that earlier runs have finished; a part is there whole or not at all."""
    done: set[str] = set()
    for part in sorted(out.glob("part-*.parquet")):
        try:
            done.update(parquet.read_table(part, columns=["path"])["path"].to_pylist())
        except (OSError, pyarrow.ArrowException, KeyError) as error:
            raise ConfigurationError(
                f"{part} is no part of a corpus' verdicts; name another folder."
            ) from error
    return done


def _screened(names: Sequence[str], settings: CorpusSettings) -> Iterator[Rows]:
    if not names:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # `tick` says how far it is
    dataset = ray.data.from_items([{"path": name} for name in names])
    # As many blocks as batches: a block is what goes back when its actor dies.
    blocks = max(1, -(-len(names) // settings.batch))
    screened = dataset.repartition(blocks).map_batches(
        ScreeningActor,
        fn_constructor_args=[settings],
        batch_size=settings.batch,
        compute=ray.data.ActorPoolStrategy(size=settings.actors),
        num_cpus=settings.cpus,
        num_gpus=settings.gpus or None,
    )
    for batch in screened.iter_batches(batch_size=None, batch_format="pyarrow"):
        table: Any = batch
        yield table.to_pydict()


def _write(rows: Rows, out: Path) -> None:
    """One more part; a reader of the folder never sees half of it."""
    name = uuid.uuid4().hex
    begun = out / f".{name}.begun"
    parquet.write_table(pyarrow.Table.from_pydict(dict(rows), schema=SCHEMA), begun)
    begun.replace(out / f"part-{name}.parquet")


class ScreeningActor:
    """One detector, loaded once, for batches of paths.

    Args:
        settings: of the corpus.
    """

    def __init__(self, settings: CorpusSettings) -> None:
        self._limits = settings.limits
        self._detector = settings.build() if settings.build else _screening(settings)

    def __call__(self, batch: Mapping[str, Iterable[Any]]) -> Rows:
        """The rows for the files of ``batch["path"]``."""
        names = [str(name) for name in batch["path"]]
        with tempfile.TemporaryDirectory() as folder:
            files = [_at_hand(name, Path(folder), self._limits) for name in names]
            found = screen_files(self._detector, files, self._limits)
            verdicts = [screened.verdict for screened in found]
        return _rows(names, verdicts)


def _screening(settings: CorpusSettings) -> RiskDetector:
    screening = settings.screening
    own = None if screening is None else ScreeningSettings.from_file(screening)
    return RiskDetector.from_pretrained(
        settings.encoder, settings=own, limits=settings.limits, device=settings.device
    )


def _rows(names: Sequence[str], verdicts: Sequence[Verdict]) -> Rows:
    return {
        "path": [*names],
        "status": [verdict.status for verdict in verdicts],
        "category": [verdict.category for verdict in verdicts],
        "score": [verdict.score for verdict in verdicts],
        "threshold": [v.threshold.value if v.threshold else None for v in verdicts],
        "verdict": [verdict.model_dump_json(exclude={"risk_map"}) for verdict in verdicts],
    }


def _at_hand(name: str, folder: Path, limits: Limits) -> Path:
    """The file on this machine; what is larger than agreed is cut, and so cannot be read."""
    if "://" not in name:
        return Path(name)
    copy = folder / uuid.uuid4().hex
    try:
        filesystem, path = fs.FileSystem.from_uri(name)
        with filesystem.open_input_stream(path) as stream:
            copy.write_bytes(stream.read(limits.max_bytes + 1))
    except OSError:
        pass  # no file: a verdict says that it cannot be read
    return copy
