"""Pictures as they arrive in practice: odd ones to be read, broken ones that must not pass."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image


def photo(width: int = 64, height: int = 48) -> Image.Image:
    """A picture whose corners differ: red left top, green right top, blue left bottom."""
    pixels = np.full((height, width, 3), 200, np.uint8)
    half_h, half_w = height // 2, width // 2
    pixels[:half_h, :half_w] = (220, 30, 30)
    pixels[:half_h, half_w:] = (30, 200, 30)
    pixels[half_h:, :half_w] = (30, 30, 220)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _png(width: int, height: int, rows: bytes) -> bytes:
    """A PNG with any declared size, which Pillow would refuse to write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def bomb() -> bytes:
    """20000 x 20000 grey pixels in 400 kB."""
    return _png(20_000, 20_000, b"\0" * (20_001 * 20_000))


def growing_tiff() -> bytes:
    """A TIFF whose first page is small and whose second is not."""
    pages = [Image.new("1", (12_000, 12_000))]
    small = photo(16, 16)
    return encoded(small, "TIFF", save_all=True, append_images=pages, compression="packbits")


def animation(frames: int = 3, **options: object) -> bytes:
    first, *rest = [Image.new("RGB", (32, 32), (60 * i % 256, 20, 90)) for i in range(frames)]
    return encoded(first, "GIF", save_all=True, append_images=rest, **options)


def upside(orientation: int = 6, kind: str = "JPEG") -> bytes:
    """The photo stored turned, with the EXIF tag that turns it back for orientation 6."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = photo().transpose(Image.Transpose.ROTATE_90) if orientation == 6 else photo()
    return encoded(stored, kind, exif=exif)


def palette_with_transparency() -> bytes:
    image = photo().quantize(8)
    return encoded(image, "PNG", transparency=0)


def deep(dtype: type = np.uint16) -> bytes:
    ramp = np.linspace(0, 65535, 32 * 40).reshape(32, 40).astype(dtype)
    return encoded(Image.fromarray(ramp))


UNREADABLE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "text.png": ("not_an_image", lambda: b"this is no picture at all, whatever its name says"),
    "empty.png": ("empty", lambda: b""),
    "truncated.jpg": ("truncated", lambda: encoded(photo(400, 300), "JPEG")[:-1500]),
    "cut.png": ("truncated", lambda: encoded(photo())[:-60]),
    "zero.png": ("not_an_image", lambda: _png(0, 0, b"")),
    "dot.png": ("too_small", lambda: encoded(photo(1, 1))),
    "line.png": ("too_small", lambda: encoded(photo(400, 4))),
    "bomb.png": ("too_large", bomb),
    "growing.tiff": ("too_large", growing_tiff),
    "film.gif": ("too_many_frames", lambda: animation(80)),
    "drawing.svg": ("not_an_image", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "page.eps": ("not_an_image", lambda: encoded(photo(), "EPS")),
    "archive.zip": ("not_an_image", lambda: b"PK\x03\x04" + b"\0" * 100),
}
"""File name -> the reason it is not inspected, and its bytes."""

READABLE: dict[str, Callable[[], bytes]] = {
    "animated.gif": animation,
    "cmyk.jpg": lambda: encoded(photo().convert("CMYK"), "JPEG"),
    "deep.png": deep,
    "palette.png": palette_with_transparency,
    "turned.jpg": upside,
    "grey.png": lambda: encoded(photo().convert("L")),
    "bits.png": lambda: encoded(photo().convert("1")),
    "alpha.png": lambda: encoded(photo().convert("RGBA")),
    "photo.webp": lambda: encoded(photo(), "WEBP"),
    "photo.bmp": lambda: encoded(photo(), "BMP"),
}
"""File name -> bytes of pictures that are unusual and fine."""
