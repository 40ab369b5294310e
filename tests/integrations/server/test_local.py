"""The local model behind the API."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from serve_helpers import asked, drawn_request, events, serving
from sightrail.guardrails import LocalLVLM, Policy, RiskDetector
from sightrail.guardrails.casa import Casa
from sightrail.guardrails.errors import ConfigurationError
from sightrail.guardrails.evaluation.stacks import DEFAULT_STACKS
from sightrail.integrations.server import ServerSettings, create_app


def post(address: str, path: str = "chat/completions", **body: Any) -> httpx.Response:
    return httpx.post(f"{address}/v1/{path}", json={"model": "testbed", **body}, timeout=60)


@pytest.fixture(scope="module")
def bare() -> LocalLVLM:
    detector = RiskDetector.from_pretrained("testbed")
    guards = [detector, Casa.from_pretrained("testbed")]
    return LocalLVLM.from_pretrained("testbed", guardrails=guards, policy=Policy(), gather=False)


def test_an_answer_is_the_models_own(local: str, bare: LocalLVLM) -> None:
    url, question = drawn_request("benign")
    reply = post(local, messages=asked(question, url), max_tokens=20).json()
    picture: Any = {"type": "image", "image": url}
    messages = [{"role": "user", "content": [picture, {"type": "text", "text": question}]}]
    expected = bare.chat(messages, max_new_tokens=20)
    choice = reply["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (expected.text, "stop")
    assert reply["usage"]["prompt_tokens"] == expected.usage.input_tokens
    assert [v["status"] for v in reply["sightrail"]["verdicts"]] == ["clean", "clean"]


def test_streams_join_to_the_same_answer_and_tell_their_usage(local: str) -> None:
    url, question = drawn_request("benign")
    whole = post(local, messages=asked(question, url)).json()
    body = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage, done = events(post(local, messages=asked(question, url), **body))
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
    assert done == "[DONE]"


def test_a_refusal_is_a_filtered_answer_with_its_verdicts(local: str) -> None:
    reply = post(local, messages=asked("what is this?", "data:image/png;base64,AAAA")).json()
    assert reply["choices"][0]["finish_reason"] == "content_filter"
    assert reply["choices"][0]["message"]["content"].startswith("I am sorry")
    assert reply["sightrail"]["refused"] is True
    (verdict,) = reply["sightrail"]["verdicts"]
    assert (verdict["status"], verdict["action"]) == ("not_inspected", "refuse")
    streamed = events(
        post(local, messages=asked("what?", "data:image/png;base64,AAAA"), stream=True)
    )
    assert streamed[-2]["choices"][0]["finish_reason"] == "content_filter"


def test_clients_at_once_get_what_they_would_get_alone(local: str) -> None:
    calls: list[dict[str, Any]] = []
    for number in range(3):
        for group in ("benign", "object"):
            url, question = drawn_request(group, number)
            calls.append({"messages": asked(question, url), "max_tokens": 16})
    calls += [{**call, "stop": ["a"]} for call in calls[:2]]
    alone = [post(local, **call).json()["choices"] for call in calls]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda call: post(local, **call).json()["choices"], calls))
    assert together == alone


def test_sampling_is_repeatable_under_a_seed(local: str) -> None:
    body = {"messages": asked("Describe a house."), "temperature": 1.0, "max_tokens": 12}
    texts = [
        post(local, seed=seed, **body).json()["choices"][0]["message"]["content"]
        for seed in (1, 1, 2, 3)
    ]
    assert texts[0] == texts[1]
    assert len({*texts}) > 1


def test_the_responses_api(local: str) -> None:
    url, question = drawn_request("benign")
    chat = post(local, messages=asked(question, url)).json()["choices"][0]["message"]["content"]
    parts = [
        {"type": "input_image", "image_url": url, "detail": "auto"},
        {"type": "input_text", "text": question},
    ]
    given = [{"role": "user", "content": parts}]
    whole = post(local, "responses", input=given).json()
    assert whole["status"] == "completed"
    assert whole["output"][0]["content"][0]["text"] == chat
    streamed = events(post(local, "responses", input=given, stream=True))
    assert [event["sequence_number"] for event in streamed] == list(range(len(streamed)))
    assert streamed[0]["type"] == "response.created"
    assert streamed[-1]["type"] == "response.completed"
    deltas = [e["delta"] for e in streamed if e["type"] == "response.output_text.delta"]
    assert "".join(deltas) == chat


def test_moderations_and_screening(local: str) -> None:
    url, _ = drawn_request("object")
    safe, question = drawn_request("benign")
    images = [{"type": "image_url", "image_url": {"url": one}} for one in (url, safe)]
    unsafe = post(local, "moderations", input=images[:1]).json()["results"][0]
    assert unsafe["flagged"]
    assert any(unsafe["categories"].values())
    assert unsafe["categories"].keys() == unsafe["category_scores"].keys()
    assert not post(local, "moderations", input=images[1:]).json()["results"][0]["flagged"]
    texts = post(local, "moderations", input=[question]).json()["results"]
    assert [result["category_scores"].keys() for result in texts] == [{"casa"}]
    broken = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    assert post(local, "moderations", input=broken).json()["results"][0]["flagged"]
    full = post(local, "screen", images=[url, safe], maps=True).json()
    assert [verdict["status"] for verdict in full["verdicts"]] == ["flagged", "clean"]
    assert full["verdicts"][0]["risk_map"]["boxes"]


def test_models_health_and_metrics(local: str) -> None:
    models = httpx.get(f"{local}/v1/models").json()
    assert [model["id"] for model in models["data"]] == ["testbed"]
    assert httpx.get(f"{local}/v1/models/testbed").json()["object"] == "model"
    assert httpx.get(f"{local}/health").json() == {"status": "ok"}
    post(local, messages=asked("hello"), max_tokens=1)
    text = httpx.get(f"{local}/metrics").text
    names = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if line[0] != "#"}
    assert all(name.startswith("sightrail_") for name in names)
    assert 'sightrail_requests_total{route="/v1/chat/completions",status="200"}' in text
    assert "sightrail_waiting 0.0" in text


@pytest.mark.parametrize(
    "stack",
    ["all", *(pytest.param(name, marks=pytest.mark.long) for name in DEFAULT_STACKS[:-1])],
)
def test_every_stack_is_served(stack: str) -> None:
    """What the stacks say about requests is tested elsewhere; here, that they stand in a server."""
    url, question = drawn_request("benign")
    unsafe, harmful = drawn_request("object")
    with serving(model="testbed", stack=stack, encoder="testbed") as address:
        whole = post(address, messages=asked(question, url), max_tokens=12)
        streamed = events(post(address, messages=asked(question, url), max_tokens=12, stream=True))
        told = post(address, messages=asked(harmful, unsafe), max_tokens=4).json()
    assert whole.status_code == 200
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed[:-1])
    assert text == whole.json()["choices"][0]["message"]["content"]
    if stack == "all":
        assert whole.json()["sightrail"]["verdicts"][-1]["guardrail"] == "evidence"
        assert told["sightrail"]["verdicts"][-1]["action"] in ("mask", "refuse")


def test_one_decision_from_all_evidence_needs_the_model() -> None:
    settings = ServerSettings(
        upstream="http://127.0.0.1:1/v1",
        stack="all",
        encoder="testbed",
        artifacts={"evidence": "testbed", "casa": "testbed", "moras": "testbed"},
    )
    with pytest.raises(ConfigurationError, match="serve the model itself"):
        create_app(settings)
