"""What a guard costs where it has nothing to object to: bytes, text-only turns, long histories.

    python tests/benchmarks/bench_guards.py            # writes docs/guards.json

The models are ChatOpenAI and OpenAILike against a server on this machine that waits as long as a
fast hosted model does before it answers. Turns with and without the guard are asked in turns; the
clock's figures are the fastest of each, which other work on the machine disturbs least, CPU time is
the median. The detector is a stub: what looking costs is measured elsewhere (`sightrail doctor`).
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langchain_openai import ChatOpenAI
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.llms.openai_like import OpenAILike
from PIL import Image

from benchmark_folders import SHARED
from repository import ROOT
from sightrail.guardrails import CachedDetector
from sightrail.guardrails.carriers.loop import passed
from sightrail.guardrails.testing import StubDetector
from sightrail.integrations.langchain import ImageGuardMiddleware
from sightrail.integrations.llama_index import guard_llm
from sightrail.runnables import ScreenImages

PHOTOS = SHARED / "photos"


class Hosted(BaseHTTPRequestHandler):
    """Answers after a while."""

    server: Any

    def log_message(self, *args: Any) -> None:
        """Nothing is printed."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.server.wait_s)
        said = {"role": "assistant", "content": "hello there"}
        choice = {"index": 0, "message": said, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
        answer = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}
        text = json.dumps({**answer, "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def block(data: bytes, kind: str = "image/jpeg") -> dict[str, str]:
    return {"type": "image", "base64": base64.b64encode(data).decode(), "mime_type": kind}


def photographs() -> dict[str, bytes]:
    """The photographs of shared/data, and drawn ones where that is not there."""
    files = sorted(PHOTOS.glob("*.*")) if PHOTOS.is_dir() else []
    found = {p.name: p.read_bytes() for p in files if p.suffix in (".jpg", ".jpeg", ".png")}
    if found:
        return found
    drawn = {}
    for number in range(6):
        buffer = io.BytesIO()
        Image.effect_noise((640, 480), 10 + number).convert("RGB").save(buffer, "JPEG", quality=85)
        drawn[f"drawn {number}"] = buffer.getvalue()
    return drawn


def bytes_out(photos: dict[str, bytes]) -> dict[str, Any]:
    """Bytes of clean pictures that come out, per byte that went in, by the kind of file."""
    screen = ScreenImages(detector=StubDetector())
    kinds: dict[str, list[float]] = {}
    for name, data in photos.items():
        kind = "png" if name.endswith(".png") else "jpeg"
        message = HumanMessage([block(data, f"image/{kind}")])
        (seen,) = (passed(outcome).value for outcome in screen.screen([message]))
        came, went = (len(m.content[0]["base64"]) for m in (message, seen))
        kinds.setdefault(kind, []).append(went / came)
    return {
        kind: {
            "photos": len(ratios),
            "of the same length": sum(ratio == 1.0 for ratio in ratios),
            "ratio": round(statistics.mean(ratios), 4),
            "largest ratio": round(max(ratios), 4),
        }
        for kind, ratios in kinds.items()
    }


def compared(plain: Callable[[], Any], guarded: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Both called in turns: the fastest of each on the clock, and medians of the CPU time."""
    clock: dict[str, list[float]] = {"plain": [], "guarded": []}
    busy: dict[str, list[float]] = {"plain": [], "guarded": []}
    for number in range(rounds + 1):
        for name, call in (("plain", plain), ("guarded", guarded)):
            since, cpu = time.perf_counter(), time.process_time()
            call()
            if number:  # the first is for warming up
                clock[name].append(time.perf_counter() - since)
                busy[name].append(time.process_time() - cpu)
    before, after = min(clock["plain"]), min(clock["guarded"])
    needed = {name: statistics.median(times) for name, times in busy.items()}
    return {
        "plain_ms": round(1000 * before, 1),
        "guarded_ms": round(1000 * after, 1),
        "ratio": round(after / before, 4),
        "plain_cpu_ms": round(1000 * needed["plain"], 2),
        "added_cpu_ms": round(1000 * (needed["guarded"] - needed["plain"]), 2),
    }


def history(photos: dict[str, bytes], turns: int, pictures: int) -> list[Any]:
    """A conversation with its pictures in every other turn, all different."""
    datas = list(photos.values())
    messages: list[Any] = []
    for turn in range(turns):
        content: list[Any] = [{"type": "text", "text": f"question {turn}"}]
        if turn % (turns // pictures) == 0:
            image = Image.open(io.BytesIO(datas[turn % len(datas)])).convert("RGB")
            image.thumbnail((320, 320))
            image.putpixel((0, 0), (turn % 256, turn // 256, 77))
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            content.append(block(buffer.getvalue(), "image/png"))
        messages += [HumanMessage(content), AIMessage(f"answer {turn}")]
    return [*messages, HumanMessage("and now?")]


def in_llama_index(messages: list[Any]) -> list[ChatMessage]:
    """The same conversation as LlamaIndex has it."""

    def part(item: Any) -> Any:
        text = item if isinstance(item, str) else item.get("text")
        return ImageBlock(image=item["base64"].encode()) if text is None else TextBlock(text=text)

    def said(message: Any) -> ChatMessage:
        content = message.content
        role = "assistant" if isinstance(message, AIMessage) else "user"
        parts = [content] if isinstance(content, str) else content
        return ChatMessage(role=role, blocks=[part(item) for item in parts])

    return [said(message) for message in messages]


def measure(rounds: int, wait_s: float) -> dict[str, Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hosted)
    server.wait_s = wait_s
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    model = ChatOpenAI(model="m", base_url=url, api_key="none", max_retries=0)
    llm = OpenAILike(model="m", api_base=url, api_key="none", max_retries=0, is_chat_model=True)
    photos = photographs()
    asked = [HumanMessage("what is 2 + 2?")]
    long = history(photos, 100, 50)
    told, whole = in_llama_index(asked), in_llama_index(long)
    stubs = {name: StubDetector() for name in ("model", "agent", "llm")}
    guarded = ScreenImages(detector=CachedDetector(stubs["model"])).guard(model)
    agent = create_agent(model, [])
    guard = ImageGuardMiddleware(detector=stubs["agent"])
    safe_agent = create_agent(model, [], middleware=[guard])
    safe_llm = guard_llm(llm, detector=stubs["llm"])

    def in_turns(messages: list[Any], blocks: list[ChatMessage], count: int) -> dict[str, Any]:
        state = {"messages": messages}
        return {
            "model": compared(
                lambda: model.invoke(messages), lambda: guarded.invoke(messages), count
            ),
            "agent": compared(lambda: agent.invoke(state), lambda: safe_agent.invoke(state), count),
            "llm": compared(lambda: llm.chat(blocks), lambda: safe_llm.chat(blocks), count),
        }

    text = in_turns(asked, told, rounds)
    server.wait_s = 0.0
    turns = in_turns(long, whole, 3)
    server.shutdown()
    for name, found in turns.items():
        found["looked at"] = len(stubs[name].seen)
    about = "model: ChatOpenAI; agent: create_agent over it; llm: LlamaIndex's OpenAILike"
    return {
        "clean pictures": bytes_out(photos),
        "text-only turn": {"server answers after_s": wait_s, **text},
        "100 turns, 50 pictures": {"turns asked": 4, **turns},
        "measured": {
            "what": about,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "processes that wanted them": round(os.getloadavg()[0], 1),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--wait-s", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "guards.json")
    arguments = parser.parse_args()
    found = measure(arguments.rounds, arguments.wait_s)
    arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
