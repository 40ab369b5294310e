"""A place in a value where something stands that a model could look at, and the mark it gets.

A message may come from anybody, so an address is followed only where it holds its own data, or
where the limits let intake fetch it. A path or ``file:`` address in a message would let its author
read pictures of this machine.

Screening leaves a marker on a message, document or node: the verdicts, and whether it is refused.
Anybody who may write messages may write a marker, so it is only ever read to make things stricter:
one that says "refused" refuses, one that says anything else is history and permits nothing.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from ..encoding import Encoding
from ..intake import Picture, PictureSource
from ..policy import Surface
from ..verdict import NotInspected, Verdict

if TYPE_CHECKING:
    from PIL.Image import Image


MAX_DEPTH: Final = 48
"""Nesting beyond this is not looked into: it is not inspected, and refused by default."""

Payload = PictureSource | Picture | NotInspected
"""Something intake can read, what it has read already, or why there is nothing to read."""

_MAGIC: Final = re.compile(
    rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|II[*+]\x00|MM\x00[*+]|BM....\x00\x00\x00\x00"
    rb"|....ftyp(?:avif|avis|heic|heix|mif1|msf1)",
    re.DOTALL,
)
_BASE64: Final = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
_HEAD: Final = 24  # base64 characters that hold the 18 bytes the longest signature needs
_HTTP: Final = re.compile(r"https?://", re.IGNORECASE)
_REMOTE: Final = re.compile(r"(?!file:)(?:[a-z][a-z0-9+.-]+:)?//", re.IGNORECASE)


@dataclass(frozen=True)
class Encoded:
    """A picture on its way on: the screened pixels, and how they are written.

    Attributes:
        image: RGB.
        encoding: how it is written.
        coded: the bytes it came in and their MIME type, where it goes on as these.
    """

    image: Image
    encoding: Encoding = field(default_factory=Encoding)
    coded: tuple[bytes, str] | None = None

    @property
    def mime_type(self) -> str:
        """Of ``data``."""
        return self.encoding.mime_type if self.coded is None else self.coded[1]

    @cached_property
    def data(self) -> bytes:
        """The encoded picture."""
        return self.encoding.encode(self.image) if self.coded is None else self.coded[0]

    @property
    def base64(self) -> str:
        """``data`` as base64 text."""
        return base64.b64encode(self.data).decode("ascii")

    @property
    def url(self) -> str:
        """``data`` as a data URL."""
        return f"data:{self.mime_type};base64,{self.base64}"


def text_block(text: str) -> dict[str, Any]:
    """A text in the place of a content block."""
    return {"type": "text", "text": text}


def _no_form(picture: Encoded) -> Any:
    raise TypeError("what was not inspected has no picture to stand in its place")


@dataclass(frozen=True)
class Carrier:
    """One picture, or one thing that nobody can look into, where it was found.

    Attributes:
        source: what intake is to read, or why there is nothing it could read.
        original: the value as it was found; passes only where the policy allows the unseen.
        rebuild: a picture in the form of the original.
        note: a text in the place of the original.
        surface: where it came from.
        holder: tells the messages and documents of a request apart, for the limits on one.
        words: the text that came with it, for detectors that look at both together.
    """

    source: Payload
    original: Any = None
    rebuild: Callable[[Encoded], Any] = _no_form
    note: Callable[[str], Any] = text_block
    surface: Surface = "user"
    holder: Hashable = None
    words: str = ""


def unseen(
    original: Any, reason: str, detail: str, note: Callable[[str], Any] = text_block
) -> Carrier:
    """A carrier that nobody can look into; no picture ever stands in its place."""
    return Carrier(NotInspected(reason=reason, detail=detail), original, note=note)


def too_deep(original: Any, note: Callable[[str], Any] = text_block) -> Carrier:
    """Something that lies deeper than anybody goes down to."""
    return unseen(original, "too_deep", f"more than {MAX_DEPTH} levels", note)


def unknown_block(original: Any) -> Carrier:
    """A content block of which nobody knows what it holds."""
    detail = (
        "a content block of a kind that this version does not know"
        if isinstance(original, dict)
        else f"nobody can look into a {type(original).__name__}"
    )
    return unseen(original, "unknown_block", detail)


def starts_like_picture(data: bytes) -> bool:
    """Whether bytes begin with the signature of a picture format."""
    return _MAGIC.match(data) is not None


def from_base64(payload: object) -> PictureSource | NotInspected:
    """Base64 text (or the bytes themselves) as a source for intake."""
    if isinstance(payload, bytes | bytearray | memoryview):
        return bytes(payload)
    if isinstance(payload, str):
        return payload if payload[:5].lower() == "data:" else f"data:;base64,{payload}"
    return NotInspected(reason="malformed_block", detail="the payload is not base64 text")


def from_address(address: object) -> PictureSource | NotInspected:
    """A URL as a source for intake: a data URL, or one that intake judges by `Limits.remote`."""
    if not isinstance(address, str):
        return NotInspected(reason="malformed_block", detail="the address is not text")
    address = address.strip()
    if address[:5].lower() == "data:" or _HTTP.match(address):
        return address
    if _REMOTE.match(address):
        return NotInspected(
            reason="remote_url", detail="remote addresses are not fetched; pass the picture itself"
        )
    return NotInspected(
        reason="local_address",
        detail="a message may not name files of this machine; pass the picture itself",
    )


def is_picture_text(text: str) -> bool:
    """Whether a whole text is a picture: a data URL of one, or base64 of a picture's bytes."""
    stripped = text.strip()
    if stripped[:5].lower() == "data:":
        header, _, payload = stripped.partition(",")
        return header[5:11].lower() == "image/" or _is_base64_picture(payload)
    return _is_base64_picture(stripped)


def _is_base64_picture(text: str) -> bool:
    return starts_like_picture(_decoded_head(text)) and _BASE64.fullmatch(text) is not None


def _decoded_head(text: str) -> bytes:
    head = text[:_HEAD]
    if len(head) < _HEAD:
        return b""
    try:
        return base64.b64decode(head, validate=True)
    except ValueError:
        return b""


KEY: Final = "sightrail"
"""The key under which a marker stands, in whatever a framework lets messages carry."""


_STILL_THERE: Final = ("allow", "mask")


class Marker(BaseModel):
    """What was found on one message, document, node or dict.

    Attributes:
        refused: the policy refuses the request that this belongs to.
        verdicts: one per picture found there, in order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    refused: bool
    verdicts: tuple[Verdict, ...] = ()

    def _repr_html_(self) -> str:
        """What a notebook shows: the outcome, and every verdict on the way to it."""
        from ..verdict_drawing import trace_html

        return trace_html("refused" if self.refused else "passed", self.verdicts)

    @classmethod
    def read(cls, value: Any) -> Marker | None:
        """The marker in what stands under ``KEY``, JSON text or not; None if it is not readable."""
        try:
            if isinstance(value, str):
                return cls.model_validate_json(value)
            return cls.model_validate(value)
        except ValidationError:
            return None

    def to_json(self) -> dict[str, Any]:
        """As JSON that is small enough to travel with every message: what is as usual is left out.

        Risk maps stay with whoever asked the detector. Timings are left out as well, so that equal
        inputs give equal messages and caches hit.
        """
        left_out = {"verdicts": {"__all__": {"timings_ms", "risk_map"}}}
        verdicts = self.model_dump(mode="json", exclude=left_out, exclude_defaults=True)
        return {"refused": self.refused, "verdicts": verdicts.get("verdicts", [])}

    def after(self, earlier: Marker | None) -> Marker:
        """This marker on a holder that was looked at before, whose record is not forgotten.

        A picture that was masked looks clean the next time, and is still one that was masked; a
        dropped or refused one is no longer there to be looked at.
        """
        if earlier is None:
            return self
        gone = [verdict for verdict in earlier.verdicts if verdict.action not in _STILL_THERE]
        there = [verdict for verdict in earlier.verdicts if verdict.action in _STILL_THERE]
        if len(there) != len(self.verdicts):
            return Marker(refused=self.refused, verdicts=(*gone, *self.verdicts))
        kept = [
            before if before.action == "mask" and now.action == "allow" else now
            for before, now in zip(there, self.verdicts, strict=True)
        ]
        return Marker(refused=self.refused, verdicts=(*gone, *kept))


def says_refused(extra: Mapping[str, Any]) -> bool:
    """Whether a marker says "refused", however damaged the rest of it is."""
    marker = extra.get(KEY)
    return isinstance(marker, Mapping) and bool(marker.get("refused"))


def with_marker(
    extra: Mapping[str, Any], verdicts: Sequence[Verdict], *, refused: bool
) -> dict[str, Any]:
    """What a holder carries with a marker in it; "refused" is never taken back."""
    marker = Marker(refused=refused or says_refused(extra), verdicts=tuple(verdicts))
    return {**extra, KEY: marker.after(Marker.read(extra.get(KEY))).to_json()}
