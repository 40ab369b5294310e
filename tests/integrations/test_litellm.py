"""The guardrail in a real LiteLLM proxy, in front of an upstream of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("litellm", reason="litellm is not installed")
pytest.importorskip("litellm.proxy.proxy_server", reason="litellm has no proxy installed")

from serve_helpers import Scripted, asked, completion, drawn_request, events, pieces, scripted

pytestmark = pytest.mark.long  # a proxy takes half a minute to start

REFUSAL = "I am sorry, I cannot"
CONFIG = """
model_list:
  - model_name: up
    litellm_params: {{model: openai/up, api_base: "{behind}/v1", api_key: none}}
general_settings: {{master_key: sk-8f3b1c0d9a7e4f62b5c1d8e7f9a0b3c4}}
guardrails:
  - guardrail_name: sightrail
    litellm_params:
      guardrail: sightrail.integrations.litellm.SightrailGuardrail
      mode: [pre_call, post_call]
      default_on: true
      sightrail: {{encoder: testbed}}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def proxy(folder: Path, config: str) -> Iterator[str]:
    path, log, port = folder / "config.yaml", folder / "proxy.log", free_port()
    path.write_text(config)
    run = "from litellm import run_server; run_server()"
    command = [sys.executable, "-c", run, "--config", str(path), "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1"}
    with log.open("w") as told:
        process = subprocess.Popen(command, stdout=told, stderr=told, env=environment)
    try:
        until = time.monotonic() + 180
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{address}/health/liveliness", timeout=5).status_code == 200:
                    break
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.3)
        yield address
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def upstream() -> Scripted:
    return Scripted()


@pytest.fixture(scope="module")
def address(upstream: Scripted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with scripted(upstream) as behind:
        config = CONFIG.format(behind=behind)
        with proxy(tmp_path_factory.mktemp("litellm"), config) as running:
            yield running


def post(address: str, **body: Any) -> httpx.Response:
    url = f"{address}/v1/chat/completions"
    headers = {"Authorization": "Bearer sk-8f3b1c0d9a7e4f62b5c1d8e7f9a0b3c4"}
    return httpx.post(url, json={"model": "up", **body}, headers=headers, timeout=60)


def test_a_clean_picture_passes_and_an_unsafe_one_is_covered(
    address: str, upstream: Scripted
) -> None:
    upstream.answer = completion("fine")
    upstream.bodies.clear()
    for group in ("benign", "object"):
        url, question = drawn_request(group, 0)
        reply = post(address, messages=asked(question, url)).json()
        assert reply["choices"][0]["message"]["content"] == "fine"
    clean, covered = (body["messages"][0]["content"][0] for body in upstream.bodies)
    assert clean["image_url"]["url"].startswith("data:image/png")
    assert covered["image_url"]["url"] != drawn_request("object", 0)[0]


def test_what_cannot_be_inspected_does_not_pass(address: str, upstream: Scripted) -> None:
    upstream.bodies.clear()
    refused = asked("what?", "data:image/png;base64,AAAA")
    reply = post(address, messages=refused).json()
    assert REFUSAL in json.dumps(reply)
    streamed = post(address, messages=refused, stream=True)
    assert REFUSAL in streamed.text
    assert upstream.bodies == []


def test_pictures_in_answers_are_screened(address: str, upstream: Scripted) -> None:
    broken = "data:image/png;base64," + "AAAA" * 20
    upstream.answer = completion(broken)
    reply = post(address, messages=asked("draw")).text
    assert broken not in reply
    assert REFUSAL in reply
    upstream.events = pieces("Look: ", "data:ima", broken[8:])
    streamed = events(post(address, messages=asked("draw"), stream=True))
    assert "AAAA" not in json.dumps(streamed)
    assert REFUSAL in json.dumps(streamed)
    begun, *rest = pieces("Look.")
    cut = [broken[i : i + 9] for i in range(0, len(broken), 9)]
    thoughts = [
        {**begun, "choices": [{"index": 0, "delta": {"reasoning_content": c}}]} for c in cut
    ]
    upstream.events = [*thoughts, begun, *rest]
    streamed = events(post(address, messages=asked("draw"), stream=True))
    assert "AAAA" not in json.dumps(streamed)
    assert REFUSAL in json.dumps(streamed)


def test_with_settings_that_do_not_work_nothing_passes(upstream: Scripted, tmp_path: Path) -> None:
    """The proxy itself would start without the guardrail."""
    upstream.answer = completion("fine")
    upstream.bodies.clear()
    with scripted(upstream) as behind:
        wrong = CONFIG.format(behind=behind).replace("encoder:", "encodr:")
        with proxy(tmp_path, wrong) as running:
            response = post(running, messages=asked("hi"))
    assert response.status_code >= 400
    assert upstream.bodies == []
    assert "encodr" in (tmp_path / "proxy.log").read_text()
