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
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, unquote_to_bytes, urlsplit
from urllib.request import url2pathname

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from ..errors import ImageError
from .fetch import fetch
from .limits import Limits
from .pdf import render_pages, starts_like_pdf

PictureSource = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]
"""A path, a file:, data: or remote address, encoded bytes, a PIL picture, or an array [H, W] or
[H, W, 3|4]. Remote addresses are fetched only where `Limits.remote` says so."""

_FORMATS: Final = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "ICO", "AVIF")
"""Raster formats whose decoders run in process; EPS and friends start external programs."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
        image: RGB, upright, flattened on white; the first frame. This travels on.
        views: every rendering that has to be screened, `image` first, all of its size or their own.
        scaled: `image` as a model's processor will have scaled it down, where that is known; these
            have to be screened too (see `scaling`).
    """

    image: Image.Image
    views: tuple[Image.Image, ...]
    scaled: tuple[Image.Image, ...] = ()


def read_picture(source: PictureSource, limits: Limits | None = None) -> Picture:
    """Decode one picture.

    Args:
        source: see PictureSource.
        limits: bounds; the defaults of `Limits` when None.

    Raises:
        ImageError: it cannot be read; `reason` is a stable code such as `missing_file`,
            `not_an_image`, `truncated`, `too_large`, `too_small`, `too_many_frames`, `pdf`,
            `unsupported_mode`, `unsupported_source`; for remote addresses see `fetch`.
    """
    limits = limits or Limits()
    if isinstance(source, Image.Image):
        return _decode(source, limits)
    if isinstance(source, np.ndarray):
        return _decode(_from_array(source), limits)
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    elif isinstance(source, str):
        data = _read_address(source, limits)
    elif isinstance(source, os.PathLike):
        data = _read_file(Path(source), limits)
    else:
        raise _problem("unsupported_source", f"{type(source).__name__} does not carry a picture")
    return _decode_bytes(data, limits)


def _problem(reason: str, detail: str) -> ImageError:
    return ImageError(f"{reason}: {detail}", reason=reason)


def _read_address(text: str, limits: Limits) -> bytes:
    scheme, colon, rest = text[:16].partition(":")
    scheme = scheme.strip().lower() if colon else ""
    if scheme == "data":
        return _read_data_url(text, limits)
    if scheme != "file" and rest.startswith("//"):
        if limits.remote is None or scheme not in ("http", "https"):
            detail = "remote addresses are not fetched; pass the picture itself"
            raise _problem("remote_url", detail)
        return fetch(text.strip(), limits.remote, limits.max_bytes)
    if scheme == "file":
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise _problem("remote_url", "a file: address may not name another machine")
        return _read_file(Path(url2pathname(unquote(parts.path))), limits)
    return _read_file(Path(text), limits)


def _read_data_url(text: str, limits: Limits) -> bytes:
    header, comma, payload = text.partition(",")
    if not comma:
        raise _problem("not_an_image", "a data: address without a comma holds no data")
    if len(payload) > 4 * limits.max_bytes // 3 + 4:
        raise _problem("too_large", f"more than {limits.max_bytes} bytes")
    if not header.lower().endswith(";base64"):
        return unquote_to_bytes(payload)
    return decode_base64(payload, limits)


def decode_base64(payload: str, limits: Limits) -> bytes:
    """Bytes from base64 text.

    Raises:
        ImageError: too long, or not base64.
    """
    if len(payload) > 4 * limits.max_bytes // 3 + 4:
        raise _problem("too_large", f"more than {limits.max_bytes} bytes")
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _problem("not_an_image", "the base64 text is malformed") from error


def _read_file(path: Path, limits: Limits) -> bytes:
    try:
        if not path.exists():
            raise _problem("missing_file", "there is no such file")
        if not path.is_file():
            raise _problem("not_a_file", "it is a folder or a device, not a file")
        if path.stat().st_size > limits.max_bytes:
            raise _problem("too_large", f"more than {limits.max_bytes} bytes")
        with path.open("rb") as file:
            return file.read(limits.max_bytes + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise _problem("unreadable_file", f"{type(error).__name__} while reading it") from error


def _decode_bytes(data: bytes, limits: Limits) -> Picture:
    if not data:
        raise _problem("empty", "it holds no bytes")
    if len(data) > limits.max_bytes:
        raise _problem("too_large", f"more than {limits.max_bytes} bytes")
    if starts_like_pdf(data):
        return _of_views(render_pages(data, limits), limits)
    try:
        opened = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise _problem("not_an_image", "no supported picture format recognises it") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _problem("too_large", f"more than {limits.max_pixels} pixels") from error
    except Exception as error:  # Pillow's readers let many kinds of error out on hostile bytes
        raise _problem("not_an_image", f"its header is broken ({type(error).__name__})") from error
    with opened:
        return _decode(opened, limits)


def _check_size(image: Image.Image, frames: int, limits: Limits) -> None:
    width, height = image.size
    if width == 0 or height == 0:
        raise _problem("empty", "it has no pixels")
    if frames > limits.max_frames:
        raise _problem("too_many_frames", f"{frames} frames; at most {limits.max_frames} are read")
    if width * height * frames > limits.max_pixels:
        raise _problem("too_large", f"{width} x {height} x {frames}; at most {limits.max_pixels}")
    if min(width, height) < limits.min_side:
        raise _problem("too_small", f"{width} x {height}; a side needs {limits.min_side} pixels")


def _check_icons(opened: Image.Image, limits: Limits) -> None:
    """The list of an ICO may call a picture small that says otherwise itself, when it is loaded."""
    icons: Any = getattr(opened, "ico", None)
    if icons is None:
        return
    for number in range(len(icons.entry)):
        _check_size(icons.frame(number), 1, limits.model_copy(update={"min_side": 1}))


def _decode(opened: Image.Image, limits: Limits) -> Picture:
    try:
        frames = int(getattr(opened, "n_frames", 1))
        _check_size(opened, frames, limits)
        _check_icons(opened, limits)
        views = _renderings(opened) if frames == 1 else _frame_renderings(opened, limits)
    except ImageError:
        raise
    except Exception as error:  # as above: truncated data surfaces as OSError, SyntaxError, ...
        raise _problem("truncated", f"it breaks while decoding ({type(error).__name__})") from error
    return _of_views(views, limits)


def _of_views(views: list[Image.Image], limits: Limits) -> Picture:
    for view in views:  # some containers declare one size and hold another
        _check_size(view, 1, limits)
    return Picture(views[0], tuple(_distinct(views)))


def _frame_renderings(opened: Image.Image, limits: Limits) -> list[Image.Image]:
    """Every frame's renderings; the picture is left at the frame where the caller had it."""
    position, pixels, views = opened.tell(), 0, []
    try:
        for frame in ImageSequence.Iterator(opened):
            _check_size(frame, 1, limits)
            pixels += frame.width * frame.height
            if pixels > limits.max_pixels:
                raise _problem("too_large", f"its frames hold more than {limits.max_pixels} pixels")
            views += _renderings(frame)
    finally:
        opened.seek(position)
    return views


def _distinct(views: list[Image.Image]) -> list[Image.Image]:
    kept: dict[tuple[tuple[int, int], bytes], Image.Image] = {}
    for view in views:
        kept.setdefault((view.size, blake2b(view.tobytes()).digest()), view)
    return list(kept.values())


def _renderings(frame: Image.Image) -> list[Image.Image]:
    """The frame upright as RGB: flattened on white, and on black where it has transparency."""
    frame = ImageOps.exif_transpose(frame)
    if frame.mode.startswith("I") or frame.mode == "F" or not frame.has_transparency_data:
        return [_to_rgb(frame)]
    layers = frame.convert("LA") if frame.mode == "La" else frame
    layers = layers.convert("RGBA")
    renderings = []
    for colour in ("white", "black"):
        canvas = Image.new("RGBA", layers.size, colour)
        renderings.append(Image.alpha_composite(canvas, layers).convert("RGB"))
    return renderings


def _to_rgb(frame: Image.Image) -> Image.Image:
    if frame.mode.startswith("I") or frame.mode == "F":
        return _from_array(np.asarray(frame)).convert("RGB")
    return frame.convert("RGB")


def _from_array(array: NDArray[Any]) -> Image.Image:
    """A PIL picture of an array: 8 bit as it is, wider integers as 16 bit, floats as 0..1."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise _problem("unsupported_mode", f"an array of shape {array.shape} is not a picture")
    if array.size == 0:
        raise _problem("empty", "it has no pixels")
    if array.dtype == np.bool_:
        return Image.fromarray(array.astype(np.uint8) * 255)
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise _problem("unsupported_mode", "floating-point pixels must lie in 0..1")
        return Image.fromarray((array * 255).round().astype(np.uint8))
    if not np.issubdtype(array.dtype, np.integer):
        raise _problem("unsupported_mode", f"pixels of type {array.dtype} are not supported")
    if array.min() < 0 or array.max() > 65535:
        raise _problem("unsupported_mode", "integer pixels must lie in 0..65535")
    if array.dtype == np.uint8 or (array.dtype.itemsize > 2 and array.max() <= 255):
        return Image.fromarray(array.astype(np.uint8))
    return Image.fromarray((array.astype(np.uint32) // 257).astype(np.uint8))
