"""Pages of a PDF as pictures, where the optional reader (``sightrail[pdf]``) is installed.

What travels on is what a picture does: the first page, as pixels. A PDF itself is never handed on,
for another reader may show another thing than was screened.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

from ..deadline import check_time
from ..errors import ImageError

if TYPE_CHECKING:
    from .limits import Limits

_SCALE: Final = 2.0  # pixels a point: 144 dpi, at which small print is still legible
_lock: Final = threading.Lock()
"""PDFium is not thread-safe, whichever document it works on."""


def render_pages(data: bytes, limits: Limits) -> list[Image.Image]:
    """Every page as RGB, drawn on white with its annotations and forms.

    Raises:
        ImageError: `pdf` where no reader is installed or it cannot read this one,
            `too_many_frames`, `too_many_views`, `too_large`.
    """
    try:
        import pypdfium2
    except ImportError as error:
        detail = "no reader is installed; pip install 'sightrail[pdf]'"
        raise ImageError.because("pdf", f"pages of a PDF cannot be looked at: {detail}") from error
    try:
        with _lock, _opened(pypdfium2, data) as document:
            return _pages(document, limits)
    except (ImageError, TimeoutError):
        raise
    except Exception as error:  # the binding lets several kinds of error out on hostile bytes
        detail = f"the reader gives up on it ({type(error).__name__})"
        raise ImageError.because("pdf", detail) from error


@contextmanager
def _opened(pypdfium2: Any, data: bytes) -> Iterator[Any]:
    document = pypdfium2.PdfDocument(data)
    try:
        document.init_forms()
        yield document
    finally:
        document.close()


def _pages(document: Any, limits: Limits) -> list[Image.Image]:
    count = len(document)
    if count == 0:
        raise ImageError.because("empty", "it has no pages")
    if count > limits.max_frames:
        detail = f"{count} pages; at most {limits.max_frames} are read"
        raise ImageError.because("too_many_frames", detail)
    if count > limits.max_views_per_request:
        detail = f"{count} pages; the request has {limits.max_views_per_request} renderings left"
        raise ImageError.because("too_many_views", detail)
    pixels, pages = 0, []
    for page in document:  # pages are loaded one by one, and sizes are known before drawing
        check_time()
        width, height = page.get_size()
        pixels += round(width * _SCALE + 1) * round(height * _SCALE + 1)
        if pixels > limits.max_pixels:
            detail = f"its pages hold more than {limits.max_pixels} pixels"
            raise ImageError.because("too_large", detail)
        pages.append(_drawn(page))
        page.close()
    return pages


def _drawn(page: Any) -> Image.Image:
    bitmap = page.render(scale=_SCALE, may_draw_forms=True, fill_color=(255, 255, 255, 255))
    try:
        drawn: Image.Image = bitmap.to_pil().convert("RGB")  # a copy: that memory is given back
        return drawn
    finally:
        bitmap.close()
