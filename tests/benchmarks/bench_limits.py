"""What the most expensive requests within the default limits take, and what many requests leave.

    PYTHONPATH=tests python -m benchmarks.bench_limits --requests --pictures 200 --seconds 60 \
        --screenings 2000

Requests of up to 20 MB, each the most of another kind: CPU seconds and peak memory beyond the
loaded model, from the message to the decision, with the testbed's detector and default settings on
one thread, without a deadline. Then by how much scores differ alone and in a batch of 24, whether
32 threads get other answers than one through mixed stacks (detectors, messages with masks, models
behind defences), and by how much memory grows over many screenings. What is not asked for keeps its
figures. Writes docs/limits.json.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from langchain_core.messages import HumanMessage
from PIL import Image

from hostile_files import jpeg_of_scans
from memory_helpers import FORGET, resident
from sightrail.guardrails import (
    CachedDetector,
    LocalLVLM,
    Picture,
    Policy,
    RiskDetector,
    Verdict,
)
from sightrail.guardrails.carriers.loop import Screened
from sightrail.guardrails.embedded import TESTBED
from sightrail.guardrails.evaluation.stacks import (
    Supplies,
    artifacts_for,
    calibration_for,
    guarded,
)
from sightrail.guardrails.screening.asking import Detector
from sightrail.guardrails.screening.cascade import Cascade, Together
from sightrail.runnables import ScreenImages
from sightrail.testbed.scenes import draw_objects
from sightrail.testbed.splits import SPLITS

TEST: Final = SPLITS["test"]
Request = Callable[[], list[bytes]]
WHOLE: Final = ("screen", "guardalign", "casa", "screen+moras")
QUESTION: Final = "What is in this picture?"


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


def _bmp_of_runs(count: int) -> bytes:
    """49 megapixels in runs of one and more pixels, which Pillow unpacks in Python."""
    packed = struct.pack("<IiiHHIIiiII", 40, 7000, 7000, 1, 8, 1, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 1078) + packed + bytes(1024) + b"\1\0" * count


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
    "a BMP of 10 million runs": lambda: [_bmp_of_runs(10_000_000)],
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


Ask = Callable[[Picture], object]
"""One stack: what it says of a picture, in a form that can be compared."""


def _said(verdicts: Sequence[Verdict]) -> object:
    return [
        (v.status, v.category, v.action, v.regions, {k: round(s, 4) for k, s in v.scores.items()})
        for v in verdicts
    ]


def _whole(name: str, bare: LocalLVLM, supplies: Supplies) -> Ask:
    """A model behind a stack of defences: its answer and the verdicts."""
    lvlm = guarded(name, bare, supplies)

    def ask(picture: Picture) -> object:
        content = [{"type": "image", "image": picture.image}, {"type": "text", "text": QUESTION}]
        answer = lvlm.chat([{"role": "user", "content": content}], max_new_tokens=8)
        return answer.text, _said(answer.verdicts)

    return ask


def _in_a_message(screen: ScreenImages) -> Ask:
    def ask(picture: Picture) -> object:
        data = base64.b64encode(_encoded(picture.image, "PNG")).decode()
        block = {"type": "image", "base64": data, "mime_type": "image/png"}
        [found] = screen.screen([HumanMessage([block])])
        assert isinstance(found, Screened)
        return _said(found.verdicts)

    return ask


def mixed_stacks(detector: RiskDetector) -> dict[str, Ask]:
    """Detectors alone and made of others, messages with masks, and models behind defences."""
    cached = CachedDetector(detector, max_items=3)
    made: dict[str, Detector] = {
        "detector": detector,
        "cached": cached,
        "together": Together(cached, detector),
        "cascade": Cascade(detector, cached, band=(0.0, 0.2)),
    }
    supplies = Supplies(cached, artifacts_for(TESTBED), calibration_for(TESTBED), TESTBED)
    bare = LocalLVLM.from_pretrained(TESTBED)
    return {
        **{name: lambda p, one=one: _said(one.screen([p])) for name, one in made.items()},
        "messages": _in_a_message(ScreenImages(detector=made["together"])),
        **{name: _whole(name, bare, supplies) for name in WHOLE},
    }


def threads(detector: RiskDetector, seconds: float) -> dict[str, object]:
    """Calls of 32 threads through mixed stacks, and those that were answered otherwise."""
    shown, stacks = list(pictures(6)), list(mixed_stacks(detector).items())
    known = {name: [ask(picture) for picture in shown] for name, ask in stacks}
    end, calls, other = time.monotonic() + seconds, [0] * 32, [0] * 32

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        while time.monotonic() < end:
            name, ask = stacks[(number + calls[number]) % len(stacks)]
            chosen = int(rng.integers(len(shown)))
            other[number] += ask(shown[chosen]) != known[name][chosen]
            calls[number] += 1

    running = [threading.Thread(target=work, args=[number]) for number in range(32)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return {
        "seconds": round(seconds),
        "stacks": [name for name, _ in stacks],
        "calls": sum(calls),
        "answered_otherwise": sum(other),
    }


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
