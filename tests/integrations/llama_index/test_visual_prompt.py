"""Bordered nodes: every carrier, nothing changed in place, nothing unbordered in silence."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from llama_index.core.schema import BaseNode, ImageNode, NodeWithScore, TextNode

from chain_helpers import CLEAN, REMOTE, RISKY, RedDetector, clean_picture, text64
from llama_helpers import HERE, NODES, pictures_in
from sightrail.guardrails import ImageError, VisualSafetyPrompt
from sightrail.guardrails.davsp import Frame
from sightrail.integrations.llama_index import (
    ImageBorderPostprocessor,
    ImageRiskPostprocessor,
    read_marker,
)

PIXELS = np.random.default_rng(5).integers(0, 256, (24, 24, 3), dtype=np.uint8)
GUARD = VisualSafetyPrompt(Frame(PIXELS, (3, 3, 21, 21)))
BORDER = ImageBorderPostprocessor(limits=HERE, border=GUARD)
EXPECTED = np.asarray(GUARD.apply_to_image(clean_picture()))


def scored(*nodes: BaseNode) -> list[NodeWithScore]:
    return [NodeWithScore(node=node, score=1 / (1 + n)) for n, node in enumerate(nodes)]


def only_bordered(node: NodeWithScore) -> bool:
    """A resource holds its picture twice, as data and as an address."""
    seen = [np.asarray(image) for image in pictures_in(node.node)]
    return bool(seen) and all(np.array_equal(image, EXPECTED) for image in seen)


@pytest.mark.parametrize("name", NODES)
async def test_every_node_that_carries_a_picture(name: str, tmp_path: Path) -> None:
    node = NODES[name](CLEAN, tmp_path)
    before = copy.deepcopy(node)
    (out,) = BORDER.postprocess_nodes(scored(node), query_str="?")
    assert only_bordered(out)
    assert out.score == 1.0
    assert node == before
    (again,) = await BORDER.apostprocess_nodes([out], query_str="?")
    assert only_bordered(again)


def test_nodes_without_pictures_are_the_same_nodes() -> None:
    nodes = scored(TextNode(text="hello"))
    assert BORDER.postprocess_nodes(nodes, query_str="?")[0].node is nodes[0].node


def test_what_cannot_be_read() -> None:
    nodes = scored(ImageNode(image_url=REMOTE), TextNode(text="hello"))
    assert [n.node.get_content() for n in BORDER.postprocess_nodes(nodes)] == ["hello"]
    strict = ImageBorderPostprocessor(limits=HERE, border=GUARD, on_unreadable="raise")
    with pytest.raises(ImageError):
        strict.postprocess_nodes(nodes)
    lenient = ImageBorderPostprocessor(limits=HERE, border=GUARD, on_unreadable="pass")
    assert lenient.postprocess_nodes(nodes)[0].node.image_url == REMOTE


def test_after_screening() -> None:
    detector = RedDetector()
    nodes = scored(ImageNode(image=text64(RISKY)))
    screened = ImageRiskPostprocessor(detector=detector).postprocess_nodes(nodes)
    (out,) = BORDER.postprocess_nodes(screened)
    assert detector.seen[0].size == (40, 32)
    (image,) = pictures_in(out.node)
    assert image.size == (24, 24)
    marker = read_marker(out)
    assert marker is not None
    assert marker.verdicts[0].action == "mask"


def test_serialised_it_tells_where_the_border_comes_from() -> None:
    assert "unknown origin" in BORDER.to_json()
    with pytest.raises(ValueError, match="no visual safety prompt"):
        ImageBorderPostprocessor(limits=HERE, border="border.png")
