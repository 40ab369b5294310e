"""What a walk over any framework's values keeps track of, and the plain carriers they share.

Nothing that was passed in is changed, and a value without carriers comes back as the same object.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import numpy as np
from PIL import Image

from sightrail.guardrails.policy import Surface

from .addresses import from_base64, is_picture_text, starts_like_picture
from .carrier import Carrier, png_base64, png_bytes, png_url, unseen

MAX_DEPTH: Final = 48
"""Nesting beyond this is not looked into: it is not inspected, and refused by default."""

Stamp = Callable[[Any, Sequence[int]], Any]
"""(holder, numbers of the carriers found in it) -> a copy that says what became of them."""


def leave(holder: Any, found: Sequence[int]) -> Any:
    """The stamp that changes nothing."""
    return holder


class TrackedWalk:
    """One pass over one value: numbers its carriers and knows where they came from.

    Args:
        place: called with each carrier, in order; gives what stands in its place.
        stamp: called with each holder of carriers and their numbers, counted from 0.
        surface: where what stands in no holder came from.
    """

    def __init__(
        self,
        place: Callable[[Carrier], Any],
        stamp: Stamp = leave,
        surface: Surface = "user",
    ) -> None:
        self._give = place
        self._stamp = stamp
        self._count = 0
        self._loose: list[int] = []
        self._surface: Surface = surface

    def _surface_of(self, holder: Any) -> Surface | None:
        """Whose word the pictures of a holder are; None for the surface it stands on."""
        raise NotImplementedError

    def _place(self, carrier: Carrier) -> Any:
        self._loose.append(self._count)
        self._count += 1
        return self._give(replace(carrier, surface=self._surface))

    def _holding(self, holder: Any, look: Callable[[Any, int], Any], depth: int) -> Any:
        """Look into a holder and let it say what was found directly in it."""
        outside, self._loose = self._loose, []
        with self._on(self._surface_of(holder)):
            seen = look(holder, depth)
        found, self._loose = self._loose, outside
        return self._stamp(seen, found) if found else seen

    @contextmanager
    def _on(self, surface: Surface | None) -> Iterator[None]:
        """What is found meanwhile came from this surface; None for the one it is already on."""
        outside = self._surface
        self._surface = surface or outside
        try:
            yield
        finally:
            self._surface = outside

    def _text(self, text: str) -> str:
        if not is_picture_text(text):
            return text
        bare = text.strip()[:5].lower() != "data:"
        source = from_base64(text.strip())
        replaced: str = self._place(Carrier(source, text, png_base64 if bare else png_url, str))
        return replaced

    def _object(self, value: Any, depth: int, opaque: bool) -> Any:
        """Bytes, pictures and arrays, or another object."""
        if isinstance(value, bytes | bytearray | memoryview):
            if opaque and not starts_like_picture(bytes(value[:32])):
                return value
            return self._place(Carrier(bytes(value), value, png_bytes, str))
        if isinstance(value, Image.Image):
            return self._own(value)
        if isinstance(value, np.ndarray):
            return self._place(Carrier(value, value, np.asarray, str))
        return self._other(value, depth, opaque)

    def _other(self, value: Any, depth: int, opaque: bool) -> Any:
        """An object of a framework's own; with `opaque`, one that is no picture may pass."""
        if opaque:
            return value
        detail = f"nobody can look into a {type(value).__name__}"
        return self._place(unseen(value, "unknown_object", detail, str))

    def _own(self, value: Any) -> Any:
        """A picture, or the path of one: a decoded picture stands in its place."""
        return self._place(Carrier(value, value, _same, str))

    def _too_deep(self, value: Any) -> Any:
        """A text in the place of something that nobody goes down to."""
        return self._place(unseen(value, "too_deep", f"more than {MAX_DEPTH} levels", str))


def same_items(seen: Collection[Any], items: Collection[Any]) -> bool:
    """Whether nothing was replaced, each item being the very object that it was."""
    return all(new is old for new, old in zip(seen, items, strict=True))


def rebuilt(old: Any, items: list[Any]) -> Any:
    """Items in a collection of the caller's own kind."""
    if isinstance(old, tuple) and hasattr(old, "_make"):
        return old._make(items)
    if isinstance(old, list):
        return items
    return type(old)(items)


def _same(image: Image.Image) -> Image.Image:
    return image
