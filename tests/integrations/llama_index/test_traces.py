"""What handlers of LlamaIndex's are told: everything but pictures, on every way to a model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import (
    ChatMessage,
    ImageBlock,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.chat_engine import MultiModalContextChatEngine
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.llm import LLMChatInProgressEvent
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import MockFunctionCallingLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.schema import ImageNode
from llama_index.core.tools import FunctionTool
from llama_index_instrumentation import Dispatcher, root_dispatcher
from llama_index_instrumentation.event_handlers import BaseEventHandler
from pydantic import Field

from chain_helpers import CLEAN, RISKY, RedDetector, text64
from sightrail.guardrails import ConfigurationError
from sightrail.integrations.llama_index import guard_llm, hide_images_from

SHOWN = [text64(RISKY)[:200], text64(CLEAN)[:200], repr(RISKY)[2:200], repr(CLEAN)[2:200]]


class Ear(BaseEventHandler):
    """Keeps all events."""

    heard: list[BaseEvent] = Field(default_factory=list)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self.heard.append(event)


class Spans(SimpleSpanHandler):
    """Writes down what goes in and comes out, at once: apps go on changing their objects."""

    heard: list[str] = Field(default_factory=list)

    def new_span(
        self, id_: str, bound_args: inspect.BoundArguments, *args: Any, **kwargs: Any
    ) -> Any:
        self.heard.append(repr(bound_args.arguments))
        return super().new_span(id_, bound_args, *args, **kwargs)

    def prepare_to_exit_span(
        self, id_: str, bound_args: inspect.BoundArguments, *args: Any, **kwargs: Any
    ) -> Any:
        self.heard.append(repr(kwargs.get("result")))
        return super().prepare_to_exit_span(id_, bound_args, *args, **kwargs)


class Calls(LlamaDebugHandler):
    """Keeps payloads, printing nothing."""

    def __init__(self) -> None:
        super().__init__(print_trace_on_end=False)


def brain(*said: Any) -> Any:
    """A model that says these, one after the other."""
    left = list(said)

    def answer(messages: Any, **_: Any) -> ChatMessage:
        return left.pop(0) if len(left) > 1 else left[0]

    return MockFunctionCallingLLM(response_generator=answer, is_chat_model=True)


def words(text: str, *blocks: Any) -> ChatMessage:
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=[TextBlock(text=text), *blocks])


async def everything(manager: CallbackManager) -> None:
    """An app: retrieval, a chat engine, a stream, and an agent with a tool that gives pictures."""
    nodes = [ImageNode(image=text64(data), text="a page") for data in (CLEAN, RISKY)]
    embedding = MockEmbedding(embed_dim=3, callback_manager=manager)
    index = VectorStoreIndex(nodes, embed_model=embedding, callback_manager=manager)
    llm = guard_llm(brain(words("a cat")), detector=RedDetector())
    llm.callback_manager = manager
    memory = ChatMemoryBuffer.from_defaults(token_limit=9_000)
    engine = MultiModalContextChatEngine.from_defaults(
        index.as_retriever(), memory=memory, multi_modal_llm=llm
    )
    assert engine.chat("a page?").response == "a cat"
    asked = [ChatMessage(blocks=[TextBlock(text="very private"), ImageBlock(image=CLEAN)])]
    assert list(llm.stream_chat(asked))[-1].message.content == "a cat"

    def look() -> Any:
        """Look."""
        return [ImageBlock(image=RISKY)]

    call = ToolCallBlock(tool_name="look", tool_kwargs={}, tool_call_id="1")
    agent = FunctionAgent(
        tools=[FunctionTool.from_defaults(look)],
        llm=guard_llm(brain(words("", call), words("done")), detector=RedDetector()),
        streaming=False,
    )
    assert str(await agent.run(asked[0])) == "done"


@pytest.fixture
def root() -> Iterator[Dispatcher]:
    events, spans = list(root_dispatcher.event_handlers), list(root_dispatcher.span_handlers)
    yield root_dispatcher
    root_dispatcher.event_handlers, root_dispatcher.span_handlers = events, spans


@pytest.mark.filterwarnings("ignore:The `__fields.*:pydantic.PydanticDeprecatedSince20")
@pytest.mark.filterwarnings("ignore:Accessing the .* attribute on the instance:DeprecationWarning")
@pytest.mark.parametrize("how", ["each", "all", "none"])
async def test_handlers_are_told_everything_but_pictures(how: str, root: Dispatcher) -> None:
    ear, spans, calls = Ear(), Spans(), Calls()
    manager = CallbackManager([hide_images_from(calls) if how == "each" else calls])
    root.add_event_handler(hide_images_from(ear) if how == "each" else ear)
    root.add_span_handler(hide_images_from(spans) if how == "each" else spans)
    if how == "all":
        assert hide_images_from(root) is root
        assert hide_images_from(manager) is manager
    await everything(manager)
    payloads = [event.payload for event in calls._event_pairs_by_id.values() for event in event]
    told = [repr([e.__dict__ for e in ear.heard]), repr(spans.heard), repr(payloads)]
    for said in told:
        assert "a page" in said
        assert any(picture in said for picture in SHOWN) is (how == "none")
        assert ("[image]" in said) is (how != "none")
    assert "very private" in told[0]
    assert {type(e).__name__ for e in ear.heard} > {"RetrievalEndEvent", "LLMChatStartEvent"}


def test_a_stream_tells_the_conversation_once_looked_through(root: Dispatcher) -> None:
    ear = Ear()
    root.add_event_handler(hide_images_from(ear))
    llm = guard_llm(brain(words("a b c d e f")), detector=RedDetector())
    asked = [ChatMessage(blocks=[TextBlock(text="hm"), ImageBlock(image=CLEAN)])]
    list(llm.stream_chat(asked))
    pieces = [event for event in ear.heard if isinstance(event, LLMChatInProgressEvent)]
    assert pieces
    assert all(event.messages[0].blocks[1] == TextBlock(text="[image]") for event in pieces)
    assert len({id(event.messages) for event in pieces}) == 1
    assert asked[0].blocks[1] == ImageBlock(image=CLEAN)


def test_other_handlers_work_as_before() -> None:
    counter = TokenCountingHandler(tokenizer=str.split)
    llm = guard_llm(brain(words("a cat")), detector=RedDetector())
    llm.callback_manager = CallbackManager([hide_images_from(counter)])
    llm.chat([ChatMessage("hello you")])
    assert len(counter.llm_token_counts) == 1


def test_what_is_no_handler_is_said() -> None:
    with pytest.raises(ConfigurationError, match="takes a handler"):
        hide_images_from("langfuse")
