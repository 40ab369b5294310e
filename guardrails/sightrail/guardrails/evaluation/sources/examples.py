"""Items from the formats that fitting reads too: one way to read a format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

from ...datasets import Example
from ...datasets.published import FindPicture, Found, Values, plain
from ...errors import ConfigurationError
from ..items import Item, Match
from .folder import Folder, Row

Read = Callable[[Values, FindPicture], Iterator[Found]]


def items_of(
    name: str, folder: Folder, row: Row, read: Read, *, number: str, places: tuple[str, ...] = ()
) -> Iterator[Item]:
    """The items of one record.

    Args:
        name: of the benchmark, for the groups.
        folder: where its pictures lie.
        row: the record.
        read: the format.
        number: the record's id.
        places: folders below the root in which pictures may lie.

    Raises:
        ConfigurationError: the record is none of this format, or a picture is not there.
    """

    def find(named: str) -> Path:
        return cast(Path, folder.picture(row, named, *places))  # formats hand it on as it is

    try:
        found = list(read(row.values, find))
    except ConfigurationError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise row.error(f"this is no record of {name}: {error!r}") from error
    for index, example in enumerate(found):
        if isinstance(example, str):
            raise row.error(example)
        item = item_of(name, example)
        yield replace(item, id=number if len(found) == 1 else f"{number}.{index}")


def item_of(name: str, example: Example) -> Item:
    """An example as an item; its answer is a wish and no truth to compare with."""
    group = (f"{name}/{example.group}",) if example.group else ()
    return Item(
        id=example.id,
        groups=(*group, name),
        text=example.text,
        harmful=example.harmful,
        images=example.images,
        history=example.history,
    )


def jsonl(folder: Folder) -> Iterator[Item]:
    """Your own requests: a folder of JSONL files with pictures beside them.

    Every line of every file, counted by file and by its own group.

    One object a line: ``text`` or ``messages``, ``label`` (harmful or benign), and, where there
    are any, ``image`` or ``images``, ``system``, ``answer``, ``group``; see
    :func:`datasets.published.plain`. The answer of a benign request is what a right answer
    contains; ``match`` says otherwise (exact, option).
    """
    for row in folder.shards("*.jsonl", ""):
        number = f"{row.file.stem}/{row.place.removeprefix('line ')}"
        match = row.values.get("match", "contained")
        if match not in get_args(Match):
            raise row.error(f"the field 'match' is one of {', '.join(get_args(Match))}")
        for item in items_of("jsonl", folder, row, plain, number=number):
            own = (f"jsonl/{group}",) if (group := row.maybe("group")) else ()
            answer = None if item.harmful else row.maybe("answer") or None
            yield replace(
                item,
                groups=(*own, f"jsonl/{row.file.stem}", "jsonl"),
                answer=answer,
                match=cast(Match, match),
            )
