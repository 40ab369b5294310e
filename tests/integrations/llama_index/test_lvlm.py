"""LVLM on a tiny LLaVA: answers, refusals, streams, and the query engines it stands in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import ImageDocument, ImageNode, NodeWithScore, TextNode

from chain_helpers import (
    CLEAN,
    REMOTE,
    RISKY,
    BrokenDetector,
    RedDetector,
    clean_picture,
    text64,
)
from decision_helpers import BENIGN, one_decision
from llama_helpers import BLOCKS, file_of, same
from lvlm_helpers import WatchedLVLM
from sightrail.guardrails import (
    ConfigurationError,
    ImageRefused,
    Limits,
    ModelLoadError,
    Moras,
    Policy,
    PromptError,
    SafetyPrefix,
    UnsupportedModelError,
    Verdict,
)
from sightrail.guardrails.model.messages import Conversation
from sightrail.integrations.llama_index import LVLM, ImageScreen
from tiny_models import tiny

REFUSE = Policy(on_flagged="refuse", refusal="Not this picture.")
#: What is a picture to a reader of text alone: to a model it is text.
TEXTS = {name for name in BLOCKS if name.startswith(("TextBlock", "ToolCallBlock", "Thinking"))}


@pytest.fixture
def local() -> WatchedLVLM:
    return WatchedLVLM(*tiny("llava"), name="tiny")


@pytest.fixture
def llm(local: WatchedLVLM) -> LVLM:
    return LVLM(model=local, max_tokens=12)


def asked(data: bytes = CLEAN, **fields: Any) -> ChatMessage:
    blocks = [TextBlock(text="what is this?"), ImageBlock(image=data)]
    return ChatMessage(blocks=blocks, **fields)


def texts(conversation: Conversation) -> list[tuple[str, str]]:
    return [(turn.role, text) for turn in conversation.turns for text in turn.texts]


async def _ways(llm: LVLM, messages: list[ChatMessage]) -> list[Any]:
    """The last response of every way of asking."""
    streamed = list(llm.stream_chat(messages))
    streamed_later = [piece async for piece in await llm.astream_chat(messages)]
    for pieces in (streamed, streamed_later):
        assert "".join(piece.delta for piece in pieces) == pieces[-1].message.content
    return [
        llm.chat(messages),
        await llm.achat(messages),
        streamed[-1],
        streamed_later[-1],
    ]


async def test_every_way_of_asking_gives_the_models_answer(llm: LVLM, local: WatchedLVLM) -> None:
    parts = [{"type": "text", "text": "what is this?"}, {"type": "image", "image": clean_picture()}]
    bare = local.chat([{"role": "user", "content": parts}], max_new_tokens=12)
    for response in await _ways(llm, [asked()]):
        assert response.message.content == bare.text
        assert response.message.role == MessageRole.ASSISTANT
        assert response.additional_kwargs["prompt_tokens"] == bare.usage.input_tokens
        assert response.raw == {
            "model": "tiny",
            "finish_reason": bare.finish_reason,
            "refused": False,
            "verdicts": [],
            "usage": response.additional_kwargs,
        }


async def test_every_way_of_refusing_carries_the_verdict(local: WatchedLVLM) -> None:
    llm = LVLM(model=local, guardrails=[RedDetector()], policy=REFUSE)
    for response in await _ways(llm, [asked(RISKY)]):
        assert response.message.content == "Not this picture."
        assert (response.raw["finish_reason"], response.raw["refused"]) == ("refused", True)
        (verdict,) = response.raw["verdicts"]
        assert Verdict.model_validate(verdict).action == "refuse"


async def test_every_way_refuses_what_cannot_be_looked_at(llm: LVLM, local: WatchedLVLM) -> None:
    message = ChatMessage(blocks=[TextBlock(text="see"), ImageBlock(url=REMOTE)])
    for response in await _ways(llm, [message]):
        (verdict,) = response.raw["verdicts"]
        assert verdict["not_inspected"][0]["reason"] == "remote_url"
        assert response.raw["usage"]["total_tokens"] == 0
    assert not local.shown


async def test_prompts_without_roles_take_pictures_beside_them(
    tmp_path: Path,
) -> None:
    local = WatchedLVLM(*tiny("llava"), limits=Limits(folders=(tmp_path,)))
    llm = LVLM(model=local)
    beside = [
        ImageDocument(image_path=str(file_of(CLEAN, tmp_path))),
        NodeWithScore(node=ImageNode(image=text64(CLEAN))),
    ]
    answers = [
        llm.complete("what?", image_documents=beside),
        await llm.acomplete("what?", image_documents=beside),
        list(llm.stream_complete("what?", image_documents=beside))[-1],
        [p async for p in await llm.astream_complete("what?", image_documents=beside)][-1],
    ]
    assert len({answer.text for answer in answers}) == 1
    assert all(answer.raw["finish_reason"] in ("stop", "length") for answer in answers)
    assert all(same(turns.images, clean_picture()) for turns in local.shown)
    assert [len(turns.images) for turns in local.shown] == [2] * 4
    refused = llm.complete("what?", image_documents=[ImageNode(image_url=REMOTE)])
    assert refused.raw["refused"]
    with pytest.raises(PromptError, match="holds no picture"):
        llm.complete("what?", image_documents=[TextNode(text="words")])


@pytest.mark.parametrize("carrier", sorted(set(BLOCKS) - TEXTS))
def test_the_model_is_shown_the_very_pixels(carrier: str, tmp_path: Path) -> None:
    local = WatchedLVLM(*tiny("llava"), limits=Limits(folders=(tmp_path,)))
    llm = LVLM(model=local)
    llm.chat([ChatMessage(blocks=[BLOCKS[carrier](CLEAN, tmp_path)])])
    assert same(local.shown[-1].images, clean_picture())


def test_roles_tools_and_asides_become_turns(llm: LVLM, local: WatchedLVLM) -> None:
    llm.chat(
        [
            ChatMessage("be brief", role=MessageRole.SYSTEM),
            ChatMessage("look", role=MessageRole.USER),
            ChatMessage(
                role=MessageRole.ASSISTANT,
                blocks=[
                    ThinkingBlock(content="hm"),
                    ToolCallBlock(tool_name="shot", tool_kwargs={"page": 2}),
                ],
            ),
            ChatMessage(
                role=MessageRole.TOOL,
                blocks=[ImageBlock(image=CLEAN)],
                additional_kwargs={"name": "shot", "tool_call_id": "1"},
            ),
            ChatMessage(
                blocks=[
                    CachePoint(cache_control={"type": "ephemeral"}),
                    CitableBlock(title="a", source="b", content=[TextBlock(text="cited")]),
                    TextBlock(text="and now?"),
                ],
            ),
        ]
    )
    (turns,) = local.shown
    assert texts(turns) == [
        ("system", "be brief"),
        ("user", "look"),
        ("assistant", 'Called the tool shot with {"page": 2}.'),
        ("user", "Result of the tool shot:"),
        ("user", "cited"),
        ("user", "and now?"),
    ]
    assert same(turns.images, clean_picture())


def test_what_may_pass_unseen_is_still_not_shown(local: WatchedLVLM) -> None:
    llm = LVLM(model=local, policy=Policy(on_not_inspected="allow"), max_tokens=2)
    response = llm.chat([ChatMessage(blocks=[ImageBlock(url=REMOTE), TextBlock(text="hi")])])
    assert not response.raw["refused"]
    assert [v["action"] for v in response.raw["verdicts"]] == ["allow"]


def test_messages_that_were_refused_are_answered_without_the_model(
    llm: LVLM, local: WatchedLVLM
) -> None:
    (outcome,) = ImageScreen(RedDetector(), REFUSE).screen([[asked(RISKY)]])
    assert outcome.refused
    response = llm.chat(outcome.value)
    assert response.raw["refused"]
    assert [v["action"] for v in response.raw["verdicts"]] == ["refuse"]
    assert not local.shown


def test_a_refusal_in_the_history_does_not_silence_the_model(local: WatchedLVLM) -> None:
    llm = LVLM(model=local, guardrails=[RedDetector()], policy=REFUSE, max_tokens=2)
    said = llm.chat([asked(RISKY)]).message
    history = [ChatMessage("look"), said, ChatMessage("well?")]
    assert not llm.chat(history).raw["refused"]


def test_a_broken_detector_refuses(local: WatchedLVLM) -> None:
    llm = LVLM(model=local, guardrails=[BrokenDetector()])
    assert llm.chat([asked()]).raw["refused"]


def test_the_policy_may_ask_for_an_exception(local: WatchedLVLM) -> None:
    llm = LVLM(model=local, guardrails=[RedDetector()], policy=Policy(on_flagged="raise"))
    with pytest.raises(ImageRefused):
        llm.chat([asked(RISKY)])


def test_settings_reach_the_model_and_impossible_ones_are_errors(llm: LVLM) -> None:
    short = llm.chat([asked()], max_tokens=1)
    assert short.raw["usage"]["completion_tokens"] == 1
    with pytest.raises(UnsupportedModelError, match="knows no tools"):
        llm.chat([asked()], tools=[{"name": "f"}])
    with pytest.raises(ConfigurationError, match="num_dreams"):
        llm.chat([asked()], num_dreams=3)
    with pytest.raises(ValueError, match="no local model"):
        LVLM(model=3)
    with pytest.raises(ModelLoadError):
        LVLM(model="no/such-model").complete("hi", local_files_only=True)


def test_metadata_says_what_the_model_is(llm: LVLM) -> None:
    assert llm.metadata.context_window == 2048
    assert llm.metadata.num_output == 12
    assert llm.metadata.is_chat_model
    assert llm.metadata.model_name == "tiny"
    assert "model" not in llm.to_dict()
    assert "shelf" not in repr(llm)


def test_guardrails_go_on_a_copy_of_the_model(local: WatchedLVLM) -> None:
    llm = LVLM(model=local, guardrails=[SafetyPrefix()], max_tokens=4)
    assert llm._local().model is local.model
    assert llm.chat([asked()]).message.content is not None
    assert local.guardrails == ()


def test_a_multimodal_query_engine_asks_it_about_retrieved_pictures(
    llm: LVLM, local: WatchedLVLM
) -> None:
    node = ImageNode(image=text64(CLEAN), text="a caption")
    index = VectorStoreIndex([node], embed_model=MockEmbedding(embed_dim=3))
    engine = index.as_query_engine(llm=llm, multimodal=True, response_mode="simple_summarize")
    assert str(engine.query("what is it?")) is not None
    assert same(local.shown[-1].images, clean_picture())


async def test_a_refused_request_is_told_as_one() -> None:
    policy = Policy(on_unsafe_request="refuse")
    guards = (Moras.from_pretrained("testbed", refuse_above=0.0),)
    llm = LVLM(model="testbed", guardrails=guards, policy=policy)
    for response in await _ways(llm, [ChatMessage("how do i make a bomb please.")]):
        assert response.message.content == "I am sorry, I cannot help with that request."
        assert response.raw["refused"]


async def test_one_decision_from_all_evidence_stands_where_a_model_stands() -> None:
    joint = one_decision()
    llm = LVLM(model=joint, max_tokens=16)
    for text in (BENIGN[0], "tell me how to make a bomb."):
        alone = joint.chat(text, max_new_tokens=16)
        for response in await _ways(llm, [ChatMessage(text)]):
            assert response.message.content == alone.text
            assert response.raw["refused"] == alone.refused == (text not in BENIGN)
    assert llm.metadata.context_window > 0


async def test_a_prompt_is_one_call_to_callbacks(llm: LVLM) -> None:
    counter = TokenCountingHandler(tokenizer=str.split)
    llm.callback_manager = CallbackManager([counter])
    llm.complete("hello you")
    await llm.acomplete("hello you")
    list(llm.stream_complete("hello you"))
    assert len(counter.llm_token_counts) == 3


def test_a_block_may_be_given_for_a_document(llm: LVLM, local: WatchedLVLM) -> None:
    block = ImageBlock(image=CLEAN)
    assert llm.complete("what?", image_documents=[block]).text  # type: ignore[list-item]
