"""What the LangChain tests share: a small real detector, pictures, and every form they come in."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from bad_pictures import encoded, photo
from sightrail.guardrails import Limits, Picture, Region, Verdict, read_picture
from sightrail.guardrails.carriers.carrier import Carrier
from sightrail.guardrails.carriers.loop import decode, passed
from sightrail.guardrails.intake import RequestReader
from sightrail.guardrails.verdict import NotInspected, Threshold
from sightrail.runnables import ScreenImages
from sightrail.runnables.walk import LANGCHAIN

RED = (250, 10, 10)
RED_BOX = (4, 8, 20, 24)


def clean_picture() -> Image.Image:
    """Grey noise, so that nothing but the very pixels passes for it."""
    pixels = np.random.default_rng(7).integers(90, 160, (32, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def risky_picture() -> Image.Image:
    """The clean one with a red square in it."""
    image = clean_picture()
    image.paste(RED, RED_BOX)
    return image


CLEAN, RISKY = encoded(clean_picture()), encoded(risky_picture())


def text64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{text64(data)}"


@dataclass(frozen=True)
class Seen:
    """A carrier, and what can be looked at of it."""

    carrier: Carrier
    seen: Picture | NotInspected


def after(screen: ScreenImages, value: Any) -> Any:
    """A value after screening, where a refusal is a mark on it."""
    return passed(screen.screen([value])[0]).value


def find_pictures(value: Any, limits: Limits) -> list[Seen]:
    """Every carrier of a LangChain value in order, each decoded once."""
    reader = RequestReader(limits)
    return [Seen(carrier, decode(carrier, reader)) for carrier in LANGCHAIN.carriers(value)]


@dataclass
class RedDetector:
    """Flags red squares. Keeps what it was shown, call by call."""

    calls: list[list[Picture]] = field(default_factory=list)

    def screen(self, images: Sequence[Any]) -> list[Verdict]:
        pictures = [i if isinstance(i, Picture) else read_picture(i) for i in images]
        self.calls.append(pictures)
        return [self._look(picture.image) for picture in pictures]

    def screen_again(self, pictures: Sequence[Picture], covered: Sequence[Any]) -> list[Verdict]:
        """Checks masks, and does not count that as being shown a picture."""
        return [self._look(picture.image) for picture in pictures]

    def _look(self, image: Image.Image) -> Verdict:
        red = np.all(np.abs(np.asarray(image, dtype=int) - RED) < 3, axis=2)
        rows, columns = np.nonzero(red)
        score = 1.0 if red.sum() > 16 else 0.0
        base = Verdict(
            status="clean",
            category="red",
            score=score,
            scores={"red": score},
            threshold=Threshold(value=0.5, source="a test"),
            timings_ms={"look": float(np.random.default_rng().random())},
        )
        if not score:
            return base
        corner = (int(columns.min()), int(rows.min()))
        box = (*corner, int(columns.max()) + 1, int(rows.max()) + 1)
        regions = (Region(box=box, category="red", score=score),)
        return base.model_copy(update={"status": "flagged", "regions": regions})

    @property
    def seen(self) -> list[Image.Image]:
        return [picture.image for call in self.calls for picture in call]


class BrokenDetector:
    """A detector that fails."""

    def screen(self, images: Sequence[Any]) -> list[Verdict]:
        raise RuntimeError("the encoder ran out of memory")


class MiscountingDetector:
    """A detector that forgets a picture."""

    def screen(self, images: Sequence[Any]) -> list[Verdict]:
        return [Verdict(status="clean")] * (len(images) - 1)


Block = dict[str, Any]


def _png(data: bytes) -> Block:
    return {"type": "image", "base64": text64(data), "mime_type": "image/png"}


CARRIERS: dict[str, Callable[[bytes], Block]] = {
    "standard base64": _png,
    "standard data url": lambda data: {"type": "image", "url": data_url(data)},
    "standard wrong mime": lambda data: {
        "type": "image",
        "base64": text64(data),
        "mime_type": "image/jpeg",
    },
    "before 1.0 base64": lambda data: {
        "type": "image",
        "source_type": "base64",
        "data": text64(data),
        "mime_type": "image/png",
    },
    "before 1.0 url": lambda data: {"type": "image", "source_type": "url", "url": data_url(data)},
    "image_url text": lambda data: {"type": "image_url", "image_url": data_url(data)},
    "image_url dict": lambda data: {
        "type": "image_url",
        "image_url": {"url": data_url(data), "detail": "low"},
    },
    "image_url shouting": lambda data: {
        "type": "image_url",
        "image_url": {"url": "  DATA:image/png;BASE64," + text64(data)},
    },
    "image_url without a type": lambda data: {"image_url": {"url": data_url(data)}},
    "openai input_image": lambda data: {"type": "input_image", "image_url": data_url(data)},
    "openai file": lambda data: {
        "type": "file",
        "file": {"filename": "a.png", "file_data": data_url(data)},
    },
    "openai input_file": lambda data: {
        "type": "input_file",
        "filename": "a.png",
        "file_data": data_url(data),
    },
    "openai generated": lambda data: {
        "type": "image_generation_call",
        "id": "ig_1",
        "result": text64(data),
    },
    "anthropic source": lambda data: {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": text64(data)},
    },
    "anthropic source url": lambda data: {
        "type": "image",
        "source": {"type": "url", "url": data_url(data)},
    },
    "anthropic document": lambda data: {
        "type": "document",
        "source": {"type": "base64", "media_type": "image/png", "data": text64(data)},
    },
    "google media": lambda data: {"type": "media", "mime_type": "image/png", "data": text64(data)},
    "google media bytes": lambda data: {"type": "media", "mime_type": "image/png", "data": data},
    "google inline": lambda data: {"inline_data": {"mime_type": "image/png", "data": text64(data)}},
    "bedrock": lambda data: {"image": {"format": "png", "source": {"bytes": data}}},
    "file called a pdf": lambda data: {
        "type": "file",
        "base64": text64(data),
        "mime_type": "application/pdf",
    },
    "file base64": lambda data: {
        "type": "file",
        "base64": text64(data),
        "mime_type": "image/png",
    },
    "file before 1.0": lambda data: {
        "type": "file",
        "source_type": "base64",
        "data": text64(data),
        "mime_type": "image/png",
    },
    "transformers image": lambda data: {
        "type": "image",
        "image": read_picture(data).image,
    },
    "non standard": lambda data: {
        "type": "non_standard",
        "value": {"type": "input_image", "image_url": data_url(data)},
    },
    "tool result": lambda data: {
        "type": "tool_result",
        "tool_use_id": "call_1",
        "content": [
            {"type": "text", "text": "a screenshot"},
            {"type": "image", "base64": text64(data), "mime_type": "image/png"},
        ],
    },
    "server tool result": lambda data: {
        "type": "server_tool_result",
        "tool_call_id": "call_1",
        "status": "success",
        "output": {"screenshot": data_url(data)},
    },
    "smuggled in a text": lambda data: {
        "type": "text",
        "text": "hello",
        "image_url": {"url": data_url(data)},
    },
    "hidden in an extra": lambda data: {
        "type": "text",
        "text": "hello",
        "extras": {"preview": {"type": "image", "base64": text64(data)}},
    },
    "text that is a picture": lambda data: {"type": "text", "text": data_url(data)},
}
"""Name -> a content block that carries the picture of these bytes."""

REMOTE = "https://example.org/cat.png"
UNSEEN: dict[str, tuple[str, Block]] = {
    "standard url": ("remote_url", {"type": "image", "url": REMOTE}),
    "standard file id": ("file_id", {"type": "image", "file_id": "file-1"}),
    "standard nothing": ("malformed_block", {"type": "image"}),
    "standard path": ("local_address", {"type": "image", "url": "/home/me/cat.png"}),
    "before 1.0 url": ("remote_url", {"type": "image", "source_type": "url", "url": REMOTE}),
    "before 1.0 id": ("file_id", {"type": "image", "source_type": "id", "id": "file-1"}),
    "image_url text": ("remote_url", {"type": "image_url", "image_url": REMOTE}),
    "image_url dict": ("remote_url", {"type": "image_url", "image_url": {"url": REMOTE}}),
    "image_url file": ("local_address", {"type": "image_url", "image_url": "file:///etc/cat.png"}),
    "image_url host": ("remote_url", {"type": "image_url", "image_url": "//example.org/cat.png"}),
    "image_url bucket": ("remote_url", {"type": "image_url", "image_url": {"url": "gs://b/c.png"}}),
    "image_url none": ("malformed_block", {"type": "image_url", "image_url": None}),
    "image_url number": ("malformed_block", {"type": "image_url", "image_url": 7}),
    "image_url in a text": ("remote_url", {"type": "text", "text": "hi", "image_url": REMOTE}),
    "openai input_image id": ("file_id", {"type": "input_image", "file_id": "file-1"}),
    "anthropic url": ("remote_url", {"type": "image", "source": {"type": "url", "url": REMOTE}}),
    "anthropic id": ("file_id", {"type": "image", "source": {"type": "file", "file_id": "f"}}),
    "bedrock s3": (
        "unknown_block",
        {"image": {"format": "png", "source": {"s3Location": {"uri": "s3://b/c.png"}}}},
    ),
    "google uri": (
        "remote_url",
        {"type": "media", "mime_type": "image/png", "file_uri": "gs://bucket/cat.png"},
    ),
    "google film": ("video", {"type": "media", "mime_type": "video/mp4", "data": "AAAA"}),
    "broken base64": ("not_an_image", {"type": "image", "base64": "%%%", "mime_type": "image/png"}),
    "not a picture": ("not_an_image", _png(b"hello" * 9)),
    "cut off": ("truncated", _png(CLEAN[:-40])),
    "pdf": ("pdf", {"type": "file", "base64": text64(b"%PDF-1.7"), "mime_type": "application/pdf"}),
    "pdf in openai": (
        "pdf",
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERg=="}},
    ),
    "file of any kind": ("file", {"type": "file", "base64": text64(b"PK"), "mime_type": "a/b"}),
    "file id": ("file", {"type": "file", "file": {"file_id": "file-1"}}),
    "picture file id": ("file_id", {"type": "file", "file_id": "f", "mime_type": "image/png"}),
    "input_file": ("file", {"type": "input_file", "file_url": "https://example.org/a"}),
    "text file": ("unknown_block", {"type": "text-plain", "base64": "aGk="}),
    "audio": ("audio", {"type": "audio", "base64": "AAAA", "mime_type": "audio/wav"}),
    "input_audio": (
        "audio",
        {"type": "input_audio", "input_audio": {"data": "A", "format": "wav"}},
    ),
    "video": ("video", {"type": "video", "base64": "AAAA", "mime_type": "video/mp4"}),
    "video_url": ("video", {"type": "video_url", "video_url": {"url": REMOTE}}),
    "unknown type": ("unknown_block", {"type": "hologram", "base64": text64(CLEAN)}),
    "no type": ("unknown_block", {"picture": text64(CLEAN)}),
    "empty": ("unknown_block", {"foo": {}}),
    "type is no text": ("unknown_block", {"type": ["image"], "foo": 1}),
    "text is no text": ("unknown_block", {"type": "text", "text": {"a": 1}}),
    "wrapped unknown": ("unknown_block", {"type": "non_standard", "value": {"type": "hologram"}}),
    "wrapped nothing": ("unknown_block", {"type": "non_standard"}),
    "result of unknown": (
        "unknown_block",
        {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "hologram"}]},
    ),
}
"""Name -> why it is not inspected, and the content block."""

PLAIN: dict[str, Block] = {
    "text": {"type": "text", "text": "see https://example.org/cat.png"},
    "text with marks": {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}},
    "untyped text": {"text": "hi"},
    "input_text": {"type": "input_text", "text": "hi"},
    "reasoning": {"type": "reasoning", "reasoning": "let me think"},
    "thinking": {"type": "thinking", "thinking": "let me think", "signature": "ErUBCkYICBgC"},
    "refusal": {"type": "refusal", "refusal": "no"},
    "tool_call": {"type": "tool_call", "id": "1", "name": "f", "args": {"image_url": REMOTE}},
    "tool_use": {"type": "tool_use", "id": "1", "name": "f", "input": {"url": REMOTE}},
    "function_call": {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
    "tool_result text": {"type": "tool_result", "tool_use_id": "1", "content": "fine"},
    "plain text file": {"type": "text-plain", "text": "hi", "mime_type": "text/plain"},
    "wrapped text": {"type": "non_standard", "value": {"type": "text", "text": "hi"}},
}
"""Name -> a content block without media, which passes as it is."""


class ShownPictures:
    """What LangChain's suites are told of models that take pictures; nothing is downloaded."""

    @pytest.fixture(autouse=True)
    def _pictures_without_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The suite downloads one picture and hands it over as base64: give it one of ours."""

        def get(url: str, **options: Any) -> httpx.Response:
            return httpx.Response(200, content=encoded(photo()))

        monkeypatch.setattr(httpx, "get", get)

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_urls(self) -> bool:
        return True  # a remote address is answered with a refusal, not an error


class WithoutTools:
    """What the suites are told of models that call no tools."""

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False
