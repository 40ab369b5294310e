"""Ingested, stored, closed, opened again, asked: with the stores that apps have."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.extractors import SummaryExtractor
from llama_index.core.ingestion import DocstoreStrategy, IngestionCache, IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import ImageDocument, ImageNode, MetadataMode, NodeWithScore
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore
from PIL import Image

from chain_helpers import RISKY, RedDetector, clean_picture, risky_picture, text64
from llama_helpers import HERE, pictures_in
from sightrail.guardrails import ImageRefused, Policy
from sightrail.integrations.llama_index import (
    ImageRiskPostprocessor,
    ImageRiskTransform,
    read_marker,
)

EMBEDDING = MockEmbedding(embed_dim=3)


class Named(RedDetector):
    """Its repr says all about it, whatever it was shown."""

    def __repr__(self) -> str:
        return "Named()"


class Flaky(Named):
    """Fails as long as it is told to."""

    broken = True

    def screen(self, images: Any) -> Any:
        if self.broken:
            raise ConnectionError("the encoder is restarting")
        return super().screen(images)


@pytest.fixture
def documents(tmp_path: Path) -> list[ImageDocument]:
    """As a reader of a folder makes them: paths, and metadata."""
    clean_picture().save(tmp_path / "clean.jpg", quality=90)
    risky_picture().save(tmp_path / "risky.png")
    return [
        ImageDocument(
            id_=name, image_path=str(tmp_path / name), text="a page", metadata={"file_name": name}
        )
        for name in ("clean.jpg", "risky.png")
    ]


def guard(detector: Any = None, **fields: Any) -> ImageRiskTransform:
    return ImageRiskTransform(detector=detector or Named(), limits=HERE, **fields)


def _qdrant(folder: Path) -> Any:
    qdrant = pytest.importorskip("llama_index.vector_stores.qdrant")
    client = pytest.importorskip("qdrant_client").QdrantClient(path=str(folder / "qdrant"))
    return qdrant.QdrantVectorStore("album", client=client), client.close


def _chroma(folder: Path) -> Any:
    chroma = pytest.importorskip("llama_index.vector_stores.chroma")
    client = pytest.importorskip("chromadb").PersistentClient(str(folder / "chroma"))
    collection = client.get_or_create_collection("album")
    return chroma.ChromaVectorStore(chroma_collection=collection), lambda: None


@pytest.mark.filterwarnings("ignore")  # of the stores' own
@pytest.mark.parametrize("store", [_qdrant, _chroma])
def test_what_was_screened_comes_back_from_a_store_as_it_was(
    store: Callable[[Path], Any], documents: list[Any], tmp_path: Path
) -> None:
    vectors, close = store(tmp_path)
    steps = [SentenceSplitter(), guard(), EMBEDDING]
    IngestionPipeline(transformations=steps, vector_store=vectors).run(documents=documents)
    close()
    (tmp_path / "clean.jpg").write_bytes(RISKY)  # too late
    vectors, close = store(tmp_path)
    index = VectorStoreIndex.from_vector_store(vectors, embed_model=EMBEDDING)
    found = index.as_retriever(similarity_top_k=5).retrieve("anything")
    close()
    assert len(found) == 2
    markers = {hit.metadata["file_name"]: read_marker(hit) for hit in found}
    actions = {name: [v.action for v in m.verdicts] for name, m in markers.items() if m}
    assert actions == {"clean.jpg": ["allow"], "risky.png": ["mask"]}
    assert all(list(pictures_in(hit.node)) for hit in found)
    for hit in found:
        assert "sightrail" not in hit.node.get_content(MetadataMode.LLM)
        assert "sightrail" not in hit.node.get_content(MetadataMode.EMBED)
        assert "verdict" not in hit.node.get_content(MetadataMode.ALL)
    detector = Named()
    again = ImageRiskPostprocessor(detector=detector).postprocess_nodes(found)
    assert len(detector.seen) == 2
    marker = next(
        m for n in again if n.metadata["file_name"] == "risky.png" and (m := read_marker(n))
    )
    assert [(v.status, v.action) for v in marker.verdicts] == [("flagged", "mask")]
    trusting = Named()
    kept = ImageRiskPostprocessor(detector=trusting, trust_ingested=True).postprocess_nodes(found)
    assert [hit.node_id for hit in kept] == [hit.node_id for hit in found]
    assert not trusting.seen


def test_an_index_and_a_docstore_are_persisted_and_hold_no_raw_picture(
    documents: list[Any], tmp_path: Path
) -> None:
    screened = guard()(documents)
    docstore = SimpleDocumentStore()
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(), EMBEDDING],
        docstore=docstore,
        vector_store=SimpleVectorStore(),
        cache=IngestionCache(),
    )
    nodes = pipeline.run(documents=screened)
    assert pipeline.run(documents=guard()(documents)) == []  # known, and told apart by its hash
    pipeline.persist(str(tmp_path / "pipeline"))
    context = StorageContext.from_defaults()
    VectorStoreIndex(
        nodes, storage_context=context, embed_model=EMBEDDING, store_nodes_override=True
    )
    context.persist(str(tmp_path / "index"))
    loaded = load_index_from_storage(
        StorageContext.from_defaults(persist_dir=str(tmp_path / "index")), embed_model=EMBEDDING
    )
    found = loaded.as_retriever(similarity_top_k=5).retrieve("anything")
    assert len([image for hit in found for image in pictures_in(hit.node)]) >= 2
    for file in (path for path in tmp_path.rglob("*.json") if path.is_file()):
        assert text64(RISKY) not in file.read_text()
    back = SimpleDocumentStore.from_persist_path(str(tmp_path / "pipeline" / "docstore.json"))
    marker = read_marker(back.get_document("risky.png"))
    assert marker is not None
    assert [v.action for v in marker.verdicts] == ["mask"]


def test_a_splitter_behind_the_guard_stores_a_picture_once_and_keeps_its_record(
    documents: list[Any],
) -> None:
    screened = guard()(documents)
    assert all(type(d).class_name() == "ImageDocument" and d.resolve_image() for d in screened)  # type: ignore[attr-defined]
    for before, node in zip(screened, SentenceSplitter()(screened), strict=True):
        assert isinstance(before, ImageDocument)
        assert isinstance(node, ImageNode)
        written = json.dumps(node.to_dict())
        assert node.image
        assert written.count(node.image) == 1
        assert read_marker(node) == read_marker(before) is not None
        assert json.dumps(before.to_dict()).count(node.image) == 1


def test_extractors_tell_their_model_nothing_of_verdicts(documents: list[Any]) -> None:
    asked: list[str] = []

    class Telling(MockLLM):
        def complete(self, prompt: str, *args: Any, **kwargs: Any) -> Any:
            asked.append(prompt)
            return super().complete(prompt, *args, **kwargs)

    nodes = SentenceSplitter()(guard()(documents))
    SummaryExtractor(llm=Telling(), metadata_mode=MetadataMode.ALL, num_workers=1)(nodes)
    assert len(asked) == 2
    assert all("a page" in prompt and "file_name" in prompt for prompt in asked)
    assert not any("verdict" in prompt or "flagged" in prompt for prompt in asked)


@pytest.mark.parametrize("strategy", [DocstoreStrategy.UPSERTS, DocstoreStrategy.DUPLICATES_ONLY])
def test_a_failure_loses_no_document(
    strategy: DocstoreStrategy, documents: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    detector = Flaky()
    step, front = guard(detector), guard(detector, on_failed="leave_out")
    pipeline = IngestionPipeline(
        transformations=[step, EMBEDDING],
        docstore=SimpleDocumentStore(),
        vector_store=SimpleVectorStore(stores_text=True),
        docstore_strategy=strategy,
    )
    if strategy == DocstoreStrategy.UPSERTS:
        with pytest.raises(ImageRefused, match="failed on 2 nodes") as caught:
            pipeline.run(documents=documents)
        assert isinstance(caught.value.__cause__, ConnectionError)
        assert "left out 2 of 2 nodes: clean.jpg" in caplog.text
    else:
        assert pipeline.run(documents=front(documents)) == []
    detector.broken = False
    given = documents if strategy == DocstoreStrategy.UPSERTS else front(documents)
    assert len(pipeline.run(documents=given)) == 2


def test_a_query_that_loses_all_its_nodes_says_so() -> None:
    node = NodeWithScore(node=ImageNode(image=text64(RISKY), text="very private"), score=0.5)
    fields: dict[str, Any] = {
        "detector": Named(),
        "policy": Policy(on_flagged="refuse", refusal="Not this."),
    }
    [note] = ImageRiskPostprocessor(**fields).postprocess_nodes([node])
    assert note.node.get_content() == "Not this."
    marker = read_marker(note)
    assert marker is not None
    assert marker.refused
    fields["when_all_refused"] = "nothing"
    assert ImageRiskPostprocessor(**fields).postprocess_nodes([node]) == []
    fields["when_all_refused"] = "raise"
    with pytest.raises(ImageRefused, match=r"Not this\."):
        ImageRiskPostprocessor(**fields).postprocess_nodes([node])


@pytest.mark.parametrize("change", ["picture", "detector", "policy"])
def test_trust_holds_for_the_same_bytes_detector_and_policy_only(
    change: str, documents: list[Any]
) -> None:
    ingested = guard()(documents)
    [node] = SentenceSplitter()(ingested[:1])
    detector: Any = RedDetector() if change == "detector" else Named()
    policy = Policy(on_flagged="drop") if change == "policy" else Policy()
    if change == "picture":
        node = node.model_copy(update={"image": text64(RISKY)})
    processor = ImageRiskPostprocessor(detector=detector, policy=policy, trust_ingested=True)
    processor.postprocess_nodes([NodeWithScore(node=node)])
    assert detector.seen


def test_clean_pictures_keep_their_bytes_and_others_get_the_chosen_form(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((320, 240), 60).convert("RGB").save(buffer, format="JPEG", quality=85)
    data = buffer.getvalue()
    node = ImageNode(image=text64(data), image_mimetype="image/jpeg")
    [stored] = guard()([node])
    [found] = ImageRiskPostprocessor(detector=Named()).postprocess_nodes(
        [NodeWithScore(node=stored)]
    )
    assert base64.b64decode(found.node.image) == data  # type: ignore[attr-defined]
    policy = Policy(encoding={"keep_bytes": False, "format": "webp"})  # type: ignore[arg-type]
    [other] = guard(policy=policy)([node])
    assert other.image_mimetype == "image/webp"  # type: ignore[attr-defined]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # of what the workers import
def test_two_workers_ingest_and_the_result_is_persisted(
    documents: list[Any], tmp_path: Path
) -> None:
    pipeline = IngestionPipeline(transformations=[guard(RedDetector()), EMBEDDING])
    nodes = pipeline.run(documents=documents, num_workers=2)
    assert [read_marker(n).verdicts[0].action for n in nodes] == ["allow", "mask"]  # type: ignore
    pipeline.persist(str(tmp_path / "pipeline"))
    again = IngestionPipeline(transformations=[guard(RedDetector()), EMBEDDING])
    again.load(str(tmp_path / "pipeline"))
    assert len(again.run(documents=documents)) == 2
