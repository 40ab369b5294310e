"""What the payload of a block is worth: something intake can read, or the reason why not.

A message may come from anybody, so an address is followed only where it holds its own data, or
where the limits let intake fetch it. A path or ``file:`` address in a message would let its author
read pictures of this machine.
"""

from __future__ import annotations

import base64
import re
from typing import Final

from sightrail.guardrails.intake import PictureSource
from sightrail.guardrails.verdict import NotInspected

_MAGIC: Final = re.compile(
    rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|II[*+]\x00|MM\x00[*+]|BM....\x00\x00\x00\x00"
    rb"|....ftyp(?:avif|avis|heic|heix|mif1|msf1)",
    re.DOTALL,
)
_BASE64: Final = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
_HEAD: Final = 24  # base64 characters that hold the 18 bytes the longest signature needs
_HTTP: Final = re.compile(r"https?://", re.IGNORECASE)
_REMOTE: Final = re.compile(r"(?!file:)(?:[a-z][a-z0-9+.-]+:)?//", re.IGNORECASE)


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


def may_become_picture_text(text: str) -> bool:
    """Whether a text that is still growing could end as one for ``is_picture_text``."""
    begun = text.lstrip()
    if "data:".startswith(begun[:5].lower()):
        return True
    if len(begun) < _HEAD:
        return _BASE64.fullmatch(begun) is not None
    return starts_like_picture(_decoded_head(begun))


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
