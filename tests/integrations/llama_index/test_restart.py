"""What one process has decided, another goes by: an index, a review, verdicts on pictures."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import MockFunctionCallingLLM
from llama_index.core.schema import ImageDocument
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.workflow import Context

from chain_helpers import CLEAN, RISKY, RedDetector, text64
from llama_helpers import pictures_in
from sightrail.guardrails import CachedDetector, Policy
from sightrail.integrations.llama_index import (
    ImageGuardWorkflow,
    ImageRiskPostprocessor,
    ImageRiskTransform,
    ReviewedEvent,
    ReviewRequestedEvent,
    guard_llm,
    read_marker,
)

EMBEDDING = MockEmbedding(embed_dim=3)
REFUSE = Policy(on_flagged="refuse", refusal="Not this.")


class Named(RedDetector):
    """Its repr says all about it, whatever it was shown."""

    def __repr__(self) -> str:
        return "Named()"


def workflow(detector: Any) -> ImageGuardWorkflow:
    return ImageGuardWorkflow(llm=brain(), detector=detector, policy=REFUSE, review=True)


def brain() -> Any:
    said = ChatMessage("a cat", role=MessageRole.ASSISTANT)
    return MockFunctionCallingLLM(response_generator=lambda *_, **__: said, is_chat_model=True)


def asked(data: bytes) -> list[ChatMessage]:
    return [ChatMessage(blocks=[TextBlock(text="what is this?"), ImageBlock(image=data)])]


async def ask(detector: Any) -> dict[str, Any]:
    """A run that waits for a person."""
    handler = workflow(detector).run(messages=asked(RISKY))
    async for event in handler.stream_events():
        if isinstance(event, ReviewRequestedEvent):
            data: dict[str, Any] = handler.ctx.to_dict()
            await handler.cancel_run()
            return data
    raise AssertionError("nobody was asked")


async def rule(detector: Any, data: dict[str, Any]) -> None:
    """The person answers."""
    guard = workflow(detector)
    handler = guard.run(ctx=Context.from_dict(guard, data))
    handler.ctx.send_event(ReviewedEvent(ruling="approve"))
    assert (await handler).message.content == "a cat"
    assert text64(RISKY) not in json.dumps(handler.ctx.to_dict())


def begin(folder: Path) -> None:
    """The first process: ingests, indexes, chats, and asks for a review."""
    detector = CachedDetector(Named(), store=folder / "verdicts.sqlite")
    documents = [
        ImageDocument(image=text64(data), text="a page", metadata={"name": name})
        for name, data in (("clean", CLEAN), ("risky", RISKY))
    ]
    guard = ImageRiskTransform(detector=detector)
    context = StorageContext.from_defaults()
    VectorStoreIndex.from_documents(
        guard(documents),  # type: ignore[arg-type]
        storage_context=context,
        embed_model=EMBEDDING,
    )
    context.persist(str(folder / "index"))
    answer = guard_llm(brain(), detector=detector).chat(asked(CLEAN)).message
    said = [message.model_dump(mode="json") for message in (*asked(CLEAN), answer)]
    (folder / "chat.json").write_text(json.dumps(said))
    (folder / "review.json").write_text(json.dumps(asyncio.run(ask(detector))))


def go_on(folder: Path) -> None:
    """The second process: has the same store of verdicts, and looks at nothing again."""
    detector = CachedDetector(never := Named(), store=folder / "verdicts.sqlite")
    index = load_index_from_storage(
        StorageContext.from_defaults(persist_dir=str(folder / "index")), embed_model=EMBEDDING
    )
    found = index.as_retriever(similarity_top_k=5).retrieve("anything")
    told = {hit.metadata["name"]: read_marker(hit) for hit in found}
    actions = {name: [v.action for v in marker.verdicts] for name, marker in told.items() if marker}
    assert actions == {"clean": ["allow"], "risky": ["mask"]}
    trusting = ImageRiskPostprocessor(detector=detector, trust_ingested=True)
    kept = trusting.postprocess_nodes(found)
    assert all(list(pictures_in(hit.node)) for hit in kept)
    said = json.loads((folder / "chat.json").read_text())
    history = [*map(ChatMessage.model_validate, said), ChatMessage("and now?")]
    answer = guard_llm(brain(), detector=detector).chat(history)
    assert answer.message.content == "a cat"
    asyncio.run(rule(detector, json.loads((folder / "review.json").read_text())))
    assert never.seen == []


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_another_process_goes_on_where_the_first_one_ended(tmp_path: Path) -> None:
    here = Path(__file__).parent
    paths = f"import sys; sys.path[:0] = [{str(here)!r}, {str(here.parents[1])!r}]\n"
    for step in ("begin", "go_on"):
        code = f"{paths}from pathlib import Path\nfrom test_restart import {step}\n"
        run = f"{step}(Path({str(tmp_path)!r}))"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code + run],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr


def test_a_key_value_store_of_llama_index_keeps_verdicts(tmp_path: Path) -> None:
    store = SimpleKVStore()
    first = CachedDetector(looked := Named(), store=store)
    node = ImageDocument(image=text64(RISKY))
    [kept] = ImageRiskTransform(detector=first)([node])
    assert len(looked.seen) == 1
    store.persist(str(tmp_path / "store.json"))
    assert text64(RISKY)[:60] not in (tmp_path / "store.json").read_text()
    back = SimpleKVStore.from_persist_path(str(tmp_path / "store.json"))
    second = CachedDetector(never := Named(), store=back)
    assert ImageRiskTransform(detector=second)([node])[0].hash == kept.hash
    assert guard_llm(brain(), detector=second, policy=REFUSE).chat(asked(RISKY)).raw["refused"]
    assert never.seen == []
