"""Decoding, once: bytes, files, data URLs, arrays and PIL pictures become one upright RGB picture.

What `read_picture` returns is what screening looks at and what the model sees. EXIF orientation
is applied, transparency flattened on white, and every other way the picture could be shown (its
further frames, its transparency on black) is kept as a view to be screened.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import unquote_to_bytes

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from ..deadline import check_time
from ..encoding import unambiguous
from ..errors import ImageError
from .arrays import array_size, from_array
from .fetch import fetch
from .files import path_of, read_file
from .limits import Limits
from .pdf import render_pages
from .remote import RemotePolicy

PictureSource = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]
"""A path, a file:, data: or remote address, encoded bytes, a PIL picture, or an array (which ones,
says `arrays.from_array`). Remote addresses are fetched only where `Limits.remote` says so."""

_FORMATS: Final = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "ICO", "AVIF")
"""Raster formats whose decoders run in process; EPS and friends start external programs.
Headers and texts of PPM are read letter by letter in Python, and no model is sent one."""

_MOST_SCANS: Final = 32
"""How often a JPEG of `Limits.max_pixels` may go over its pixels; smaller ones as much more often.
Encoders need ten. A scan may take a few bytes and still a pass over every pixel."""

_PIECE: Final = 1 << 16
"""Characters of percent-encoded text that are decoded at a time."""

_STRIP: Final = 1 << 20
"""Pixels that are digested at a time."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
        image: RGB, upright, flattened on white; the first frame. This travels on.
        views: every rendering that has to be screened, `image` first, all of its size or their own.
        scaled: `image` as a model's processor will have scaled it down, where that is known; these
            have to be screened too (see `scaling`).
        kept: the part of `image` that a model's processor leaves of it, (left, top, right, bottom)
            in its pixels; None where that is all, or no model is known.
        request: the words that came with it, for detectors that look at both together; others never
            see it (see `screening.asking`). Not shown by `repr`.
        coded: the bytes that every decoder reads as `image`, and their MIME type; None where there
            are none (see `parity`).
    """

    image: Image.Image
    views: tuple[Image.Image, ...]
    scaled: tuple[Image.Image, ...] = ()
    kept: tuple[int, int, int, int] | None = None
    request: str = field(default="", repr=False)
    coded: tuple[bytes, str] | None = None


def read_picture(source: PictureSource, limits: Limits | None = None) -> Picture:
    """Decode one picture.

    Args:
        source: see PictureSource.
        limits: bounds; the defaults of `Limits` when None.

    Raises:
        ImageError: it cannot be read; `reason` is a stable code such as `missing_file`,
            `not_an_image`, `truncated`, `too_large`, `too_small`, `too_many_frames`,
            `too_many_views`, `pdf`, `unsupported_mode`, `unsupported_source`; for remote addresses
            see `fetch`.
        TimeoutError: the deadline of this context passed (see `deadline.time_limit`).
    """
    limits = limits or Limits()
    if isinstance(source, Image.Image):
        return _decode(source, limits, ours=False)
    if isinstance(source, np.ndarray):
        return _of_array(source, limits)
    return decode_bytes(read_bytes(source, limits), limits)


def read_bytes(source: PictureSource, limits: Limits) -> bytes:
    """The encoded picture behind bytes, a path or an address.

    Raises:
        ImageError: see ``read_picture``.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, os.PathLike):
        return read_file(Path(source), limits.max_bytes)
    if not isinstance(source, str):
        detail = f"{type(source).__name__} does not carry a picture"
        raise ImageError.because("unsupported_source", detail)
    kind = kind_of_address(source)
    if kind == "data":
        return _read_data_url(source, limits)
    if kind == "remote":
        return fetch(source.strip(), remote_policy(source, limits), limits.max_bytes)
    return read_file(path_of(source), limits.max_bytes)


def kind_of_address(text: str) -> Literal["data", "remote", "file"]:
    """What a text names: its own data, a picture elsewhere, or a file (a path or `file:`)."""
    scheme, colon, rest = text[:16].partition(":")
    scheme = scheme.strip().lower() if colon else ""
    if scheme == "data":
        return "data"
    return "remote" if scheme != "file" and rest.startswith("//") else "file"


def remote_policy(address: str, limits: Limits) -> RemotePolicy:
    """What says how a remote address is fetched.

    Raises:
        ImageError: `remote_url` where it is not to be fetched at all.
    """
    web = address.lstrip()[:8].lower().startswith(("http://", "https://"))
    if limits.remote is None or not web:
        detail = "remote addresses are not fetched; pass the picture itself"
        raise ImageError.because("remote_url", detail)
    return limits.remote


def _read_data_url(text: str, limits: Limits) -> bytes:
    header, comma, payload = text.partition(",")
    if not comma:
        raise ImageError.because("not_an_image", "a data: address without a comma holds no data")
    if len(payload) > 4 * limits.max_bytes // 3 + 4:
        raise ImageError.because("too_large", f"more than {limits.max_bytes} bytes")
    if not header.lower().endswith(";base64"):
        return _unquoted(payload)
    return decode_base64(payload, limits)


def _unquoted(text: str) -> bytes:
    """The bytes of percent-encoded text, a piece at a time: each escape is an object on its way."""
    found, start = bytearray(), 0
    while start < len(text):
        end = start + _PIECE
        cut = text.rfind("%", end - 2, end)  # an escape that the end would cut up
        end = end if cut < 0 else cut
        found += unquote_to_bytes(text[start:end])
        start = end
    return bytes(found)


def decode_base64(payload: str, limits: Limits) -> bytes:
    """Bytes from base64 text.

    Raises:
        ImageError: too long, or not base64.
    """
    if len(payload) > 4 * limits.max_bytes // 3 + 4:
        raise ImageError.because("too_large", f"more than {limits.max_bytes} bytes")
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError.because("not_an_image", "the base64 text is malformed") from error


def decode_bytes(data: bytes, limits: Limits) -> Picture:
    """Decode a picture from its encoded bytes; raises as ``read_picture``."""
    if not data:
        raise ImageError.because("empty", "it holds no bytes")
    if len(data) > limits.max_bytes:
        raise ImageError.because("too_large", f"more than {limits.max_bytes} bytes")
    if data.startswith(b"%PDF"):  # behind other bytes it may be a picture's
        return _of_views(render_pages(data, limits), limits)
    try:
        opened = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        detail = "no supported picture format recognises it"
        raise ImageError.because("not_an_image", detail) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError.because("too_large", f"more than {limits.max_pixels} pixels") from error
    except Exception as error:  # Pillow's readers let many kinds of error out on hostile bytes
        detail = f"its header is broken ({type(error).__name__})"
        raise ImageError.because("not_an_image", detail) from error
    with opened:
        _check_scans(opened, data, limits)
        picture = _decode(opened, limits, ours=True)
    return replace(picture, coded=unambiguous(data)) if len(picture.views) == 1 else picture


def _of_array(array: NDArray[Any], limits: Limits) -> Picture:
    """The picture in an array, whose size is known before anything is converted."""
    size = array_size(array)
    if 0 not in size:
        transparent = array.ndim == 3 and 4 in (array.shape[0], array.shape[2])
        _check_cost(size, 1, transparent, limits)
    return _decode(from_array(array), limits, ours=True)


def _check_cost(size: tuple[int, int], frames: int, transparent: bool, limits: Limits) -> None:
    """Whether a picture keeps to the limits; all that this needs stands in its header."""
    width, height = size
    views = frames * (2 if transparent else 1)
    if width == 0 or height == 0:
        raise ImageError.because("empty", "it has no pixels")
    if frames > limits.max_frames:
        detail = f"{frames} frames; at most {limits.max_frames} are read"
        raise ImageError.because("too_many_frames", detail)
    if views > limits.max_views_per_request:
        detail = f"{views} renderings; the request has {limits.max_views_per_request} left"
        raise ImageError.because("too_many_views", detail)
    if width * height * views > limits.max_pixels:
        detail = f"{width} x {height} x {views}; at most {limits.max_pixels}"
        raise ImageError.because("too_large", detail)
    if min(width, height) < limits.min_side:
        detail = f"{width} x {height}; a side needs {limits.min_side} pixels"
        raise ImageError.because("too_small", detail)


def _check_scans(opened: Image.Image, data: bytes, limits: Limits) -> None:
    """A progressive JPEG is decoded in as many passes as its bytes name, uninterruptibly."""
    if opened.format not in ("JPEG", "MPO"):
        return
    scans = data.count(b"\xff\xda")
    if scans * opened.width * opened.height > _MOST_SCANS * limits.max_pixels:
        detail = f"{scans} scans of {opened.width} x {opened.height} pixels"
        raise ImageError.because("too_large", detail)


def _check_icons(opened: Image.Image, limits: Limits) -> None:
    """The list of an ICO may call a picture small that says otherwise itself, when it is loaded."""
    icons: Any = getattr(opened, "ico", None)
    if icons is None:
        return
    for number in range(len(icons.entry)):
        icon = icons.frame(number)
        _check_cost(icon.size, 1, _transparent(icon), limits.model_copy(update={"min_side": 1}))


def _decode(opened: Image.Image, limits: Limits, *, ours: bool) -> Picture:
    """Every rendering of an open picture; one that is not `ours` is left as it was."""
    try:
        frames = int(getattr(opened, "n_frames", 1))
        _check_cost(opened.size, frames, _transparent(opened), limits)
        _check_icons(opened, limits)
        many = frames > 1
        views = _frame_renderings(opened, limits) if many else _renderings(opened, ours=ours)
    except (ImageError, TimeoutError):
        raise
    except Exception as error:  # as above: truncated data surfaces as OSError, SyntaxError, ...
        detail = f"it breaks while decoding ({type(error).__name__})"
        raise ImageError.because("truncated", detail) from error
    return _of_views(views, limits)


def _of_views(views: list[Image.Image], limits: Limits) -> Picture:
    for view in views:  # some containers declare one size and hold another
        _check_cost(view.size, 1, False, limits)
    return Picture(views[0], tuple(_distinct(views)))


def _frame_renderings(opened: Image.Image, limits: Limits) -> list[Image.Image]:
    """Every frame's renderings; the picture is left at the frame where the caller had it."""
    position, pixels, views = opened.tell(), 0, []
    try:
        for frame in ImageSequence.Iterator(opened):
            check_time()
            transparent = _transparent(frame)
            _check_cost(frame.size, 1, transparent, limits)
            pixels += frame.width * frame.height * (2 if transparent else 1)
            if pixels > limits.max_pixels:
                detail = f"its frames hold more than {limits.max_pixels} pixels"
                raise ImageError.because("too_large", detail)
            views += _renderings(frame, ours=False)
            if len(views) > limits.max_views_per_request:
                detail = f"the request has {limits.max_views_per_request} renderings left"
                raise ImageError.because("too_many_views", detail)
    finally:
        opened.seek(position)
    return views


def _distinct(views: list[Image.Image]) -> list[Image.Image]:
    if len(views) == 1:
        return views
    kept: dict[bytes, Image.Image] = {}
    for view in views:
        kept.setdefault(pixel_digest(view), view)
    return list(kept.values())


def pixel_digest(image: Image.Image) -> bytes:
    """A digest of a picture's mode, size and every pixel, made without a second copy of it."""
    digest = blake2b(f"{image.mode} {image.width} {image.height} ".encode(), digest_size=32)
    rows = max(1, _STRIP // image.width) if image.width else 1
    for top in range(0, image.height, rows):
        bottom = min(image.height, top + rows)
        digest.update(image.crop((0, top, image.width, bottom)).tobytes())
    return digest.digest()


def _transparent(image: Image.Image) -> bool:
    """Whether a picture may be transparent somewhere; deeper ones keep no opacity here."""
    if image.mode.startswith("I") or image.mode == "F":
        return False
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _renderings(frame: Image.Image, *, ours: bool) -> list[Image.Image]:
    """The frame upright as RGB: flattened on white, and on black where it has transparency."""
    upright = frame
    if ours:
        ImageOps.exif_transpose(frame, in_place=True)
    else:
        upright = ImageOps.exif_transpose(frame)
    if not _transparent(upright):
        return [_to_rgb(upright)]
    layers = upright.convert("LA") if upright.mode == "La" else upright
    layers = layers.convert("RGBA") if layers.mode != "RGBA" else layers
    renderings = []
    for colour in ("white", "black"):
        canvas = Image.new("RGB", layers.size, colour)
        canvas.paste(layers, mask=layers)
        renderings.append(canvas)
    return renderings


def _to_rgb(frame: Image.Image) -> Image.Image:
    if frame.mode.startswith("I") or frame.mode == "F":
        return from_array(np.asarray(frame), sixteen_bit=True).convert("RGB")
    return frame.convert("RGB")
