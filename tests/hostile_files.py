"""Picture files with bytes changed, cut out, put in or doubled, from any source of numbers."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache

from bad_pictures import READABLE, animation, encoded, photo, upside
from chain_helpers import CLEAN

Pick = Callable[[int, int], int]
"""A whole number from the first to the second, both included."""

KINDS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "ICO", "PPM", "AVIF")
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
