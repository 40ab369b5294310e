"""What the most expensive requests within the default limits take, and what many requests leave.

    PYTHONPATH=tests python -m benchmarks.bench_limits --requests --pictures 200 --seconds 60 \
        --screenings 2000

Requests of up to 20 MB, each the most of another kind: CPU seconds and peak memory beyond the
loaded model, from the message to the decision, with the testbed's detector and default settings on
one thread, without a deadline. Then by how much scores differ alone and in a batch of 24, whether
32 threads get other answers than one, and by how much memory grows over many screenings. What is
not asked for keeps its figures. Writes docs/limits.json.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
from langchain_core.messages import HumanMessage
from PIL import Image

from hostile_files import jpeg_of_scans
from memory_helpers import FORGET, resident
from sightrail.guardrails import CachedDetector, Picture, Policy, RiskDetector, Verdict
from sightrail.guardrails.carriers.loop import Screened
from sightrail.runnables import ScreenImages
from sightrail.testbed.scenes import draw_objects
from sightrail.testbed.splits import SPLITS

TEST: Final = SPLITS["test"]
Request = Callable[[], list[bytes]]


def _rough(width: int, height: int, seed: int, mode: str = "RGB") -> Image.Image:
    """A picture with something everywhere that still packs well."""
    grain = np.random.default_rng(seed).integers(0, 256, (24, 24, len(mode)), dtype=np.uint8)
    return Image.fromarray(grain).resize((width, height), Image.Resampling.NEAREST)


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _transparent_animation() -> list[bytes]:
    frames = [_rough(2000, 1000, seed, "RGBA") for seed in range(12)]
    return [_encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])]


REQUESTS: Final[dict[str, Request]] = {
    "24 renderings of 2 megapixels": _transparent_animation,
    "24 photographs of 4 megapixels": lambda: [
        _encoded(_rough(2300, 1750, seed), "JPEG") for seed in range(24)
    ],
    "2 photographs of 49 megapixels": lambda: [
        _encoded(_rough(7000, 7000, seed), "JPEG") for seed in range(2)
    ],
    "24 panoramas": lambda: [_encoded(_rough(8000, 500, seed), "JPEG") for seed in range(24)],
    "a JPEG of 30 scans of 49 megapixels": lambda: [jpeg_of_scans(22, 7000)],
    "numbers in words, 20 MB": lambda: [b"P3\n2580 2580\n255\n" + b"0 " * 10_000_000],
}


def cost(screen: ScreenImages, made: list[bytes]) -> dict[str, object]:
    """CPU seconds, MiB beyond what was held before, and what became of the pictures."""
    blocks = [
        {"type": "image", "base64": base64.b64encode(data).decode(), "mime_type": "image/png"}
        for data in made
    ]
    FORGET.write_text("5", encoding="ascii")  # the peak starts again from here
    before, started = resident()[0], time.process_time()
    [outcome] = screen.screen([HumanMessage(blocks)])
    seconds = time.process_time() - started
    assert isinstance(outcome, Screened)
    return {
        "megabytes": round(sum(map(len, made)) / 1e6, 2),
        "cpu_s": round(seconds, 2),
        "mib": round((resident()[1] - before) / 1024),
        "statuses": sorted({verdict.status for verdict in outcome.verdicts}),
    }


def pictures(count: int) -> Iterator[Picture]:
    """Scenes of the test split."""
    for number in range(count):
        names = [str(n) for n in TEST.rng(5000 + number).choice(TEST.unsafe, 1 + number % 3)]
        image = draw_objects(TEST.rng(6000 + number), TEST, names).image
        yield Picture(image, (image,))


def batch_difference(detector: RiskDetector, count: int) -> float:
    """The largest difference of any score between a picture alone and in a batch of 24."""
    shown, most = list(pictures(count)), 0.0
    for start in range(0, count, 24):
        part = shown[start : start + 24]
        for picture, beside in zip(part, detector.screen(part), strict=True):
            [alone] = detector.screen([picture])
            most = max(most, *(abs(alone.scores[k] - v) for k, v in beside.scores.items()))
    return most


def _said(verdict: Verdict) -> tuple[object, ...]:
    scores = {name: round(score, 4) for name, score in verdict.scores.items()}
    return verdict.status, verdict.category, scores, verdict.regions


def threads(detector: RiskDetector, seconds: float) -> dict[str, int]:
    """Calls of 32 threads, with and without a cache, and those that were answered otherwise."""
    shown = list(pictures(6))
    known = [_said(verdict) for verdict in detector.screen(shown)]
    stacks = (detector, CachedDetector(detector, max_items=3))
    end, calls, other = time.monotonic() + seconds, [0] * 32, [0] * 32

    def ask(number: int) -> None:
        rng = np.random.default_rng(number)
        while time.monotonic() < end:
            chosen = rng.permutation(len(shown))[: 1 + number % 3]
            found = stacks[number % len(stacks)].screen([shown[n] for n in chosen])
            calls[number] += 1
            other[number] += [_said(v) for v in found] != [known[n] for n in chosen]

    running = [threading.Thread(target=ask, args=[number]) for number in range(32)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return {"seconds": round(seconds), "calls": sum(calls), "answered_otherwise": sum(other)}


def growth(detector: RiskDetector, screenings: int) -> dict[str, object]:
    """MiB that are held after so many screenings more than after the first 50."""
    shown, held = list(pictures(10)), 0
    for number in range(screenings):
        if number == 50:
            held = resident()[0]
        detector.screen([shown[number % len(shown)]])
    return {"screenings": screenings, "grown_mib": round((resident()[0] - held) / 1024, 1)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", action="store_true", help="the most expensive ones")
    parser.add_argument("--pictures", type=int, default=0, help="alone and in a batch")
    parser.add_argument("--seconds", type=float, default=0.0, help="of 32 threads")
    parser.add_argument("--screenings", type=int, default=0, help="over which memory is watched")
    parser.add_argument("--out", type=Path, default=Path("docs/limits.json"))
    args = parser.parse_args()

    found = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    detector = RiskDetector.from_pretrained("testbed")
    screen = ScreenImages(detector=detector, policy=Policy(timeout_s=None))
    cost(screen, [_encoded(_rough(200, 200, 0), "PNG")])  # what anything costs the first time
    if args.requests:
        found["requests"] = {}
        for name, make in REQUESTS.items():
            found["requests"][name] = cost(screen, make())
            print(name, found["requests"][name], flush=True)
    if args.pictures:
        most = batch_difference(detector, args.pictures)
        found["alone_and_in_a_batch_of_24"] = {"pictures": args.pictures, "most": most}
    if args.seconds:
        found["32_threads"] = threads(detector, args.seconds)
    if args.screenings:
        found["memory"] = growth(detector, args.screenings)
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
