"""The report of an evaluation: one row a figure, each with its interval and count."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["EvalReport", "Row"]


class Row(BaseModel):
    """One figure.

    Attributes:
        stack: the defences in front of it, or for `auroc` the score that detects.
        metric: `attack_success`, `over_refusal`, `benign_accuracy`, `accuracy_plus` (pictures all
            of whose questions were answered right), `flagged`, `escalated` (what a cascade's second
            detector looked at), `localisation`, `auroc`, `time_ratio`, `first_token_ratio`.
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
