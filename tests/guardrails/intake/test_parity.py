"""A clean picture keeps its bytes where every decoder reads the screened pixels from them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import decode_image

from sightrail.guardrails.encoding import Encoding, unambiguous
from sightrail.guardrails.intake import read_picture


def photo(size: tuple[int, int] = (96, 64)) -> Image.Image:
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    channels = [rows * 2 % 256, columns * 2 % 256, (rows + columns) % 256]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def saved(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or photo()).save(buffer, format=kind, **options)
    return buffer.getvalue()


def with_exif(orientation: int = 1, *, thumbnail: bool = False) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    if thumbnail:
        exif._ifds[1] = {0x0201: 0, 0x0202: 0, 0x0103: 6}
    return exif.tobytes()


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def inserted(png: bytes, chunk: bytes) -> bytes:
    return png[:33] + chunk + png[33:]  # behind the header


JPEG, PNG = saved("JPEG", quality=85), saved("PNG")
KEPT = {
    "jpeg": JPEG,
    "progressive jpeg": saved("JPEG", progressive=True),
    "grey jpeg": saved("JPEG", photo().convert("L")),
    "jpeg with exif": saved("JPEG", exif=with_exif()),
    "jpeg with a comment": saved("JPEG", comment=b"at the sea"),
    "png": PNG,
    "grey png": saved("PNG", photo().convert("L")),
    "palette png": saved("PNG", photo().quantize(64)),
    "png with words": inserted(PNG, png_chunk(b"tEXt", b"Title\x00sea")),
    "webp": saved("WEBP", quality=80),
    "lossless webp": saved("WEBP", lossless=True),
}
TRIMMED = {
    "jpeg and more behind it": JPEG + PNG,
    "jpeg with a profile": saved("JPEG", icc_profile=b"0" * 200),
    "png and more behind it": PNG + JPEG,
    "png with gamma": inserted(PNG, png_chunk(b"gAMA", struct.pack(">I", 100_000))),
    "png with a profile": saved("PNG", icc_profile=b"0" * 200),
    "png with a chunk of its own": inserted(PNG, png_chunk(b"hiDe", JPEG)),
    "webp and more behind it": saved("WEBP") + JPEG,
}
ANEW = {
    "turned jpeg": saved("JPEG", exif=with_exif(6)),
    "turned png": saved("PNG", exif=with_exif(3)),
    "cmyk jpeg": saved("JPEG", photo().convert("CMYK")),
    "transparent png": saved("PNG", photo().convert("RGBA")),
    "png with a transparent colour": saved("PNG", photo().quantize(8), transparency=3),
    "16-bit png": saved("PNG", Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64))),
    "animated png": saved("PNG", save_all=True, append_images=[photo().rotate(90)]),
    "animated webp": saved("WEBP", save_all=True, append_images=[photo().rotate(90)]),
    "gif": saved("GIF"),
    "bmp": saved("BMP"),
    "tiff": saved("TIFF"),
    "xmp says turned": inserted(
        PNG, png_chunk(b"iTXt", b"XML:com.adobe.xmp\x00tiff:Orientation=3")
    ),
}


def screened_pixels(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(read_picture(data).image)).permute(2, 0, 1)


@pytest.mark.parametrize("kind", KEPT)
def test_the_very_bytes_travel_on(kind: str) -> None:
    coded = read_picture(KEPT[kind]).coded
    assert coded is not None
    assert coded[0] == KEPT[kind]


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")  # still the only one
@pytest.mark.parametrize("kind", [*KEPT, *TRIMMED])
def test_another_decoder_reads_the_screened_pixels(kind: str) -> None:
    data = {**KEPT, **TRIMMED}[kind]
    coded = read_picture(data).coded
    assert coded is not None
    other = decode_image(torch.frombuffer(bytearray(coded[0]), dtype=torch.uint8), mode="RGB")
    assert torch.equal(other, screened_pixels(data))


@pytest.mark.parametrize("kind", TRIMMED)
def test_what_misleads_is_left_out_and_the_pixels_stay(kind: str) -> None:
    data = TRIMMED[kind]
    coded = read_picture(data).coded
    assert coded is not None
    assert len(coded[0]) < len(data)
    assert torch.equal(screened_pixels(coded[0]), screened_pixels(data))
    assert unambiguous(coded[0]) == coded  # nothing more to leave out


@pytest.mark.parametrize("kind", ANEW)
def test_what_could_be_read_otherwise_is_written_anew(kind: str) -> None:
    assert read_picture(ANEW[kind]).coded is None


@pytest.mark.parametrize("data", [JPEG, PNG, KEPT["webp"], TRIMMED["jpeg with a profile"]])
def test_broken_bytes_are_never_taken(data: bytes) -> None:
    for cut in range(2, len(data) - 1, 37):
        unambiguous(data[:cut])  # no exception
        found = unambiguous(data[:cut] + b"\xff" + data[cut + 1 :])
        assert found is None or isinstance(found[0], bytes)
    assert unambiguous(data[: len(data) // 2]) is None


def test_the_thumbnail_of_a_camera_does_not_come_along() -> None:
    shot = JPEG[:2] + b"\xff\xe0" + struct.pack(">H", 16 + 12) + b"JFIF\x00\x01\x01\x00\x00\x01"
    shot += b"\x00\x01\x02\x02" + b"\x00" * 12 + JPEG[20:]
    found = unambiguous(shot)
    assert found is None or b"\x02\x02" + b"\x00" * 12 not in found[0]


def test_jpeg_and_webp_are_written_as_asked() -> None:
    for kind in ("jpeg", "webp"):
        small = Encoding(format=kind, quality=50).encode(photo())
        assert Image.open(io.BytesIO(small)).format == kind.upper()
        assert len(small) < len(Encoding(format=kind, quality=95).encode(photo()))


def test_the_longest_side_and_the_most_bytes_hold() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8))
    assert max(Encoding(longest_side=100).fitted(noise).size) == 100
    for kind in ("png", "jpeg", "webp"):
        encoding = Encoding(format=kind, max_bytes=8_000)
        assert len(encoding.encode(encoding.fitted(noise))) <= 8_000
    fits = Encoding(max_bytes=10_000_000)
    assert fits.fitted(noise) is noise
