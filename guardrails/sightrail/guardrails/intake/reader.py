"""The pictures of one request, read within what the request as a whole may cost."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Final

import numpy as np
from PIL import Image

from ..deadline import check_time
from ..errors import ImageError
from ..verdict import NotInspected
from .fetch import fetch
from .files import path_of, read_file_of_folders
from .limits import Limits
from .pictures import (
    Picture,
    PictureSource,
    decode_bytes,
    kind_of_address,
    read_bytes,
    read_picture,
    remote_policy,
)

_SIDE_BY_SIDE: Final = 8  # fetches at a time


class RequestReader:
    """Reads the pictures of one request, in their order; not shared between threads.

    What a message names is judged as the word of a stranger: files only inside `Limits.folders`,
    addresses only as `Limits.remote` allows. A ``pathlib.Path`` is the caller's own, since no
    message from outside can hold one.

    Args:
        limits: bounds on each picture, on each message and on all of them together.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._read: Counter[Hashable] = Counter()
        self._pixels_left = limits.max_pixels_per_request
        self._views_left = limits.max_views_per_request
        self._bytes = _Allowance(limits.max_bytes_per_request)

    def read(self, source: PictureSource, message: Hashable = None) -> Picture:
        """Decode one picture.

        Args:
            source: as for `read_picture`.
            message: tells the messages of the request apart.

        Raises:
            ImageError: as from `read_picture`; `too_many_images` where the message or the request
                holds more than may be read, `too_large` or `too_many_views` where its pixels,
                bytes or renderings are used up, `local_address` for a file that it may not name.
            TimeoutError: the deadline of the request passed.
        """
        self._count(message)
        return self._decode(source, self._load(source))

    def read_all(
        self, asked: Sequence[tuple[PictureSource, Hashable]]
    ) -> list[Picture | NotInspected]:
        """Decode many pictures, fetching remote ones side by side; a picture or why not, in order.

        Args:
            asked: each picture with what tells its message apart.

        Raises:
            TimeoutError: the deadline of the request passed.
        """
        pool = ThreadPoolExecutor(_SIDE_BY_SIDE, "sightrail-fetch")
        try:
            loads = [self._begin(source, message, pool) for source, message in asked]
            return [
                self._outcome(source, load) for (source, _), load in zip(asked, loads, strict=True)
            ]
        finally:  # an interrupt does not wait for servers; fetches end at their own deadline
            pool.shutdown(wait=False, cancel_futures=True)

    def _begin(
        self, source: PictureSource, message: Hashable, pool: ThreadPoolExecutor
    ) -> Future[bytes | None] | ImageError | None:
        """A fetch that has begun; None for what is loaded when its turn comes."""
        try:
            self._count(message)
        except ImageError as error:
            return error
        if isinstance(source, str) and kind_of_address(source) == "remote":
            return pool.submit(copy_context().run, self._load, source)
        return None

    def _outcome(
        self, source: PictureSource, load: Future[bytes | None] | ImageError | None
    ) -> Picture | NotInspected:
        check_time()
        try:
            if isinstance(load, ImageError):
                raise load
            return self._decode(source, self._load(source) if load is None else load.result())
        except ImageError as error:
            return NotInspected.because(error)

    def _count(self, message: Hashable) -> None:
        limits = self._limits
        self._read[message] += 1
        if self._read[message] > limits.max_images_per_message:
            raise _too_many(limits.max_images_per_message, "message")
        if self._read.total() > limits.max_images_per_request:
            raise _too_many(limits.max_images_per_request, "request")

    def _load(self, source: PictureSource) -> bytes | None:
        """The encoded picture; None for one that is not encoded."""
        limits = self._limits
        if isinstance(source, Image.Image | np.ndarray):
            return None
        if isinstance(source, str):
            kind = kind_of_address(source)
            if kind == "remote":
                policy = remote_policy(source, limits)
                return fetch(source.strip(), policy, limits.max_bytes, self._bytes.spend)
            if kind == "file":
                path = path_of(source)
                return self._spent(read_file_of_folders(path, limits.folders, limits.max_bytes))
        return self._spent(read_bytes(source, limits))

    def _spent(self, data: bytes) -> bytes:
        self._bytes.spend(len(data))
        return data

    def _decode(self, source: PictureSource, data: bytes | None) -> Picture:
        check_time()
        limits = self._left()
        picture = read_picture(source, limits) if data is None else decode_bytes(data, limits)
        self._pixels_left -= sum(view.width * view.height for view in picture.views)
        self._views_left -= len(picture.views)
        return picture

    def _left(self) -> Limits:
        limits = self._limits
        if self._pixels_left < 1:
            detail = f"the request holds more than {limits.max_pixels_per_request} pixels"
            raise ImageError.because("too_large", detail)
        if self._views_left < 1:
            detail = f"the request holds more than {limits.max_views_per_request} renderings"
            raise ImageError.because("too_many_views", detail)
        return limits.model_copy(
            update={
                "max_pixels": min(limits.max_pixels, self._pixels_left),
                "max_views_per_request": self._views_left,
            }
        )


class _Allowance:
    """Bytes that a request may still take in, counted by several fetches at once."""

    def __init__(self, most: int) -> None:
        self._most = self._left = most
        self._lock = threading.Lock()

    def spend(self, count: int) -> None:
        with self._lock:
            self._left -= count
            if self._left < 0:
                detail = f"the request holds more than {self._most} bytes of pictures"
                raise ImageError.because("too_large", detail)


def _too_many(most: int, where: str) -> ImageError:
    return ImageError.because("too_many_images", f"more than {most} pictures in one {where}")
