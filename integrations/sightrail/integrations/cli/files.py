"""Which files a `screen` run looks at: all of them, in a stable order."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Found:
    """The files of a run.

    Attributes:
        files: named files and everything in named folders, also what is no picture, cannot be
            listed or does not exist: each of these gets a verdict that says so.
        hidden: files and folders inside named folders that were skipped, their names beginning
            with a dot.
    """

    files: tuple[Path, ...]
    hidden: int


def find_files(paths: Iterable[Path]) -> Found:
    """Named files as they are, folders recursively and sorted; nothing twice."""
    files: dict[Path, None] = {}
    hidden = 0
    for path in paths:
        if not path.is_dir():
            files[path] = None
            continue
        inside = _walk(path)
        files.update(dict.fromkeys(inside.files))
        hidden += inside.hidden
    return Found(tuple(files), hidden)


def _walk(root: Path) -> Found:
    files: list[Path] = []
    hidden = 0
    seen = {os.path.realpath(root)}
    unlisted = files.append  # a folder that cannot be listed is reported as a file is
    for folder, folders, names in os.walk(
        root, followlinks=True, onerror=lambda error: unlisted(Path(error.filename))
    ):
        hidden += sum(name.startswith(".") for name in (*folders, *names))
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".") and _first_visit(os.path.join(folder, name), seen)
        ]
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    return Found(tuple(sorted(files)), hidden)


def _first_visit(folder: str, seen: set[str]) -> bool:
    """Links may lead in circles; every real folder is entered once."""
    real = os.path.realpath(folder)
    if real in seen:
        return False
    seen.add(real)
    return True
