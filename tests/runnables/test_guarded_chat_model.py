"""ScreenImages.guard gives a chat model: in agents, with tools, structured output and history."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from operator import itemgetter
from threading import Thread
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.language_models import BaseChatModel, FakeMessagesListChatModel
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    convert_to_openai_messages,
)
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import (
    Runnable,
    RunnableBranch,
    RunnableLambda,
    RunnableParallel,
)
from langchain_core.tools import tool
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from pydantic import BaseModel

from chain_helpers import CLEAN, REMOTE, RISKY, RedDetector, data_url, text64
from sightrail.guardrails import ImageRefused, Policy
from sightrail.runnables import ChatLVLM, GuardedChatModel, ScreenImages

pytest.importorskip("langchain_openai")
from langchain_openai import ChatOpenAI

SCREEN = ScreenImages(detector=RedDetector(), policy=Policy(on_flagged="refuse", refusal="No."))


class Joke(BaseModel):
    """A joke."""

    setup: str
    punchline: str


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


# A chat completions server that keeps what it was sent


def _filled(schema: dict[str, Any], root: dict[str, Any]) -> Any:
    """Something that a schema takes."""
    if "$ref" in schema:
        return _filled(root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    for choice in schema.get("anyOf", []):
        return _filled(choice, root)
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "string")
    if kind == "object":
        fields = schema.get("properties", {})
        return {name: _filled(field, root) for name, field in fields.items()}
    return {"integer": 3, "number": 3, "boolean": True, "array": [], "null": None}.get(kind, "cat")


_EXPECTED: dict[str, dict[str, Any]] = {
    "magic_function": {"input": 3},
    "unicode_customer": {"customer_name": "\u4f60\u597d \u3053\u3093"},
}
"""What the suite's tools are to be called with."""


def _answer(body: dict[str, Any]) -> dict[str, Any]:
    """Calls the first tool as long as no result is there, follows a schema, or says hello."""
    form = body.get("response_format", {})
    if form.get("type") == "json_schema":
        schema = form["json_schema"]["schema"]
        return {"content": json.dumps(_filled(schema, schema))}
    if form.get("type") == "json_object":
        return {"content": json.dumps({"setup": "a", "punchline": "b"})}
    if body.get("tools") and body["messages"][-1]["role"] != "tool":
        function = body["tools"][0]["function"]
        schema = function.get("parameters", {"type": "object"})
        arguments = {**_filled(schema, schema), **_EXPECTED.get(function["name"], {})}
        called = {"name": function["name"], "arguments": json.dumps(arguments)}
        calls = [{"id": "call_1", "type": "function", "function": called}]
        return {"content": None, "tool_calls": calls}
    return {"content": "hello there"}


class _Handler(BaseHTTPRequestHandler):
    server: Any

    def log_message(self, *args: Any) -> None:
        """Nothing is printed."""

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.sent.append(text)
        body = json.loads(text)
        said = {"role": "assistant", **(self.server.says or _answer)(body)}
        why = "tool_calls" if said.get("tool_calls") else "stop"
        usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
        frame = {"id": "c", "created": 1, "model": body["model"]}
        if not body.get("stream"):
            choice = {"index": 0, "message": said, "finish_reason": why}
            whole = {**frame, "object": "chat.completion", "choices": [choice], "usage": usage}
            return self._send("application/json", json.dumps(whole))
        deltas = _deltas(said)
        choices = [[{"index": 0, "delta": delta, "finish_reason": None}] for delta in deltas]
        choices += [[{"index": 0, "delta": {}, "finish_reason": why}], []]
        kind = {**frame, "object": "chat.completion.chunk"}
        lines = [json.dumps({**kind, "choices": part}) for part in choices[:-1]]
        lines += [json.dumps({**kind, "choices": [], "usage": usage}), "[DONE]"]
        return self._send("text/event-stream", "".join(f"data: {line}\n\n" for line in lines))

    def _send(self, kind: str, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


def _deltas(said: dict[str, Any]) -> list[dict[str, Any]]:
    if said.get("tool_calls"):
        calls = [{**call, "index": i} for i, call in enumerate(said["tool_calls"])]
        return [{**said, "tool_calls": calls}]
    text = said["content"]
    size = max(3, len(text) // 40)
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    return [{"role": "assistant", "content": piece} for piece in pieces]


class Recorder(ThreadingHTTPServer):
    """Keeps the bodies it was sent; ``says`` makes the answers where it is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.sent: list[str] = []
        self.says: Callable[[dict[str, Any]], dict[str, Any]] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        connection = {"base_url": url, "api_key": "none", "max_retries": 0}
        return {"model": "gpt-4o", **connection, "stream_usage": True}

    def model(self) -> ChatOpenAI:
        return ChatOpenAI(**self.settings)


@pytest.fixture(scope="module")
def _listening() -> Iterator[Recorder]:
    server = Recorder()
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(_listening: Recorder) -> Recorder:
    _listening.sent.clear()
    _listening.says = None
    return _listening


def shows(data: bytes, text: str = "what is this?") -> HumanMessage:
    picture = {"type": "image", "base64": text64(data), "mime_type": "image/png"}
    return HumanMessage([{"type": "text", "text": text}, picture])


def refused(message: Any) -> bool:
    return bool(message.text == "No." and message.response_metadata["refused"])


# What LangChain asks of a chat model


def test_it_is_the_chat_model_that_it_guards(server: Recorder) -> None:
    model = server.model()
    guarded = SCREEN.guard(model)
    assert isinstance(guarded, BaseChatModel)
    assert guarded.profile == model.profile
    assert guarded.profile is not None
    assert guarded._get_ls_params() == model._get_ls_params()
    assert guarded.model_name == "gpt-4o"
    assert not isinstance(SCREEN.guard(RunnableLambda(str)), BaseChatModel)


def test_tools_are_bound_behind_the_guard(server: Recorder) -> None:
    bound = SCREEN.guard(server.model()).bind_tools([weather], tool_choice="any")
    assert bound.invoke("hi").tool_calls[0]["name"] == "weather"
    assert json.loads(server.sent[0])["tool_choice"] == "required"
    assert refused(bound.invoke([shows(RISKY)]))
    assert len(server.sent) == 1


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # ChatOpenAI's own
@pytest.mark.parametrize("response_format", [None, Joke])
async def test_an_agent_runs_with_tools(server: Recorder, response_format: Any) -> None:
    guarded = SCREEN.guard(server.model())
    agent = create_agent(guarded, [weather], response_format=response_format)
    asked = {"messages": [shows(RISKY)]}
    if response_format is None:
        assert refused(agent.invoke(asked)["messages"][-1])
    else:  # LangChain parses every answer here, so only an exception is no parsing error
        with pytest.raises(ImageRefused, match=r"No\."):
            await agent.ainvoke(asked)
    assert server.sent == []
    state = await agent.ainvoke({"messages": [shows(CLEAN)]})
    assert isinstance(state.get("structured_response"), response_format or type(None))
    assert text64(RISKY)[:200] not in "".join(server.sent)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # ChatOpenAI's own
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_a_refusal_fits_structured_output(server: Recorder, method: str) -> None:
    guarded = SCREEN.guard(server.model())
    plain = guarded.with_structured_output(Joke, method=method)
    raw = guarded.with_structured_output(Joke, method=method, include_raw=True)
    with pytest.raises(ImageRefused, match=r"No\.") as caught:
        plain.invoke([shows(RISKY)])
    assert caught.value.verdicts[0].category == "red"
    for answer in (raw.invoke([shows(RISKY)]), await raw.ainvoke([shows(RISKY)])):
        assert refused(answer["raw"])
        assert (answer["parsed"], answer["parsing_error"]) == (None, None)
    (streamed,) = raw.stream([shows(RISKY)])
    assert refused(streamed["raw"])
    assert server.sent == []
    outcomes = plain.batch([[shows(RISKY)], [shows(CLEAN)]], return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ImageRefused, Joke]
    assert isinstance(raw.invoke("hi")["parsed"], Joke)
    *_, last = raw.stream("hi")
    assert isinstance(last["parsed"], Joke)
    *_, last = [joke async for joke in plain.astream("hi")]
    assert last == plain.invoke("hi")


def test_usage_callbacks_and_tags_are_those_of_one_call(server: Recorder) -> None:
    guarded = SCREEN.guard(server.model())
    usage = UsageMetadataCallbackHandler()
    guarded.invoke("hi", {"callbacks": [usage], "tags": ["mine"]})
    guarded.generate([[HumanMessage("hi")]], callbacks=[usage])
    list(guarded.stream("hi", {"callbacks": [usage]}))
    assert usage.usage_metadata["gpt-4o"]["total_tokens"] == 3 * 7


async def test_every_way_of_asking_is_guarded(server: Recorder) -> None:
    guarded, asked = SCREEN.guard(server.model()), [shows(RISKY)]
    assert refused(guarded.generate([asked]).generations[0][0].message)
    assert refused((await guarded.agenerate([asked])).generations[0][0].message)
    assert refused(guarded.stream_events(asked, version="v3").output)
    assert refused(guarded.bind(temperature=0).invoke(asked))
    assert refused(guarded.with_fallbacks([server.model()]).invoke(asked))
    assert [refused(a) for a in await guarded.abatch([asked, "hi"])] == [True, False]
    assert [refused(chunk) async for chunk in guarded.astream(asked)] == [True]
    assert text64(RISKY)[:200] not in "".join(server.sent)
    assert "".join([c.text async for c in guarded.astream("hi")]) == "hello there"


def test_a_fallback_answers_where_the_model_fails() -> None:
    broken = ChatOpenAI(model="m", base_url="http://127.0.0.1:9/v1", api_key="x", max_retries=0)
    spare = FakeMessagesListChatModel(responses=[AIMessage("spare")])
    chain = SCREEN.guard(broken).with_fallbacks([SCREEN.guard(spare)])
    assert chain.invoke([shows(CLEAN)]).text == "spare"


def test_tokens_are_counted_by_the_model() -> None:
    model = FakeMessagesListChatModel(responses=[], custom_get_token_ids=lambda text: [7] * 11)
    assert SCREEN.guard(model).get_num_tokens("anything") == 11


# Composing


@pytest.mark.parametrize(
    "other",
    [
        lambda model: model,
        lambda model: model.bind(temperature=0),
        lambda model: model.with_config(tags=["a"]),
        lambda model: model.with_retry(),
        lambda model: model.with_fallbacks([model]),
        lambda model: model.bind_tools([weather]),
        lambda model: model.bind(temperature=0).with_retry() | RunnableLambda(lambda m: m),
    ],
)
def test_a_pipe_into_a_model_is_the_guarded_model(server: Recorder, other: Any) -> None:
    behind = other(server.model())
    for chain in (SCREEN | behind, SCREEN.pipe(behind)):
        assert refused(chain.invoke([shows(RISKY)]))
    assert server.sent == []
    assert (SCREEN | server.model() | StrOutputParser()).invoke([shows(RISKY)]) == "No."


SAME: Runnable[Any, Any] = RunnableLambda(lambda value: value)
AROUND: dict[str, Callable[[Runnable[Any, Any]], Runnable[Any, Any]]] = {
    "a prompt before": lambda model: SAME | SCREEN | model,
    "something between": lambda model: SCREEN | SAME | model,
    "retries": lambda model: SCREEN.with_retry(stop_after_attempt=1) | model,
    "settings": lambda model: SCREEN.with_config(tags=["a"]) | model,
    "bound": lambda model: SCREEN.bind() | model,
    "fallbacks": lambda model: SCREEN.with_fallbacks([SCREEN]) | model,
    "listeners": lambda model: SCREEN.with_listeners() | model,
    "parallel": lambda model: RunnableParallel(a=SCREEN | SAME) | itemgetter("a") | model,
    "parallel to another": lambda model: SAME | {"a": SCREEN, "b": SAME} | itemgetter("b") | model,
    "in a pick": lambda model: RunnableParallel(a=SCREEN).pick("a") | model,
    "in a branch": lambda model: RunnableBranch((lambda value: True, SCREEN), SAME) | model,
    "each": lambda model: RunnableLambda(lambda v: [v]) | SCREEN.map() | itemgetter(0) | model,
    "by hand": lambda model: RunnableLambda(lambda v: model.invoke(SCREEN.invoke(v))),
    "a batch by hand": lambda model: RunnableLambda(lambda v: model.batch(SCREEN.batch([v]))),
    "a stream by hand": lambda model: RunnableLambda(
        lambda v: [model.invoke(seen) for seen in SCREEN.stream(v)]
    ),
    "a client's own form": lambda model: (
        SCREEN | RunnableLambda(convert_to_openai_messages) | model
    ),
    "a border": lambda model: SCREEN.pipe(SAME, model),
}


@pytest.mark.parametrize("way", AROUND)
async def test_no_way_of_composing_calls_the_model_with_what_was_refused(
    server: Recorder, way: str
) -> None:
    chain = AROUND[way](server.model())
    broken = HumanMessage([{"type": "image", "url": REMOTE}])
    for message in (shows(RISKY), broken):
        with pytest.raises(ImageRefused):
            chain.invoke([message])
        with pytest.raises(ImageRefused):
            await chain.ainvoke([message])
        with pytest.raises(ImageRefused):
            list(chain.stream([message]))
        with pytest.raises(ImageRefused):
            chain.batch([[message], [message]])
    assert server.sent == []


def test_a_masked_answer_says_so(server: Recorder) -> None:
    guarded = ScreenImages(detector=RedDetector()).guard(server.model())
    raw = guarded.with_structured_output(Joke, include_raw=True)
    whole = None
    for chunk in guarded.stream([shows(RISKY)]):
        whole = chunk if whole is None else whole + chunk
    answers = [guarded.invoke([shows(RISKY)]), whole, *guarded.batch([[shows(RISKY)]])]
    for answer in (*answers, raw.invoke([shows(RISKY)])["raw"]):
        (verdict,) = answer.response_metadata["verdicts"]
        assert (verdict["status"], verdict["action"]) == ("flagged", "mask")
        assert "risk_map" not in verdict
    assert "verdicts" not in guarded.invoke("hi").response_metadata


# Later turns


def conversation(*first: BaseMessage) -> list[BaseMessage]:
    return [*first, AIMessage("No."), HumanMessage("what is 2+2?")]


@pytest.mark.parametrize("action", ["refuse", "raise"])
async def test_a_refusal_does_not_stick(server: Recorder, action: Any) -> None:
    policy = Policy(on_flagged=action, on_not_inspected=action, refusal="No.")
    guarded = ScreenImages(detector=RedDetector(), policy=policy).guard(server.model())
    remote = HumanMessage([{"type": "image", "url": REMOTE}])
    assert guarded.invoke(conversation(shows(RISKY))).text == "hello there"
    assert (await guarded.ainvoke(conversation(remote, shows(CLEAN)))).text == "hello there"
    assert [a.text for a in guarded.batch([conversation(remote)] * 2)] == ["hello there"] * 2
    sent = "".join(server.sent)
    assert REMOTE not in sent
    assert text64(RISKY)[:200] not in sent
    assert policy.note in sent
    assert len(server.sent) == 4


@pytest.mark.parametrize("verdicts", ["nonsense", [], None])
def test_what_may_have_been_a_whole_request_stays_refused(server: Recorder, verdicts: Any) -> None:
    marker = {"refused": True, "verdicts": verdicts}
    before = HumanMessage("hi", additional_kwargs={"sightrail": marker})
    assert refused(SCREEN.guard(server.model()).invoke(conversation(before)))
    assert server.sent == []


def test_a_model_of_ours_answers_later_turns_too() -> None:
    model = ChatLVLM(model="testbed", max_tokens=2)
    for chain in (SCREEN.guard(model), SCREEN | model):
        assert not chain.invoke(conversation(shows(RISKY))).response_metadata["refused"]
        assert chain.invoke([shows(RISKY)]).response_metadata["refused"]


def test_what_the_newest_request_brings_refuses(server: Recorder) -> None:
    guarded = SCREEN.guard(server.model())
    again = [*conversation(shows(CLEAN)), shows(RISKY)]
    assert refused(guarded.invoke(again))
    assert refused(guarded.invoke([SystemMessage("be kind"), shows(RISKY)]))
    assert refused(guarded.invoke([shows(RISKY), AIMessage("Sure, here")]))  # an answer begun
    as_tuples: list[Any] = [("human", "hi"), ("ai", "hello"), shows(RISKY)]
    assert refused(guarded.invoke(as_tuples))
    assert server.sent == []


# Pictures in answers


def test_pictures_in_an_answer_are_screened(server: Recorder) -> None:
    server.says = lambda body: {"content": f"look: ![x]({data_url(RISKY)}) there"}
    guarded = SCREEN.guard(server.model())
    answer = guarded.invoke("draw")
    assert refused(answer)
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["total_tokens"] == 7
    chunks = list(guarded.stream("draw"))
    assert text64(RISKY)[:60] not in "".join(chunk.text for chunk in chunks)
    assert any(chunk.response_metadata.get("refused") for chunk in chunks)
    masking = ScreenImages(detector=RedDetector()).guard(server.model()).invoke("draw")
    assert masking.text.startswith("look: ![x](data:image/png")
    assert text64(RISKY) not in masking.text


def test_a_picture_in_a_structure_refuses_it(server: Recorder) -> None:
    content = json.dumps({"setup": data_url(RISKY), "punchline": "x"})
    server.says = lambda body: {"content": content}
    guarded = SCREEN.guard(server.model())
    plain = guarded.with_structured_output(Joke)
    with pytest.raises(ImageRefused):
        plain.invoke("draw")
    partial = guarded.with_structured_output(Joke.model_json_schema())
    shown: list[Any] = []
    with pytest.raises(ImageRefused):
        shown.extend(partial.stream("draw"))
    assert text64(RISKY)[:60] not in repr(shown)
    raw = guarded.with_structured_output(Joke, include_raw=True).invoke("draw")
    assert refused(raw["raw"])
    assert raw["parsed"] is None


# LangChain's own suites


class _Maker:
    """What makes them: the suites ask it what they would ask a class."""

    is_lc_serializable = GuardedChatModel.is_lc_serializable

    def __call__(self, **settings: Any) -> GuardedChatModel:
        return SCREEN.guard(ChatOpenAI(**settings))


class _Guarded:
    """The suites make the models themselves, with settings that are the guarded model's."""

    has_tool_calling = has_structured_output = has_tool_choice = supports_json_mode = True

    @property
    def chat_model_class(self) -> Any:
        return _Maker()


class TestUnit(_Guarded, ChatModelUnitTests):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "gpt-4o", "api_key": "none"}


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # ChatOpenAI's own
@pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1")
class TestToolsAndStructuredOutput(_Guarded, ChatModelIntegrationTests):
    supports_image_inputs = False  # they are downloaded

    @pytest.fixture(autouse=True)
    def _server(self, server: Recorder) -> None:
        self.server = server

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return self.server.settings
