"""A whole evaluation on the embedded models, killed again and again, ends in the same report."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from benchmark_folders import png, put
from sightrail.guardrails.evaluation import EvalReport, evaluate
from sightrail.guardrails.evaluation.sources import Benchmark

KILLS = 20
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "transformers", "sightrail.guardrails.evaluation.run"])


def requests(root: Path) -> Path:
    """Forty requests in eight groups, every other one with a picture."""
    for group in range(8):
        lines = []
        for number in range(5):
            picture = {"image": f"{number}.png"} if number % 2 else {}
            label = "harmful" if group % 2 else "benign"
            text = f"how many things of kind {number} are in picture {group}?"
            lines.append(json.dumps({"text": text, "label": label, **picture}))
        put(root, f"group{group}.jsonl", "\n".join(lines))
    for number in range(5):
        put(root, f"{number}.png", png(40 * number))
    return root


def work(data: str, folder: str) -> None:
    source = Benchmark("jsonl", Path(data))
    evaluate(source=source, stacks=["screen", "prefix"], folder=folder, timing=False)


def killed_after(seconds: float, *arguments: str) -> bool:
    """Whether the process was still at work when it was killed."""
    process = CONTEXT.Process(target=work, args=arguments)
    process.start()
    process.join(seconds)
    if process.is_alive():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def report_in(folder: Path) -> EvalReport:
    return EvalReport.model_validate_json((folder / "report.json").read_text())


@pytest.mark.long
def test_killed_at_random_points_a_run_ends_in_the_same_report(tmp_path: Path) -> None:
    data = str(requests(tmp_path / "data"))
    assert not killed_after(3600, data, str(tmp_path / "first"))  # imports everything once
    started = time.monotonic()
    assert not killed_after(3600, data, str(tmp_path / "whole"))
    whole, took = report_in(tmp_path / "whole"), time.monotonic() - started
    rng, killed, runs = random.Random(11), 0, 0
    while killed < KILLS:
        folder = tmp_path / f"run{runs}"
        while killed_after(rng.uniform(0.15, 0.7) * took, data, str(folder)):
            killed += 1
        runs += 1
        assert report_in(folder) == whole
    answers = (tmp_path / "whole" / "answers.jsonl").read_text().splitlines()
    assert len(answers) == 4 * 40  # three stacks and a look at the pictures


@pytest.mark.long
def test_two_processes_share_a_run(tmp_path: Path) -> None:
    data, folder = str(requests(tmp_path / "data")), tmp_path / "run"
    workers = [CONTEXT.Process(target=work, args=(data, str(folder))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len((folder / "answers.jsonl").read_text().splitlines()) == 4 * 40
