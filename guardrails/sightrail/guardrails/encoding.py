"""How pictures are written on their way on: as they came where that is safe, else anew.

A clean picture travels on as the bytes it came in where every decoder reads these as the very
pixels that were screened, that is, where they leave no room for another reading. Another reading
is: further pictures in the file (frames, a thumbnail, what is appended), colour profiles and gamma
that some decoders apply and others do not, an orientation, transparency, more than 8 bits a
channel, another colour model. Where such a part can be left out without touching the coded pixels,
it is left out; else there are no such bytes, and the pixels are encoded anew.

Formats: JPEG, ITU-T T.81 annex B; PNG, W3C PNG 3rd edition, section 5; WebP, RFC 9649.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import Annotated, Final, Literal

from PIL import ExifTags, Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

_JPEG_MARKER: Final = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")
_FRAMES: Final = {0xC0, 0xC1, 0xC2}
_JFIF, _ADOBE, _EXIF = b"JFIF\x00", b"Adobe", b"Exif\x00\x00"
_LEFT_OUT: Final = {0xE2, 0xED}  # colour profiles and picture lists; Photoshop's thumbnails

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS: Final = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
_PNG_WORDS: Final = {b"tEXt", b"zTXt", b"iTXt", b"pHYs", b"tIME", b"sRGB", b"bKGD", b"sBIT"}


def unambiguous(data: bytes) -> tuple[bytes, str] | None:
    """The encoded picture alone and its MIME type; None where other decoders may read another.

    Args:
        data: a picture that was decoded upright, opaque, in one view.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            plain, mime = _plain_jpeg(data), "image/jpeg"
        elif data.startswith(_PNG):
            plain, mime = _plain_png(data), "image/png"
        elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            plain, mime = _plain_webp(data), "image/webp"
        else:
            return None
    except (IndexError, struct.error, ValueError, OSError, SyntaxError, UnidentifiedImageError):
        return None  # a structure that is not the standard's
    return None if plain is None else (plain, mime)


def _plain_jpeg(data: bytes) -> bytes | None:
    kept: list[bytes] = [data[:2]]
    left_out, at, known = False, 2, False
    while True:
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        length = 2 + struct.unpack_from(">H", data, at + 2)[0]
        segment, body = data[at : at + length], data[at + 4 : at + length]
        if marker == 0xDA:
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if marker not in _FRAMES or body[0] != 8 or body[5] not in (1, 3):
                return None
            known |= body[5] == 1 or (body[6], body[9], body[12]) == (1, 2, 3)
        elif marker == 0xEE and body.startswith(_ADOBE):
            if body[11] != 1:
                return None
            known = True
        elif marker == 0xDC or not (marker in (0xDB, 0xC4, 0xDD, 0xFE) or marker >= 0xE0):
            return None
        known |= marker == 0xE0 and body.startswith(_JFIF)
        if marker == 0xE1 and _turned(body):
            return None
        if _misleads(marker, body):
            left_out = True
        else:
            kept.append(segment)
        at += length
    end = _jpeg_end(data, at)
    if end is None or not known:
        return None
    return data if not left_out and end == len(data) else b"".join([*kept, data[at:end]])


def _misleads(marker: int, body: bytes) -> bool:
    """Whether a segment holds another picture, or how others are to read this one."""
    if marker == 0xE0:
        return not body.startswith(_JFIF) or bool(body[12] * body[13])
    if marker == 0xE1 and body.startswith(_EXIF):
        exif = Image.Exif()
        exif.load(body)
        return bool(exif.get_ifd(1))
    return marker in _LEFT_OUT


def _turned(body: bytes) -> bool:
    """Whether EXIF or XMP says that the picture is to be shown turned."""
    if not body.startswith(_EXIF):
        return b"Orientation" in body
    exif = Image.Exif()
    exif.load(body)
    return bool(exif.get(ExifTags.Base.Orientation, 1) != 1)


def _jpeg_end(data: bytes, at: int) -> int | None:
    """Where the coded picture ends, from its first scan on; None for an unfinished one."""
    while True:
        (length,) = struct.unpack_from(">H", data, at + 2)
        found = _JPEG_MARKER.search(data, at + 2 + length)
        if found is None:
            return None
        if found[1] == b"\xd9":
            return found.end()
        if found[1] not in (b"\xda", b"\xc4", b"\xdb", b"\xdd", b"\xfe"):
            return None
        at = found.end() - 2


def _plain_png(data: bytes) -> bytes | None:
    kept: list[bytes] = [_PNG]
    at, left_out = len(_PNG), False
    while True:
        length, name = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + length]
        if len(chunk) != 12 + length or zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:]):
            return None
        if name == b"IHDR" and (chunk[16] > 8 or chunk[17] not in (0, 2, 3)):
            return None
        if name in (b"tRNS", b"acTL", b"fcTL", b"fdAT") or (
            name[:1].isupper() and name not in _PNG_PIXELS
        ):
            return None
        if name == b"eXIf" or (name == b"iTXt" and b"Orientation" in chunk):
            return None  # it may be shown turned
        if name in _PNG_PIXELS or name in _PNG_WORDS:
            kept.append(chunk)
        else:
            left_out = True
        at += len(chunk)
        if name == b"IEND":
            break
    return data if not left_out and at == len(data) else b"".join(kept)


def _plain_webp(data: bytes) -> bytes | None:
    whole = 8 + struct.unpack_from("<I", data, 4)[0]
    if data[12:16] not in (b"VP8 ", b"VP8L"):
        return None  # the extended form: animation, alpha, profiles
    size = struct.unpack_from("<I", data, 16)[0]
    if 20 + size + size % 2 != whole or whole > len(data):
        return None
    return data[:whole]


__all__ = ["Encoding"]

_LEAST_QUALITY: Final = 30
_STEP: Final = 0.8
_MIME: Final = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


class Encoding(BaseModel):
    """How pictures that may pass are written.

    Attributes:
        keep_bytes: a clean picture travels on as the bytes it came in wherever every decoder reads
            these as the very pixels that were screened (above says when); False writes every
            picture anew.
        format: of what is written anew. ``png`` is lossless; ``jpeg`` and ``webp`` are not, so the
            model sees the screened pixels as near as ``quality`` allows.
        quality: of JPEG and WebP, 1 to 95.
        longest_side: larger pictures are scaled down to this, in pixels, before they are looked at.
        max_bytes: of what is written: lower qualities are tried first, then smaller sizes. A
            picture that keeps its bytes is measured by it as well.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_bytes: bool = True
    format: Literal["png", "jpeg", "webp"] = "png"
    quality: Annotated[int, Field(ge=1, le=95)] = 90
    longest_side: Annotated[int, Field(ge=32)] | None = None
    max_bytes: PositiveInt | None = None

    @property
    def mime_type(self) -> str:
        """Of what is written anew."""
        return _MIME[self.format]

    def keeps(self, coded: tuple[bytes, str] | None) -> bool:
        """Whether a clean picture may go on as these bytes."""
        if coded is None or not self.keep_bytes:
            return False
        return self.max_bytes is None or len(coded[0]) <= self.max_bytes

    def fitted(self, image: Image.Image, coded: tuple[bytes, str] | None = None) -> Image.Image:
        """The pixels that will be written, which are the ones to look at.

        Args:
            image: RGB.
            coded: its own bytes, if it may go on as these.

        Returns:
            The same object where it fits already.
        """
        longest = max(image.size)
        if self.longest_side is not None and longest > self.longest_side:
            image = _scaled(image, self.longest_side / longest)
        elif self.keeps(coded):
            return image
        while self.max_bytes is not None and min(image.size) > 8:
            if len(self.encode(image)) <= self.max_bytes:
                break
            image = _scaled(image, _STEP)
        return image

    def encode(self, image: Image.Image) -> bytes:
        """The bytes of a picture; the same pixels always give the same bytes."""
        if self.format == "png":
            return _saved(image, "PNG", compress_level=1)  # compression is what costs time
        quality, name = self.quality, self.format.upper()
        while True:
            data = _saved(image, name, quality=quality)
            small = self.max_bytes is None or len(data) <= self.max_bytes
            if small or quality <= _LEAST_QUALITY:
                return data
            quality = max(_LEAST_QUALITY, quality - 15)


def _saved(image: Image.Image, name: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=name, **options)
    return buffer.getvalue()


def _scaled(image: Image.Image, factor: float) -> Image.Image:
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size)
