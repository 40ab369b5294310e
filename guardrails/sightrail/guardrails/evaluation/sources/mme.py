"""MME: yes-or-no questions, two a picture (arXiv 2306.13394).

Layout, as users of the release describe and load it: ``MME_Benchmark_release_version``, in newer
ones with a folder ``MME_Benchmark`` inside, and a folder a task below. A task either has ``images``
and ``questions_answers_YN``, or pictures and texts side by side. A text of the picture's name has
two lines, question and answer parted by a tab. The published score of a task, at most 200, is the
sum of two percentages: ``benign_accuracy``, over questions, and ``accuracy_plus``, the share of
pictures with both answers right.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..items import Item
from .folder import Folder, Row

_SUFFIXES = (".jpg", ".png", ".jpeg")


def mme(folder: Folder) -> Iterator[Item]:
    """Every question of every task."""
    root = folder.find(
        "MME_Benchmark_release_version/MME_Benchmark",
        "MME_Benchmark_release_version",
        "MME_Benchmark",
        ".",
    )
    tasks = [path for path in sorted(root.iterdir()) if path.is_dir() and _texts(path)]
    if not tasks:
        folder.find("MME_Benchmark_release_version")  # says what is missing
    for task in tasks:
        for file in _texts(task):
            yield from _questions(folder, task, file)


def _texts(task: Path) -> list[Path]:
    apart = task / "questions_answers_YN"
    return sorted((apart if apart.is_dir() else task).glob("*.txt"))


def _questions(folder: Folder, task: Path, file: Path) -> Iterator[Item]:
    place = str((task / "images" if file.parent != task else task).relative_to(folder.root))
    named = [file.stem + suffix for suffix in _SUFFIXES]
    there = [name for name in named if (folder.root / place / name).exists()]
    row = Row(file, "the file", {})
    image = folder.picture(row, (there or named)[0], place)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise row.error(f"it cannot be read: {error}") from error
    for number, line in enumerate((line for line in lines if line.strip()), 1):
        question, tab, answer = line.rpartition("\t")
        if not tab or answer.strip().lower() not in ("yes", "no"):
            raise Row(file, f"line {number}", {}).error("this is no question, tab, and Yes or No")
        yield Item(
            id=f"{task.name}/{file.stem}.{number}",
            groups=(f"mme/{task.name}", "mme"),
            text=question,
            harmful=False,
            images=(image,),
            answer=answer.strip(),
            match="option",
            picture=f"{task.name}/{file.stem}",
        )
