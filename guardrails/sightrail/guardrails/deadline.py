"""Deadlines: how long a request may take, told to every step that works on it.

``time_limit`` sets a deadline for everything that is called inside it; what works long asks
``check_time`` between its steps. ``run_within`` also leaves work alone that does not ask.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

Result = TypeVar("Result")

_MOST: Final = 64
_running = threading.BoundedSemaphore(_MOST)
"""A thread cannot be stopped from outside. Work that hangs for good must not pile up threads, so
beyond this many at a time further work waits for its turn, within its own deadline."""

_end: contextvars.ContextVar[float | None] = contextvars.ContextVar("sightrail_end", default=None)
"""When the work in this context has to be over, on the clock of ``time.monotonic``."""

_awaited: contextvars.ContextVar[float | None] = contextvars.ContextVar(
    "sightrail_awaited", default=None
)
"""Until when somebody in another thread waits for the work in this context; None: nobody does."""

_given_up: contextvars.ContextVar[tuple[threading.Event, ...]] = contextvars.ContextVar(
    "sightrail_given_up", default=()
)
"""Set where somebody who waited for the work in this context was interrupted."""


@contextmanager
def time_limit(seconds: float | None, *, nested: bool = True) -> Iterator[None]:
    """Everything inside has to be over in so many seconds; None sets no further limit.

    Args:
        seconds: from now.
        nested: a limit around this one holds as well; without, this one alone does, for work that
            is done on behalf of others.
    """
    outer = _end.get() if nested else None
    own = None if seconds is None else time.monotonic() + seconds
    token = _end.set(min((end for end in (outer, own) if end is not None), default=None))
    try:
        yield
    finally:
        _end.reset(token)


def time_left() -> float | None:
    """Seconds until the deadline of this context, 0 where it has passed or nobody waits any longer;
    None without one.
    """
    if any(event.is_set() for event in _given_up.get()):
        return 0.0
    end = _end.get()
    return None if end is None else max(0.0, end - time.monotonic())


def check_time() -> None:
    """Raise TimeoutError where the deadline of this context has passed."""
    if time_left() == 0.0:
        raise TimeoutError("the time allowed for this request is over")


def run_within(seconds: float | None, work: Callable[[], Result]) -> Result:
    """The result of `work`, or TimeoutError when it is not there in time.

    The work is told its deadline (see ``check_time``); where it does not ask, it goes on in its
    thread until it ends by itself, and whatever it gives then is dropped. Work that somebody waits
    for already, and no longer than here, runs right here: it takes no second place among those that
    may hang.

    Args:
        seconds: how long to wait, or until the deadline of this context where that is earlier;
            None without such a deadline runs the work right here.
        work: what it raises is raised here.
    """
    with time_limit(seconds):
        left = time_left()
        end, awaited = _end.get(), _awaited.get()
        if left is None or (awaited is not None and end is not None and awaited <= end):
            check_time()
            return work()
        started = time.monotonic()
        if not _running.acquire(timeout=left):
            raise TimeoutError(f"{_MOST} calls that ran out of time are still running")
        interrupted = threading.Event()
        given_up = _given_up.set((*_given_up.get(), interrupted))
        told = _awaited.set(end)
        task = _Task(work)
        _given_up.reset(given_up)
        _awaited.reset(told)
        try:
            threading.Thread(target=task.run, name="sightrail-deadline", daemon=True).start()
            ended = task.done.wait(max(0.0, left - (time.monotonic() - started)))
        except RuntimeError:  # no thread to be had: nothing will give the place back
            _running.release()
            raise
        except BaseException:  # such as Ctrl-C
            interrupted.set()
            raise
        if not ended:
            raise TimeoutError(f"took longer than {left:.3g} s")
        return task.result()


class _Task(Generic[Result]):
    """One piece of work, with the caller's context variables."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work
        self._context = contextvars.copy_context()
        self._value: list[Result] = []
        self._error: BaseException | None = None
        self.done = threading.Event()

    def run(self) -> None:
        try:
            self._value.append(self._context.run(self._work))
        except BaseException as error:
            self._error = error
        finally:
            _running.release()
            self.done.set()

    def result(self) -> Result:
        if self._error is not None:
            raise self._error
        return self._value[0]
