"""Finding every carrier in a value, its texts included, and putting something else in its place.

Nothing that was passed in is changed, and a value without carriers comes back as the same object.

Pictures are written inside texts too: in Markdown, HTML and JSON, in what a tool gave back as text,
in a model's arguments for a tool, in metadata. What is taken for one: a data address that says it
is a picture, or whose bytes begin like one; and a run of base64, in either alphabet, whose bytes
begin like one. Signs that readers skip (zero-width characters, escaped slashes of JSON, the line
ends of MIME) do not hide it. A text is searched once, in time that grows with its length alone:
every pattern below gives up what it cannot use without going back (possessive quantifiers).
"""

from __future__ import annotations

import base64
import binascii
import copy
import dataclasses
import datetime
import decimal
import enum
import re
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image
from pydantic import AnyUrl, BaseModel

from ..intake import PictureSource
from ..policy import Surface
from ..verdict import NotInspected
from .carrier import (
    MAX_DEPTH,
    Carrier,
    Encoded,
    from_base64,
    is_picture_text,
    starts_like_picture,
    too_deep,
    unseen,
)
from .media import read_media_in_data

_INVISIBLE: Final = "\u00ad\u200b\u200c\u200d\u2060\ufeff"
_SIGN: Final = rf"[A-Za-z0-9+/_{_INVISIBLE}-]"
_PIECE: Final = rf"(?:{_SIGN}|\\/|%[0-9A-Fa-f]{{2}})"
_GAP: Final = r"(?:\s|\\[nrt]){1,8}"
_SHORTEST: Final = 32
"""Signs of base64 below which there is no picture: the smallest GIF has 36."""

_RUN: Final = (
    rf"{_PIECE}{{{_SHORTEST},}}+"
    rf"(?:{_GAP}{_PIECE}{{20,}}+)*+"  # lines; words of a sentence are shorter
    rf"(?:(?:\r?\n|\\r|\\n){{1,2}}{_PIECE}{{1,19}}+(?==))?+"  # a last, short line
    r"(?:=|%3[Dd]){0,2}"
)
_ADDRESS: Final = re.compile(
    rf"data:(?P<header>[^,\s\"'<>]{{0,200}}+),\s*(?:(?P<coded>{_RUN})|(?P<plain>[^\s\"'<>)]{{8,}}+))",
    re.IGNORECASE,
)
_BARE: Final = re.compile(rf"(?<!{_SIGN})(?<!=){_RUN}")
_SEPARATOR: Final = re.compile(rf"(?:[{_INVISIBLE}\s]|\\[nrt/])+")
_HEAD: Final = 64  # signs that hold what the longest signature needs, and skipped ones
_OPENING: Final = re.compile(
    rf"(?:data:[^,\s\"'<>]{{0,200}}(?:,\s*{_PIECE}*+)?|d|da|dat|data|{_PIECE}{{1,{_HEAD}}})\Z",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Written:
    """A picture in a text, from ``start`` to ``end``.

    Attributes:
        start: index of its first character.
        end: index after its last.
        carrier: the picture; what stands in its place is text.
    """

    start: int
    end: int
    carrier: Carrier


def pictures_in(text: str) -> list[Written]:
    """Every picture that is written in a text, in order."""
    found = list(_addresses(text)) if len(text) >= _SHORTEST else []
    found += _bare(text, list(found))
    if not found and is_picture_text(text):  # as a whole, but broken or wrapped unusually
        return [Written(0, len(text), Carrier(from_base64(text.strip()), text, _standard, str))]
    return sorted(found, key=lambda written: written.start)


def settled(text: str) -> int:
    """How much of the beginning of a text that is still growing is surely no picture.

    Returns:
        Characters: up to the first picture in it, or up to an end that could become one.
    """
    if found := pictures_in(text):
        return found[0].start
    opening = _OPENING.search(text, max(0, len(text) - 256))
    if opening is None:
        return len(text)
    begun = opening.group()
    open_end = len(begun) < _HEAD or ":" in begun or _like_picture(begun)
    return opening.start() if open_end else len(text)


def _addresses(text: str) -> Iterator[Written]:
    for match in _ADDRESS.finditer(text):
        header = match["header"].replace("\\", "").lower()
        coded = match["coded"] if header.endswith(";base64") else None
        if header.startswith("image/svg"):
            yield _written(match, _SVG, _address)
        elif coded is not None:
            if header.startswith("image/") or _like_picture(coded):
                yield _written(match, _bytes_of(coded), _address)
        elif header.startswith("image/") and not header.endswith(";base64"):
            payload = match["plain"] or match["coded"]
            yield _written(match, unquote_to_bytes(payload), _address)


def _bare(text: str, addresses: list[Written]) -> Iterator[Written]:
    taken = iter(addresses)
    address = next(taken, None)
    for match in _BARE.finditer(text):
        while address is not None and address.end <= match.start():
            address = next(taken, None)
        inside = address is not None and address.start <= match.start()
        if not inside and _like_picture(match.group()):
            url_safe = "-" in match.group() or "_" in match.group()
            yield _written(match, _bytes_of(match.group()), _url_safe if url_safe else _standard)


_SVG: Final = NotInspected(
    reason="svg", detail="a drawing in SVG is a program for a browser; no pixels can be looked at"
)


def _written(
    match: re.Match[str], source: PictureSource | NotInspected, rebuild: Callable[[Encoded], str]
) -> Written:
    return Written(match.start(), match.end(), Carrier(source, match.group(), rebuild, str))


def _address(seen: Encoded) -> str:
    return seen.url


def _standard(seen: Encoded) -> str:
    return seen.base64


def _url_safe(seen: Encoded) -> str:
    return base64.urlsafe_b64encode(seen.data).decode("ascii")


def _like_picture(coded: str) -> bool:
    """Whether base64 text begins like a picture."""
    signs = _signs(coded[: 4 * _HEAD])[:_HEAD]
    try:
        return starts_like_picture(base64.b64decode(signs[: len(signs) // 4 * 4]))
    except binascii.Error:
        return False


def _signs(coded: str) -> str:
    """The letters of base64 text alone, in the standard alphabet."""
    plain = _SEPARATOR.sub(lambda gap: "/" * gap.group().count("/"), coded)
    if "%" in plain:
        plain = unquote_to_bytes(plain).decode("latin-1")
    return plain.replace("-", "+").replace("_", "/").rstrip("=")


def _bytes_of(coded: str) -> PictureSource | NotInspected:
    signs = _signs(coded)
    try:
        return base64.b64decode(signs + "=" * (-len(signs) % 4))
    except (binascii.Error, ValueError):
        return NotInspected(reason="malformed_block", detail="its base64 text is malformed")


_SCALARS: Final = (
    *(type(None), bool, int, float, complex, decimal.Decimal, enum.Enum, uuid.UUID, type),
    *(datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, np.generic),
)

Place = Callable[[Carrier], Any]
"""What stands in the place of a carrier; called with each carrier, in order."""

Stamp = Callable[[Any, Sequence[int]], Any]
"""(holder, numbers of the carriers found in it) -> a copy that says what became of them."""


def leave(holder: Any, found: Sequence[int]) -> Any:
    """The stamp that changes nothing."""
    return holder


class Walk:
    """One pass over one value of any kind: numbers its carriers and knows where they came from.

    A framework's own walk says what its objects hold (``_known``), and which of them are holders: a
    message or a document, which says what became of the carriers in it.

    Args:
        place: see Place.
        stamp: called with each holder of carriers and their numbers, counted from 0.
        surface: where what stands in no holder came from.
    """

    def __init__(self, place: Place, stamp: Stamp = leave, surface: Surface = "user") -> None:
        self._give = place
        self._stamp = stamp
        self._count = 0
        self._loose: list[int] = []
        self._holder: object = None
        self._words: Callable[[], str] = str
        self._surface: Surface = surface

    def __call__(self, value: Any, *, opaque: bool = False) -> Any:
        """The value with every carrier replaced; with `opaque`, objects that are none may pass."""
        return self._data(value, 0, opaque)

    # What a framework adds

    def _known(self, value: Any, depth: int, opaque: bool) -> Any:
        """A framework's own object with its carriers replaced; NotImplemented for any other."""
        return NotImplemented

    def _surface_of(self, holder: Any) -> Surface | None:
        """The surface of a holder; None for the one it stands on."""
        return None

    def _words_of(self, holder: Any) -> str:
        """The text that a holder says beside its pictures."""
        return ""

    # What may stand anywhere

    def _data(self, value: Any, depth: int, opaque: bool = False) -> Any:
        """Look into any value; with `opaque`, objects that are no pictures may pass."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, _SCALARS):
            return value
        if depth > MAX_DEPTH:
            return self._place(too_deep(value, str))
        known = self._known(value, depth, opaque)
        if known is not NotImplemented:
            return known
        if isinstance(value, Mapping):
            return self._mapping(value, depth, opaque)
        if isinstance(value, list | tuple | set | frozenset):
            return self._items(value, depth, opaque)
        return self._object(value, depth, opaque)

    def _text(self, text: str) -> str:
        """A text with every picture that is written in it replaced."""
        parts: list[str] = []
        at, changed = 0, False
        for written in pictures_in(text):
            seen = self._place(written.carrier)
            changed |= seen is not written.carrier.original
            parts += [text[at : written.start], seen]
            at = written.end
        return "".join([*parts, text[at:]]) if changed else text

    def _texts(self, value: Any, depth: int) -> Any:
        """JSON in which nothing but texts is looked into: to a model, arguments are text."""
        if isinstance(value, str):
            return self._text(value)
        if depth > MAX_DEPTH:
            return self._place(too_deep(value, str))
        if isinstance(value, dict):
            seen = {key: self._texts(item, depth + 1) for key, item in value.items()}
            return with_entries(value, {k: v for k, v in seen.items() if v is not value[k]})
        if isinstance(value, list | tuple):
            items = [self._texts(item, depth + 1) for item in value]
            return value if same_items(items, value) else rebuilt(value, items)
        return value

    def _mapping(self, value: Mapping[Any, Any], depth: int, opaque: bool) -> Any:
        carrier = read_media_in_data(value) if isinstance(value, dict) else None
        return self._entries(value, depth, opaque) if carrier is None else self._place(carrier)

    def _entries(
        self,
        value: Mapping[Any, Any],
        depth: int,
        opaque: bool = False,
        skipping: Collection[str] = (),
    ) -> Any:
        changed = {}
        for key, item in value.items():
            if key in skipping:
                continue
            seen = self._entry(key, item, depth + 1, opaque)
            if seen is not item:
                changed[key] = seen
        return with_entries(value, changed)

    def _entry(self, key: Any, item: Any, depth: int, opaque: bool) -> Any:
        return self._data(item, depth, opaque)

    def _items(self, value: Collection[Any], depth: int, opaque: bool = False) -> Any:
        seen = [self._data(item, depth + 1, opaque) for item in value]
        return value if same_items(seen, value) else rebuilt(value, seen)

    def _object(self, value: Any, depth: int, opaque: bool) -> Any:
        """Bytes, pictures, arrays and paths, objects with fields, or something else."""
        if isinstance(value, bytes | bytearray | memoryview):
            if opaque and not starts_like_picture(bytes(value[:32])):
                return value
            return self._place(Carrier(bytes(value), value, _as_bytes, str))
        if isinstance(value, np.ndarray):
            return self._place(Carrier(value, value, _as_array, str))
        # A path is a caller's own: no message from outside can hold one.
        if isinstance(value, Image.Image) or (isinstance(value, PurePath) and not opaque):
            return self._place(Carrier(value, value, _as_image, str))
        if isinstance(value, AnyUrl):
            address = str(value)
            seen = self._text(address)
            return value if seen is address else seen
        if isinstance(value, BaseModel):
            changed = self._fields({**value.__dict__, **(value.model_extra or {})}, depth, opaque)
            return value.model_copy(update=changed) if changed else value
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._dataclass(value, depth, opaque)
        if opaque:
            return value
        detail = f"nobody can look into a {type(value).__name__}"
        return self._place(unseen(value, "unknown_object", detail, str))

    def _dataclass(self, value: Any, depth: int, opaque: bool) -> Any:
        fields = {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value)}
        changed = self._fields(fields, depth, opaque)
        if not changed:
            return value
        other = copy.copy(value)
        for name, seen in changed.items():
            object.__setattr__(other, name, seen)
        return other

    def _fields(self, fields: Mapping[str, Any], depth: int, opaque: bool) -> dict[str, Any]:
        """The fields of an object in which something was replaced."""
        seen = {name: self._data(item, depth + 1, opaque) for name, item in fields.items()}
        return {name: new for name, new in seen.items() if new is not fields[name]}

    # Keeping track

    def _place(self, carrier: Carrier) -> Any:
        self._loose.append(self._count)
        self._count += 1
        words = self._words()
        found = replace(carrier, surface=self._surface, holder=self._holder, words=words)
        return self._give(found)

    def _holding(self, holder: Any, look: Callable[[Any, int], Any], depth: int) -> Any:
        """Look into a holder and let it say what was found directly in it."""
        outside, self._loose = self._loose, []
        around = self._holder, self._words
        self._holder, self._words = object(), lambda: self._words_of(holder)
        with self._on(self._surface_of(holder)):
            seen = look(holder, depth)
        self._holder, self._words = around
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


def with_entries(value: Mapping[Any, Any], changed: Mapping[Any, Any]) -> Any:
    """A copy of the caller's own kind of mapping with other entries; the same without any."""
    if not changed:
        return value
    if not isinstance(value, MutableMapping):
        return {**value, **changed}
    other = copy.copy(value)
    other.update(changed)
    return other


def _as_bytes(picture: Encoded) -> bytes:
    return picture.data


def _as_image(picture: Encoded) -> Image.Image:
    return picture.image


def _as_array(picture: Encoded) -> Any:
    return np.asarray(picture.image)
