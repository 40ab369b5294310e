"""The report of an evaluation: one row a figure, each with its interval and count."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["EvalReport", "ReportTable", "Row"]

_RATES: Final = (
    "attack_success",
    "benign_accuracy",
    "accuracy_plus",
    "task_success",
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
_OTHERS: Final = "Other figures [95 % interval]"


class Row(BaseModel):
    """One figure.

    Attributes:
        stack: the defences in front of it, or for `auroc` the score that detects.
        metric: `attack_success`, `over_refusal`, `benign_accuracy`, `accuracy_plus` (pictures all
            of whose questions were answered right), `task_success` (tasks with tools), `steps`
            (the model's answers in one), `flagged`, `escalated` (what a cascade's second detector
            looked at), `localisation`, `auroc`, `time_ratio`, `first_token_ratio`.
        group: which requests or scenes.
        value: the figure; shares and AUROCs in 0..1, ratios to the bare model.
        low: lower end of the 95 % interval.
        high: upper end of the 95 % interval.
        n: how many items it rests on.
        unjudged: how many of them nobody could judge: they count against the stack in `value`, and
            one way in `low`, the other way in `high`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stack: str
    metric: str
    group: str
    value: float
    low: float
    high: float
    n: int
    unjudged: int = 0

    def __str__(self) -> str:
        """The figure with its interval; shares in per cent."""
        scale = 100 if self.metric in _RATES else 1
        digits = 1 if self.metric in _RATES else 3 if self.metric == "auroc" else 2
        bounds = (self.value, self.low, self.high)
        value, low, high = (f"{scale * figure:.{digits}f}" for figure in bounds)
        unjudged = f" ({self.unjudged} unjudged)" if self.unjudged else ""
        return f"{value} [{low}, {high}]{unjudged}"


@dataclass(frozen=True)
class ReportTable:
    """A section of a report: one line a figure, one column a stack of defences.

    Attributes:
        title: of the section.
        columns: the names of the figure, of its group, and of the stacks.
        lines: what stands under them; a figure's name only where it changes.
    """

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


class EvalReport(BaseModel):
    """Every figure of one run and what it was run on.

    Attributes:
        model: of the answers.
        encoder: of the screening.
        split: of the testbed, or the benchmarks that were read.
        seed: of the draws.
        version: of sightrail.
        device: in words.
        rows: the figures.
        judge: who judged the answers.
        notes: what a reader has to know before believing a figure.
        calibration: the settings of `calibration`, and of every stack that holds it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    encoder: str
    split: str
    seed: int
    version: str
    device: str
    rows: tuple[Row, ...]
    judge: str = ""
    notes: tuple[str, ...] = ()
    calibration: str = ""

    def value(self, stack: str, metric: str, group: str) -> float:
        """One figure.

        Raises:
            KeyError: it was not measured.
        """
        for row in self.rows:
            if (row.stack, row.metric, row.group) == (stack, metric, group):
                return row.value
        raise KeyError(f"{stack} / {metric} / {group} was not measured")

    def tables(self) -> list[ReportTable]:
        """Every section that has figures."""
        known = {metric for _, metrics in _SECTIONS for metric in metrics}
        others = _unique(row.metric for row in self.rows if row.metric not in known)
        sections = [*_SECTIONS, (_OTHERS, others)]
        found = [(title, [r for r in self.rows if r.metric in m]) for title, m in sections]
        return [_table(title, rows) for title, rows in found if rows]

    def _repr_html_(self) -> str:
        """What a notebook shows: the tables."""
        about = f"model {self.model}, encoder {self.encoder}, {self.split} split, seed {self.seed}"
        drawn = "".join(map(_table_html, self.tables()))
        return f"<div>{drawn}<p>{html.escape(about)}</p></div>"

    def draw(self) -> Image:
        """Attack success against what it costs, one point a stack, with 95 % intervals.

        Across: benign and look-alike requests that are refused, the larger of the two shares.
        """
        from matplotlib.figure import Figure
        from PIL import Image

        figure = Figure(figsize=(5.4, 4.0), layout="constrained")
        axes = figure.subplots()
        for stack in _unique(row.stack for row in self.rows if row.metric == "attack_success"):
            success, refused = (
                self._worst(stack, "attack_success"),
                self._worst(stack, "over_refusal"),
            )
            if success is None or refused is None:
                continue
            (x, x_error), (y, y_error) = _drawn(refused), _drawn(success)
            axes.errorbar(x, y, xerr=x_error, yerr=y_error, fmt="o", capsize=2, label=stack)
        axes.set(xlabel="benign requests refused, %", ylabel="attacks that succeed, %")
        if axes.has_data():
            axes.legend(fontsize="small")
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=110)
        return Image.open(drawn)

    def _worst(self, stack: str, metric: str) -> Row | None:
        """The highest of a stack's figures over all groups."""
        rows = [row for row in self.rows if (row.stack, row.metric) == (stack, metric)]
        return max(rows, key=lambda row: row.value, default=None)


def _drawn(row: Row) -> tuple[float, list[list[float]]]:
    """A share in per cent, and its distances to the ends of its interval."""
    below, above = max(0.0, row.value - row.low), max(0.0, row.high - row.value)
    return 100 * row.value, [[100 * below], [100 * above]]


def _table(title: str, rows: Sequence[Row]) -> ReportTable:
    stacks = _unique(row.stack for row in rows)
    cells = {(row.metric, row.group, row.stack): str(row) for row in rows}
    lines, previous = [], None
    for metric, group in dict.fromkeys((row.metric, row.group) for row in rows):
        name = "" if metric == previous else metric.replace("_", " ")
        figures = (cells.get((metric, group, stack), "") for stack in stacks)
        lines.append((name, group.replace("_", " "), *figures))
        previous = metric
    return ReportTable(title, ("figure", "group", *stacks), tuple(lines))


def _table_html(table: ReportTable) -> str:
    """A table; every text in it is escaped."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>"
        for line in table.lines
    )
    caption = f"<caption>{html.escape(table.title)}</caption>"
    return f"<table>{caption}<tr>{head}</tr>{body}</table>"


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
