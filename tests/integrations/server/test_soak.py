"""Many clients for a while: good and hostile requests, hang-ups, slow readers, broken upstreams.

SIGHTRAIL_SOAK_S=1200 python -m pytest -m long tests/integrations/server/test_soak.py -s
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import re
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from memory_helpers import STATUS, resident
from serve_helpers import Scripted, asked, drawn_request, events, scripted, serving

SECONDS = float(os.environ.get("SIGHTRAIL_SOAK_S", "60"))
CLIENTS = 16
CHAT = "/v1/chat/completions"


@pytest.mark.long
@pytest.mark.skipif(not STATUS.exists(), reason="this machine does not tell what a process holds")
def test_nothing_leaks_is_lost_or_mixed_up() -> None:
    with (
        serving(model="testbed", stack="screen+casa", encoder="testbed") as local,
        serving(upstream=f"{local}/v1", stack="screen", encoder="testbed") as gateway,
        scripted(Failing()) as behind,
        serving(upstream=f"{behind}/v1", stack="bare", request_timeout_s=5.0) as failing,
    ):
        soak = Soak((local, gateway), failing)
        soak.run(SECONDS / 4)  # every memory is warm
        files = open_files()
        held = soak.run(SECONDS)
        settle([local, gateway, failing])
        counted = {address: answered(address) for address in (gateway, failing)}
        assert open_files() <= files + CLIENTS
    quarter = max(1, len(held) // 4)
    grown = statistics.mean(held[-quarter:]) / statistics.mean(held[:quarter]) - 1
    told = {"requests": dict(soak.done), "grown": grown, "KiB": held[:: max(1, len(held) // 40)]}
    print(json.dumps(told), flush=True)
    assert soak.wrong == []
    assert min(soak.done[kind] for kind in soak.kinds) > 0, soak.done
    assert counted == {address: soak.sent[address] for address in counted}
    assert grown < 0.05, f"memory grew by {grown:.1%} over {soak.done.total()} requests"


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def answered(address: str) -> int:
    """How many requests the server says it has seen the end of, whatever the end was."""
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    counts = r'sightrail_requests_total\{route="([^"]*)".*} ([0-9.e+]+)'
    counted = [re.fullmatch(counts, line) for line in lines]
    return int(sum(float(m[2]) for m in counted if m and m[1] not in ("/metrics", "/health")))


def settle(addresses: list[str]) -> None:
    """Wait until no server has a request inside: a client that hung up leaves work behind."""
    until = time.monotonic() + 60
    for address in addresses:
        while "sightrail_requests_inside 0.0" not in httpx.get(f"{address}/metrics").text:
            assert time.monotonic() < until, "a request never ends"
            time.sleep(0.1)


def typed(error: Any) -> bool:
    """Whether it is an error in the API's own shape."""
    return error.keys() >= {"message", "type", "param", "code"} and bool(error["message"])


class Failing(Scripted):
    """An upstream that fails as it is asked to."""

    EXPECTED: ClassVar[dict[str, str]] = {
        "down": "upstream_error",
        "busy": "theirs",
        "garbage": "upstream_error",
        "crash": "upstream_error",
        "stall": "timeout",
        "break": "upstream_failed",
        "no json": "upstream_error",
    }

    async def handle(self, request: Request) -> Response:
        body = json.loads(await request.body())
        how = body["how"]
        error = {"message": "busy", "type": "x", "param": None, "code": "theirs"}
        if how == "down":
            return PlainTextResponse("<html>", 503)
        if how == "busy":
            return JSONResponse({"error": error}, 429, {"Retry-After": "1"})
        if how == "crash":
            raise RuntimeError("as asked")
        if how == "stall":
            await asyncio.sleep(9)
        if how in ("break", "no json") and body.get("stream"):
            begun = {"choices": [{"index": 0, "delta": {"content": "begun"}}]}
            return self.streaming([begun, None if how == "break" else "{"])
        return PlainTextResponse("no json at all")


class Soak:
    """Clients that ask, and know what every answer has to be."""

    def __init__(self, addresses: tuple[str, ...], failing: str) -> None:
        self.addresses = addresses
        self.failing = failing
        self.done: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.kinds: dict[str, Callable[[str, int], str]] = {
            "whole": self._whole,
            "stream": self._streamed,
            "hostile picture": self._broken_picture,
            "hostile request": self._hostile,
            "hang-up": self._hang_up,
            "hang-up at once": self._hang_up_at_once,
            "slow reader": self._slow,
            "upstream failure": self._upstream_failure,
        }
        self._lock = threading.Lock()
        self._asked = []
        for group, number in itertools.product(("benign", "object"), range(4)):
            url, question = drawn_request(group, number)
            self._asked.append({"messages": asked(question, url), "max_tokens": 16})
        self._known = [
            self.post(addresses[0], body).json()["choices"][0]["message"]["content"]
            for body in self._asked
        ]

    def run(self, seconds: float) -> list[int]:
        """Ask for so long; gives what the process held meanwhile, in KiB, every second or so."""
        until = time.monotonic() + seconds
        threads = [
            threading.Thread(target=self._client, args=(number, until)) for number in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        held = []
        while time.monotonic() < until:
            time.sleep(min(1.0, seconds / 20))
            held.append(resident()[0])
        for thread in threads:
            thread.join(300)
        assert not any(thread.is_alive() for thread in threads)
        return held

    def post(self, address: str, body: dict[str, Any], **more: Any) -> httpx.Response:
        self._count(address)
        return httpx.post(
            f"{address}{CHAT}", json={"model": "testbed", **body, **more}, timeout=120
        )

    def _count(self, address: str) -> None:
        with self._lock:
            self.sent[address] += 1

    def _client(self, number: int, until: float) -> None:
        chance = random.Random(number)
        while time.monotonic() < until:
            kind = chance.choice([*self.kinds])
            address, row = chance.choice(self.addresses), chance.randrange(len(self._asked))
            try:
                found = self.kinds[kind](address, row)
            except Exception as error:
                found = repr(error)
            with self._lock:
                self.done[kind] += 1
                if found:
                    self.wrong.append(f"{kind}: {found}"[:500])

    def _whole(self, address: str, row: int) -> str:
        reply = self.post(address, self._asked[row]).json()
        text = reply["choices"][0]["message"]["content"]
        return "" if text == self._known[row] else f"{text!r} for {self._known[row]!r}"

    def _streamed(self, address: str, row: int) -> str:
        told = events(self.post(address, self._asked[row], stream=True))
        text = "".join(e["choices"][0]["delta"].get("content") or "" for e in told[:-1])
        return "" if text == self._known[row] else f"{text!r} for {self._known[row]!r}"

    def _broken_picture(self, address: str, row: int) -> str:
        broken = asked("what?", "data:image/png;base64,AAAA")
        refused = self.post(address, {"messages": broken}).json()
        passed = refused["choices"][0]["finish_reason"] != "content_filter"
        return "a broken picture passed" if passed else ""

    def _hostile(self, address: str, row: int) -> str:
        wrong = [
            {"messages": 7},
            {"messages": asked("x"), "max_tokens": "many"},
            {"messages": asked("x"), "sightrail": {"refused": False}},
            {"messages": [{"role": "nobody", "content": "x"}]},
        ]
        told = self.post(address, wrong[row % len(wrong)])
        return "" if told.status_code == 400 and typed(told.json()["error"]) else told.text

    def _hang_up(self, address: str, row: int) -> str:
        with self._begun(address, row) as response:
            next(response.iter_lines())
        return ""

    def _hang_up_at_once(self, address: str, row: int) -> str:
        """Before there is an answer, which may be there all the same."""
        try:
            body = {"model": "testbed", **self._asked[row]}
            self._count(address)
            timeout = httpx.Timeout(60, read=0.02 * (1 + row))
            httpx.post(f"{address}{CHAT}", json=body, timeout=timeout)
        except httpx.ReadTimeout:
            pass
        return ""

    def _slow(self, address: str, row: int) -> str:
        with self._begun(address, row) as response:
            whole = b""
            for part in response.iter_raw(64):
                whole += part
                time.sleep(0.005)
        return "" if b"[DONE]" in whole else "a slow reader did not get its end"

    def _begun(self, address: str, row: int) -> Any:
        self._count(address)
        body = {"model": "testbed", **self._asked[row], "stream": True}
        return httpx.stream("POST", f"{address}{CHAT}", json=body, timeout=120)

    def _upstream_failure(self, address: str, row: int) -> str:
        how = [*Failing.EXPECTED][row % len(Failing.EXPECTED)]
        stream = how in ("break", "no json")
        response = self.post(self.failing, {"messages": asked("hi"), "how": how}, stream=stream)
        told = events(response)[-1] if stream else response.json()
        # On a machine that is busy enough, the request's time is over first.
        well = typed(told["error"]) and told["error"]["code"] in (Failing.EXPECTED[how], "timeout")
        return "" if well else f"{how}: {response.status_code} {response.text}"
