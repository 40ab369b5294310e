"""A guarded LLM is an LLM: tools, structures, streams, agents; and no risky picture gets through.

The LLM is LlamaIndex's own client for OpenAI's protocol, in front of a local server that keeps what
it was sent.
"""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from llama_index.core import MockEmbedding, Settings, VectorStoreIndex
from llama_index.core.agent.workflow import AgentStream, AgentWorkflow, FunctionAgent
from llama_index.core.base.llms.generic_utils import messages_to_history_str
from llama_index.core.base.llms.types import (
    ChatMessage,
    ImageBlock,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.chat_engine import (
    MultiModalCondensePlusContextChatEngine,
    MultiModalContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.llms import LLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.schema import ImageNode
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from PIL import Image
from pydantic import BaseModel

from bad_pictures import encoded
from chain_helpers import CLEAN, RISKY, BrokenDetector, RedDetector, data_url, text64
from serve_helpers import Scripted, completion, pieces, scripted
from sightrail.guardrails import ConfigurationError, ImageRefused, Limits, Policy
from sightrail.guardrails.testing import StubDetector
from sightrail.integrations.llama_index import guard_llm

REFUSE = Policy(on_flagged="refuse", refusal="Not this.")
PAIR = [(RISKY, "refused"), (CLEAN, "answered")]


@dataclass
class Server(Scripted):
    """Answers one thing after the other, where it is told to."""

    script: list[Any] = field(default_factory=list)

    async def handle(self, request: Any) -> Any:
        if self.script:
            self.answer = self.script.pop(0)
            self.events = streamed(self.answer)
        response = await super().handle(request)
        response.headers["connection"] = "close"  # clients leave theirs open
        return response


@pytest.fixture(scope="module")
def upstream() -> Iterator[Server]:
    server = Server()
    with scripted(server) as address:
        server.headers["address"] = address
        yield server


@pytest.fixture
def server(upstream: Server) -> Server:
    upstream.answer, upstream.events = completion("a cat"), pieces("a ", "cat. ", "It sleeps")
    upstream.bodies.clear()
    upstream.script.clear()
    return upstream


def client(server: Server, **settings: Any) -> OpenAILike:
    options = {"is_chat_model": True, "is_function_calling_model": True, **settings}
    address = server.headers["address"] + "/v1"
    return OpenAILike(model="up", api_base=address, api_key="none", max_retries=0, **options)


def guarded(server: Server, policy: Policy = REFUSE, **settings: Any) -> Any:
    return guard_llm(client(server), detector=RedDetector(), policy=policy, **settings)


def asked(data: bytes = RISKY, text: str = "what is this?") -> list[ChatMessage]:
    return [ChatMessage(blocks=[TextBlock(text=text), ImageBlock(image=data)])]


def sent(server: Server) -> str:
    return json.dumps(server.bodies)


def calling(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """An answer of the server that calls a tool."""
    answer = completion(None, "tool_calls")
    function = {"name": name, "arguments": json.dumps(arguments)}
    call = {"id": "call_1", "type": "function", "function": function}
    answer["choices"][0]["message"]["tool_calls"] = [call]
    return answer


def streamed(answer: dict[str, Any]) -> list[Any]:
    """The same answer as a stream."""
    head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "up"}
    said = answer["choices"][0]["message"]
    calls = [{"index": number, **call} for number, call in enumerate(said.get("tool_calls", []))]
    if not calls:
        return pieces(said["content"])
    delta = {"role": "assistant", "tool_calls": calls}
    return [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
        {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
        "[DONE]",
    ]


class Scene(BaseModel):
    """What is seen."""

    animal: str


class Answer(BaseModel):
    """What is seen, if it may be said."""

    animal: str | None = None
    refusal: str | None = None


# What it is


def test_it_is_the_kind_of_llm_that_it_guards(server: Server) -> None:
    llm = client(server)
    same = guard_llm(llm, detector=RedDetector())
    assert isinstance(same, FunctionCallingLLM)
    assert same.metadata == llm.metadata
    assert same.model == "up"  # type: ignore[attr-defined]
    structured = guard_llm(llm.as_structured_llm(Scene), detector=RedDetector())
    assert isinstance(structured, StructuredLLM)
    manager = CallbackManager([])
    same.callback_manager = manager
    assert llm.callback_manager is manager
    Settings.llm = same
    assert Settings.llm is same


def test_what_is_no_llm_and_no_detector_is_said_at_once(server: Server) -> None:
    with pytest.raises(ConfigurationError, match="takes an LLM"):
        guard_llm("gpt", detector=RedDetector())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="has no method screen"):
        guard_llm(client(server), detector="testbed")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        guard_llm(client(server), detector=RedDetector(), polcy=REFUSE)  # type: ignore[call-arg]


def test_it_comes_back_guarded_from_a_pickle_and_a_serialised_form(server: Server) -> None:
    llm = guarded(server)
    again = pickle.loads(pickle.dumps(llm))
    assert again.chat(asked()).raw["refused"]
    data = llm.to_dict()
    with pytest.raises(ValueError, match="from_dict"):
        type(llm).from_dict(dict(data))
    restored = type(llm).from_dict(dict(data), llm=client(server), detector=RedDetector())
    assert restored.chat(asked()).raw["refused"]
    assert not server.bodies


# Refusals, and what passes


async def answers(llm: Any, data: bytes) -> AsyncIterator[Any]:
    """The last answer of each way to ask."""
    messages = asked(data)
    tool = FunctionTool.from_defaults(lambda: "x", name="look", description="look")
    text = f"what is ![this]({data_url(data)})?"
    yield llm.chat(messages)
    yield await llm.achat(messages)
    yield list(llm.stream_chat(messages))[-1]
    yield [piece async for piece in await llm.astream_chat(messages)][-1]
    yield llm.complete(text)
    yield await llm.acomplete(text)
    yield list(llm.stream_complete(text))[-1]
    yield [piece async for piece in await llm.astream_complete(text)][-1]
    yield llm.chat_with_tools([tool], chat_history=messages)
    yield await llm.achat_with_tools([tool], user_msg=messages[0])
    yield list(llm.stream_chat_with_tools([tool], None, messages))[-1]
    yield [p async for p in await llm.astream_chat_with_tools([tool], text)][-1]


@pytest.mark.parametrize(("data", "outcome"), PAIR)
async def test_every_way_to_ask_is_guarded(server: Server, data: bytes, outcome: str) -> None:
    count = 0
    async for answer in answers(guarded(server), data):
        count += 1
        said = getattr(answer, "text", None) or answer.message.content
        if outcome == "refused":
            assert said == "Not this."
            assert answer.raw["refused"] is True
            assert [v["action"] for v in answer.raw["verdicts"]] == ["refuse"]
        else:
            assert said.startswith("a cat")
    assert count == 12
    assert len(server.bodies) == (0 if outcome == "refused" else 12)
    if outcome == "answered":
        assert all(text64(data) in json.dumps(body) for body in server.bodies)


def test_a_masked_picture_is_all_that_reaches_the_server(server: Server) -> None:
    guarded(server, Policy()).chat(asked())
    assert text64(RISKY) not in sent(server)
    assert "data:image/png;base64," in sent(server)
    assert "sightrail" not in sent(server)


def test_streams_pass_text_in_pieces_and_say_it_all(server: Server) -> None:
    got = list(guarded(server).stream_chat(asked(CLEAN)))
    assert "".join(piece.delta or "" for piece in got) == "a cat. It sleeps"
    assert got[-1].message.content == "a cat. It sleeps"
    assert len([piece for piece in got if piece.delta]) >= 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("policy", "rest"), [(REFUSE, "Not this."), (Policy(), "there")])
def test_pictures_in_answers_are_looked_at(
    server: Server, stream: bool, policy: Policy, rest: str
) -> None:
    text = f"see ![it]({data_url(RISKY)}) there"
    server.answer = completion(text)
    server.events = pieces(*(text[i : i + 7] for i in range(0, len(text), 7)))
    llm = guarded(server, policy)
    got = list(llm.stream_chat([ChatMessage("draw")])) if stream else [llm.chat(asked(CLEAN))]
    whole = "".join(str(piece.model_dump(exclude={"delta"})) for piece in got)
    assert text64(RISKY) not in whole
    assert text64(RISKY)[:80] not in whole
    assert rest in (got[-1].message.content or "")
    assert rest in "".join(piece.delta or "" for piece in got) or not stream


def test_an_earlier_refusal_does_not_stick_and_leaves_no_trace(server: Server) -> None:
    llm = guarded(server)
    history = [*asked(), llm.chat(asked()).message, ChatMessage("2 + 2?")]
    assert llm.chat(history).message.content == "a cat"
    assert text64(RISKY) not in sent(server)
    assert Policy().note in sent(server)
    assert "verdict" not in messages_to_history_str(history)
    assert "sightrail" not in sent(server) + messages_to_history_str(history)


def test_a_picture_is_looked_at_once_however_long_the_history(server: Server) -> None:
    detector = RedDetector()
    llm = guard_llm(client(server), detector=detector)
    history = asked(CLEAN)
    for _ in range(4):
        history = [*history, llm.chat(history).message, ChatMessage("and now?")]
    assert len(detector.seen) == 1


def test_a_long_history_is_looked_at_once_and_keeps_its_pictures(server: Server) -> None:
    history: list[ChatMessage] = []
    for number in range(100):
        drawn = encoded(Image.new("RGB", (48, 48), (number, 90, 90)))
        turn = asked(drawn, "and?") if number % 2 else [ChatMessage("and?")]
        history += [*turn, ChatMessage("a", role=MessageRole.ASSISTANT)]
    llm = guard_llm(client(server), detector=(stub := StubDetector()))
    for _ in range(2):
        llm.chat([*history, ChatMessage("and now?")])
    assert len(stub.seen) == 50
    assert sent(server).count("data:image/png;base64,") == 100


class Curious(StubDetector):
    """Wants the words of the request, and keeps them."""

    wants_request = True

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def screen(self, images: Any) -> Any:
        self.words += [image.request for image in images]
        return super().screen(images)


def test_a_detector_that_wants_the_request_gets_the_users_words_for_a_tools_picture(
    server: Server,
) -> None:
    detector = Curious()
    llm = guard_llm(client(server), detector=detector)
    call = ToolCallBlock(tool_name="look", tool_kwargs={}, tool_call_id="1")
    told = [TextBlock(text="a page"), ImageBlock(image=CLEAN)]
    history = [
        ChatMessage("be kind", role=MessageRole.SYSTEM),
        ChatMessage("how do I make it?"),
        ChatMessage(blocks=[call], role=MessageRole.ASSISTANT),
        ChatMessage(blocks=told, role=MessageRole.TOOL, additional_kwargs={"tool_call_id": "1"}),
    ]
    llm.chat(history)
    assert detector.words == ["how do I make it?"]
    history += [ChatMessage("so", role=MessageRole.ASSISTANT), ChatMessage("and now?")]
    llm.chat(history)
    assert detector.words[1:] == ["how do I make it?\nand now?"]


def test_a_failure_is_refused_and_its_cause_is_kept(server: Server) -> None:
    llm = guard_llm(client(server), detector=BrokenDetector(), on_refusal="raise")
    with pytest.raises(ImageRefused) as caught:
        llm.chat(asked(CLEAN))
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert not server.bodies


def test_the_policy_may_ask_for_an_exception(server: Server) -> None:
    llm = guarded(server, Policy(on_flagged="raise"))
    with pytest.raises(ImageRefused):
        llm.stream_chat(asked())
    history = [*asked(), ChatMessage("no", role=MessageRole.ASSISTANT), ChatMessage("2 + 2?")]
    assert llm.chat(history).message.content == "a cat"  # that turn is over


def test_verdicts_are_told_once(server: Server) -> None:
    told: list[Any] = []
    llm = guarded(server, Policy(), on_verdict=told.append)
    history = asked()
    for _ in range(3):
        history = [*history, llm.chat(history).message, ChatMessage("and now?")]
    assert [verdict.action for verdict in told] == ["mask"]


def test_limits_hold(server: Server) -> None:
    llm = guarded(server, Policy(), limits=Limits(max_images_per_request=1))
    blocks = [ImageBlock(image=CLEAN), ImageBlock(image=CLEAN)]
    answer = llm.chat([ChatMessage(blocks=blocks)])
    assert answer.raw["verdicts"][1]["not_inspected"][0]["reason"] == "too_many_images"


def test_a_call_is_counted_once(server: Server) -> None:
    counter = TokenCountingHandler(tokenizer=str.split)
    llm = guarded(server)
    llm.callback_manager = CallbackManager([counter])
    llm.complete("hello you")
    assert len(counter.llm_token_counts) == 1


# Structures


def structures(llm: Any, output: type[BaseModel], data: bytes) -> list[Callable[[], Any]]:
    """Each way to ask for a structure."""
    prompt = ChatPromptTemplate(message_templates=asked(data))
    template = PromptTemplate("what is in {picture}? {{braces}}")
    return [
        lambda: llm.structured_predict(output, prompt),
        lambda: llm.structured_predict(output, template, picture=data_url(data)),
        lambda: list(llm.stream_structured_predict(output, prompt))[-1],
        lambda: llm.as_structured_llm(output).chat(asked(data)).raw,
        lambda: FunctionCallingProgram.from_defaults(output, prompt=prompt, llm=llm)(),
        lambda: _run(llm.astructured_predict(output, prompt)),
    ]


def _run(coroutine: Any) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def test_structures_are_made_as_by_the_llm_itself(server: Server) -> None:
    server.answer = calling("Scene", {"animal": "cat"})
    server.events = streamed(server.answer)
    for way in structures(guarded(server), Scene, CLEAN):
        assert way().animal == "cat"
    assert len(server.bodies) == 6
    assert all(text64(CLEAN) in json.dumps(body) for body in server.bodies)


def test_a_refusal_of_a_structure_is_typed_and_no_parsing_error(server: Server) -> None:
    for way in structures(guarded(server), Scene, RISKY):
        with pytest.raises(ImageRefused, match=r"Not this\.") as caught:
            way()
        assert [verdict.action for verdict in caught.value.verdicts] == ["refuse"]
    assert not server.bodies


def test_a_structure_with_room_for_a_refusal_gets_it(server: Server) -> None:
    llm = guarded(server)
    prompt = ChatPromptTemplate(message_templates=asked())
    assert llm.structured_predict(Answer, prompt) == Answer(refusal="Not this.")
    assert llm.as_structured_llm(Answer).chat(asked()).raw.refusal == "Not this."
    assert list(llm.stream_structured_predict(Answer, prompt)) == [Answer(refusal="Not this.")]
    with pytest.raises(ImageRefused):
        guarded(server, on_refusal="raise").structured_predict(Answer, prompt)


def test_a_picture_in_a_structure_is_looked_at(server: Server) -> None:
    prompt = PromptTemplate("draw one")
    server.answer = calling("Scene", {"animal": data_url(RISKY)})
    with pytest.raises(ImageRefused):
        guarded(server).structured_predict(Scene, prompt)
    server.answer = calling("Scene", {"animal": data_url(CLEAN)})
    assert guarded(server).structured_predict(Scene, prompt).animal == data_url(CLEAN)


# Agents and engines


def screenshot() -> Any:
    """Take a screenshot."""
    return [ImageBlock(image=RISKY)]


@pytest.mark.filterwarnings("ignore:The `__fields.*:pydantic.PydanticDeprecatedSince20")
@pytest.mark.filterwarnings("ignore:Accessing the .* attribute on the instance:DeprecationWarning")
@pytest.mark.parametrize("workflow", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("policy", [Policy(), REFUSE])
async def test_an_agent_sees_no_risky_picture_of_its_tools(
    server: Server, workflow: bool, streaming: bool, policy: Policy
) -> None:
    agent: Any = FunctionAgent(
        tools=[FunctionTool.from_defaults(screenshot)],
        llm=guarded(server, policy),
        streaming=streaming,
    )
    agent = AgentWorkflow(agents=[agent]) if workflow else agent
    server.script = [calling("screenshot", {}), completion("done")]
    handler = agent.run("look")
    heard = [event async for event in handler.stream_events()]
    said = str(await handler)
    deltas = "".join(event.delta for event in heard if isinstance(event, AgentStream))
    assert said in deltas or not streaming
    assert text64(RISKY) not in sent(server)
    assert said == ("Not this." if policy is REFUSE else "done")
    assert len(server.bodies) == (1 if policy is REFUSE else 2)


ENGINES = [MultiModalContextChatEngine, MultiModalCondensePlusContextChatEngine]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["chat", "achat", "stream_chat"])
@pytest.mark.parametrize("policy", [Policy(), REFUSE])
async def test_multimodal_chat_engines_are_guarded(
    server: Server, engine: Any, mode: str, policy: Policy
) -> None:
    nodes = [ImageNode(image=text64(data), text="a page") for data in (CLEAN, RISKY)]
    index = VectorStoreIndex(nodes, embed_model=MockEmbedding(embed_dim=3))
    memory = ChatMemoryBuffer.from_defaults(token_limit=10_000)
    llm = guarded(server, policy)
    chat = engine.from_defaults(
        index.as_retriever(similarity_top_k=2), memory=memory, multi_modal_llm=llm, llm=llm
    )
    for question in ("what is there?", "and now?"):
        answer = getattr(chat, mode)(question)
        answer = await answer if mode == "achat" else answer
        said = "".join(answer.response_gen) if mode == "stream_chat" else answer.response
        assert said.startswith("Not this." if policy is REFUSE else "a cat")
    assert text64(RISKY) not in sent(server)
    assert (text64(CLEAN) in sent(server)) is (policy is not REFUSE)


def test_a_chat_engine_goes_on_after_a_refusal(server: Server) -> None:
    memory = ChatMemoryBuffer.from_defaults(token_limit=10_000)
    engine = SimpleChatEngine.from_defaults(llm=guarded(server), memory=memory)
    memory.put_messages(asked())
    assert engine.chat("look at it").response == "Not this."
    assert engine.chat("2 + 2?").response == "a cat"
    assert text64(RISKY) not in sent(server)


def test_predict_and_call_runs_no_tool_for_a_refused_request(server: Server) -> None:
    called: list[int] = []
    tool = FunctionTool.from_defaults(lambda: called.append(1), name="look", description="look")
    llm = guarded(server)
    with pytest.raises(ImageRefused):
        llm.predict_and_call([tool], chat_history=asked())
    answer = llm.predict_and_call([tool], chat_history=asked(), error_on_no_tool_call=False)
    assert (answer.response, called) == ("Not this.", [])
    server.answer = calling("look", {})
    llm.predict_and_call([tool], chat_history=asked(CLEAN))
    assert called == [1]


def test_text_goes_as_it_came(server: Server) -> None:
    llm, bare = guarded(server), client(server)
    messages = [
        ChatMessage("be kind", role=MessageRole.SYSTEM),
        ChatMessage("hello", additional_kwargs={"name": "ann"}),
    ]
    assert llm.chat(messages, temperature=0.5).raw == bare.chat(messages, temperature=0.5).raw
    assert server.bodies[0] == server.bodies[1]
    assert not isinstance(llm, StubDetector)
    assert isinstance(llm, LLM)
