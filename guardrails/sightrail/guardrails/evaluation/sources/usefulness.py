"""Benchmarks of usefulness: harmless questions with right answers.

A format is one function from a folder to items; its docstring says where its facts come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase

from ..items import Item
from .folder import Folder, Row

_MME_SUFFIXES = (".jpg", ".png", ".jpeg")


def mme(folder: Folder) -> Iterator[Item]:
    """MME: yes-or-no questions, two a picture (arXiv 2306.13394).

    Every question of every task.

    Layout, as users of the release describe and load it: ``MME_Benchmark_release_version``, in
    newer ones with a folder ``MME_Benchmark`` inside, and a folder a task below. A task either
    has ``images`` and ``questions_answers_YN``, or pictures and texts side by side. A text of
    the picture's name has two lines, question and answer parted by a tab. The published score
    of a task, at most 200, is the sum of two percentages: ``benign_accuracy``, over questions,
    and ``accuracy_plus``, the share of pictures with both answers right.
    """
    root = folder.find(
        "MME_Benchmark_release_version/MME_Benchmark",
        "MME_Benchmark_release_version",
        "MME_Benchmark",
        ".",
    )
    tasks = [path for path in sorted(root.iterdir()) if path.is_dir() and _mme_texts(path)]
    if not tasks:
        folder.find("MME_Benchmark_release_version")  # says what is missing
    for task in tasks:
        for file in _mme_texts(task):
            yield from _mme_questions(folder, task, file)


def _mme_texts(task: Path) -> list[Path]:
    apart = task / "questions_answers_YN"
    return sorted((apart if apart.is_dir() else task).glob("*.txt"))


def _mme_questions(folder: Folder, task: Path, file: Path) -> Iterator[Item]:
    place = str((task / "images" if file.parent != task else task).relative_to(folder.root))
    named = [file.stem + suffix for suffix in _MME_SUFFIXES]
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


def mm_vet(folder: Folder) -> Iterator[Item]:
    """MM-Vet: open questions that need several capabilities at once (arXiv 2308.02490).

    Every question, counted under each capability it needs.

    Layout, from yuweihao/MM-Vet (inference/utils.py): ``mm-vet.json`` holds, by ids ``v1_0``
    ..., imagename, question, answer, capability; pictures in ``images``. In an answer ``<AND>``
    parts what has to be said together and ``<OR>`` what may be said instead. The published
    score is GPT-4's, 0 to 1; here an answer is right where it contains what is asked for.
    """
    for row in folder.rows("mm-vet.json", "mm-vet/mm-vet.json"):
        capabilities = tuple(f"mm-vet/{name}" for name in row.list("capability"))
        yield Item(
            id=row.text("id"),
            groups=(*capabilities, "mm-vet"),
            text=row.text("question"),
            harmful=False,
            images=(folder.picture(row, row.text("imagename"), "images", "mm-vet/images"),),
            answer=row.text("answer"),
        )


def scienceqa(folder: Folder) -> Iterator[Item]:
    """ScienceQA, its questions with a picture (arXiv 2209.09513, CC BY-NC-SA).

    Every question of the test split that has a picture.

    Layout, from lupantech/ScienceQA (README.md) as LLaVA and others load it: ``problems.json``
    (in the repository ``data/scienceqa``) holds, by id, question, choices, answer (an index),
    hint, image (``image.png`` or null), subject, split; pictures
    ``images/{split}/{id}/image.png``. The wording around the options is ours.
    """
    for row in folder.rows("problems.json", "data/scienceqa/problems.json"):
        if row.values.get("split") == "test" and row.values.get("image"):
            yield _scienceqa_item(folder, row)


def _scienceqa_item(folder: Folder, row: Row) -> Item:
    choices, right = row.list("choices"), row.values.get("answer")
    if not isinstance(right, int) or not 0 <= right < len(choices) <= len(ascii_uppercase):
        raise row.error("the field 'answer' should hold the index of one of the choices")
    number, name = row.text("id"), row.text("image")
    options = [
        f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False)
    ]
    parts = [row.maybe("hint"), row.text("question"), *options]
    parts.append("Answer with the letter of the right option.")
    subject = row.maybe("subject") or "no subject"
    places = ("images", "data/scienceqa/images", "")
    return Item(
        id=number,
        groups=(f"scienceqa/{subject}", "scienceqa"),
        text="\n".join(part for part in parts if part),
        harmful=False,
        images=(folder.picture(row, f"test/{number}/{name}", *places),),
        answer=ascii_uppercase[right],
        match="option",
    )
