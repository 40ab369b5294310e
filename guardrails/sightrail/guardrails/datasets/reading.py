"""From a data file (JSON, JSONL, CSV or Parquet, plain or compressed) to examples, with a count of
all that was left out.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Final, cast

from ..errors import ConfigurationError, MissingDependencyError
from .example import Example
from .published import FORMATS, Format

NO_PICTURE: Final = "the picture is not there"
REPEATED: Final = "stands there already"
_PLACES: Final = ("", "images", "image", "train", "train2017", "test", "imgs")


@dataclass(frozen=True)
class ExampleSet:
    """What a file gave.

    Attributes:
        examples: in their order.
        source: the file.
        format: that it was read as.
        left_out: reason -> how many.
    """

    examples: tuple[Example, ...]
    source: str
    format: str
    left_out: Mapping[str, int]

    def summary(self) -> str:
        """What was read and what was not, in one line."""
        harmful = sum(example.harmful for example in self.examples)
        shown = sum(example.image_count > 0 for example in self.examples)
        told = (
            f"{self.source} ({self.format}): {harmful} harmful, {len(self.examples) - harmful} "
            f"benign, {shown} of them with pictures"
        )
        left = "; ".join(f"{count}: {reason}" for reason, count in self.left_out.items())
        return f"{told}; left out {left}" if left else told


def read_examples(
    path: str | Path, format: str | None = None, pictures: str | Path | None = None
) -> ExampleSet:
    """Read a data file.

    Args:
        path: a file, or a folder with one data file or with the shards of one.
        format: one of ``FORMATS``; None tells it by the fields.
        pictures: where pictures lie that are named relative to somewhere else; they are looked for
            there, beside the file, and in the folders that data sets keep them in.

    Raises:
        ConfigurationError: the file cannot be read, holds no examples, is of no known format, a
            record is none of its format, or none of its pictures are there. In a plain file a
            missing picture is an error too.
    """
    where = Path(path)
    files = _files(where)
    roots = [Path(pictures)] if pictures is not None else []
    chosen = _format(files[0], format)
    found: list[Example] = []
    left: Counter[str] = Counter()
    for file in files:
        find = _Finder([*roots, file.parent])
        for record in read_records(file):
            for item in _items(file, record, chosen, find):
                if isinstance(item, str):
                    left[item] += 1
                else:
                    found.append(item)
    if chosen.distinct:
        found, repeated = _distinct(found)
        left[REPEATED] += repeated
    if not found:
        why = ", ".join(f"{count} {reason}" for reason, count in left.items()) or "it is empty"
        remedy = " Say where the pictures lie (--pictures DIR)." if left[NO_PICTURE] else ""
        raise ConfigurationError(f"{where} holds no examples: {why}.{remedy}")
    return ExampleSet(tuple(found), str(path), chosen.name, {k: n for k, n in left.items() if n})


def _items(file: Path, record: Record, chosen: Format, find: _Finder) -> Iterator[Example | str]:
    try:
        for item in chosen.read(record.values, find):
            yield item if isinstance(item, str) else replace(item, id=record.place)
    except _NotThereError as error:
        if chosen.name == "plain":
            raise ConfigurationError(f"{file}, {record.place}: {error}") from error
        yield NO_PICTURE
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        wanted = ", ".join(sorted(chosen.fields))
        raise ConfigurationError(
            f"{file}, {record.place}: this is no record of the format {chosen.name} "
            f"({wanted}): {error!r}."
        ) from error


class _NotThereError(LookupError):
    def __str__(self) -> str:
        return str(self.args[0])


class _Finder:
    """Finds pictures by the names that records give them."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._places = [root / folder for root in roots for folder in _PLACES]

    def __call__(self, name: str) -> Path:
        for place in self._places:
            if (file := place / name).is_file():
                return file
        raise _NotThereError(f"there is no picture {name}")


def _files(where: Path) -> list[Path]:
    if not where.is_dir():
        return [where]
    files = sorted(file for file in where.iterdir() if set(file.suffixes[-2:]) & set(SUFFIXES))
    shards = [file for file in files if file.suffix == ".parquet"]
    if len(files) == 1 or (shards and shards == files):
        return files
    names = ", ".join(file.name for file in files) or "none"
    raise ConfigurationError(f"{where} is a folder; name one of its data files: {names}.")


def _format(file: Path, name: str | None) -> Format:
    if name is not None:
        if name not in FORMATS:
            raise ConfigurationError(f"Unknown format {name!r}; there are {', '.join(FORMATS)}.")
        return FORMATS[name]
    with closing(read_records(file)) as records:
        first = next(records, None)
    if first is None:
        raise ConfigurationError(f"{file} holds no examples: it is empty.")
    for each in FORMATS.values():
        if each.fields <= first.values.keys():
            return each
    known = "; ".join(f"{each.name}: {', '.join(sorted(each.fields))}" for each in FORMATS.values())
    raise ConfigurationError(
        f"{file}, {first.place}: this is no example. A line of one's own file is "
        '{"text": ..., "label": "harmful" or "benign", "image": optional path, "answer": optional};'
        f" it has {', '.join(map(str, first.values))}. Known by their fields are {known}."
    )


def _distinct(examples: Sequence[Example]) -> tuple[list[Example], int]:
    kept = {(example.text, example.harmful): example for example in reversed(examples)}
    found = list(reversed(kept.values()))
    return found, len(examples) - len(found)


_OPEN: Final[Mapping[str, Callable[[Path], Any]]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
}
_JSONL: Final = (".jsonl", ".ndjson")
SUFFIXES: Final = (".json", *_JSONL, ".csv", ".tsv", ".parquet")
"""What a data file's name ends in, before ``.gz``, ``.xz`` or ``.bz2``."""


@dataclass(frozen=True)
class Record:
    """One record.

    Attributes:
        place: where it stands, for messages: ``"line 3"`` or ``"record 3"``, from 1.
        values: by name.
    """

    place: str
    values: Mapping[str, Any]


def read_records(path: str | Path) -> Generator[Record, None, None]:
    """The records of a file, one after the other.

    A JSON file is a list of records, or one object that holds them by their ids, which then become
    the value ``"id"``. A Parquet file is read a row group at a time.

    Raises:
        ConfigurationError: the file is missing, of another kind, or broken; the message names the
            line or record.
        MissingDependencyError: a Parquet file without pyarrow.
    """
    where = Path(path)
    suffix = _suffix(where)
    if suffix == ".parquet":
        yield from _parquet(where)
        return
    try:
        with _opened(where) as file:
            yield from _text(where, suffix, file)
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, csv.Error) as error:
        kind = suffix[1:].upper() or "data"
        raise ConfigurationError(f"{where} cannot be read as {kind}: {error}") from error


def _opened(where: Path) -> IO[bytes]:
    opener = _OPEN.get(where.suffix)
    return where.open("rb") if opener is None else cast(IO[bytes], opener(where))


def _suffix(path: Path) -> str:
    name = path.with_suffix("") if path.suffix in _OPEN else path
    if name.suffix not in SUFFIXES:
        raise ConfigurationError(
            f"{path} is no data file that is known; its name has to end in one of "
            f"{', '.join(SUFFIXES)}."
        )
    return name.suffix


def _text(where: Path, suffix: str, file: IO[bytes]) -> Iterator[Record]:
    if suffix == ".json":
        yield from _json(where, file.read().decode("utf-8-sig"))
        return
    newline = None if suffix in _JSONL else ""
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline) as text:
        yield from _lines(where, text) if suffix in _JSONL else _rows(where, suffix, text)


def _lines(where: Path, text: IO[str]) -> Iterator[Record]:
    for number, line in enumerate(text, 1):
        if line.strip():
            place = f"line {number}"
            yield _record(where, place, _parsed(where, place, line))


def _rows(where: Path, suffix: str, text: IO[str]) -> Iterator[Record]:
    rows = csv.DictReader(text, delimiter="\t" if suffix == ".tsv" else ",")
    for number, row in enumerate(rows, 1):
        yield _record(where, f"record {number}", row)


def _json(where: Path, text: str) -> Iterator[Record]:
    found = _parsed(where, "the file", text)
    if isinstance(found, dict):
        found = [{"id": key, **value} for key, value in found.items() if isinstance(value, dict)]
    if not isinstance(found, list):
        raise ConfigurationError(f"{where} holds no list of records.")
    for number, values in enumerate(found, 1):
        yield _record(where, f"record {number}", values)


def _parsed(where: Path, place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"{where}, {place}: this is no JSON: {error}") from error


def _record(where: Path, place: str, values: Any) -> Record:
    if not isinstance(values, dict) or None in values:
        raise ConfigurationError(f"{where}, {place}: this is no record with named values.")
    return Record(place, cast(dict[str, Any], values))


def _parquet(where: Path) -> Iterator[Record]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingDependencyError(
            "Parquet files are read by pyarrow, which is not installed: "
            'pip install "sightrail[data]".'
        ) from error
    try:
        number = 0
        with ParquetFile(where) as file:
            for batch in file.iter_batches(batch_size=256):
                for values in batch.to_pylist():
                    number += 1
                    yield _record(where, f"record {number}", values)
    except (OSError, ArrowException) as error:
        raise ConfigurationError(f"{where} cannot be read as Parquet: {error}") from error
