"""An evaluation report as tables: one row a figure, one column a stack of defences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from rich.table import Table

if TYPE_CHECKING:
    from sightrail.guardrails.evaluation import EvalReport, Row

_RATES: Final = (
    "attack_success",
    "benign_accuracy",
    "accuracy_plus",
    "over_refusal",
    "flagged",
    "escalated",
    "localisation",
)
_SECTIONS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("Answers and refusals, % [95 % interval]", _RATES),
    ("Time, times the bare model [95 % interval]", ("time_ratio", "first_token_ratio")),
    ("Detection, AUROC [95 % interval]", ("auroc",)),
)


def report_tables(report: EvalReport) -> list[Table]:
    """One table per section of the report that has figures."""
    known = {metric for _, metrics in _SECTIONS for metric in metrics}
    others = tuple(dict.fromkeys(row.metric for row in report.rows if row.metric not in known))
    sections = [*_SECTIONS, ("Other figures [95 % interval]", others)]
    tables = []
    for title, metrics in sections:
        rows = [row for row in report.rows if row.metric in metrics]
        if rows:
            tables.append(_table(title, rows))
    return tables


def _table(title: str, rows: Sequence[Row]) -> Table:
    stacks = _unique(row.stack for row in rows)
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    table.add_column("group")
    for stack in stacks:
        table.add_column(stack, justify="right")
    cells = {(row.metric, row.group, row.stack): _cell(row) for row in rows}
    previous = None
    for metric, group in dict.fromkeys((row.metric, row.group) for row in rows):
        name = "" if metric == previous else metric.replace("_", " ")
        figures = (cells.get((metric, group, stack), "") for stack in stacks)
        table.add_row(name, group.replace("_", " "), *figures)
        previous = metric
    return table


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _cell(row: Row) -> str:
    scale, digits = (100, 1) if row.metric in _RATES else (1, 3 if row.metric == "auroc" else 2)
    value, low, high = (f"{scale * figure:.{digits}f}" for figure in (row.value, row.low, row.high))
    unjudged = f" ({row.unjudged} unjudged)" if row.unjudged else ""
    return f"{value} \\[{low}, {high}]{unjudged}"
