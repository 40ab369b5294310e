"""What traces get to know: findings, and never a picture or a word."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers.langchain import LangChainTracer
from langchain_core.tracers.schemas import Run
from langsmith import Client
from llama_index.core.schema import ImageNode, NodeWithScore
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agent_helpers import agent, brain, calls, user
from chain_helpers import CARRIERS, CLEAN, RISKY, RedDetector, text64
from sightrail.guardrails import ImageRefused, LocalLVLM, Policy
from sightrail.integrations.cli.batches import screen_files
from sightrail.integrations.langchain import GuardrailCallbackHandler, ImageGuardMiddleware
from sightrail.integrations.llama_index import ImageRiskPostprocessor
from sightrail.runnables import ChatLVLM, ScreenImages, hide_images
from tiny_models import tiny

EXPORTER = InMemorySpanExporter()
SECRET = "secret plan"
VALUE = [
    ("human", [{"type": "text", "text": SECRET}, {"type": "image", "base64": text64(data)}])
    for data in (CLEAN, RISKY)
]


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    if not isinstance(trace.get_tracer_provider(), TracerProvider):  # it can be set once only
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(EXPORTER))
        trace.set_tracer_provider(provider)
    EXPORTER.clear()
    yield EXPORTER
    EXPORTER.clear()


class Collecting(LangChainTracer):
    """A tracer that keeps finished runs instead of sending them."""

    def __init__(self) -> None:
        # without batches there is no background thread, which would look for a server
        client = Client(api_url="http://localhost:9", api_key="none", auto_batch_tracing=False)
        super().__init__(client=client)
        self.runs: list[Run] = []

    def _persist_run_single(self, run: Run) -> None:
        return

    def _update_run_single(self, run: Run) -> None:
        self.runs.append(run)


def done(spans: InMemorySpanExporter) -> Any:
    return spans.get_finished_spans()


def screen(policy: Policy | None = None) -> ScreenImages:
    return ScreenImages(detector=RedDetector(), policy=policy or Policy())


def test_a_screening_is_one_span_with_counts(spans: InMemorySpanExporter) -> None:
    screen().invoke(VALUE)
    (span,) = spans.get_finished_spans()
    assert span.name == "sightrail.screen"
    assert dict(span.attributes or {}) == {
        "sightrail.component": "ScreenImages",
        "sightrail.pictures": 2,
        "sightrail.status.clean": 1,
        "sightrail.status.flagged": 1,
        "sightrail.action.allow": 1,
        "sightrail.action.mask": 1,
        "sightrail.categories": ("red",),
        "sightrail.score.max": 1.0,
    }
    assert span.events == ()


def test_a_span_of_a_raised_refusal_says_so(spans: InMemorySpanExporter) -> None:
    with pytest.raises(ImageRefused):
        screen(Policy(on_flagged="raise")).invoke(VALUE)
    (span,) = spans.get_finished_spans()
    assert (span.attributes or {})["sightrail.action.raise"] == 1


def test_every_surface_opens_its_span_and_text_opens_none(
    spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    node = NodeWithScore(node=ImageNode(image=text64(RISKY)))
    chat = ChatLVLM(model=LocalLVLM(*tiny("llava"), guardrails=[RedDetector()]), max_tokens=1)
    (file := tmp_path / "a.png").write_bytes(RISKY)
    ImageRiskPostprocessor(detector=RedDetector()).postprocess_nodes([node])
    chat.invoke([HumanMessage([CARRIERS["standard base64"](RISKY)])])
    handler = GuardrailCallbackHandler(detector=RedDetector())
    handler.on_tool_end(RISKY, run_id=uuid4())
    list(screen_files(RedDetector(), [file]))
    components = [(span.attributes or {})["sightrail.component"] for span in done(spans)]
    assert components == [
        *("ImageRiskPostprocessor", "LocalLVLM", "GuardrailCallbackHandler", "sightrail screen"),
    ]
    spans.clear()
    screen().invoke(SECRET)
    chat.invoke(SECRET)
    assert done(spans) == ()


def test_without_opentelemetry_there_are_no_spans(
    spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    screen().invoke(VALUE)
    assert spans.get_finished_spans() == ()


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_every_look_of_an_agent_is_a_span_without_content(
    spans: InMemorySpanExporter, mode: str
) -> None:
    app = agent(brain(calls("screenshot"), "done"), ImageGuardMiddleware(detector=RedDetector()))
    asked = {"messages": [user(CLEAN, text=SECRET)]}
    app.invoke(asked) if mode == "sync" else await app.ainvoke(asked)
    found = [dict(span.attributes or {}) for span in done(spans)]
    assert [span.name for span in done(spans)] == ["sightrail.screen"] * 2
    assert {told["sightrail.component"] for told in found} == {"ImageGuardMiddleware"}
    assert [told.get("sightrail.action.mask", 0) for told in found] == [0, 1]
    assert all(span.events == () for span in done(spans))
    assert SECRET not in repr(found)


class Receiver(BaseHTTPRequestHandler):
    """Keeps what a client of LangSmith's posts."""

    server: Any

    def log_message(self, *args: Any) -> None:
        """Nothing is printed."""

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.server.got.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.answer()

    def do_PATCH(self) -> None:
        self.do_POST()

    def answer(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")


@pytest.mark.parametrize("hidden", [True, False])
def test_a_tracer_that_hides_images_gets_none_of_a_run(hidden: bool) -> None:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.got = []
    thread = Thread(target=server.serve_forever)
    thread.start()
    how: dict[str, Any] = {"hide_inputs": hide_images, "hide_outputs": hide_images}
    client = Client(
        api_url=f"http://127.0.0.1:{server.server_address[1]}",
        api_key="none",
        auto_batch_tracing=False,
        **(how if hidden else {}),
    )
    app = agent(brain(calls("screenshot"), "done"), ImageGuardMiddleware(detector=RedDetector()))
    app.invoke(
        {"messages": [user(RISKY, text="a question")]},
        {"callbacks": [LangChainTracer(client=client)]},
    )
    server.shutdown()
    server.server_close()
    thread.join(10)
    got = "".join(server.got)
    assert "a question" in got
    assert "the page" in got  # the tool's own output
    assert (text64(RISKY)[:200] in got) is not hidden
    assert ("[image]" in got) is hidden


async def test_events_can_be_shown_without_pictures() -> None:
    app = agent(brain(calls("screenshot"), "done"), ImageGuardMiddleware(detector=RedDetector()))
    told = {"messages": [user(RISKY, text="a question")]}
    events = [event async for event in app.astream_events(told, version="v2")]
    assert text64(RISKY)[:200] in repr(events)  # of the run's start, and of the tool's own end
    shown = [hide_images(event) for event in events]
    assert text64(RISKY)[:200] not in repr(shown)
    assert "the page" in repr(shown)
    assert [e["event"] for e in shown] == [e["event"] for e in events]
    plain = [e for e in events if "base64" not in repr(e)]
    assert plain
    assert all(hide_images(event) is event for event in plain)


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_the_traced_run_holds_the_findings(mode: str) -> None:
    tracer = Collecting()
    chain: Any = RunnableLambda(lambda value: value) | screen()
    config = {"callbacks": [tracer]}
    if mode == "sync":
        chain.invoke(VALUE, config)
    else:
        await chain.ainvoke(VALUE, config)
    (run,) = [run for run in tracer.runs if run.name == "ScreenImages"]
    metadata = (run.extra or {})["metadata"]
    assert metadata["sightrail.status.flagged"] == 1
    assert metadata["sightrail.categories"] == ["red"]
    assert "sightrail:flagged" in (run.tags or [])
    assert SECRET not in str(metadata)
    assert text64(RISKY)[:40] not in str(metadata)


class Inputs(BaseCallbackHandler):
    """Keeps what LangChain's events show going in."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        self.given.append(inputs)


ASKED = HumanMessage([{"type": "text", "text": "see"}, CARRIERS["standard base64"](RISKY)])


@pytest.mark.parametrize("shown", [False, True])
async def test_what_comes_in_is_traced_without_its_pictures_unless_that_is_asked_for(
    shown: bool,
) -> None:
    look = ScreenImages(detector=RedDetector(), trace_images=shown)
    model = FakeMessagesListChatModel(responses=[AIMessage("a")] * 9)
    structured = look.guard(RunnableLambda(lambda messages: AIMessage("a")))
    inputs = Inputs()
    config: Any = {"callbacks": [inputs]}
    for runnable in (look, look.guard(model), structured):
        runnable.invoke([ASKED], config)
        await runnable.ainvoke([ASKED], config)
        list(runnable.stream([ASKED], config))
        [chunk async for chunk in runnable.astream([ASKED], config)]
        runnable.batch([[ASKED]], config)
        await runnable.abatch([[ASKED]], config)
    assert (text64(RISKY)[:200] in repr(inputs.given)) is shown
    assert "see" in repr(inputs.given)
