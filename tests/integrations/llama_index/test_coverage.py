"""Every carrier on every surface: looked at, or refused as not inspected. No silent pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.base.response.schema import Response
from llama_index.core.schema import BaseNode, Node, NodeWithScore, QueryBundle
from llama_index.core.tools import FunctionTool, ToolOutput

from chain_helpers import CLEAN, RISKY, RedDetector, clean_picture, risky_picture
from llama_helpers import (
    BLOCKS,
    HERE,
    NODES,
    UNSEEN_BLOCKS,
    UNSEEN_NODES,
    VALUES,
    Make,
    pictures_in,
    same,
)
from sightrail.guardrails import LocalLVLM, Policy, Verdict
from sightrail.integrations.llama_index import (
    LVLM,
    ImageRiskPostprocessor,
    ImageRiskTransform,
    ImageScreen,
    guard_tool,
    read_marker,
)
from tiny_models import tiny

READ_AS_TEXT = {name for name in BLOCKS if name.startswith(("TextBlock", "ToolCall", "Thinking"))}
"""To a local model these are words, so LVLM has no picture to screen."""


@dataclass
class Outcome:
    """What a surface made of one carrier.

    Attributes:
        passed: what a model or index would get; None where nothing.
        verdicts: what is known about it afterwards, where the surface tells.
    """

    passed: Any
    verdicts: tuple[Verdict, ...] | None = None


Surface = Callable[[Any, RedDetector], Outcome]


def _retrieved(node: BaseNode, detector: RedDetector) -> Outcome:
    processor = ImageRiskPostprocessor(detector=detector, limits=HERE, when_all_refused="nothing")
    kept = processor.postprocess_nodes([NodeWithScore(node=node, score=0.5)], QueryBundle("a"))
    return Outcome(kept or None, _marked(kept[0].node) if kept else None)


def _ingested(node: BaseNode, detector: RedDetector) -> Outcome:
    kept = ImageRiskTransform(detector=detector, limits=HERE)([node])
    return Outcome(kept or None, _marked(kept[0]) if kept else None)


def _screened(value: Any, detector: RedDetector) -> Outcome:
    (outcome,) = ImageScreen(detector, limits=HERE).screen([value])
    return Outcome(None if outcome.refused else outcome.value, outcome.verdicts)


def _message(block: Any, detector: RedDetector) -> Outcome:
    return _screened([_said(TextBlock(text="see"), block)], detector)


def _response(node: BaseNode, detector: RedDetector) -> Outcome:
    return _screened(Response("hi", source_nodes=[NodeWithScore(node=node)]), detector)


def _tool_blocks(block: Any, detector: RedDetector) -> Outcome:
    # copied in unchecked, as a tool may do: pydantic would not let an unknown block in
    output = ToolOutput("see", content="hi", raw_input={})
    return _called(lambda: output.model_copy(update={"blocks": [block]}), detector)


def _tool_raw(value: Any, detector: RedDetector) -> Outcome:
    return _called(lambda: {"found": [value]}, detector)


def _called(make: Callable[[], Any], detector: RedDetector) -> Outcome:
    def look() -> Any:
        return "unused"

    tool = FunctionTool.from_defaults(look, callback=lambda _: _as_output(make()))
    output = guard_tool(tool, detector=detector, limits=HERE).call()
    return Outcome(None if output.is_error else output)


def _as_output(value: Any) -> ToolOutput:
    if isinstance(value, ToolOutput):
        return value
    return ToolOutput("see", content="hi", raw_input={}, raw_output=value)


def _said(*blocks: Any) -> ChatMessage:
    """Blocks that pydantic would not let in can still be appended."""
    message = ChatMessage()
    message.blocks += blocks
    return message


def _marked(node: BaseNode) -> tuple[Verdict, ...] | None:
    marker = read_marker(node)
    return None if marker is None else marker.verdicts


def _asked(block: Any, detector: RedDetector) -> Outcome:
    local = LocalLVLM(*tiny("llava"), guardrails=[detector], name="tiny")
    response = LVLM(model=local, max_tokens=2, limits=HERE).chat([_said(block)])
    verdicts = tuple(Verdict.model_validate(v) for v in response.raw["verdicts"])
    return Outcome(None if response.raw["refused"] else detector.seen, verdicts)


BLOCK_SURFACES: dict[str, Surface] = {
    "ImageScreen": _message,
    "guard_tool blocks": _tool_blocks,
    "guard_tool raw output": _tool_raw,
    "LVLM": _asked,
}
NODE_SURFACES: dict[str, Surface] = {
    "ImageRiskPostprocessor": _retrieved,
    "ImageRiskTransform": _ingested,
    "ImageScreen response": _response,
    "guard_tool raw output": _tool_raw,
}
VALUE_SURFACES: dict[str, Surface] = {"ImageScreen": _screened, "guard_tool raw output": _tool_raw}
SEEN = [(s, c, BLOCK_SURFACES[s], BLOCKS[c]) for s in BLOCK_SURFACES for c in BLOCKS]
SEEN += [(s, c, NODE_SURFACES[s], NODES[c]) for s in NODE_SURFACES for c in NODES]
SEEN += [(s, c, VALUE_SURFACES[s], VALUES[c]) for s in VALUE_SURFACES for c in VALUES]
UNSEEN = [
    (s, c, BLOCK_SURFACES[s], *UNSEEN_BLOCKS[c]) for s in BLOCK_SURFACES for c in UNSEEN_BLOCKS
]
UNSEEN += [(s, c, NODE_SURFACES[s], *UNSEEN_NODES[c]) for s in NODE_SURFACES for c in UNSEEN_NODES]


def test_the_table_is_large_enough() -> None:
    assert len(SEEN) + len(UNSEEN) >= 200


@pytest.mark.parametrize(
    ("surface", "carrier", "run", "make"), SEEN, ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_risky_picture_is_found_and_covered(
    surface: str, carrier: str, run: Surface, make: Make, tmp_path: Path, detector: RedDetector
) -> None:
    if surface == "LVLM" and carrier in READ_AS_TEXT:
        pytest.skip("a local model reads it as words")
    outcome = run(make(RISKY, tmp_path), detector)
    assert same(detector.seen[:1], risky_picture())
    if outcome.verdicts is not None:
        assert [(v.status, v.action) for v in outcome.verdicts] == [("flagged", "mask")]
    if surface != "LVLM":  # what its model saw is tested where its messages are
        passed = list(pictures_in(outcome.passed))
        assert passed
        assert not any(image.tobytes() == risky_picture().tobytes() for image in passed)
        assert detector._look(passed[0]).status == "clean"


@pytest.mark.parametrize(
    ("surface", "carrier", "run", "make"), SEEN, ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_clean_picture_passes_with_the_pixels_that_were_looked_at(
    surface: str, carrier: str, run: Surface, make: Make, tmp_path: Path, detector: RedDetector
) -> None:
    if surface == "LVLM" and carrier in READ_AS_TEXT:
        pytest.skip("a local model reads it as words")
    if carrier == "QueryBundle":
        pytest.skip("all that an embedding can read of a query is its path")
    outcome = run(make(CLEAN, tmp_path), detector)
    assert same(detector.seen, clean_picture())
    (tmp_path / "picture.png").write_bytes(RISKY)  # a file that changes after it was looked at
    assert same(
        outcome.passed if surface == "LVLM" else pictures_in(outcome.passed), clean_picture()
    )


@pytest.mark.parametrize(
    ("surface", "carrier", "run", "reason", "make"),
    UNSEEN,
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_cannot_be_looked_at_is_refused_and_says_why(
    surface: str,
    carrier: str,
    run: Surface,
    reason: str,
    make: Make,
    tmp_path: Path,
    detector: RedDetector,
) -> None:
    outcome = run(make(CLEAN, tmp_path), detector)
    assert outcome.passed is None
    assert not detector.seen
    if outcome.verdicts is not None:
        reasons = [n.reason for v in outcome.verdicts for n in v.not_inspected]
        assert reasons == [reason]


@pytest.mark.parametrize("carrier", UNSEEN_NODES)
def test_the_unseen_travels_on_only_where_the_policy_allows_it(
    carrier: str, tmp_path: Path, detector: RedDetector
) -> None:
    reason, make = UNSEEN_NODES[carrier]
    node = make(CLEAN, tmp_path)
    policy = Policy(on_not_inspected="allow")
    (kept,) = ImageRiskTransform(detector=detector, policy=policy, limits=HERE)([node])
    marker = read_marker(kept)
    assert marker is not None
    assert [n.reason for v in marker.verdicts for n in v.not_inspected] == [reason]
    assert kept.model_copy(update={"metadata": node.metadata}).hash == node.hash


def test_a_second_source_does_not_travel_with_the_first(
    tmp_path: Path, detector: RedDetector
) -> None:
    """Integrations prefer addresses or data as they like: what was not read must not be there."""
    path = tmp_path / "risky.png"
    path.write_bytes(RISKY)
    block = ImageBlock(image=CLEAN, path=path, url="https://example.org/risky.png")
    outcome = _message(block, detector)
    (_, passed) = outcome.passed[0].blocks
    assert (passed.path, passed.url) == (None, None)
    assert same(pictures_in(passed), clean_picture())
    node = Node(image_resource={"data": CLEAN, "path": path, "url": "https://example.org/r.png"})
    (kept,) = ImageRiskTransform(detector=detector, limits=HERE)([node])
    assert kept.image_resource.path is None
    assert same(pictures_in(kept), clean_picture())
