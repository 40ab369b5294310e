"""Many clients on one model: cost and waiting time, gathered against each call by itself.

    python tests/benchmarks/bench_serving.py            # writes docs/serving.json

Cost is CPU time of the whole process per request, which other work on the machine disturbs least;
waiting times are wall times of this machine as it was. Every cell asks the same requests, and the
two ways take turns (by itself, gathered, gathered, by itself), so that what else the machine does
disturbs both alike.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch

from sightrail.guardrails import LocalLVLM, RiskDetector
from sightrail.guardrails.evaluation.stacks import (
    Supplies,
    artifacts_for,
    build_stack,
    calibration_for,
)
from sightrail.testbed.source import as_messages, draw_requests

CLIENTS = (1, 4, 16, 64)
TOKENS = 24


def talks(count: int) -> list[Any]:
    """Benign requests with pictures, and attacks, in turns."""
    half = (count + 1) // 2
    drawn = zip(
        draw_requests("benign", half, "test", 11),
        draw_requests("object", half, "test", 11),
        strict=True,
    )
    return [as_messages(talk) for pair in drawn for talk in pair][:count]


@dataclass
class Cell:
    """What one way of running cost, over several rounds."""

    cpu: float = 0.0
    wall: float = 0.0
    waited: list[float] = field(default_factory=list)

    def round(self, lvlm: LocalLVLM, requests: Sequence[Any], clients: int) -> None:
        """The requests asked by that many clients, each asking anew when it is answered."""

        def ask(messages: Any) -> float:
            since = time.perf_counter()
            lvlm.chat(messages, max_new_tokens=TOKENS)
            return time.perf_counter() - since

        cpu, wall = time.process_time(), time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            self.waited += pool.map(ask, requests)
        self.cpu += time.process_time() - cpu
        self.wall += time.perf_counter() - wall

    def told(self) -> dict[str, float]:
        """Its figures."""
        waited, count = sorted(self.waited), len(self.waited)
        return {
            "n": count,
            "cpu_ms": 1000 * self.cpu / count,
            "per_cpu_second": count / self.cpu,
            "per_second": count / self.wall,
            "p50_s": waited[count // 2],
            "p95_s": waited[min(count - 1, int(count * 0.95))],
        }


def gathered_against_not(
    stacks: Sequence[str], count: int, numbers: Sequence[int]
) -> list[dict[str, Any]]:
    """Every stack, number of clients, and way of running."""
    base = LocalLVLM.from_pretrained("testbed", gather=False)
    supplies = Supplies(
        RiskDetector.from_pretrained("testbed"),
        artifacts_for("testbed"),
        calibration_for("testbed"),
    )
    rows = []
    for stack in stacks:
        guards = build_stack(stack, supplies)
        ways = {
            gather: LocalLVLM(base.model, base.processor, guardrails=guards, gather=gather)
            for gather in (False, True)
        }
        for clients in numbers:
            requests = talks(max(count, min(3 * clients, 128)))  # every client asks again
            cells = {gather: Cell() for gather in ways}
            for gather in (False, True):
                Cell().round(ways[gather], requests[:2], 1)  # nothing is loaded while it counts
            for gather in (False, True, True, False):
                cells[gather].round(ways[gather], requests, clients)
            for gather, cell in cells.items():
                found = cell.told()
                rows.append({"stack": stack, "clients": clients, "gather": gather, **found})
                told = {key: round(value, 3) for key, value in found.items()}
                print(stack, clients, "gathered" if gather else "by itself", told, flush=True)
    return rows


def gateway_overhead(count: int) -> dict[str, float]:
    """Median time that the gateway adds to an upstream that answers at once, in ms; no pictures."""
    from serve_helpers import Scripted, asked, completion, scripted, serving

    body = {"model": "up", "messages": asked("Hello.")}
    with (
        scripted(Scripted(answer=completion("ok"))) as behind,
        serving(upstream=f"{behind}/v1", stack="screen", encoder="testbed") as gateway,
        httpx.Client(timeout=60) as client,
    ):
        took: dict[str, list[float]] = {behind: [], gateway: []}
        for _ in range(count):
            for address, times in took.items():
                since = time.perf_counter()
                client.post(f"{address}/v1/chat/completions", json=body).raise_for_status()
                times.append(1000 * (time.perf_counter() - since))
    direct, through = (statistics.median(times) for times in took.values())
    return {"n": count, "direct_ms": direct, "through_ms": through, "added_ms": through - direct}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--stacks", nargs="+", default=["bare", "casa", "moras"])
    parser.add_argument("--clients", nargs="+", type=int, default=CLIENTS)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("docs/serving.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    told = json.loads(given.out.read_text()) if given.out.exists() else {}
    told |= {
        "model": "testbed",
        "max_new_tokens": TOKENS,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "gateway": gateway_overhead(100),
        "rows": gathered_against_not(given.stacks, given.requests, given.clients),
    }
    print(told["gateway"])
    given.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
