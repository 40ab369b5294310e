"""Intake: any carrier becomes upright RGB pixels, or a typed error with a stable reason."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bad_pictures import (
    READABLE,
    UNREADABLE,
    animation,
    encoded,
    growing_tiff,
    photo,
    upside,
)
from sightrail.guardrails import ImageError, Limits, Picture, SightrailError, read_picture


def reason_of(source: object, limits: Limits | None = None) -> str:
    with pytest.raises(ImageError) as caught:
        read_picture(source, limits)  # type: ignore[arg-type]
    return caught.value.reason


def assert_same(one: Image.Image, other: Image.Image, tolerance: int = 0) -> None:
    assert one.mode == other.mode == "RGB"
    assert one.size == other.size
    difference = np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max()
    assert difference <= tolerance


# Carriers


def carriers(tmp_path: Path) -> dict[str, object]:
    data = encoded(photo())
    file = tmp_path / "a photo.png"
    file.write_bytes(data)
    text = base64.b64encode(data).decode()
    return {
        "path": file,
        "text path": str(file),
        "file address": file.as_uri(),
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "data address": f"data:image/png;base64,{text}",
        "data address, wrapped": f"data:image/png;base64,{text[:50]}\n{text[50:]}",
        "data address, upper case": f"DATA:image/png;BASE64,{text}",
        "data address, percent": f"data:image/png,{quote(data)}",
        "PIL": photo(),
        "PIL, not loaded": Image.open(io.BytesIO(data)),
        "array": np.asarray(photo()),
        "array, strided": np.asarray(photo())[:, ::-1][:, ::-1],
        "array, wide integers": np.asarray(photo()).astype(np.int64),
        "array, floats": np.asarray(photo(), np.float32) / 255,
        "array, 16 bit": np.asarray(photo()).astype(np.uint16) * 257,
    }


def test_every_carrier_gives_the_same_pixels(tmp_path: Path) -> None:
    for name, source in carriers(tmp_path).items():
        picture = read_picture(source)  # type: ignore[arg-type]
        assert_same(picture.image, photo())
        assert picture.views == (picture.image,), name


def test_the_callers_picture_is_neither_returned_nor_changed() -> None:
    mine = photo()
    before = mine.tobytes()
    read_picture(mine).image.paste((0, 0, 0), (0, 0, 10, 10))
    assert mine.tobytes() == before


def test_an_animation_stays_at_the_frame_where_the_caller_had_it() -> None:
    mine = Image.open(io.BytesIO(animation(4)))
    mine.seek(2)
    picture = read_picture(mine)
    assert mine.tell() == 2
    assert len(picture.views) == 4


@pytest.mark.parametrize(
    "address",
    [
        "http://example.org/cat.png",
        "HTTPS://example.org/cat.png",
        " https://example.org/cat.png",
        "ftp://example.org/cat.png",
        "s3://bucket/cat.png",
        "file://elsewhere/cat.png",
    ],
)
def test_remote_addresses_are_not_fetched(address: str) -> None:
    assert reason_of(address) == "remote_url"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("no/such/file.png", "missing_file"),
        (Path("no/such/file.png"), "missing_file"),
        ("", "not_a_file"),
        ("x" * 5000, "unreadable_file"),
        ("data:image/png;base64", "not_an_image"),
        ("data:image/png;base64,%%%", "not_an_image"),
        ("data:image/png;base64,", "empty"),
        ("data:,hello", "not_an_image"),
        (None, "unsupported_source"),
        (7, "unsupported_source"),
        (["a.png"], "unsupported_source"),
        (np.zeros((8, 8, 2), np.uint8), "unsupported_mode"),
        (np.zeros((8,), np.uint8), "unsupported_mode"),
        (np.zeros((2, 8, 8, 3), np.uint8), "unsupported_mode"),
        (np.zeros((0, 8, 3), np.uint8), "empty"),
        (np.full((8, 8, 3), np.nan), "unsupported_mode"),
        (np.full((8, 8, 3), 255.5), "unsupported_mode"),
        (np.full((8, 8, 3), -0.1), "unsupported_mode"),
        (np.full((8, 8), -1), "unsupported_mode"),
        (np.full((8, 8), 70_000), "unsupported_mode"),
        (np.full((8, 8), "a"), "unsupported_mode"),
        (np.full((8, 8), 1j), "unsupported_mode"),
        (Image.new("RGB", (0, 9)), "empty"),
    ],
)
def test_what_carries_no_picture_says_so(source: object, reason: str) -> None:
    assert reason_of(source) == reason


def test_a_null_character_in_a_path_is_a_typed_error() -> None:
    assert reason_of("a\0b.png") in ("missing_file", "unreadable_file")


def test_a_folder_and_a_pipe_are_no_pictures(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert reason_of(tmp_path) == "not_a_file"
    assert reason_of(pipe) == "not_a_file"


def test_a_closed_picture_is_a_typed_error() -> None:
    with Image.open(io.BytesIO(encoded(photo()))) as closed:
        pass
    assert reason_of(closed) == "truncated"


# Bad and unusual files


@pytest.mark.parametrize("name", UNREADABLE)
def test_bad_files_end_in_a_typed_error(name: str, tmp_path: Path) -> None:
    reason, make = UNREADABLE[name]
    data = make()
    (tmp_path / name).write_bytes(data)
    assert reason_of(tmp_path / name) == reason
    assert reason_of(data) == reason


@pytest.mark.parametrize("name", READABLE)
def test_unusual_files_are_read(name: str) -> None:
    picture = read_picture(READABLE[name]())
    assert picture.image.mode == "RGB"
    assert all(view.mode == "RGB" for view in picture.views)
    assert picture.image is picture.views[0]


def test_errors_name_neither_the_file_nor_its_content(tmp_path: Path) -> None:
    secret = tmp_path / "secret-name.png"
    secret.write_bytes(b"secret content")
    with pytest.raises(ImageError) as caught:
        read_picture(secret)
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value, SightrailError)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = encoded(photo().transpose(Image.Transpose.ROTATE_90), kind, exif=exif, **options)
    image = read_picture(stored).image
    assert_same(image, photo(), tolerance=90 if kind == "JPEG" else 0)
    again = read_picture(image).image
    assert again.tobytes() == image.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_keeps_the_pixels(orientation: int) -> None:
    image = read_picture(upside(orientation, "PNG")).image
    assert sorted(image.size) == [48, 64]
    assert {colour for _, colour in image.getcolors() or []} == {
        colour for _, colour in photo().getcolors() or []
    }


def test_what_hides_in_transparency_is_a_view() -> None:
    hidden = Image.new("RGBA", (32, 32), (255, 255, 255, 0))
    hidden.paste((255, 255, 255, 255), (8, 8, 24, 24))  # white on transparent: seen on black only
    picture = read_picture(encoded(hidden))
    assert picture.image.getcolors() == [(32 * 32, (255, 255, 255))]
    assert len(picture.views) == 2
    assert picture.views[1].getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["La", "LA", "RGBa", "RGBA", "PA"])
def test_every_transparent_mode_is_flattened(mode: str) -> None:
    source = photo().convert("RGBA")
    image = source.convert("P").convert("PA") if mode == "PA" else source
    if mode == "La":
        image = source.convert("LA").convert("La")
    elif mode != "PA":
        image = source.convert(mode)
    assert read_picture(image).image.size == photo().size


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV", "I;16"])
def test_every_opaque_mode_is_read(mode: str) -> None:
    source = photo()
    if mode == "LAB":
        from PIL import ImageCms

        profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
        image = ImageCms.profileToProfile(source, *profiles, outputMode="LAB")
        assert image is not None
    else:
        image = source.convert("L").convert(mode) if mode == "I;16" else source.convert(mode)
    assert read_picture(image).image.mode == "RGB"


def test_sixteen_bits_keep_their_shades() -> None:
    ramp = np.linspace(0, 65535, 256 * 8).reshape(8, 256).astype(np.uint16)
    image = read_picture(encoded(Image.fromarray(ramp))).image
    assert image.getpixel((0, 0)) == (0, 0, 0)
    assert image.getpixel((255, 7)) == (255, 255, 255)
    assert len(image.getcolors() or []) == 256


def test_a_transparent_shade_does_not_wash_out_sixteen_bits() -> None:
    ramp = np.linspace(0, 65535, 256 * 8).reshape(8, 256).astype(np.uint16)
    image = read_picture(encoded(Image.fromarray(ramp), transparency=0)).image
    assert len(image.getcolors() or []) == 256


def test_every_frame_is_a_view_and_the_first_travels_on() -> None:
    picture = read_picture(animation(5))
    assert len(picture.views) == 5
    assert picture.image is picture.views[0]


def test_equal_frames_are_looked_at_once() -> None:
    frames = [photo()] * 3
    data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert len(read_picture(data).views) == 1


# Limits


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(max_bytes=50), "too_large"),
        (Limits(max_pixels=64 * 48 - 1), "too_large"),
        (Limits(min_side=49), "too_small"),
    ],
)
def test_limits_bind(limits: Limits, reason: str) -> None:
    data = encoded(photo())
    assert reason_of(data, limits) == reason
    if limits.max_bytes == 50:
        address = "data:image/png;base64," + base64.b64encode(data).decode()
        assert reason_of(address, limits) == reason


def test_limits_are_inclusive() -> None:
    data = encoded(photo())
    exact = Limits(max_bytes=len(data), max_pixels=64 * 48, min_side=48, max_frames=1)
    assert_same(read_picture(data, exact).image, photo())


def test_frames_count_towards_pixels() -> None:
    assert reason_of(animation(4), Limits(max_pixels=32 * 32 * 4 - 1)) == "too_large"
    assert reason_of(animation(4), Limits(max_frames=3)) == "too_many_frames"
    assert reason_of(growing_tiff(), Limits(max_pixels=16 * 16 * 2)) == "too_large"


def test_limits_reject_nonsense() -> None:
    for bad in ({"max_bytes": 0}, {"max_frames": -1}, {"max_pixel": 5}):
        with pytest.raises(ValueError, match="validation error"):
            Limits(**bad)


# Whatever the bytes, only ImageError comes out

_SEEDS = [
    encoded(photo(24, 16)),
    encoded(photo(24, 16), "JPEG"),
    encoded(photo(24, 16), "WEBP"),
    encoded(photo(24, 16), "BMP"),
    encoded(photo(24, 16), "TIFF"),
    encoded(photo(24, 16), "ICO"),
    animation(2),
    upside(),
]


@st.composite
def mutated_pictures(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(_SEEDS)))
    for _ in range(draw(st.integers(1, 12))):
        place = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(["change", "cut", "insert"])):
            case "change":
                data[place] = draw(st.integers(0, 255))
            case "cut":
                del data[place : place + draw(st.integers(1, 16))]
            case _:
                data[place:place] = draw(st.binary(min_size=1, max_size=16))
        if not data:
            break
    return bytes(data)


_SMALL = Limits(max_pixels=1_000_000)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated_pictures())
def test_mutated_pictures_are_read_or_refused(data: bytes) -> None:
    try:
        picture = read_picture(data, _SMALL)
    except ImageError:
        return
    assert isinstance(picture, Picture)
    assert all(view.mode == "RGB" for view in picture.views)
    assert sum(v.width * v.height for v in picture.views) <= 2 * _SMALL.max_pixels


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=80)))
def test_anything_else_is_refused(source: bytes | str) -> None:
    with pytest.raises(ImageError):
        read_picture(source)
