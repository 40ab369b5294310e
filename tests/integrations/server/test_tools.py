"""Tools and structured answers of a local model, with the openai client."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
import torch
from pydantic import BaseModel, Field, StringConstraints
from transformers import LogitsProcessor

from serve_helpers import asked, drawn_request, serving_model
from sightrail.guardrails import LocalLVLM, RiskDetector
from sightrail.guardrails.model.interventions import Interventions
from sightrail.testbed.agents import TOOLS as ALBUM_TOOLS
from tool_templates import LOOK, SAVE, TOOLED, TOOLS, tooled

pytest.importorskip("llguidance", reason="the structured extra is not installed")
openai = pytest.importorskip("openai", reason="the openai client is not installed")

FAMILY = "qwen2_5_vl"
BROKEN = "data:image/png;base64,AAAA"


class Weather(BaseModel):
    """A shape for structured answers, with an end that a model of random weights finds too."""

    city: Annotated[str, StringConstraints(max_length=4, pattern="^[a-z]*$")]
    degrees: Annotated[int, Field(ge=0, le=99)]


@dataclass
class Script:
    """A guardrail for tests that says for the model what a test wants: one text a step.

    Attributes:
        texts: by step; beyond them, and for an empty one, the model speaks for itself.
    """

    texts: list[str] = field(default_factory=list)
    needs: frozenset[str] = frozenset({"logits"})
    stage: str = "decoding"

    def apply(self, messages: Any) -> Any:
        return messages

    def check(self, host: Any) -> None:
        pass

    def interventions(self, prompt: Any, host: Any) -> Interventions:
        steps = [conversation.step for conversation in prompt.originals]
        said = [self.texts[step] if step < len(self.texts) else "" for step in steps]
        tokenizer = host.processor.tokenizer
        rows = [
            [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
            if text
            else []
            for text in said
        ]
        return Interventions(answer_logits=[_Says(rows)])


class _Says(LogitsProcessor):
    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self._rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        at = input_ids.shape[1]
        for row, tokens in enumerate(self._rows):
            if at < len(tokens):
                scores[row] = -torch.inf
                scores[row, tokens[at]] = 0.0
        return scores


@pytest.fixture(scope="module")
def script() -> Script:
    return Script()


@pytest.fixture(scope="module")
def served(script: Script) -> Iterator[str]:
    lvlm = LocalLVLM(
        *tooled(FAMILY), guardrails=[RiskDetector.from_pretrained("testbed"), script], name="tiny"
    )
    with serving_model(lvlm, stack="screen", encoder="testbed") as address:
        yield address


@pytest.fixture
def client(served: str, script: Script) -> Iterator[Any]:
    script.texts = []
    with openai.OpenAI(
        base_url=f"{served}/v1", api_key="none", timeout=120, max_retries=0
    ) as client:
        yield client


def calls(*photos: int) -> str:
    return TOOLED[FAMILY].written(*(("look", {"photo": photo}) for photo in photos))


def picture() -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": drawn_request("benign", 0)[0]}}


def test_a_tool_loop_with_pictures_in_results(client: Any, script: Script) -> None:
    script.texts = ["<think>hm</think>Let me see." + calls(3, 4), "Two photos."]
    messages: list[Any] = [*asked("What is in photos 3 and 4?")]
    first = client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS)
    choice = first.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
    assert choice.message.reasoning_content == "hm"
    assert [(c.function.name, c.function.arguments) for c in choice.message.tool_calls] == [
        ("look", '{"photo": 3}'),
        ("look", '{"photo": 4}'),
    ]
    messages.append(choice.message)
    for call, content in zip(choice.message.tool_calls, ([picture()], "none there"), strict=True):
        messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
    second = client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS)
    assert second.choices[0].message.content == "Two photos."
    assert second.choices[0].finish_reason == "stop"
    assert second.choices[0].message.tool_calls is None
    (verdict,) = second.model_extra["sightrail"]["verdicts"]
    assert verdict["status"] == "clean"
    broken = {"type": "image_url", "image_url": {"url": BROKEN}}
    messages[-1] = {**messages[-1], "content": [broken]}
    refused = client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS)
    assert refused.choices[0].finish_reason == "content_filter"


def test_calls_stream_as_deltas(client: Any, script: Script) -> None:
    script.texts = ["<think>hm</think>Let me see." + calls(3, 4)]
    with client.chat.completions.stream(
        model="tiny", messages=asked("Look."), tools=TOOLS
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion().choices[0]
    assert "content.delta" in kinds
    assert kinds.count("tool_calls.function.arguments.done") == 2
    assert (final.finish_reason, final.message.content) == ("tool_calls", "Let me see.")
    photos = [json.loads(call.function.arguments)["photo"] for call in final.message.tool_calls]
    assert photos == [3, 4]
    assert len({call.id for call in final.message.tool_calls}) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_cannot_be_read_is_told_and_never_carried_out(
    client: Any, script: Script, stream: bool
) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not there")
    script.texts = ['<tool_call>\n{"name": "look", "arguments": {"photo": 3\n</tool_call>']
    told = client.chat.completions.create(model="tiny", messages=asked("Look."), tools=TOOLS)
    (call,) = told.choices[0].message.tool_calls
    assert call.function.name == "look"
    with pytest.raises((ValueError, AssertionError)):
        assert isinstance(json.loads(call.function.arguments), dict)
    model = langchain.ChatOpenAI(
        base_url=str(client.base_url), api_key="none", model="tiny", streaming=stream
    )
    reply = model.bind_tools(TOOLS).invoke("Look.")
    assert reply.tool_calls == []
    assert len(reply.invalid_tool_calls) == 1


def test_a_choice_of_tools_is_kept(client: Any) -> None:
    ask: Any = {"model": "tiny", "messages": asked("Look."), "tools": TOOLS, "max_tokens": 60}
    named = {"type": "function", "function": {"name": "save"}}
    forced = client.chat.completions.create(**ask, tool_choice=named).choices[0]
    (call,) = forced.message.tool_calls
    assert call.function.name == "save"
    assert json.loads(call.function.arguments).keys() == {"note"}
    single = client.chat.completions.create(
        **ask, tool_choice="required", parallel_tool_calls=False, seed=1
    )
    assert len(single.choices[0].message.tool_calls) == 1
    none = client.chat.completions.create(**{**ask, "max_tokens": 4}, tool_choice="none")
    assert none.choices[0].message.tool_calls is None


def test_structured_answers_are_parsed(client: Any) -> None:
    ask: Any = {"model": "tiny", "messages": asked("weather?"), "max_tokens": 60}
    parsed = client.chat.completions.parse(**ask, response_format=Weather)
    assert isinstance(parsed.choices[0].message.parsed, Weather)
    with client.chat.completions.stream(**ask, response_format=Weather) as stream:
        final = stream.get_final_completion().choices[0].message
    assert final.parsed == parsed.choices[0].message.parsed
    of_object = client.chat.completions.create(
        **{**ask, "max_tokens": 4}, response_format={"type": "json_object"}
    )
    assert of_object.choices[0].message.content.startswith("{")
    with pytest.raises(openai.ContentFilterFinishReasonError):
        client.chat.completions.parse(
            **{**ask, "messages": asked("x", BROKEN)}, response_format=Weather
        )


def test_the_responses_api_calls_and_is_parsed(client: Any, script: Script) -> None:
    tools = [{"type": "function", **LOOK["function"]}, {"type": "function", **SAVE["function"]}]
    script.texts = ["<think>hm</think>Let me see." + calls(3, 4), "Two photos."]
    said: list[Any] = [{"role": "user", "content": "What is in photos 3 and 4?"}]
    first = client.responses.create(model="tiny", input=said, tools=tools)
    with client.responses.stream(model="tiny", input=said, tools=tools) as stream:
        events = list(stream)
        streamed = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for whole in (first, streamed):
        assert [item.type for item in whole.output] == [
            *("reasoning", "message", "function_call", "function_call")
        ]
        assert (whole.status, whole.output_text) == ("completed", "Let me see.")
        assert [item.arguments for item in whole.output[2:]] == ['{"photo": 3}', '{"photo": 4}']
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == (
        "Let me see."
    )
    looked = {"type": "input_image", "image_url": drawn_request("benign", 0)[0], "detail": "auto"}
    results = [[looked], "none there"]
    said += first.output
    said += [
        {"type": "function_call_output", "call_id": item.call_id, "output": result}
        for item, result in zip(first.output[2:], results, strict=True)
    ]
    second = client.responses.create(model="tiny", input=said, tools=tools)
    assert second.output_text == "Two photos."
    assert [v["status"] for v in second.model_extra["sightrail"]["verdicts"]] == ["clean"]
    script.texts = []
    parsed = client.responses.parse(
        model="tiny", input="weather?", text_format=Weather, max_output_tokens=60
    )
    assert isinstance(parsed.output_parsed, Weather)
    image = {"type": "input_image", "image_url": BROKEN, "detail": "auto"}
    refused = client.responses.parse(
        model="tiny", input=[{"role": "user", "content": [image]}], text_format=Weather
    )
    assert (refused.status, refused.output_parsed) == ("incomplete", None)
    assert refused.output[0].content[0].refusal.startswith("I am sorry")


WRONG: list[dict[str, Any]] = [
    {"tools": 7},
    {"tools": ["look"]},
    {"tools": [{"type": "function"}]},
    {"tools": [{"type": "web_search"}]},
    {"tools": [{"type": "function", "function": {"name": "a b"}}]},
    {"tools": [LOOK, LOOK]},
    {"tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "array"}}}]},
    {"tools": [{"type": "function", "function": {"name": "x", "parameters": 7}}]},
    {"tool_choice": "required"},
    {"tool_choice": ["look"]},
    {"tool_choice": 7, "tools": TOOLS},
    {"tool_choice": "jump", "tools": TOOLS},
    {"tool_choice": {"type": "allowed_tools"}, "tools": TOOLS},
    {"tool_choice": {"function": {"name": ["look"]}}, "tools": TOOLS},
    {"parallel_tool_calls": "yes", "tools": TOOLS},
    {"response_format": "json"},
    {"response_format": {"type": "json_schema"}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": 7}}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "no"}}}},
    {"response_format": {"type": ["json_object"]}},
    {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"schema": {"$ref": "http://127.0.0.1/x"}},
        }
    },
    {"messages": [{"role": "tool", "content": "x"}]},
    {"messages": [{"role": "assistant", "content": None, "tool_calls": "look"}, *asked("x")]},
    {"messages": [{"role": "assistant", "content": None, "tool_calls": [7]}, *asked("x")]},
    {"messages": [{"role": "assistant", "tool_calls": [{"function": 7}]}, *asked("x")]},
    {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": 7}}]}, *asked("x")]},
    {"messages": [*asked("x"), {"role": "assistant", "audio": {"id": "x"}}]},
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: str(wrong)[:70])
@pytest.mark.parametrize("stream", [False, True])
def test_wrong_tools_and_schemas_are_told(client: Any, wrong: dict[str, Any], stream: bool) -> None:
    body = {"model": "tiny", "messages": asked("hi"), "max_tokens": 1, "stream": stream, **wrong}
    with pytest.raises(openai.BadRequestError):
        client.post("/chat/completions", body=body, cast_to=object)


def test_the_testbed_calls_a_tool(local: str) -> None:
    ours = openai.OpenAI(base_url=f"{local}/v1", api_key="none", max_retries=0)
    ask: Any = {"model": "testbed", "messages": asked("look at photo 1. what is in the image?")}
    (choice,) = ours.chat.completions.create(**ask, tools=list(ALBUM_TOOLS)).choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls or ()
    assert (call.function.name, json.loads(call.function.arguments)) == ("look", {"photo": 1})
