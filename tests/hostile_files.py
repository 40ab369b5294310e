"""Picture files with bytes changed, cut out, put in or doubled, from any source of numbers."""

from __future__ import annotations

import io
import struct
import zlib
from base64 import b64encode
from collections.abc import Callable
from functools import cache

from PIL import Image

from bad_pictures import READABLE, animation, encoded, photo, upside
from chain_helpers import CLEAN

Pick = Callable[[int, int], int]
"""A whole number from the first to the second, both included."""


def _frames(kind: str, count: int, side: int = 16, **options: object) -> bytes:
    first, *rest = [Image.new("RGB", (side, side), (n % 256, n // 256, 9)) for n in range(count)]
    return encoded(first, kind, save_all=True, append_images=rest, **options)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png_with(name: bytes, before: bytes) -> bytes:
    """A small PNG with 60 MB of zeros packed into a chunk."""
    plain = encoded(photo(24, 16))
    return plain[:33] + _chunk(name, before + zlib.compress(bytes(60 << 20))) + plain[33:]


def jpeg_of_scans(scans: int, side: int) -> bytes:
    """A progressive JPEG that says its last scan again and again, a pass over all pixels each."""
    plain = encoded(Image.new("RGB", (side, side)), "JPEG", progressive=True, quality=30)
    last = plain.rfind(b"\xff\xda")
    return plain[:last] + plain[last:-2] * scans + b"\xff\xd9"


def _endless_tiff() -> bytes:
    """A TIFF whose page is followed by itself."""
    data = bytearray(encoded(photo(24, 16), "TIFF"))
    (at,) = struct.unpack_from("<I", data, 4)
    (tags,) = struct.unpack_from("<H", data, at)
    struct.pack_into("<I", data, at + 2 + 12 * tags, at)
    return bytes(data)


def _huge_canvas() -> bytes:
    data = bytearray(_frames("GIF", 3))
    struct.pack_into("<HH", data, 6, 65_000, 65_000)
    return bytes(data)


_PHOTOSHOP = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30_000, 30_000, 8, 3) + bytes(99)
_RLE = b"BM" + struct.pack("<IHHIIiiHH", 0, 0, 0, 1078, 40, 7000, 7000, 1, 8)
_RLE += struct.pack("<IIiiII", 1, 0, 0, 0, 256, 0) + bytes(1024) + b"\1\0" * 1000 + b"\0\1"

BOMBS: dict[str, tuple[str | None, Callable[[], bytes | str]]] = {
    "an animated PNG of 2,000 frames": ("too_many_frames", lambda: _frames("PNG", 2000)),
    "an animated WebP": ("too_many_frames", lambda: _frames("WEBP", 500, lossless=True)),
    "an animated AVIF": ("too_many_frames", lambda: _frames("AVIF", 70, 64, speed=10)),
    "a GIF of 2,000 frames": ("too_many_frames", lambda: _frames("GIF", 2000)),
    "a TIFF of 500 pages": ("too_many_frames", lambda: _frames("TIFF", 500)),
    "a JPEG of 400 pictures": ("too_many_frames", lambda: _frames("MPO", 400)),
    "a GIF with a canvas that it does not fill": ("too_large", _huge_canvas),
    "pages of a JPEG that are too many pixels": ("too_large", lambda: _frames("MPO", 6, 3000)),
    "a deflated TIFF": (
        "too_large",
        lambda: encoded(Image.new("1", (9000, 9000)), "TIFF", compression="tiff_adobe_deflate"),
    ),
    "a JPEG of 900 scans": ("too_large", lambda: jpeg_of_scans(900, 2000)),
    "a small JPEG of 900 scans": (None, lambda: jpeg_of_scans(900, 64)),
    "a TIFF that goes in a circle": (None, _endless_tiff),
    "compressed text in a PNG": ("not_an_image", lambda: _png_with(b"zTXt", b"k\0\0")),
    "international text in a PNG": ("not_an_image", lambda: _png_with(b"iTXt", b"k\0\1\0\0\0")),
    "a colour profile in a PNG": ("not_an_image", lambda: _png_with(b"iCCP", b"icc\0\0")),
    "a BMP of runs of no length": ("truncated", lambda: _RLE),
    "JPEG 2000": ("not_an_image", lambda: encoded(photo(), "JPEG2000")),
    "Apple icons": ("not_an_image", lambda: encoded(photo(64, 64), "ICNS")),
    "DirectDraw": ("not_an_image", lambda: encoded(photo(64, 64), "DDS")),
    "Photoshop": ("not_an_image", lambda: _PHOTOSHOP),
    "HEIF": ("not_an_image", lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(999)),
    "base64 with megabytes of blanks": (
        None,
        lambda: "data:image/png;base64," + "\n \t" * (5 << 20) + b64encode(CLEAN).decode(),
    ),
    "PPM with a header of blanks": (
        "not_an_image",
        lambda: b"P6" + b" " * (20 << 20),
    ),
    "escapes all through": ("not_an_image", lambda: "data:image/png," + "%89" * (6 << 20)),
    "an address inside an address": (
        "not_an_image",
        lambda: "data:;base64," + b64encode(b"data:;base64," + b64encode(CLEAN)).decode(),
    ),
}
"""What it is -> why it is not inspected, None where it is; and the file or the address."""

KINDS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "ICO", "AVIF")
PNG_HEAD = b"\x89PNG\r\n\x1a\n"


@cache
def seeds() -> tuple[bytes, ...]:
    """Small files of every format that is read, and of the odd forms of them."""
    small = photo(24, 16)
    page = io.BytesIO()
    small.save(page, "PDF")
    more = {"save_all": True, "append_images": [small.rotate(180)]}
    return (
        *(encoded(small, kind) for kind in KINDS),
        *(encoded(small, kind, **more) for kind in ("PNG", "WEBP", "TIFF", "AVIF")),
        encoded(small, "JPEG", progressive=True),
        encoded(small, "TIFF", compression="tiff_lzw", save_all=True, append_images=[photo()]),
        *(make() for make in READABLE.values()),
        *(CLEAN, animation(3), upside(), upside(6, "TIFF"), page.getvalue()),
    )


def mutated_file(pick: Pick) -> bytes:
    """One of the seeds with up to 10 things done to it."""
    data = bytearray(seeds()[pick(0, len(seeds()) - 1)])
    for _ in range(pick(0, 10)):
        _mutate(data, pick)
    return _with_checksums(bytes(data)) if pick(0, 1) else bytes(data)


def _mutate(data: bytearray, pick: Pick) -> None:
    place = pick(0, len(data))
    match pick(0, 4):
        case 0:
            data[place : place + 1] = bytes([pick(0, 255)])
        case 1:
            del data[place : place + pick(1, 64)]
        case 2:
            data[place:place] = bytes(pick(0, 255) for _ in range(pick(1, 16)))
        case 3:
            data[place:place] = data[place : place + 64]
        case _:  # a length or a size field that claims the most it can
            data[place : place + 4] = b"\xff\xff\xff\xff"


def _with_checksums(data: bytes) -> bytes:
    """A PNG whose checksums fit what is in it now: without them readers stop at the first chunk."""
    if not data.startswith(PNG_HEAD):
        return data
    made, place = bytearray(PNG_HEAD), len(PNG_HEAD)
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        chunk = data[place + 4 : end]
        made += data[place : place + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        place = end + 4
    return bytes(made) + data[place:]
