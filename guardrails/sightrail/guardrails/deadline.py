"""Waiting for work that cannot be interrupted, no longer than agreed."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

Result = TypeVar("Result")

_MOST: Final = 64
_running = threading.BoundedSemaphore(_MOST)
"""A thread cannot be stopped from outside. Work that hangs for good must not pile up threads, so
beyond this many at a time further work waits for its turn, within its own deadline."""


def run_within(seconds: float | None, work: Callable[[], Result]) -> Result:
    """The result of `work`, or TimeoutError when it is not there in time.

    The work goes on in its thread until it ends by itself; whatever it gives then is dropped.

    Args:
        seconds: how long to wait; None runs the work right here.
        work: what it raises is raised here.
    """
    if seconds is None:
        return work()
    started = time.monotonic()
    if not _running.acquire(timeout=seconds):
        raise TimeoutError(f"{_MOST} calls that ran out of time are still running")
    task = _Task(work)
    try:
        threading.Thread(target=task.run, name="sightrail-deadline", daemon=True).start()
    except RuntimeError:  # no thread to be had: nothing will give the place back
        _running.release()
        raise
    if not task.done.wait(max(0.0, seconds - (time.monotonic() - started))):
        raise TimeoutError(f"took longer than {seconds:g} s")
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
