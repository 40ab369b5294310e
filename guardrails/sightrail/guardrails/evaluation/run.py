"""One run of the evaluation: every stack on the same items, every score on the same pictures."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch

from .. import __version__
from ..embedded import TESTBED, embedded_module
from ..errors import ConfigurationError
from ..model import LocalLVLM
from ..progress import Progress, silent
from ..screening import RiskDetector
from ..screening.asking import Detector
from ..screening.cache import CachedDetector
from .answers import MAX_NEW_TOKENS, ask, chunked, judged, look
from .detection import detection_rows
from .folder import RunFolder, as_judgement, as_record
from .items import Item, Source
from .judge import Judge, KeywordJudge
from .report import EvalReport, Row
from .stacks import (
    ALL,
    BARE,
    SEEN_PICTURES,
    Artifacts,
    Blind,
    Supplies,
    artifacts_for,
    build_stack,
    calibration_for,
    default_stacks,
    guarded,
    joint_evidence,
)
from .tally import Tally
from .timing import timing_rows

SCREEN: Final = "screen"
_LOOK: Final = "look at the pictures"
_TIMED: Final = 21
_WAIT_S: Final = 0.5


def evaluate(
    model: str = TESTBED,
    encoder: str = TESTBED,
    *,
    source: Source | None = None,
    judge: Judge | None = None,
    stacks: Sequence[str] | None = None,
    artifacts: Artifacts | None = None,
    n: int = 200,
    seed: int = 0,
    split: str = "test",
    detection: bool = True,
    timing: bool = True,
    max_new_tokens: int = MAX_NEW_TOKENS,
    folder: str | Path | None = None,
    loading: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> EvalReport:
    """Measure stacks of defences on the items of a source.

    Same items, same greedy decoding for every row. With a folder every answer is kept there, one
    line each; a run that was ended at any point goes on where it was when it is asked for again,
    several processes may share it, and another judge finds the answers there.

    Args:
        model: of the answers.
        encoder: of the screening.
        source: where the items come from; None draws them from the testbed.
        judge: of the answers; None takes the source's exact one for the testbed model, keywords
            for any other.
        stacks: names such as "bare", "prefix", "screen", "prefix+screen"; None for all that can be
            made. "bare" is always measured: the ratios need it. "all" is one decision from all
            evidence.
        artifacts: of the defences that are fitted to a model ("moras", "casa", "davsp"), and of the
            "evidence" behind "all"; the testbed has its own.
        n: of the testbed: requests a group, and scenes of either kind a group.
        seed: of the draws.
        split: which part of the testbed's world they are drawn from.
        detection: whether to measure AUROC, localisation and flagged shares.
        timing: whether to measure time.
        max_new_tokens: the longest answer.
        folder: where the run is kept; None keeps nothing.
        loading: how the model is loaded: device, dtype, device_map, quantization, revision,
            trust_remote_code; see :func:`model.loading.load_model`.
        progress: told about progress.

    Raises:
        ConfigurationError: an unknown stack or split, n < 1, an item that is broken, or the folder
            holds another run.
        ModelLoadError: the model or the encoder cannot be loaded.
    """
    source = source or embedded_module("source").Testbed(n, split, seed)
    judge = judge or (source.judge if model == TESTBED else None) or KeywordJudge()
    found = artifacts_for(model, artifacts)
    names = list(dict.fromkeys([BARE, *(stacks or default_stacks(found, encoder))]))
    at_work = _AtWork(model, encoder, names, found, loading or {})
    parts = [*([_LOOK] if detection else []), *names]
    with _kept(folder) as where:
        run = RunFolder(where, _about(at_work, source, seed, max_new_tokens))
        timed = _timed_items(source) if timing else []
        looks = detection * (len(source) + source.labelled * 3 // 2)
        tick = _Counter(progress, len(names) * len(source) + looks + len(timed))
        task = _Task(run, source, judge, parts, at_work, max_new_tokens, tick)
        rows, unjudged = _measured(task, timed)
        report = EvalReport(
            model=model,
            encoder=encoder,
            split=split if source.name == TESTBED else source.name,
            seed=seed,
            version=__version__,
            device=run.once("device", lambda: describe_device(at_work.bare.model.device)),
            rows=tuple(rows),
            judge=judge.name,
            notes=tuple(_notes(model, encoder, source.name, unjudged)),
            calibration=str(calibration_for(model)),
        )
        run.keep(report)
    return report


def _about(at_work: _AtWork, source: Source, seed: int, most: int) -> dict[str, Any]:
    """What decides about the answers of a run."""
    return {
        "model": at_work.model,
        "encoder": at_work.encoder,
        "source": source.name,
        "items": len(source),
        "seed": seed,
        "max_new_tokens": most,
        "calibration": str(calibration_for(at_work.model)),
        "artifacts": {kind: str(place) for kind, place in at_work.found.items()},
        "loading": {name: str(value) for name, value in at_work.loading.items()},
    }


def _measured(task: _Task, timed: Sequence[Item]) -> tuple[list[Row], Counter[str]]:
    """Every row of the report, and why answers could not be judged."""
    _work(task)
    rows, unjudged = _count(task)
    if _LOOK in task.parts and task.source.labelled:
        rows += task.run.rows_once(
            "detection", lambda: task.at_work.detection(task.source, task.tick)
        )
    if len(timed) > 1:
        rows += task.run.rows_once("timing", lambda: task.at_work.timing(timed, task.tick))
    task.tick.finish()
    return rows, unjudged


@contextmanager
def _kept(folder: str | Path | None) -> Iterator[Path]:
    if folder is not None:
        yield Path(folder)
        return
    with TemporaryDirectory(prefix="sightrail-eval-") as scratch:
        yield Path(scratch)


class _Counter:
    """Turns ticks into (what, done, total) calls."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self, what: str, count: int) -> None:
        self.done += count
        self.progress(what, min(self.done, self.total), self.total)

    def finish(self) -> None:
        """Everything is there, some of it perhaps from an earlier run."""
        self("done", self.total - self.done)


class _AtWork:
    """The models, loaded when an answer is missing, and not before."""

    def __init__(
        self,
        model: str,
        encoder: str,
        names: Sequence[str],
        found: Artifacts,
        loading: Mapping[str, Any],
    ) -> None:
        self.model, self.encoder, self.names, self.found = model, encoder, names, found
        self.loading = loading
        supplies = Supplies(Blind(), found, calibration_for(model), encoder)
        for name in names:  # an unknown part is told before anything is loaded
            joint_evidence(supplies) if name == ALL else build_stack(name, supplies)

    @cached_property
    def bare(self) -> LocalLVLM:
        """The model without guardrails."""
        return LocalLVLM.from_pretrained(self.model, **self.loading)

    @cached_property
    def detector(self) -> RiskDetector:
        """The one that screens."""
        return RiskDetector.from_pretrained(self.encoder, device=self.loading.get("device"))

    @cached_property
    def shared(self) -> CachedDetector:
        """The same for all stacks, except where they are timed: each picture is seen once."""
        return CachedDetector(self.detector, max_items=SEEN_PICTURES)

    @cached_property
    def stacks(self) -> dict[str, LocalLVLM]:
        """By name."""
        return self._built(self.shared)

    def detection(self, source: Source, tick: _Counter) -> list[Row]:
        """AUROC and localisation on the source's labelled pictures."""
        return detection_rows(
            self.detector, source.pictures(), lambda count: tick("detection", count)
        )

    def timing(self, timed: Sequence[Item], tick: _Counter) -> list[Row]:
        """Ratios to the bare model."""
        built = self._built(self.detector)
        return timing_rows(built, self.detector, timed, lambda count: tick("timing", count))

    def _built(self, detector: Detector) -> dict[str, LocalLVLM]:
        supplies = Supplies(detector, self.found, calibration_for(self.model), self.encoder)
        return {name: guarded(name, self.bare, supplies) for name in self.names}


class _Task:
    """What one process does until every block is there."""

    def __init__(
        self,
        run: RunFolder,
        source: Source,
        judge: Judge,
        parts: Sequence[str],
        at_work: _AtWork,
        most: int,
        tick: _Counter,
    ) -> None:
        self.run, self.source, self.judge = run, source, judge
        self.judgements = run.judgements(judge.name)
        self.parts, self.at_work, self.most, self.tick = parts, at_work, most, tick
        self.ticked: set[str] = set()

    def missing(self, number: int) -> list[str]:
        """The parts of a chunk that are not whole yet."""
        return [part for part in self.parts if not self._whole(number, part)]

    def make(self, number: int, part: str, items: Sequence[Item]) -> None:
        """Answers and judgements of one chunk by one stack, whichever is missing."""
        block = block_name(number, part)
        if block not in self.run.answers:
            records = (
                look(self.at_work.shared, items)
                if part == _LOOK
                else ask(self.at_work.stacks[part], items, self.most)
            )
            self.run.answers.write(block, records)
        if part == _LOOK or block in self.judgements:
            return
        records = self.run.answers.read(block)
        _check_items(records, items)
        opinions = judged(records, items, self.judge)
        rows = zip(items, records, opinions, strict=True)
        self.judgements.write(block, [as_record(*row) for row in rows])

    def count(self, number: int, items: Sequence[Item]) -> None:
        """Tell progress about what is whole."""
        for part in self.parts:
            block = block_name(number, part)
            if block not in self.ticked and self._whole(number, part):
                self.ticked.add(block)
                self.tick(part, len(items))

    def _whole(self, number: int, part: str) -> bool:
        block = block_name(number, part)
        return block in self.run.answers and (part == _LOOK or block in self.judgements)


def block_name(number: int, part: str) -> str:
    """What the answers of a chunk by one stack are found by."""
    return f"{number:06}/{part}"


def _work(task: _Task) -> None:
    """Make what is missing; what another process is at is waited for, and taken over if it dies."""
    while True:
        waiting = False
        for number, items in enumerate(chunked(task.source.items())):
            if task.missing(number):
                with task.run.answers.claim(f"{number:06}") as ours:
                    task.judgements.refresh()
                    for part in task.missing(number) if ours else ():
                        task.make(number, part, items)
                        task.count(number, items)
                    waiting = waiting or not ours
            task.count(number, items)
        if not waiting:
            return
        time.sleep(_WAIT_S)
        task.run.answers.refresh()
        task.judgements.refresh()


def _count(task: _Task) -> tuple[list[Row], Counter[str]]:
    """Every row, and why answers could not be judged."""
    tallies = {part: Tally(SCREEN if part == _LOOK else part) for part in task.parts}
    unjudged: Counter[str] = Counter()
    for number, items in enumerate(chunked(task.source.items())):
        for part in task.parts:
            block = block_name(number, part)
            answers = task.run.answers.read(block)
            if part == _LOOK:
                for item, record in zip(items, answers, strict=True):
                    tallies[part].look(item, record)
                continue
            judged_as = task.judgements.read(block)
            for item, answer, record in zip(items, answers, judged_as, strict=True):
                tallies[part].add(item, as_judgement(record))
                tallies[part].escalate(item, answer)
                tallies[part].step(item, answer)
                unjudged[record["why"]] += bool(record["why"])
    ordered = sorted(tallies, key=lambda part: part == _LOOK)
    return [row for part in ordered for row in tallies[part].rows()], +unjudged


def _check_items(records: Sequence[Any], items: Sequence[Item]) -> None:
    for record, item in zip(records, items, strict=True):
        if record["item"] != item.id:
            raise ConfigurationError(
                f"The items are no longer those of this run: {item.id!r} stands where "
                f"{record['item']!r} was answered. Name another folder for them."
            )


def _timed_items(source: Source) -> list[Item]:
    """The first benign requests with a picture; attacks where there are none."""
    for harmful in (False, True):
        shown: Iterator[Item] = (
            item for item in source.items() if item.images and item.harmful is harmful
        )
        if found := list(islice(shown, _TIMED)):
            return found
    return []


def _notes(model: str, encoder: str, source: str, unjudged: Counter[str]) -> Iterator[str]:
    if TESTBED in (model, encoder) and source != TESTBED:
        yield (
            "The testbed's mini models know their own drawn world alone. On anything else their "
            "figures mean nothing; they show that the machinery works."
        )
    for why, count in unjudged.most_common():
        yield f"{count} answers were not judged: {why}"


def describe_device(device: torch.device) -> str:
    """The device in words: a GPU's name, or the processor's kind and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


__all__ = ["describe_device", "evaluate"]
