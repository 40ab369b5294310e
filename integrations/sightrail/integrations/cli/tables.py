"""An evaluation report as tables of the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from sightrail.guardrails.evaluation import EvalReport


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
