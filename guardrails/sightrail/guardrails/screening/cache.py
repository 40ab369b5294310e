"""One detector for many callers: each distinct picture is looked at once, several in one call."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from hashlib import blake2b
from math import inf
from time import monotonic
from typing import Any, Final, NamedTuple
from weakref import WeakSet

from ..deadline import check_time, time_left, time_limit
from ..errors import ConfigurationError, ImageError
from ..intake import Limits, Picture, PictureSource, read_picture
from ..intake.pictures import pixel_digest
from ..verdict import Box, Verdict
from .asking import (
    Detector,
    categories_of,
    checked_detector,
    looked_again,
    shown_to,
    wants_request,
)
from .verdict_store import (
    ByteStore,
    KeyValueStore,
    VerdictStore,
    identity_of,
    is_finished,
    store_key,
)

Covered = tuple[Box, ...]


class _Request(NamedTuple):
    """A picture that nobody has looked at yet, and where its verdict will be.

    `covered` are the boxes of a mask that is to be checked; None asks for a first look. `end` is
    when whoever asked stops waiting, on the clock of ``time.monotonic``.
    """

    key: bytes
    picture: Picture
    covered: Covered | None
    end: float
    verdict: Future[Verdict]


class CachedDetector:
    """A detector that remembers its verdicts by content and answers concurrent callers together.

    It has the detector's interface and may stand wherever the detector may. While one call of the
    detector runs, the pictures of everybody who asks meanwhile are gathered and go into the next
    one, so that a busy server makes few large calls and an idle one never waits for company.

    A picture that breaks the detector breaks nobody else's: pictures of a call that fails are
    looked at again one by one, and the error reaches those callers, all of them, who asked about
    that picture.

    Thread-safe, and safe to fork at any time. Pickled or copied it takes its detector along and
    begins with an empty memory. A call of the detector may take as long as the most patient of its
    callers waits; where it runs out of time, all of them are told so. Timings of a remembered
    verdict are those of the first look.

    Args:
        detector: has ``screen(images) -> list[Verdict]``; one call of it runs at a time.
        max_items: verdicts to remember; the least recently used one is forgotten first.
        max_batch: pictures in one call of the detector.
        store: remembers for longer, and for other processes; a ``VerdictStore``, or what it takes.

    Raises:
        ConfigurationError: an argument is not possible, or a store could not tell this detector
            from others of its kind.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        max_items: int = 512,
        max_batch: int = 32,
        store: VerdictStore | str | os.PathLike[str] | ByteStore | KeyValueStore | None = None,
    ) -> None:
        if max_items < 1 or max_batch < 1:
            raise ConfigurationError(
                f"max_items is {max_items} and max_batch {max_batch}; both are at least 1"
            )
        self.detector = checked_detector(detector)
        self._max_items = max_items
        self._max_batch = max_batch
        self._store = store if isinstance(store, VerdictStore | None) else VerdictStore(store)
        self._identity = "" if self._store is None else identity_of(self.detector)
        self._known: OrderedDict[bytes, Verdict] = OrderedDict()
        self._begin()
        _ALIVE.add(self)

    def _begin(self) -> None:
        """Nobody asks and nobody looks: at first, and in a forked process, where none of the other
        threads goes on.
        """
        self._asked: dict[bytes, Future[Verdict]] = {}
        self._queue: deque[_Request] = deque()
        self._state = threading.Lock()  # guards the two above and _known; not held while looking
        self._looking = threading.Lock()  # held by whoever calls the detector

    def __repr__(self) -> str:
        return f"CachedDetector({self.detector!r})"

    @property
    def wants_request(self) -> bool:
        """Whether the detector does."""
        return wants_request(self.detector)

    @property
    def categories(self) -> frozenset[str] | None:
        """Those of the detector, where it says them."""
        return categories_of((self.detector,))

    def __reduce__(self) -> tuple[Any, ...]:
        return _make, (self.detector, self._max_items, self._max_batch, self._store)

    def screen(self, images: Iterable[PictureSource | Picture]) -> list[Verdict]:
        """One verdict a picture, in order; see the detector's own ``screen``.

        Raises:
            Exception: what the detector raised about one of these pictures.
            TimeoutError: the deadline of this context passed.
        """
        return self._answers([self._ask(image, None) for image in images])

    def screen_again(
        self, pictures: Sequence[Picture], covered: Sequence[Sequence[Box]]
    ) -> list[Verdict]:
        """One verdict a masked picture, in order; see ``RiskDetector.screen_again``.

        Raises:
            Exception: as ``screen``.
        """
        asked = zip(pictures, covered, strict=True)
        return self._answers([self._ask(picture, tuple(boxes)) for picture, boxes in asked])

    def _answers(self, answers: Sequence[Future[Verdict]]) -> list[Verdict]:
        for answer in answers:
            while not answer.done():
                left = time_left()
                if not self._looking.acquire(timeout=-1 if left is None else left):
                    check_time()
                    continue
                try:
                    if not answer.done():  # those who come second find their answer here
                        self._look()
                finally:
                    self._looking.release()
        return [answer.result() for answer in answers]

    def _ask(self, image: PictureSource | Picture, covered: Covered | None) -> Future[Verdict]:
        try:
            picture = self._read(image)
        except ImageError as error:
            return _answered(Verdict.uninspected(error.reason, error.detail))
        key = content_key(picture, covered)
        left = time_left()
        end = inf if left is None else monotonic() + left
        with self._state:
            if key in self._known:
                self._known.move_to_end(key)
                return _answered(self._known[key])
            if key not in self._asked:
                self._asked[key] = Future()
                self._queue.append(_Request(key, picture, covered, end, self._asked[key]))
            return self._asked[key]

    def _read(self, image: PictureSource | Picture) -> Picture:
        if isinstance(image, Picture):
            return shown_to(self.detector, [image])[0]
        limits = getattr(self.detector, "limits", None)
        return read_picture(image, limits if isinstance(limits, Limits) else None)

    def _look(self) -> None:
        """One call of the detector for whatever waits; all of it is answered afterwards."""
        with self._state:
            count = min(self._max_batch, len(self._queue))
            batch = [self._queue.popleft() for _ in range(count)]
        try:
            with _patience(batch):
                outcomes = self._found(batch)
        except BaseException:  # an interrupt is this thread's own; the others' pictures wait on
            with self._state:
                self._queue.extendleft(reversed(batch))
            raise
        with self._state:
            for request, outcome in zip(batch, outcomes, strict=True):
                del self._asked[request.key]
                if isinstance(outcome, Verdict) and is_finished(outcome):
                    self._remember(request.key, outcome)
        for request, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Verdict):
                request.verdict.set_result(outcome)
            else:
                request.verdict.set_exception(outcome)

    def _found(self, batch: Sequence[_Request]) -> list[Verdict | Exception]:
        """What the store knows of each picture, or else what the detector makes of it."""
        if self._store is None:
            return _outcomes(self.detector, batch)
        keys = [store_key(self._identity, request.key) for request in batch]
        known = self._store.load(keys)
        rest = [(key, r) for key, r in zip(keys, batch, strict=True) if key not in known]
        outcomes = _outcomes(self.detector, [request for _, request in rest])
        looked = dict(zip([key for key, _ in rest], outcomes, strict=True))
        self._store.save({k: v for k, v in looked.items() if isinstance(v, Verdict)})
        return [known[key] if key in known else looked[key] for key in keys]

    def _remember(self, key: bytes, verdict: Verdict) -> None:
        self._known[key] = verdict
        if len(self._known) > self._max_items:
            self._known.popitem(last=False)


def content_key(picture: Picture, covered: Covered | None = None) -> bytes:
    """A digest of every pixel of every view, and of the request's words where a detector gets them:
    equal for pictures that look the same, only.

    Views at a model's size count apart: a verdict that was made without them knows less. So does
    one that was made of what a mask left.
    """
    digest = blake2b(
        repr((len(picture.views), len(picture.scaled), covered, picture.request)).encode()
    )
    for view in (*picture.views, *picture.scaled):
        digest.update(pixel_digest(view))
    return digest.digest()


@contextmanager
def _patience(batch: Sequence[_Request]) -> Iterator[None]:
    """The time that the most patient of the callers has, in place of this thread's own."""
    end = max((request.end for request in batch), default=inf)
    with time_limit(None if end == inf else max(0.0, end - monotonic()), nested=False):
        yield


def _outcomes(detector: Any, batch: Sequence[_Request]) -> list[Verdict | Exception]:
    """What the detector makes of each picture, in one call unless that fails."""
    if not batch:
        return []
    kinds = {request.covered is None for request in batch}
    try:
        if len(kinds) == 1:
            return list(_screened(detector, batch))
    except Exception as error:
        if len(batch) == 1:
            return [error]
    return [outcome for request in batch for outcome in _outcomes(detector, [request])]


def _screened(detector: Any, batch: Sequence[_Request]) -> list[Verdict]:
    pictures = [request.picture for request in batch]
    covered = [request.covered for request in batch if request.covered is not None]
    if covered:
        verdicts = looked_again(detector, pictures, covered)
    else:
        verdicts = list(detector.screen(pictures))
    if len(verdicts) != len(pictures):
        raise ConfigurationError(
            f"{type(detector).__name__} gave {len(verdicts)} verdicts for {len(pictures)} "
            "pictures; screen(images) returns one a picture"
        )
    return verdicts


def _make(
    detector: Detector, max_items: int, max_batch: int, store: VerdictStore | None
) -> CachedDetector:
    return CachedDetector(detector, max_items=max_items, max_batch=max_batch, store=store)


_ALIVE: Final[WeakSet[CachedDetector]] = WeakSet()


def _begin_again() -> None:
    for detector in list(_ALIVE):
        detector._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_again)


def _answered(verdict: Verdict) -> Future[Verdict]:
    answer: Future[Verdict] = Future()
    answer.set_result(verdict)
    return answer
