"""Any structure of messages and nodes at all: no untyped exception, no silent pass, no change."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.base.llms.types import (
    ChatMessage,
    CitableBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
)
from llama_index.core.schema import (
    ImageNode,
    MediaResource,
    Node,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.tools import ToolOutput

from chain_helpers import CARRIERS, CLEAN, REMOTE, RISKY, UNSEEN, RedDetector, risky_picture, text64
from llama_helpers import BLOCKS, NODES, UNSEEN_BLOCKS, UNSEEN_NODES, pictures_in
from sightrail.guardrails import Policy
from sightrail.integrations.llama_index import ImageScreen

PLAIN = [name for name in BLOCKS if not re.search("path|stream|file", name)]
NOWHERE = Path("/nowhere")
PICTURES = st.sampled_from([CLEAN, RISKY])
BYTES = PICTURES | st.binary(max_size=40) | st.just(RISKY[:-40]) | st.none()
ADDRESSES = st.sampled_from([None, REMOTE, "file:///a.png", "data:image/png;base64,%%", "gs://a/b"])
WORDS = st.text(max_size=20) | st.sampled_from([text64(RISKY), "data:image/png,", REMOTE])
LEAVES = st.none() | st.booleans() | st.integers() | BYTES | WORDS
JSON = st.recursive(
    LEAVES
    | st.sampled_from([make(RISKY) for make in CARRIERS.values()])
    | st.sampled_from([block for _, block in UNSEEN.values()]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
FLAT = st.builds(
    ImageBlock.model_construct, image=BYTES, path=st.just(NOWHERE) | st.none(), url=ADDRESSES
)
MADE = st.builds(lambda name, data: BLOCKS[name](data, NOWHERE), st.sampled_from(PLAIN), PICTURES)
ODD = st.sampled_from([m for n, (_, m) in UNSEEN_BLOCKS.items() if "stream" not in n]).map(
    lambda make: make(CLEAN, NOWHERE)
)
BLOCK = st.recursive(
    FLAT | MADE | ODD | st.builds(TextBlock, text=WORDS),
    lambda inner: st.builds(
        CitableBlock.model_construct,
        title=WORDS,
        source=WORDS,
        content=st.lists(inner, max_size=3),
    ),
    max_leaves=4,
)
MESSAGE = st.builds(
    ChatMessage.model_construct,
    role=st.sampled_from(MessageRole),
    blocks=st.lists(BLOCK, max_size=4),
    additional_kwargs=st.dictionaries(WORDS, JSON, max_size=2),
)
METADATA = st.dictionaries(WORDS, JSON, max_size=2)
RESOURCE = st.none() | st.builds(
    MediaResource.model_construct,
    data=BYTES.map(lambda data: data if data is None else text64(data).encode()),
    path=st.none() | st.just(NOWHERE),
    url=ADDRESSES,
    text=st.none() | WORDS,
)
NODE = (
    st.builds(TextNode, text=WORDS, metadata=METADATA)
    | st.builds(
        ImageNode,
        text=WORDS,
        image=st.none() | PICTURES.map(text64) | WORDS,
        image_path=st.none() | st.just("/nowhere/a.png"),
        image_url=ADDRESSES,
        metadata=METADATA,
    )
    | st.builds(Node, text_resource=RESOURCE, image_resource=RESOURCE, video_resource=RESOURCE)
    | st.builds(
        lambda name, data: NODES[name](data, NOWHERE),
        st.sampled_from([name for name in NODES if "path" not in name and "later" not in name]),
        PICTURES,
    )
    | st.sampled_from([make for _, make in UNSEEN_NODES.values()]).map(
        lambda make: make(CLEAN, NOWHERE)
    )
)
RELATED = st.builds(RelatedNodeInfo, node_id=st.just("a"), metadata=METADATA)
OUTPUT = st.builds(
    ToolOutput.model_construct,
    blocks=st.lists(BLOCK, max_size=3),
    tool_name=st.just("look"),
    raw_input=st.just({}),
    raw_output=JSON | st.lists(NODE, max_size=2) | MESSAGE,
)
VALUE = st.lists(
    MESSAGE | NODE | NODE.map(lambda node: NodeWithScore(node=node)) | OUTPUT | RELATED | BLOCK,
    max_size=3,
)


def check(value: Any, policy: Policy) -> None:
    detector = RedDetector()
    before = copy.deepcopy(value)
    (outcome,) = ImageScreen(detector, policy).screen([value])
    assert value == before
    assert all(verdict.action for verdict in outcome.verdicts)
    risky = [verdict for verdict in outcome.verdicts if verdict.status == "flagged"]
    assert len(risky) >= len(risky_ones(detector.seen))
    assert not risky_ones(pictures_in(outcome.value))
    (again,) = ImageScreen(detector, policy).screen([outcome.value])
    assert not any(verdict.status == "flagged" for verdict in again.verdicts)
    if not outcome.refused:
        assert not again.refused


def risky_ones(pictures: Any) -> list[Any]:
    pixels = risky_picture().tobytes()
    return [picture for picture in pictures if picture.tobytes() == pixels]


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(VALUE)
def test_nothing_risky_passes_in_any_structure(value: Any) -> None:
    check(value, Policy())


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(VALUE)
def test_nothing_risky_passes_where_pictures_are_dropped(value: Any) -> None:
    check(value, Policy(on_flagged="drop", on_not_inspected="drop"))


@pytest.mark.long
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
@given(VALUE, st.sampled_from(["mask", "drop"]))
def test_nothing_risky_passes_in_very_many_structures(value: Any, action: Any) -> None:
    check(value, Policy(on_flagged=action))
