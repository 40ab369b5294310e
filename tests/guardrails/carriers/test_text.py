"""Pictures that are written in texts are found wherever they stand, and nothing else is."""

from __future__ import annotations

import base64
import io
import itertools
import json
import textwrap
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sightrail.guardrails import Policy, Verdict
from sightrail.guardrails.carriers.loop import PictureLoop
from sightrail.guardrails.carriers.walk import pictures_in, settled
from sightrail.guardrails.intake import Limits, read_picture
from sightrail.guardrails.testing import StubDetector


def encoded(kind: str = "PNG", size: tuple[int, int] = (16, 12), **options: Any) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format=kind, **options)
    return buffer.getvalue()


PNG = encoded()
B64 = base64.b64encode(PNG).decode()
URL = f"data:image/png;base64,{B64}"
GIF = base64.b64encode(encoded("GIF")).decode()
JPEG = base64.b64encode(encoded("JPEG")).decode()

CARRYING = {
    "markdown": f"look: ![photo]({URL}) and say more",
    "html": f'<p><img alt="x" src="{URL}"></p>',
    "html, no quotes": f"<img src={URL}>",
    "css": f".a {{ background: url('{URL}') }}",
    "json": json.dumps({"image": B64, "id": 7}),
    "json in json": json.dumps({"result": json.dumps({"image": URL})}),
    "json, escaped slashes": json.dumps({"image": URL}).replace("/", "\\/"),
    "bare, after words": f"the picture is {JPEG} as base64",
    "url-safe": f"see {base64.urlsafe_b64encode(PNG).decode()} here",
    "mime lines": "picture:\n" + "\n".join(textwrap.wrap(B64, 76)) + "\nend",
    "mime lines in json": json.dumps({"b": "\n".join(textwrap.wrap(B64, 64))}),
    "byte order mark": f"\ufeff{B64}",
    "zero-width signs": f"\u200b{B64[:9]}\u200b{B64[9:]}\u200d",
    "zero-width in an address": f"see data:image/png;base64,\u200b{B64}",
    "percent-coded": f"<img src='data:image/png;base64,{quote(B64)}'>",
    "no type": f"(data:;base64,{B64})",
    "another type": f"(data:application/octet-stream;base64,{B64})",
    "capitals": f"(DATA:Image/PNG;BASE64,{B64})",
    "svg": "![x](data:image/svg+xml;base64,PHN2ZyB4bWxucz0iaHR0cDovL3d3dy53My5vcmciPjwvc3ZnPg==)",
    "xml in svg": "<img src='data:image/svg+xml,%3Csvg%20width=%22100%22%3E%3C/svg%3E'>",
}
PLAIN = {
    "prose": "What is in the picture? I cannot see any base64 here, nor /9j/ alone.",
    "hashes": "sha256:" + "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "token": "Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.c2ln",
    "other base64": base64.b64encode(b"only words, and no picture at all").decode()
    + base64.b64encode(b"more words").decode(),
    "data address of text": "data:text/plain;base64," + base64.b64encode(b"words " * 20).decode(),
    "an example of an address": "write data:image/png;base64,iVBORw0KGgo... there",
    "a path": "/9j/" + "/".join(["folder"] * 3) + "/file.txt is where it lies, usr/lib/x86_64",
    "a remote picture": "![x](https://example.org/cat.png)",
    "code": "def f(data: dict[str, int]) -> None:\n    return data['image/png']",
}


@pytest.mark.parametrize("kind", CARRYING)
def test_a_picture_in_a_text_is_found_and_looked_at(kind: str) -> None:
    (written,) = pictures_in(CARRYING[kind])
    if "svg" not in kind:
        assert read_picture(written.carrier.source).image.size == (16, 12)
    detector = StubDetector(flag=True)
    loop = PictureLoop([detector], Policy(on_flagged="drop", on_not_inspected="drop"), Limits())
    (screened,) = loop.screen([CARRYING[kind]])
    assert [verdict.action for verdict in screened.verdicts] == ["drop"]
    assert pictures_in(screened.value) == []
    assert Policy().note in screened.value
    assert screened.value.startswith(CARRYING[kind][: written.start])
    assert screened.value.endswith(CARRYING[kind][written.end :])


@pytest.mark.parametrize("kind", PLAIN)
def test_a_text_without_a_picture_is_the_same_object(kind: str) -> None:
    loop = PictureLoop([StubDetector(flag=True)], Policy(), Limits())
    (screened,) = loop.screen([PLAIN[kind]])
    assert screened.value is PLAIN[kind]
    assert screened.verdicts == ()


@pytest.mark.parametrize("kind", [k for k in CARRYING if "svg" not in k])
def test_a_clean_picture_in_a_text_can_still_be_read(kind: str) -> None:
    loop = PictureLoop([StubDetector()], Policy(), Limits())
    (screened,) = loop.screen([CARRYING[kind]])
    (written,) = pictures_in(screened.value)
    seen = read_picture(written.carrier.source).image
    came = read_picture(encoded("JPEG" if kind == "bare, after words" else "PNG")).image
    assert seen.tobytes() == came.tobytes()


@pytest.mark.parametrize("kind", ["markdown", "html", "json", "bare, after words", "url-safe"])
def test_a_clean_picture_leaves_its_text_as_it_came(kind: str) -> None:
    loop = PictureLoop([StubDetector()], Policy(), Limits())
    (screened,) = loop.screen([CARRYING[kind]])
    assert screened.value == CARRYING[kind]


def test_json_stays_json_when_a_picture_in_it_is_masked_or_dropped() -> None:
    for action in ("mask", "drop"):
        loop = PictureLoop([StubDetector(flag=True)], Policy(on_flagged=action), Limits())
        text = json.dumps({"a": [{"image": B64, "id": 7}], "b": GIF})
        (screened,) = loop.screen([text])
        seen = json.loads(screened.value)
        assert seen["a"][0]["id"] == 7
        assert seen["a"][0]["image"] != B64
        assert len(screened.verdicts) == 2


def test_several_pictures_are_replaced_each_in_its_place() -> None:
    text = f"one ![a]({URL}) two {GIF} three data:image/jpeg;base64,{JPEG}."
    loop = PictureLoop([StubDetector(flag=lambda p: True)], Policy(on_flagged="drop"), Limits())
    (screened,) = loop.screen([text])
    note = Policy().note
    assert screened.value == f"one ![a]({note}) two {note} three {note}."


HOSTILE = ["data:", "data:image/png;base64,", "A" * 31 + " ", "%2", "\\/", "a\n", "data:,;", "=="]


@pytest.mark.parametrize("piece", HOSTILE)
def test_long_hostile_texts_come_to_an_end(piece: str) -> None:
    text = piece * (2_000_000 // len(piece))  # a search that goes back would take hours
    for written in pictures_in(text):
        assert 0 <= written.start < written.end <= len(text)


@given(st.text(max_size=300))
def test_any_text_is_searched_and_put_together_again(text: str) -> None:
    found = pictures_in(text)
    assert all(0 <= a.start < a.end <= len(text) for a in found)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))


@given(st.integers(1, len(CARRYING["markdown"]) - 1))
def test_a_stream_waits_while_its_end_may_become_a_picture(cut: int) -> None:
    text = CARRYING["markdown"]
    assert settled(text[:cut]) <= text.index("data:") or text[:cut].endswith(")", 40)


def test_words_do_not_wait_for_ever() -> None:
    for text in ("a sentence ends. ", "x" * 300):
        assert settled(text) == len(text)
    assert settled("a word is ope") == len("a word is ")


def test_the_same_verdict_as_for_a_block() -> None:
    (in_text,) = PictureLoop([StubDetector(flag=True)], Policy(), Limits()).screen([URL])
    assert isinstance(in_text.verdicts[0], Verdict)
    assert in_text.verdicts[0].action == "mask"
