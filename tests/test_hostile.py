"""Hostile picture files in every carrier: a verdict each, whatever the bytes, in bounded memory.

Long run: 5,000 requests of LangChain's and 2,000 of LlamaIndex's forms with up to 6 files each, and
20,000 files by themselves.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompt_values import ChatPromptValue
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import NodeWithScore
from llama_index.core.tools import ToolOutput
from PIL import Image

from bad_pictures import encoded, photo
from chain_helpers import CARRIERS, RedDetector
from hostile_files import BOMBS, mutated_file
from llama_helpers import BLOCKS, NODES
from memory_helpers import MIB, at_most
from repository import ROOT, environment
from sightrail.guardrails import ImageError, Limits, read_picture
from sightrail.guardrails.carriers.loop import Screened, passed
from sightrail.guardrails.intake import pictures
from sightrail.integrations.llama_index import ImageScreen
from sightrail.runnables import ScreenImages

LIMITS = Limits(
    max_pixels=1_000_000,
    max_frames=16,
    max_images_per_message=4,
    max_pixels_per_request=2_000_000,
)
# Pillow warns of tags that it skips; what it goes on to read is to be tested, as users have it.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

PEAK = 64 * MIB
"""A request within LIMITS holds 6 MB of decoded pixels, and as much again in four renderings and
their copies while one picture of the largest size is read, digested and encoded anew."""

BY_BYTES = [name for name in CARRIERS if name != "transformers image"]  # that one holds PIL
BY_MEMORY = [
    name
    for name in (*BLOCKS, *NODES)
    if not any(word in name for word in ("path", "file url", "later"))
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    return mutated_file(lambda low, high: draw(st.integers(low, high)))


FILES = st.lists(st.tuples(st.sampled_from(BY_BYTES), mutated()), min_size=1, max_size=6)


def _result(blocks: list[Any]) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "1", "content": blocks}


INNER = st.sampled_from(
    [
        lambda blocks: blocks,
        lambda blocks: [_result(blocks)],
        lambda blocks: [{"type": "text", "text": "see"}, _result([_result(blocks)])],
        lambda blocks: [{"type": "non_standard", "value": block} for block in blocks],
        lambda blocks: [_result([{"type": "non_standard", "value": _result(blocks)}])],
    ]
)
OUTER = st.sampled_from(
    [
        HumanMessage,
        SystemMessage,
        AIMessage,
        lambda blocks: ToolMessage(blocks, tool_call_id="1"),
        lambda blocks: ToolMessage("see", tool_call_id="1", artifact={"content": blocks}),
        lambda blocks: ToolMessage("see", tool_call_id="1", artifact=[[{"deep": [blocks]}]]),
        lambda blocks: AIMessage("see", additional_kwargs={"content": blocks}),
        lambda blocks: Document("see", metadata={"content": blocks}),
        lambda blocks: {"question": "what?", "context": [Document("a", metadata={"b": blocks})]},
        lambda blocks: {"question": "what?", "history": [("human", blocks)]},
        lambda blocks: {"role": "user", "content": blocks},
        lambda blocks: [HumanMessage([block]) for block in blocks],
        lambda blocks: ChatPromptValue(messages=[SystemMessage("be kind"), HumanMessage(blocks)]),
    ]
)
REQUESTS = st.tuples(FILES, INNER, OUTER)


def check(request: tuple[list[tuple[str, bytes]], Any, Any]) -> None:
    """One verdict a file at least; whatever nobody looked at is refused and no longer there."""
    files, inner, outer = request
    value = outer(inner([CARRIERS[name](data) for name, data in files]))
    detector, left = RedDetector(), RedDetector()
    with at_most(PEAK):
        screened = passed(ScreenImages(detector=detector, limits=LIMITS).screen([value])[0])
        again = passed(ScreenImages(detector=left, limits=LIMITS).screen([screened.value])[0])
    judge(screened, again, detector, left, len(files))


def judge(
    screened: Screened, again: Screened, first: RedDetector, second: RedDetector, files: int
) -> None:
    inspected = [v for v in screened.verdicts if v.status in ("clean", "flagged")]
    unseen = [v for v in screened.verdicts if v.status == "not_inspected"]
    assert len(inspected) + len(unseen) == len(screened.verdicts) >= files
    assert len(inspected) == len(first.seen)
    assert screened.refused == bool(unseen)
    assert all(v.not_inspected[0].reason for v in unseen)
    assert not any(v.status == "not_inspected" for v in again.verdicts)
    assert [seen.tobytes() for seen in second.seen] == [seen.tobytes() for seen in first.seen]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(REQUESTS)
def test_hostile_pictures_end_in_a_verdict(request: Any) -> None:
    check(request)


@pytest.mark.long
@settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))
@given(REQUESTS)
def test_hostile_pictures_end_in_a_verdict_at_length(request: Any) -> None:
    check(request)


AS_DATA = {
    "TextBlock base64",
    "TextBlock JSON",
    "ToolCallBlock text",
    "Document JSON",
    "Document that is a picture",
    "metadata base64",
    "Node text resource data",
}
"""Base64 where any text may stand: a carrier only as long as it still begins like a picture."""

LLAMA_FILES = st.lists(st.tuples(st.sampled_from(BY_MEMORY), mutated()), min_size=1, max_size=6)


def is_carrier(name: str, data: bytes) -> bool:
    begins = data.startswith((b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF89a"))
    return name not in AS_DATA or (begins and len(data) >= 18)


def check_llama(files: list[tuple[str, bytes]], role: str) -> None:
    """The same for LlamaIndex's blocks and nodes."""
    nowhere = Path("/nowhere")
    blocks = [BLOCKS[name](data, nowhere) for name, data in files if name in BLOCKS]
    nodes = [NODES[name](data, nowhere) for name, data in files if name in NODES]
    message = ChatMessage.model_construct(role=role, blocks=blocks, additional_kwargs={})
    output = ToolOutput.model_construct(
        blocks=[], tool_name="look", raw_input={}, raw_output=nodes[1:]
    )
    value = [message, *(NodeWithScore(node=node) for node in nodes[:1]), output]
    detector, left = RedDetector(), RedDetector()
    with at_most(PEAK):
        screened = passed(ImageScreen(detector, limits=LIMITS).screen([value])[0])
        again = passed(ImageScreen(left, limits=LIMITS).screen([screened.value])[0])
    judge(screened, again, detector, left, sum(is_carrier(*file) for file in files))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(LLAMA_FILES, st.sampled_from(["user", "tool"]))
def test_hostile_pictures_end_in_a_verdict_in_llama_index(files: Any, role: str) -> None:
    check_llama(files, role)


@pytest.mark.long
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(LLAMA_FILES, st.sampled_from(["user", "tool"]))
def test_hostile_pictures_end_in_a_verdict_in_llama_index_at_length(files: Any, role: str) -> None:
    check_llama(files, role)


def child(script: str) -> str:
    """What a fresh process prints: its memory is that of the script alone."""
    return subprocess.run(
        [sys.executable, "-c", script],
        env=environment(ROOT / "tests"),
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    ).stdout


READ_MANY = """
import json, random, resource
from collections import Counter
from hostile_files import BOMBS, mutated_file
from test_hostile import LIMITS
from sightrail.guardrails import ImageError, read_picture
pick, ends, before = random.Random(5).randint, Counter(), 0
for number in range(300 + {files}):
    if number == 300:  # what the decoders themselves take has been taken
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ends.clear()
    try:
        read_picture(mutated_file(pick), LIMITS)
        ends["read"] += 1
    except ImageError as error:
        ends[error.reason] += 1
print(json.dumps([ends, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


def read_many(files: int) -> None:
    """Files one after the other: all end in a picture or a reason, and none leaves memory taken."""
    ends, kilobytes = json.loads(child(READ_MANY.format(files=files)))
    assert sum(ends.values()) == files
    assert ends["read"] > files / 10
    assert {"truncated", "not_an_image", "too_large"} <= ends.keys()
    assert kilobytes < 32 * MIB


def test_hostile_files_take_bounded_memory() -> None:
    read_many(600)


@pytest.mark.long
def test_hostile_files_take_bounded_memory_at_length() -> None:
    read_many(20_000)


def icon_bomb() -> bytes:
    """An ICO whose list says 16 x 16 and whose picture says 12000 x 12000."""
    inner = encoded(Image.new("L", (12_000, 12_000)))
    entry = bytes([16, 16, 0, 0, 1, 0, 32, 0]) + len(inner).to_bytes(4, "little")
    return b"\0\0\1\0\1\0" + entry + (22).to_bytes(4, "little") + inner


MEASURE = """
import resource
from bad_pictures import animation, encoded, growing_tiff, photo
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
    reason, kilobytes = child(MEASURE.format(name=name)).split()
    assert reason in ("too_large", "too_many_frames")
    assert int(kilobytes) < 32 * MIB


@pytest.mark.parametrize("name", BOMBS)
def test_what_a_format_can_blow_up_is_bounded(name: str) -> None:
    expected, make = BOMBS[name]
    source, reason = make(), None
    with at_most(192 * MIB):  # three times the largest of these sources
        try:
            read_picture(source)
        except ImageError as error:
            reason = error.reason
    assert reason == expected


def test_escapes_are_decoded_wherever_a_piece_ends() -> None:
    plain = encoded(photo())
    for start in range(3):
        text = "x" * start + "%41" * 50_000 + "y%"
        assert pictures._unquoted(text) == unquote_to_bytes(text)
    address = "data:image/png," + "".join(f"%{byte:02x}" for byte in plain)
    assert read_picture(address).image.size == photo().size
