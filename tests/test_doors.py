"""Doors that stood open once: each is tried as an attacker would, and again without its lock.

`docs/threats.md` names them by the same numbers. With the lock out the attempt has to succeed: an
attempt that nothing could let in would show nothing.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage
from matplotlib.figure import Figure
from PIL import Image

from bad_pictures import encoded, photo
from chain_helpers import CLEAN, RED, RedDetector, clean_picture
from lvlm_helpers import ROWS
from memory_helpers import MIB, at_most
from sightrail.guardrails import (
    CachedDetector,
    ImageError,
    Limits,
    LocalLVLM,
    Picture,
    Policy,
    RemotePolicy,
    SafetyPrefix,
    Verdict,
    read_picture,
)
from sightrail.guardrails.carriers import walk
from sightrail.guardrails.carriers.loop import PictureLoop, Screened
from sightrail.guardrails.errors import UnsupportedModelError
from sightrail.guardrails.intake import RequestReader, arrays, files, pictures, reader
from sightrail.guardrails.model import doorway
from sightrail.guardrails.model.interventions import Decision
from sightrail.guardrails.prefix import AttentiveCalibration
from sightrail.guardrails.screening import cache, looking, regions, scoring
from sightrail.guardrails.screening.settings import ScreeningSettings
from sightrail.guardrails.verdict import FrozenDict, Region, RiskMap
from sightrail.integrations.cli import consoles, panels
from sightrail.integrations.langchain import message_screen
from sightrail.runnables import ScreenImages
from tiny_models import fresh
from web_helpers import PUBLIC, World, respond, serving

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

Attempt = Callable[[], None]
TakeOut = Callable[[pytest.MonkeyPatch], object]


@dataclass(frozen=True)
class Door:
    """An attempt that fails an assertion where it succeeds, and how to take out what holds it."""

    attempt: Attempt
    take_out: TakeOut


DOORS: dict[str, Door] = {}


def door(name: str, take_out: TakeOut) -> Callable[[Attempt], Attempt]:
    def add(attempt: Attempt) -> Attempt:
        DOORS[name] = Door(attempt, take_out)
        return attempt

    return add


# 1: masks


class HalfSighted(RedDetector):
    """Finds the left one of two red squares first, and the other once that is covered."""

    def screen(self, images: Any) -> list[Verdict]:
        return [self._first_of(image) for image in images]

    def _first_of(self, picture: Picture) -> Verdict:
        red = np.all(np.asarray(picture.image) == RED, axis=2)
        if not red.any():
            return Verdict(status="clean")
        rows, columns = np.nonzero(red)
        left, top = int(columns.min()), int(rows.min())
        region = Region(box=(left, top, left + 8, top + 8), category="red", score=1.0)
        return Verdict(status="flagged", category="red", regions=(region,))


@door(
    "1 masks are looked at again",
    lambda patch: patch.setattr(PictureLoop, "_look_again", lambda *_: Verdict(status="clean")),
)
def leave_a_second_object() -> None:
    image = clean_picture().resize((80, 80))
    for left in (4, 60):
        image.paste(RED, (left, 20, left + 8, 28))
    coded = base64.b64encode(encoded(image)).decode()
    block = {"type": "image", "base64": coded, "mime_type": "image/png"}
    outcome = ScreenImages(detector=HalfSighted()).screen([HumanMessage([block])])[0]
    assert isinstance(outcome, Screened)
    left_over = base64.b64decode(outcome.value.content[0].get("base64", ""))
    assert outcome.refused or not np.all(np.asarray(read_picture(left_over).image) == RED, 2).any()


# 2: work of a request


def flicker() -> bytes:
    frames = [Image.new("RGBA", (8, 8), (n, 255 - n, 0, 128)) for n in range(12)]
    return encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])


@door(
    "2 renderings are counted over the request",
    lambda patch: patch.setattr(RequestReader, "_left", lambda self: self._limits),
)
def send_many_small_animations() -> None:
    found = RequestReader(Limits()).read_all([(flicker(), number) for number in range(20)])
    views = sum(len(seen.views) for seen in found if isinstance(seen, Picture))
    assert views <= Limits().max_views_per_request


# 3: large pictures


@door(
    "3 large pictures get tiles, or say that they were not resolved",
    lambda patch: patch.setattr(looking, "_tiles", lambda *_: ([], None)),
)
def hide_something_small() -> None:
    @settings(max_examples=60)
    @given(st.integers(8, 6000), st.integers(8, 6000), st.sampled_from([64, 224, 336]))
    def look(width: int, height: int, side: int) -> None:
        picture = Picture(image := Image.new("RGB", (width, height)), (image,))
        options = ScreeningSettings()
        seen = max(looking.sizes_seen((width, height), None, options.seen_by))
        how = looking.Looking(options, (1, 1), (side, side))
        (view,) = looking.views_of(0, picture, how)
        share = seen[0] / width
        finest = min(max(c - a, d - b) * share for a, b, c, d in view.placed)
        assert view.unresolved is not None or finest <= 2 * side + 2 or max(seen) <= 2 * side

    look()


# 4: payloads of scalers


@door(
    "4 what a scaler shows is looked at by default",
    lambda patch: patch.setattr(looking, "scaled_views", lambda *_: ()),
)
def hide_something_in_a_scaler() -> None:
    pixels = np.asarray(clean_picture().resize((252, 252))).copy()
    pixels[4::9, 4::9] = RED
    picture = Picture(image := Image.fromarray(pixels), (image,))
    how = looking.Looking(ScreeningSettings(), (1, 1), (28, 28))
    views = looking.views_of(0, picture, how)
    assert any(np.all(np.asarray(view.image) == RED, axis=2).mean() > 0.9 for view in views)


# 5: memory of maps


def _in_full(risk_map: RiskMap, size: tuple[int, int] | None = None) -> Any:
    whole = SMALL(risk_map).astype(np.float64)
    assert whole.size
    return SMALL(risk_map, size)


SMALL = RiskMap.to_array


@door(
    "5 risk maps are computed in cells",
    lambda patch: patch.setattr(RiskMap, "to_array", _in_full),
)
def send_a_huge_plain_picture() -> None:
    boxes = [(x, y, x + 400, y + 400) for x in range(0, 4000, 200) for y in range(0, 4000, 200)]
    with at_most(64 * MIB):
        regions.summarise(boxes, np.ones(len(boxes), np.float32), (4000, 4000))


# 6: an attention implementation that was changed from outside


@door(
    "6 edits that did not run are errors",
    lambda patch: patch.setattr(doorway.RequestState, "require_ran", lambda self: None),
)
def switch_calibration_off() -> None:
    model, processor = fresh("llava")
    prefix = SafetyPrefix(calibration=AttentiveCalibration(gamma=2.0))
    lvlm = LocalLVLM(model, processor, guardrails=[prefix])
    model.set_attn_implementation("sdpa")
    with pytest.raises(UnsupportedModelError):
        lvlm.chat(ROWS[0], max_new_tokens=2)


# 7: a decision that failed


def _as_if_unsafe(verdict: Verdict, policy: Policy, *, own_words: bool = True) -> Decision:
    declined = own_words and policy.on_unsafe_request == "decline"
    return Decision(verdict.taken("refuse"), answered=declined)


@door(
    "7 a failed decision is not answered",
    lambda patch: patch.setattr(Decision, "following", _as_if_unsafe),
)
def break_the_decision() -> None:
    failed = Verdict.failed_request("Casa", "its score is no number")
    for action in ("decline", "refuse", "allow"):
        decision = Decision.following(failed, Policy(on_unsafe_request=action))
        assert not decision.answered
        assert decision.verdict.action == "refuse"


# 8: company in a batch


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=GENERATOR), dim=-1)


GENERATOR = torch.Generator().manual_seed(0)
BANK = scoring.TextBank(
    ("a", "b"), [unit(6, 16), unit(4, 16)], unit(2, 16), anchors=unit(8, 16), logit_scale=20.0
)


def _all_at_once(patches: torch.Tensor, *given: Any, whole: int = 1) -> Any:
    return scoring._score_alone(patches, *given, whole)


@door(
    "8 every picture is scored by itself",
    lambda patch: patch.setattr(scoring, "score_patches", _all_at_once),
)
def sit_beside_a_hard_picture() -> None:
    easy, hard = unit(12, 40, 16), unit(12, 1, 16).expand(12, 40, 16)
    patches = torch.cat([easy, hard])
    options = ScreeningSettings()
    together = scoring.score_patches(patches, BANK, options)
    alone = [scoring.score_patches(one[None], BANK, options)[0] for one in patches]
    for beside, by_itself in zip(together, alone, strict=True):
        assert np.abs(beside.picture - by_itself.picture).max() <= 1e-5


# 9: fetches


@door(
    "9 fetches run side by side",
    lambda patch: patch.setattr(reader, "_SIDE_BY_SIDE", 1),
)
def keep_a_request_waiting() -> None:
    meet, png = threading.Barrier(4), encoded(photo())

    def wait_for_the_others(connection: Any, request: str) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):  # never answered
            meet.wait(5)
            respond("200 OK", png)(connection, request)

    with (
        serving({f"/{n}.png": wait_for_the_others for n in range(4)}) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        World({"images.example.org": [[PUBLIC]]}).enter(patch)
        remote = RemotePolicy(hosts=frozenset({"*"}), ports=frozenset({server.port}), timeout_s=9)
        addresses = [f"http://images.example.org:{server.port}/{n}.png" for n in range(4)]
        found = RequestReader(Limits(remote=remote)).read_all([(a, 0) for a in addresses])
    assert all(isinstance(seen, Picture) for seen in found)


# 10: pictures inside texts


def _texts() -> Iterator[str]:
    coded = base64.b64encode(CLEAN).decode()
    address = f"data:image/png;base64,{coded}"
    yield json.dumps({"screenshot": coded})
    yield f"see ![picture]({address}) there"
    yield f'<p><img src="{address}"></p>'
    yield base64.urlsafe_b64encode(CLEAN).decode()
    yield f"\ufeff{address}"
    yield "\u200b".join(coded[i : i + 60] for i in range(0, len(coded), 60))


@door(
    "10 pictures written in texts are found",
    lambda patch: patch.setattr(walk, "pictures_in", lambda text: []),
)
def write_a_picture_into_a_text() -> None:
    for text in _texts():
        outcome = ScreenImages(detector=RedDetector()).screen([HumanMessage(text)])[0]
        assert isinstance(outcome, Screened)
        assert len(outcome.verdicts) == 1


# 11: files of this machine


@door(
    "11 messages name no files",
    lambda patch: patch.setattr(
        reader, "read_file_of_folders", lambda path, _, most: files.read_file(path, most)
    ),
)
def ask_for_files() -> None:
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder, "cat.png")
        there.write_bytes(encoded(photo()))
        answers = set()
        for path in (there, Path(folder, "none.png"), Path(folder)):
            for name in (str(path), path.as_uri()):
                with pytest.raises(ImageError) as caught:
                    RequestReader(Limits()).read(name)
                answers.add(str(caught.value))
    assert len(answers) == 1


# 12: the terminal, and files that output replaces


@door(
    "12a names are printed without what a terminal obeys",
    lambda patch: patch.setattr(consoles, "printable", str),
)
def write_on_the_terminal() -> None:
    @settings(max_examples=200)
    @given(st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1))
    def look(name: str) -> None:
        assert consoles.printable(Path(name)).isprintable()

    look()


def _through(path: Path, data: bytes) -> None:
    path.write_bytes(data)


@door(
    "12b output replaces links",
    lambda patch: patch.setattr(panels, "_replace", _through),
)
def plant_a_link() -> None:
    with tempfile.TemporaryDirectory() as folder:
        victim, planted = Path(folder, "victim"), Path(folder, "out.png")
        victim.write_text("mine", encoding="utf-8")
        planted.symlink_to(victim)
        buffer = io.BytesIO()
        Figure((1, 1)).savefig(buffer)
        panels._replace(planted, buffer.getvalue())
        assert victim.read_bytes() == b"mine"


# 13: keys


def _as_words(put: Callable[[bytes], None], value: Any, depth: int) -> None:
    put(json.dumps(value, default=lambda data: {"bytes": data.hex()}).encode())


@door(
    "13 no message has the key of another one",
    lambda patch: patch.setattr(message_screen, "_feed", _as_words),
)
def write_bytes_as_words() -> None:
    raw, words = CLEAN, {"bytes": CLEAN.hex()}
    keys = {
        message_screen.message_key(HumanMessage([{"type": "image", "data": data}]))
        for data in (raw, words)
    }
    assert len(keys) == 2


# 14: shared verdicts


@door(
    "14 verdicts cannot be changed",
    lambda patch: patch.setattr(FrozenDict, "__setitem__", dict.__setitem__),
)
def change_a_verdict_for_others() -> None:
    class Scores(RedDetector):
        def screen(self, images: Any) -> list[Verdict]:
            return [Verdict(status="clean", scores={"a": 0.5}) for _ in images]

    cached = CachedDetector(Scores())
    [mine] = cached.screen([photo()])
    with contextlib.suppress(TypeError):
        mine.scores["a"] = 0.0  # type: ignore[index]
    [theirs] = cached.screen([photo()])
    assert theirs.scores["a"] == 0.5


# 15: forks


class Slow(RedDetector):
    """Looks for as long as the gate is shut."""

    gate = threading.Event()

    def screen(self, images: Any) -> list[Verdict]:
        self.gate.wait(20)
        return [Verdict(status="clean") for _ in images]


def _child(cached: CachedDetector, pipe: Any) -> None:
    Slow.gate.set()
    pipe.send(cached.screen([photo()])[0].status)


class Forgetful(list[CachedDetector]):
    """Nobody is told of a fork."""

    def add(self, detector: CachedDetector) -> None:
        pass


@door(
    "15 a forked child begins anew",
    lambda patch: patch.setattr(cache, "_ALIVE", Forgetful()),
)
def fork_while_somebody_looks() -> None:
    cached = CachedDetector(Slow())
    Slow.gate.clear()
    looking_on = threading.Thread(target=cached.screen, args=([photo()],))
    looking_on.start()
    while not cached._looking.locked():
        time.sleep(0.005)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(cached, theirs))
    process.start()
    try:
        assert ours.poll(10), "the child hangs"
    finally:
        process.kill()
        Slow.gate.set()
        looking_on.join()


# 16: special files, and arrays


def _open_everything(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(files, "_SYSTEM", ())
    patch.setattr(files, "_check", lambda found, most: None)


@door("16a special files are never opened", _open_everything)
def name_a_device() -> None:
    for name in ("/dev/zero", "/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled"):
        if os.path.exists(name):
            with pytest.raises(ImageError) as caught:
                files.read_file(Path(name), 100_000)
            assert caught.value.reason in ("not_a_file", "empty")


def _converted_first(array: Any, limits: Limits) -> Picture:
    return pictures._decode(pictures.from_array(array), limits, ours=True)


@door(
    "16b arrays are measured before they are converted",
    lambda patch: patch.setattr(pictures, "_of_array", _converted_first),
)
def send_a_huge_array() -> None:
    with at_most(64 * MIB), pytest.raises(ImageError, match="at most"):
        read_picture(np.broadcast_to(np.uint8(7), (12_000, 12_000, 1)))


# 17: values


@door(
    "17 values are read by what they are",
    lambda patch: patch.setattr(
        arrays,
        "_reading",
        lambda grid, deep: (lambda rows: rows // 257) if grid.dtype != np.uint8 else (lambda r: r),
    ),
)
def send_another_type() -> None:
    plain = np.asarray(photo())
    for dtype in (np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64):
        seen = read_picture(plain.astype(dtype)).image
        assert np.array_equal(np.asarray(seen), plain)


@pytest.mark.parametrize("name", DOORS)
def test_the_door_is_closed(name: str) -> None:
    DOORS[name].attempt()


@pytest.mark.parametrize("name", DOORS)
def test_without_its_lock_the_attempt_succeeds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    DOORS[name].take_out(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        DOORS[name].attempt()
