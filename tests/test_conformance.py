"""No carrier passes unseen on any surface, and docs/conformance.md says what becomes of each."""

from __future__ import annotations

import pytest

import conformance
from conformance import INSPECTED, SILENT, UNTOUCHED, UNTYPED, Table
from repository import ROOT


@pytest.fixture(scope="module")
def tables() -> list[Table]:
    return conformance.tables()


@pytest.fixture(scope="module")
def left() -> list[Table]:
    return conformance.untouched_tables()


def test_what_holds_no_picture_is_not_touched(left: list[Table]) -> None:
    for table in left:
        assert len(table.rows) >= 60
        touched = [name for name, row in table.rows.items() if row["afterwards"] != UNTOUCHED]
        assert touched == []


def test_nothing_passes_unseen(tables: list[Table]) -> None:
    silent = [
        (table.title, name, surface)
        for table in tables
        for name, row in table.rows.items()
        for surface, cell in row.items()
        if cell == SILENT
    ]
    assert silent == []


def test_the_table_is_large_and_its_exceptions_few(tables: list[Table]) -> None:
    cells = [cell for table in tables for cell in table.cells]
    assert len(cells) >= 60
    assert cells.count(INSPECTED) >= 60
    assert cells.count(UNTYPED) <= 6


def test_a_picture_that_can_be_read_is_inspected(tables: list[Table]) -> None:
    for table in tables:
        rows = {name: row for name, row in table.rows.items() if not name.endswith("(unseen)")}
        if table.title == "Command line":
            rows = {name: rows[name] for name in ("picture.png", *conformance.READABLE)}
        assert {cell for row in rows.values() for cell in row.values()} == {INSPECTED}


def test_the_document_is_up_to_date(tables: list[Table], left: list[Table]) -> None:
    written = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert written == conformance.markdown(tables, left), "run `make docs`"
