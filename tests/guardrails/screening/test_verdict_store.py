"""VerdictStore: what outlives a process, what is believed of it, and what never gets into it."""

from __future__ import annotations

import multiprocessing
import pickle
import sqlite3
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from langchain_core.stores import InMemoryByteStore
from llama_index.core.storage.kvstore import SimpleKVStore
from PIL import Image

from sightrail.guardrails import CachedDetector, ConfigurationError, Verdict, VerdictStore
from sightrail.guardrails.screening import verdict_store
from sightrail.guardrails.screening.verdict_store import identity_of, store_key
from sightrail.guardrails.testing import StubDetector
from sightrail.guardrails.verdict import NotInspected

NOISE = np.random.default_rng(0)  # Pillow's noise would be another in a process that spawns
PICTURES = [
    Image.fromarray(NOISE.integers(0, 256, (24 + n, 24, 3)).astype(np.uint8)) for n in range(3)
]
PLACES: dict[str, Callable[[Path], Any]] = {
    "file": lambda folder: folder / "verdicts.sqlite",
    "text": lambda folder: str(folder / "verdicts.sqlite"),
    "url": lambda folder: f"sqlite:///{folder / 'verdicts.sqlite'}",
    "langchain": lambda folder: InMemoryByteStore(),
    "llama_index": lambda folder: SimpleKVStore(),
}


@dataclass(repr=False)
class Named(StubDetector):
    """A stub that another process can tell from others."""

    identity: str = "one of ours"
    model: Any = field(default=None)


def verdict(**changes: Any) -> Verdict:
    (found,) = StubDetector(flag=True).screen(PICTURES[:1])
    return found.model_copy(update=changes)


@pytest.mark.parametrize("place", PLACES)
def test_what_one_has_looked_at_another_does_not(place: str, tmp_path: Path) -> None:
    where = PLACES[place](tmp_path)
    first, second, third = Named(flag=True), Named(), Named(identity="another")
    told = CachedDetector(first, store=VerdictStore(where)).screen(PICTURES)
    assert CachedDetector(second, store=VerdictStore(where)).screen(PICTURES) == told
    assert second.seen == []
    again = CachedDetector(third, store=VerdictStore(where)).screen(PICTURES)
    assert [v.status for v in again] == ["clean"] * 3
    assert len(first.seen) == len(third.seen) == 3


def test_a_mask_that_was_checked_is_no_first_look(tmp_path: Path) -> None:
    cached = CachedDetector(Named(flag=True), store=tmp_path / "v.sqlite")
    from sightrail.guardrails import read_picture

    picture = read_picture(PICTURES[0])
    assert cached.screen_again([picture], [[(0, 0, 9, 9)]])[0].status == "clean"
    other = CachedDetector(Named(flag=True), store=tmp_path / "v.sqlite")
    assert other.screen([PICTURES[0]])[0].status == "flagged"


@pytest.mark.parametrize(
    "broken",
    [
        Verdict.failed("the encoder ran out of memory"),
        Verdict.uninspected("too_large"),
        verdict(not_inspected=(NotInspected(reason="failed", detail="half of it"),)),
    ],
)
def test_what_failed_is_never_kept(broken: Verdict, tmp_path: Path) -> None:
    store = VerdictStore(tmp_path / "v.sqlite")
    store.save({"a": broken, "b": verdict()})
    assert set(store.load(["a", "b"])) == {"b"}
    detector = Named(fail=RuntimeError("no"))
    with pytest.raises(RuntimeError, match="no"):
        CachedDetector(detector, store=store).screen(PICTURES[:1])
    detector.fail = None
    assert CachedDetector(detector, store=store).screen(PICTURES[:1])[0].status == "clean"


def test_clean_entries_are_believed_only_where_that_is_said(tmp_path: Path) -> None:
    careful = VerdictStore(tmp_path / "v.sqlite", trust="flagged")
    VerdictStore(tmp_path / "v.sqlite").save({"a": verdict(), "b": verdict(status="clean")})
    assert set(careful.load(["a", "b"])) == {"a"}
    with pytest.raises(ConfigurationError, match="trust is 'some'"):
        VerdictStore(tmp_path / "v.sqlite", trust="some")  # type: ignore[arg-type]


def test_only_who_knows_the_secret_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "v.sqlite"
    VerdictStore(path).save({"a": verdict()})
    mine = VerdictStore(path, secret="mine")
    assert mine.load(["a"]) == {}
    mine.save({"b": verdict()})
    assert set(pickle.loads(pickle.dumps(mine)).load(["b"])) == {"b"}
    assert VerdictStore(path, secret=b"other").load(["b"]) == {}
    assert VerdictStore(path).load(["b"]) == {}
    assert "mine" not in repr(mine).replace("mine.", "")


def _moved(entry: bytes) -> bytes:
    """Signed for another key."""
    store = VerdictStore(InMemoryByteStore())
    return store._entry("another key", verdict(status="clean"))


def _signed(packed: bytes) -> bytes:
    return VerdictStore(InMemoryByteStore())._signature("a", packed) + packed


DAMAGES: dict[str, Callable[[bytes], Any]] = {
    "empty": lambda entry: b"",
    "cut": lambda entry: entry[:-5],
    "flipped": lambda entry: entry[:40] + bytes([entry[40] ^ 1]) + entry[41:],
    "not packed": lambda entry: _signed(b"clean"),
    "not JSON": lambda entry: _signed(zlib.compress(b"clean")),
    "another thing": lambda entry: _signed(zlib.compress(b'{"status": "very clean"}')),
    "deep": lambda entry: _signed(zlib.compress(b"[" * 100_000)),
    "a bomb": lambda entry: _signed(zlib.compress(b" " * 50_000_000)),
    "failed": lambda entry: _signed(zlib.compress(b'{"status": "failed"}')),
    "allowed": lambda entry: _signed(zlib.compress(b'{"status": "clean", "action": "allow"}')),
    "moved": _moved,
    "text": lambda entry: "clean",
    "nothing": lambda entry: 7,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_looked_at_anew_and_replaced(damage: str) -> None:
    shelf = InMemoryByteStore()
    store = VerdictStore(shelf)
    store.save({"a": verdict()})
    [entry] = shelf.mget(["a"])
    assert entry is not None
    shelf.mset([("a", DAMAGES[damage](entry))])
    assert store.load(["a"]) == {}
    store.save({"a": verdict()})
    assert store.load(["a"]) == {"a": verdict()}


class Away:
    """A store behind a network that is down."""

    def mget(self, keys: Any) -> Any:
        raise OSError("no route")

    mset = mget


@pytest.mark.parametrize("kind", ["away", "no database", "a folder", "locked"])
def test_a_store_that_does_not_answer_costs_no_verdict(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.setattr(verdict_store, "_BUSY_S", 0.05)
    path = tmp_path / "v.sqlite"
    if kind == "no database":
        path.write_bytes(b"this is no database, whatever its name says" * 99)
    if kind == "locked":
        VerdictStore(path).save({"a": verdict()})
    holder = sqlite3.connect(path) if kind == "locked" else None
    if holder is not None:
        holder.execute("begin exclusive")
    where: Any = {"away": Away(), "a folder": tmp_path}.get(kind, path)
    cached = CachedDetector(Named(flag=True), store=where)
    assert [v.status for v in cached.screen(PICTURES)] == ["flagged"] * 3
    assert caplog.text.count("going on without it") == 1
    if holder is not None:
        holder.close()


def test_what_is_no_store_or_cannot_be_told_apart_is_an_error_at_once(tmp_path: Path) -> None:
    for where in (7, {}, object()):
        with pytest.raises(ConfigurationError, match="no place for verdicts"):
            VerdictStore(where)  # type: ignore[arg-type]

    class Nameless:
        def screen(self, images: Any) -> list[Verdict]:
            return []

    with pytest.raises(ConfigurationError, match="attribute identity"):
        CachedDetector(Nameless(), store=tmp_path / "v.sqlite")


def test_keys_tell_settings_weights_and_contents_apart() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    same = Named(model=model)
    before = identity_of(same)
    assert identity_of(Named(model=model)) == before
    assert identity_of(Named(model=model, identity="another")) != before
    with torch.no_grad():
        model.weight[0, 0] += 1e-3
    assert identity_of(same) != before
    keys = {
        store_key("a", b"b" + bytes(64)),
        store_key("ab", bytes(64)),
        store_key("", b"ab" + bytes(64)),
        store_key("", b"ab" + bytes(63)),
        store_key("\0" * 64, b"ab"),
    }
    assert len(keys) == 5


def look(path: Path, count: int, told: Any) -> None:
    """In another process: looks at all pictures, and says how many its detector was shown."""
    detector = Named(flag=True)
    cached = CachedDetector(detector, store=VerdictStore(path))
    statuses = {v.status for _ in range(count) for v in cached.screen(PICTURES)}
    told.put((statuses, len(detector.seen)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_one(method: str, tmp_path: Path) -> None:
    path = tmp_path / "v.sqlite"
    CachedDetector(Named(flag=True), store=path).screen(PICTURES[:1])  # an engine before the fork
    context: Any = multiprocessing.get_context(method)
    told = context.Queue()
    workers = [context.Process(target=look, args=(path, 2, told)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [told.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert [statuses for statuses, _ in found] == [{"flagged"}] * 2
    assert all(seen <= 2 for _, seen in found)
    later = Named()
    assert {v.status for v in CachedDetector(later, store=path).screen(PICTURES)} == {"flagged"}
    assert later.seen == []


def test_threads_share_one(tmp_path: Path) -> None:
    store = VerdictStore(tmp_path / "v.sqlite")
    detectors = [CachedDetector(Named(flag=True), store=store) for _ in range(4)]
    outcomes: list[Any] = []

    def work(detector: CachedDetector) -> None:
        outcomes.extend(v.status for v in detector.screen(PICTURES))

    threads = [threading.Thread(target=work, args=(d,)) for d in detectors for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert outcomes == ["flagged"] * 36


def test_a_detector_with_its_store_travels_whole(tmp_path: Path) -> None:
    first = CachedDetector(Named(flag=True), store=tmp_path / "v.sqlite")
    told = first.screen(PICTURES)
    other = pickle.loads(pickle.dumps(first))
    other.detector.flag = False
    assert other.screen(PICTURES) == told
