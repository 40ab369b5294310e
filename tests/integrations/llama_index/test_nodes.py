"""Retrieval and ingestion: what becomes of nodes, and what is left as it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.storage.docstore.utils import doc_to_json, json_to_doc

from chain_helpers import (
    CLEAN,
    REMOTE,
    RISKY,
    BrokenDetector,
    MiscountingDetector,
    RedDetector,
    clean_picture,
    text64,
)
from llama_helpers import HERE, NODES, pictures_in, same
from sightrail.guardrails import ConfigurationError, ImageRefused, Limits, Policy, RiskDetector
from sightrail.integrations.llama_index import (
    ImageRiskPostprocessor,
    ImageRiskTransform,
    read_marker,
)

SOURCE = RelatedNodeInfo(node_id="album")


def image(data: bytes, **fields: Any) -> ImageNode:
    return ImageNode(image=text64(data), relationships={NodeRelationship.SOURCE: SOURCE}, **fields)


def scored(*nodes: BaseNode) -> list[NodeWithScore]:
    return [NodeWithScore(node=node, score=1 / (1 + n)) for n, node in enumerate(nodes)]


def retrieve(detector: Any, *nodes: BaseNode, **policy: Any) -> list[NodeWithScore]:
    processor = ImageRiskPostprocessor(
        detector=detector, policy=Policy(**policy), limits=HERE, when_all_refused="nothing"
    )
    return processor.postprocess_nodes(scored(*nodes), QueryBundle("what is it?"))


def test_masked_nodes_keep_everything_but_the_risky_place(detector: RedDetector) -> None:
    (kept,) = retrieve(detector, image(RISKY, text="a caption", metadata={"page": 3}))
    node = kept.node
    assert isinstance(node, ImageNode)
    assert (kept.score, node.text, node.metadata["page"]) == (1.0, "a caption", 3)
    assert node.ref_doc_id == "album"
    assert node.image_mimetype == "image/png"


def test_nobody_is_told_of_the_tag(detector: RedDetector) -> None:
    (kept,) = retrieve(detector, image(RISKY, text="a caption"), monitor=True)
    assert kept.metadata == {}
    assert same(pictures_in(kept.node), risky := next(pictures_in(image(RISKY))))
    assert risky.size == (40, 32)
    for mode in MetadataMode:
        assert kept.node.get_content(mode) == "a caption"
    marker = read_marker(kept)
    assert marker is not None
    assert [(v.status, v.action, v.risk_map) for v in marker.verdicts] == [
        ("flagged", "mask", None)
    ]


def test_a_dropped_picture_leaves_its_node_a_text(detector: RedDetector) -> None:
    first = image(RISKY, text="a caption", metadata={"page": 3})
    second = Node(image_resource=MediaResource(data=RISKY))
    one, two = (kept.node for kept in retrieve(detector, first, second, on_flagged="drop"))
    assert (type(one), one.node_id, one.metadata["page"]) == (TextNode, first.node_id, 3)
    assert one.get_content() == "a caption\n[image removed by the safety policy]"
    assert one.ref_doc_id == "album"
    assert two.get_content() == "[image removed by the safety policy]"
    assert [type(block).__name__ for block in two.get_content_blocks()] == ["TextBlock"]
    assert not list(pictures_in([one, two]))


def test_refused_nodes_are_left_out_and_the_others_stay_in_order(detector: RedDetector) -> None:
    nodes = [image(CLEAN), image(RISKY), TextNode(text="words"), ImageNode(image_url=REMOTE)]
    kept = retrieve(detector, *nodes, on_flagged="refuse")
    assert [one.node_id for one in kept] == [nodes[0].node_id, nodes[2].node_id]
    assert kept[1].node is nodes[2]
    assert len(detector.calls) == 1
    assert len(detector.seen) == 2


def test_the_policy_may_ask_for_an_exception(detector: RedDetector) -> None:
    with pytest.raises(ImageRefused) as refused:
        retrieve(detector, image(RISKY), on_flagged="raise")
    assert [v.action for v in refused.value.verdicts] == ["raise"]


def test_a_policy_for_retrieval_is_used_here(detector: RedDetector) -> None:
    rules = {"retrieval": {"on_flagged": "refuse"}, "user": {"on_flagged": "allow"}}
    assert retrieve(detector, image(RISKY), surfaces=rules) == []


@pytest.mark.parametrize("broken", [BrokenDetector(), MiscountingDetector()])
def test_a_detector_that_fails_lets_nothing_pass(broken: Any) -> None:
    words = TextNode(text="words")
    assert [kept.node for kept in retrieve(broken, image(CLEAN), words)] == [words]


def test_no_number_of_nodes_is_too_many_and_nothing_is_cut_off(detector: RedDetector) -> None:
    processor = ImageRiskPostprocessor(detector=detector, limits=Limits(max_images_per_request=2))
    assert len(processor.postprocess_nodes(scored(*[image(CLEAN) for _ in range(300)]))) == 300
    assert max(map(len, detector.calls)) == processor.batch_size


@pytest.mark.parametrize("carrier", NODES)
def test_nodes_are_copied_and_never_changed(
    carrier: str, tmp_path: Path, detector: RedDetector
) -> None:
    node = NODES[carrier](RISKY, tmp_path)
    before = copy.deepcopy(node)
    for action in ("mask", "drop", "refuse"):
        retrieve(detector, node, on_flagged=action)
        policy = Policy(on_flagged=action)
        ImageRiskTransform(detector=detector, policy=policy, limits=HERE)([node])
    assert node == before


async def test_the_asynchronous_ways_give_the_same() -> None:
    detector = _Named("a")
    nodes = [image(RISKY), image(CLEAN), ImageNode(image_url=REMOTE)]
    processor = ImageRiskPostprocessor(detector=detector)
    expected = [n.model_dump() for n in processor.postprocess_nodes(scored(*nodes))]
    assert [n.model_dump() for n in await processor.apostprocess_nodes(scored(*nodes))] == expected
    transform = ImageRiskTransform(detector=detector)
    expected = [n.model_dump() for n in transform(nodes)]
    assert [n.model_dump() for n in await transform.acall(nodes)] == expected


def test_ingestion_looks_at_a_bounded_number_of_nodes_at_a_time(detector: RedDetector) -> None:
    nodes = [image(CLEAN) for _ in range(7)]
    kept = ImageRiskTransform(detector=detector, batch_size=3)(nodes)
    assert [node.node_id for node in kept] == [node.node_id for node in nodes]
    assert [len(call) for call in detector.calls] == [3, 3, 1]


@pytest.mark.parametrize("carrier", NODES)
def test_what_was_ingested_survives_storage_as_it_was_screened(
    carrier: str, tmp_path: Path, detector: RedDetector
) -> None:
    (kept,) = ImageRiskTransform(detector=detector, limits=HERE)([NODES[carrier](CLEAN, tmp_path)])
    if carrier != "Node text resource data":  # LlamaIndex stores no data, and this has no address
        assert same(pictures_in(json_to_doc(doc_to_json(kept))), clean_picture())


def test_pipelines_index_only_what_may_pass(detector: RedDetector) -> None:
    transform = ImageRiskTransform(detector=detector, policy=Policy(on_flagged="refuse"))
    embedding = MockEmbedding(embed_dim=3)
    pipeline = IngestionPipeline(transformations=[transform, embedding])
    nodes = pipeline.run(nodes=[image(CLEAN, text="one"), image(RISKY, text="two")])
    index = VectorStoreIndex(nodes, embed_model=embedding)
    (found,) = index.as_retriever().retrieve("anything")
    assert found.node.get_content() == "one"
    assert same(pictures_in(found), clean_picture())


def test_the_pipelines_cache_answers_for_the_same_settings_only(detector: RedDetector) -> None:
    pipeline = IngestionPipeline(transformations=[ImageRiskTransform(detector=_Named("a"))])
    nodes = [image(RISKY, text="one")]
    (first,) = pipeline.run(nodes=nodes)
    (again,) = pipeline.run(nodes=nodes)
    assert again.image == first.image
    assert len(pipeline.transformations[0].detector.calls) == 1
    keys = {
        get_transformation_hash(nodes, transform)
        for transform in (
            ImageRiskTransform(detector=_Named("a")),
            ImageRiskTransform(detector=_Named("a")),
            ImageRiskTransform(detector=_Named("b")),
            ImageRiskTransform(detector=_Named("a"), policy=Policy(on_flagged="drop")),
            ImageRiskTransform(detector=_Named("a"), limits=Limits(max_frames=1)),
        )
    }
    assert len(keys) == 4


def test_a_detector_that_says_nothing_of_its_settings_is_never_cached() -> None:
    transform = ImageRiskTransform(detector=BrokenDetector())
    assert transform.to_dict()["detector"] != transform.to_dict()["detector"]


@pytest.mark.parametrize("component", [ImageRiskPostprocessor, ImageRiskTransform])
def test_a_component_says_what_is_no_detector(component: Any) -> None:
    with pytest.raises(ValueError, match="has no method screen"):
        component(detector="testbed")
    told = component(detector=_Named("a")).to_dict()
    with pytest.raises(ValueError, match=r"from_dict\(data, detector=detector\)"):
        component.from_dict(told)
    assert component.from_dict(told, detector=_Named("a")).detector == _Named("a")
    assert issubclass(ConfigurationError, ValueError)
    assert callable(RiskDetector.screen)


class _Named(RedDetector):
    """A detector with a repr that says all about it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __repr__(self) -> str:
        return f"_Named({self.name!r})"
