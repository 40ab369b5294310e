"""Benchmarks that tell caution from over-refusal: harmless requests, mostly beside harmful ones.

A format is one function from a folder to items; its docstring says where its facts come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...datasets import published
from ..items import Item
from .examples import items_of
from .folder import Folder, Row

_XSTEST_FILES = ("xstest_prompts.csv", "xstest_v2_prompts.csv")


def xstest(folder: Folder) -> Iterator[Item]:
    """XSTest: safe prompts that sound unsafe, and unsafe ones beside them (arXiv 2308.01263).

    Every prompt; safe ones measure over-refusal. The licence is CC BY.

    Layout, from paul-rottger/xstest: ``xstest_prompts.csv`` with id, prompt, type, label,
    focus, note; see :func:`datasets.published.xstest` for the first version, which has no
    label.
    """
    for row in folder.rows(*_XSTEST_FILES):
        yield from items_of("xstest", folder, row, published.xstest, number=row.text("id"))


_MOSSBENCH_FILES = (
    "information.json",
    "images_information/information.json",
    "data/information.json",
)


def mossbench(folder: Folder) -> Iterator[Item]:
    """MOSSBench: harmless requests that look unsafe (arXiv 2406.17806, CC BY-SA).

    Every request; all of them are benign.

    Layout, from xirui-li/MOSSBench (README.md, "Data Format", and its visualizer's copy of the
    data): ``information.json`` holds, by pid, ``image`` (``images/1.png``), ``question``, and
    ``metadata`` with the type of oversensitivity under ``over``, in older copies under
    ``oversensitivity type``.
    """
    for row in folder.rows(*_MOSSBENCH_FILES):
        metadata = row.values.get("metadata")
        if not isinstance(metadata, dict):
            raise row.error("the field 'metadata' should hold an object")
        kind = metadata.get("over") or metadata.get("oversensitivity type") or "untyped"
        yield Item(
            id=row.text("pid"),
            groups=(f"mossbench/{kind}", "mossbench"),
            text=row.text("question"),
            harmful=False,
            images=(folder.picture(row, row.text("image"), "", "data"),),
        )


def vlguard(folder: Folder) -> Iterator[Item]:
    """VLGuard: unsafe pictures; safe ones with safe and unsafe instructions (arXiv 2402.02207).

    Every instruction of the test split.

    Layout, from ys-zong/VLGuard: ``test.json`` beside the folder ``test`` of pictures; the
    records are read by :func:`datasets.published.vlguard`. Its three parts are counted apart,
    as there.
    """
    for row in folder.rows("test.json"):
        places = ("test", "")
        for item in items_of(
            "vlguard", folder, row, published.vlguard, number=row.place, places=places
        ):
            safe = bool(row.values["safe"])
            part = "unsafe" if not safe else "safe_unsafe" if item.harmful else "safe_safe"
            yield replace(item, groups=(f"vlguard/{part}", *item.groups))


def mssbench(folder: Folder) -> Iterator[Item]:
    """MSSBench: one request, safe beside one picture and unsafe beside another (arXiv 2410.06172).

    Every request twice: with the safe picture and with the unsafe one.

    Layout, from eric-ai-lab/MSSBench (utils/infer_on_data.py): ``combined.json`` with two
    lists. ``chat``: safe_image_path, unsafe_image_path, queries; pictures in ``chat``.
    ``embodied``: safe, unsafe, safe_instructions, unsafe_instructions; pictures in
    ``embodied``. Their instructions around each request are left out: a guardrail is asked what
    a user asks.
    """
    file, found = folder.json("combined.json", "data/combined.json")
    for row in _mssbench_rows(file, found, "chat"):
        for index, query in enumerate(row.list("queries")):
            for side in ("safe", "unsafe"):
                image = row.text(f"{side}_image_path")
                yield _mssbench_item(folder, row, "chat", f"{index}", side, image, query)
    for row in _mssbench_rows(file, found, "embodied"):
        for side in ("safe", "unsafe"):
            for index, query in enumerate(row.list(f"{side}_instructions")):
                yield _mssbench_item(
                    folder, row, "embodied", f"{index}", side, row.text(side), query
                )


def _mssbench_rows(file: Path, found: Any, part: str) -> Iterator[Row]:
    whole = Row(file, "the file", found if isinstance(found, dict) else {})
    for number, values in enumerate(whole.list(part), 1):
        row = Row(file, f"{part}, record {number}", values if isinstance(values, dict) else {})
        if not isinstance(values, dict):
            raise row.error("this is no record")
        yield row


def _mssbench_item(
    folder: Folder, row: Row, part: str, index: str, side: str, image: str, query: Any
) -> Item:
    if not isinstance(query, str) or not query.strip():
        raise row.error("a request is no text")
    number = row.place.rpartition(" ")[2]
    return Item(
        id=f"{part}/{number}.{index}/{side}",
        groups=(f"mssbench/{part}/{side}", f"mssbench/{part}", "mssbench"),
        text=query,
        harmful=side == "unsafe",
        images=(folder.picture(row, image, part),),
    )
