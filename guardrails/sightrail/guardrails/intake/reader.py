"""The pictures of one request, read within what the request as a whole may cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

from ..errors import ImageError
from .limits import Limits
from .pictures import Picture, PictureSource, read_picture


class RequestReader:
    """Reads the pictures of one request, in their order; not shared between threads.

    Args:
        limits: bounds on each picture, on each message and on all of them together.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._read: Counter[Hashable] = Counter()
        self._pixels_left = limits.max_pixels_per_request

    def read(self, source: PictureSource, message: Hashable = None) -> Picture:
        """Decode one picture.

        Args:
            source: as for `read_picture`.
            message: tells the messages of the request apart.

        Raises:
            ImageError: as from `read_picture`; `too_many_images` where the message or the request
                holds more than may be read, `too_large` where its pixels are used up.
        """
        limits = self._limits
        self._read[message] += 1
        if self._read[message] > limits.max_images_per_message:
            raise _too_many(limits.max_images_per_message, "message")
        if self._read.total() > limits.max_images_per_request:
            raise _too_many(limits.max_images_per_request, "request")
        if self._pixels_left < limits.max_pixels:
            if self._pixels_left < 1:
                detail = f"the request holds more than {limits.max_pixels_per_request} pixels"
                raise ImageError(f"too_large: {detail}", reason="too_large")
            limits = limits.model_copy(update={"max_pixels": self._pixels_left})
        picture = read_picture(source, limits)
        self._pixels_left -= sum(view.width * view.height for view in picture.views)
        return picture


def _too_many(most: int, where: str) -> ImageError:
    detail = f"more than {most} pictures in one {where}"
    return ImageError(f"too_many_images: {detail}", reason="too_many_images")
