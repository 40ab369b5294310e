"""How a stack answers: some items at a time, each answer with its verdicts as a record."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any, Final

from ..errors import ImageError, PromptError
from ..model import Answer, LocalLVLM
from ..screening.asking import Detector
from ..verdict import Verdict
from .agents import Reply, Worked, tools_of, work
from .items import Item
from .judge import REFUSED, Judge, Judgement
from .ledger import Record

CHUNK: Final = 25
MAX_NEW_TOKENS: Final = 48


def chunked(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Items that are answered in one batch: some at a time, of one group, with the same tools."""
    for _, group in groupby(items, key=lambda item: (item.groups, tools_of(item))):
        while chunk := list(islice(group, CHUNK)):
            yield chunk


def ask(
    lvlm: LocalLVLM, items: Sequence[Item], max_new_tokens: int = MAX_NEW_TOKENS
) -> list[Record]:
    """The model's answers, greedy, as records.

    An item that cannot be asked (its picture is broken, its prompt too long) has an ``error`` in
    place of an answer, and spoils no other's.
    """
    started = time.perf_counter()
    found = _answers(lvlm, items, max_new_tokens)
    seconds = time.perf_counter() - started
    return [
        {"item": item.id, **_record(answer), "seconds": round(seconds, 4), "together": len(items)}
        for item, answer in zip(items, found, strict=True)
    ]


def look(detector: Detector, items: Sequence[Item]) -> list[Record]:
    """The detector's verdicts on every item's pictures, as records."""
    read = [_pictures(item) for item in items]
    verdicts = iter(
        detector.screen([p for found in read if isinstance(found, list) for p in found])
    )
    return [
        {"item": item.id, "error": found}
        if isinstance(found, str)
        else {"item": item.id, "verdicts": [_lean(next(verdicts)) for _ in found]}
        for item, found in zip(items, read, strict=True)
    ]


def judged(records: Sequence[Record], items: Sequence[Item], judge: Judge) -> list[Judgement]:
    """What answers amount to.

    A guardrail's refusal is a refusal; what was not answered is not judged.
    """
    pairs = list(zip(items, records, strict=True))
    said = [(i, _said(r)) for i, r in pairs if "error" not in r and not _declined(r)]
    opinions = iter(judge.judge(said))
    return [
        Judgement(None, None, why=f"not answered: {record['error']}")
        if "error" in record
        else REFUSED
        if _declined(record)
        else next(opinions)
        for _, record in pairs
    ]


def _said(record: Record) -> Reply:
    return Reply(record["text"], tuple((name, given) for name, given in record.get("calls", ())))


def _declined(record: Record) -> bool:
    """Whether a guardrail refused before anything was done; else a judge sees what was."""
    return bool(record["refused"]) and not record.get("calls")


def _answers(lvlm: LocalLVLM, items: Sequence[Item], most: int) -> list[Answer | Worked | str]:
    try:
        if items[0].toolbox is not None:
            return list(work(lvlm, items, most))
        messages = [item.messages() for item in items]
        return list(lvlm.batch(messages, max_new_tokens=most))
    except (ImageError, PromptError) as error:
        if len(items) == 1:
            return [f"{type(error).__name__}: {_reason(error)}"]
        return [answer for item in items for answer in _answers(lvlm, [item], most)]


def _pictures(item: Item) -> list[Any] | str:
    try:
        return list(item.pictures())
    except ImageError as error:
        return f"ImageError: {_reason(error)}"


def _reason(error: Exception) -> str:
    return error.reason if isinstance(error, ImageError) else str(error)


def _record(answer: Answer | Worked | str) -> Record:
    if isinstance(answer, str):
        return {"error": answer}
    if isinstance(answer, Worked):
        calls = [[name, dict(given)] for name, given in answer.calls]
        return {**_record(answer.answer), "calls": calls, "steps": answer.steps}
    return {
        "text": answer.text,
        "refused": answer.refused,
        "finish": answer.finish_reason,
        "tokens": [answer.usage.input_tokens, answer.usage.output_tokens],
        "verdicts": [_lean(verdict) for verdict in answer.verdicts],
    }


def _lean(verdict: Verdict) -> dict[str, Any]:
    """A verdict without its map, which is most of its size."""
    return verdict.model_dump(mode="json", exclude={"risk_map"}, exclude_defaults=True)
