"""Hostile pictures in every carrier: a verdict each, whatever the bytes, in bounded memory."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from PIL import Image

from bad_pictures import animation, encoded, photo, upside
from chain_helpers import CARRIERS, CLEAN, RedDetector
from repository import ROOT, environment
from sightrail.guardrails import Limits
from sightrail.runnables import ScreenImages
from sightrail.runnables.screening import passed


def _pdf() -> bytes:
    file = io.BytesIO()
    photo(24, 16).save(file, "PDF")
    return file.getvalue()


KINDS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "ICO", "PPM", "AVIF")
SEEDS = [encoded(photo(24, 16), kind) for kind in KINDS]
SEEDS += [CLEAN, animation(3), upside(), upside(6, "TIFF"), _pdf()]
LIMITS = Limits(max_pixels=1_000_000, max_frames=16, max_images_per_message=4)
BY_BYTES = [name for name in CARRIERS if name != "transformers image"]  # that one holds PIL

WRAPPED = st.sampled_from(
    [
        HumanMessage,
        SystemMessage,
        AIMessage,
        lambda blocks: ToolMessage(blocks, tool_call_id="1"),
        lambda blocks: ToolMessage("see", tool_call_id="1", artifact={"content": blocks}),
    ]
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A picture file with some bytes changed, cut out, put in, or doubled."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 10))):
        place = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["change", "cut", "insert", "double", "huge"])):
            case "change":
                data[place : place + 1] = bytes([draw(st.integers(0, 255))])
            case "cut":
                del data[place : place + draw(st.integers(1, 64))]
            case "insert":
                data[place:place] = draw(st.binary(min_size=1, max_size=16))
            case "double":
                data[place:place] = data[place : place + 64]
            case _:  # a length or a size field that claims the most it can
                data[place : place + 4] = b"\xff\xff\xff\xff"
    return bytes(data)


BLOCKS = st.lists(st.tuples(st.sampled_from(BY_BYTES), mutated()), min_size=1, max_size=6)


def check(blocks: list[tuple[str, bytes]], wrap: Any) -> None:
    """One verdict a picture; whatever nobody looked at is refused and no longer there."""
    message: BaseMessage = wrap([CARRIERS[name](data) for name, data in blocks])
    detector = RedDetector()
    screen = ScreenImages(detector=detector, limits=LIMITS)
    screened = passed(screen.screen([message])[0])
    inspected = [v for v in screened.verdicts if v.status in ("clean", "flagged")]
    unseen = [v for v in screened.verdicts if v.status == "not_inspected"]
    assert len(inspected) + len(unseen) == len(screened.verdicts) >= 1
    assert len(inspected) == len(detector.seen)
    assert screened.refused == bool(unseen)
    assert all(v.not_inspected[0].reason for v in unseen)
    left = RedDetector()
    again = passed(ScreenImages(detector=left, limits=LIMITS).screen([screened.value])[0])
    assert not any(v.status == "not_inspected" for v in again.verdicts)
    assert len(left.seen) == len(inspected)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(BLOCKS, WRAPPED)
def test_hostile_pictures_end_in_a_verdict(blocks: list[tuple[str, bytes]], wrap: Any) -> None:
    check(blocks, wrap)


@pytest.mark.long
@settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))
@given(BLOCKS, WRAPPED)
def test_hostile_pictures_end_in_a_verdict_at_length(
    blocks: list[tuple[str, bytes]], wrap: Any
) -> None:
    check(blocks, wrap)


def icon_bomb() -> bytes:
    """An ICO whose list says 16 x 16 and whose picture says 12000 x 12000."""
    inner = encoded(Image.new("L", (12_000, 12_000)))
    entry = bytes([16, 16, 0, 0, 1, 0, 32, 0]) + len(inner).to_bytes(4, "little")
    return b"\0\0\1\0\1\0" + entry + (22).to_bytes(4, "little") + inner


MEASURE = """
import resource, sys
from bad_pictures import animation, bomb, encoded, growing_tiff, photo
from test_hostile import icon_bomb
from sightrail.guardrails import ImageError, read_picture
data = {name}
read_picture(encoded(photo()))  # what decoding anything costs
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_picture(data)
except ImageError as error:
    reason = error.reason
print(reason, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("name", ["icon_bomb()", "growing_tiff()", "animation(80)"])
def test_bombs_are_refused_before_they_take_memory(name: str) -> None:
    made = subprocess.run(
        [sys.executable, "-c", MEASURE.format(name=name)],
        env=environment(ROOT / "tests"),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    reason, kilobytes = made.stdout.split()
    assert reason in ("too_large", "too_many_frames")
    assert int(kilobytes) < 32 * 1024
