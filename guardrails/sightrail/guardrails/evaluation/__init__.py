"""Measuring: what a stack of defences changes, each figure with its interval and count."""

from ..refusals import is_refusal
from .agents import Reply
from .items import Item, LabelledPicture, Source
from .judge import Judge, Judgement, KeywordJudge, ModelJudge
from .report import EvalReport, Row
from .run import evaluate

__all__ = [
    "EvalReport",
    "Item",
    "Judge",
    "Judgement",
    "KeywordJudge",
    "LabelledPicture",
    "ModelJudge",
    "Reply",
    "Row",
    "Source",
    "evaluate",
    "is_refusal",
]
