"""Several callers, one model: what comes while a run is at work goes into the next run together.

A call that finds the model free runs at once in its caller's own thread, as if there was no queue.
Every other call waits; a lane, a thread that lives only while there is work, takes those that wait
in a fair order, as many as may run together, and runs them. Nothing waits for company.

A run that lasts long does not hold up what waits: after ``max_wait_s`` another lane opens beside
it. Runs side by side make each other slower and share nothing, so where they usually last longer
than that, it is later, see :meth:`Gatherer.patience`.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, TypeVar
from weakref import WeakKeyDictionary

from ..errors import Abandoned, ConfigurationError, DeadlineExceeded

Item = TypeVar("Item")
Result = TypeVar("Result")

POLL_S: Final = 0.05
"""How often a caller that may be cancelled looks whether it was."""


@dataclass(frozen=True)
class Gathering:
    """How calls that come while the model is at work are answered together.

    Attributes:
        max_rows: conversations in one run; a batch that its caller made may hold more.
        max_wait_s: a run that lasts longer no longer holds up what waits: another begins beside it,
            at the latest after four times as long, see :meth:`Gatherer.patience`.
        linger_s: how long a lane waits, after a run of several callers, for these to ask again;
            a twentieth of that run's time, where that is more.

    Raises:
        ConfigurationError: a value is out of range.
    """

    max_rows: int = 16
    max_wait_s: float = 1.0
    linger_s: float = 0.003

    def __post_init__(self) -> None:
        """Check every value."""
        if self.max_rows < 1 or self.max_wait_s <= 0 or self.linger_s < 0:
            raise ConfigurationError(
                f"max_rows={self.max_rows} must be at least 1, max_wait_s={self.max_wait_s} more "
                f"than 0 and linger_s={self.linger_s} not negative; gather=False turns it off."
            )


@dataclass(frozen=True)
class Place:
    """A request's place among those that wait for the model.

    Attributes:
        priority: higher ones go first, always.
        client: whose request it is. Clients take turns, however much each of them asks; requests
            without one are each a client of their own.
        deadline_s: seconds after which nobody needs the answer any more, counted from the call.

    Raises:
        ConfigurationError: a deadline that is not in the future.
    """

    priority: int = 0
    client: str | None = None
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        """Check the deadline."""
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise ConfigurationError(f"deadline_s must be more than 0, got {self.deadline_s}.")

    def later(self, seconds: float) -> Place:
        """The place of what is left of the request after so long.

        Raises:
            DeadlineExceeded: nobody needs that any more.
        """
        if self.deadline_s is None:
            return self
        if seconds >= self.deadline_s:
            raise too_late(self.deadline_s)
        return replace(self, deadline_s=self.deadline_s - seconds)


def too_late(deadline_s: float) -> DeadlineExceeded:
    """The answer was not there in time."""
    return DeadlineExceeded(
        f"No answer within {deadline_s:g} s; allow more time, or ask when there is less load."
    )


class Ticket(Generic[Item, Result]):
    """One call: rows that wait for a run, and what came of them.

    Args:
        items: its rows.
        together: runs tickets of one key; delivers every row's result, or raises.
        key: only tickets with equal keys run together.
        cancel: set once nobody waits for the call any more.
        place: its place in the queue.
        on_end: called once it is answered or has failed.
    """

    def __init__(
        self,
        items: Sequence[Item],
        together: Callable[[Sequence[Ticket[Item, Result]]], None],
        *,
        key: Hashable,
        cancel: threading.Event | None = None,
        place: Place | None = None,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        self.items = tuple(items)
        self.together = together
        self.key = key
        self.place = place or Place()
        self.since = time.monotonic()
        self.context: Context = copy_context()
        self.done = threading.Event()
        self.error: BaseException | None = None
        self._results: dict[int, Result] = {}
        self._cancel = cancel
        self._caller = threading.current_thread()
        self._on_end = on_end
        self._lock = threading.Lock()

    @property
    def watched(self) -> bool:
        """Whether it may be given up before it is answered."""
        return self._cancel is not None or self.place.deadline_s is not None

    @property
    def cancelled(self) -> bool:
        """Whether its caller gave it up, or went down with the interpreter."""
        if self._cancel is not None and self._cancel.is_set():
            return True
        ending = not threading.main_thread().is_alive()
        return ending and (self._caller.daemon or not self._caller.is_alive())

    def given_up(self) -> Abandoned | DeadlineExceeded | None:
        """Why nobody waits for it any more; None while somebody does."""
        if self.cancelled:
            return Abandoned("The call was cancelled before its answer was there.")
        deadline = self.place.deadline_s
        if deadline is not None and time.monotonic() - self.since > deadline:
            return too_late(deadline)
        return None

    def deliver(self, row: int, result: Result) -> None:
        """The result of a row; what comes after the end is dropped."""
        with self._lock:
            if self.done.is_set() or row in self._results:
                return
            self._results[row] = result
            if len(self._results) < len(self.items):
                return
            self.done.set()
        self._end()

    def fail(self, error: BaseException) -> None:
        """The end without a result; the first end counts."""
        with self._lock:
            if self.done.is_set():
                return
            self.error = error
            self.done.set()
        self._end()

    def results(self) -> list[Result]:
        """One per row, in order.

        Raises:
            BaseException: what ended the call.
        """
        if self.error is not None:
            raise self.error
        return [self._results[row] for row in range(len(self.items))]

    def _end(self) -> None:
        if self._on_end is not None:
            self._on_end()


AnyTicket = Ticket[Any, Any]

_at_work: ContextVar[frozenset[int]] = ContextVar("sightrail_gathering", default=frozenset())
"""The gatherers whose runs this context is part of: a call from inside must not wait for them."""


class Gatherer:
    """The queue before one model. Thread-safe; holds no thread while there is nothing to do."""

    def __init__(self) -> None:
        self._state = threading.Condition()
        self._waiting: list[tuple[tuple[float, float, int], AnyTicket, Gathering]] = []
        self._lanes = 0
        self._begun = 0.0  # when a run last began
        self._lasted = 0.0  # seconds of the run that ended last
        self._usual = 0.0  # seconds that runs last, the recent ones more than those before
        self._served = 0.0  # start-time fair queueing: rows that a client has had a chance to ask
        self._asked: dict[str, float] = {}
        self._count = itertools.count()

    @property
    def waiting(self) -> int:
        """How many calls wait for a run."""
        return len(self._waiting)

    @property
    def lanes(self) -> int:
        """How many runs are at work."""
        return self._lanes

    def patience(self, gathering: Gathering) -> float:
        """Seconds after which a run holds up what waits.

        That is ``max_wait_s``; where runs usually last longer, half as long again as these, but at
        most four times ``max_wait_s``. A lane that opens earlier takes the company, and with it the
        gain, from the next run.
        """
        usual = min(1.5 * self._usual, 4 * gathering.max_wait_s)
        return max(gathering.max_wait_s, usual)

    def answer(self, ticket: Ticket[Item, Result], gathering: Gathering | None) -> list[Result]:
        """Run a ticket where the model is free, else in its turn; wait for the results.

        Args:
            ticket: the call.
            gathering: None runs it at once, whatever else is at work.

        Raises:
            Abandoned, DeadlineExceeded: it was given up meanwhile.
            BaseException: what went wrong with it, and with no other.
        """
        if gathering is None or id(self) in _at_work.get():
            self._work([ticket])
        elif self._enter():
            try:
                self._work([ticket])
            finally:
                self._leave()
        else:
            self._queue(ticket, gathering)
            self.wait(ticket, gathering)
        if (reason := ticket.given_up()) is not None and ticket.cancelled:
            raise reason
        return ticket.results()

    def start(self, ticket: AnyTicket, gathering: Gathering | None) -> None:
        """Begin a ticket in a thread, or in its turn, without waiting for it."""
        if gathering is None or id(self) in _at_work.get():
            _thread(lambda: ticket.context.run(self._work, [ticket]))
            return
        self._queue(ticket, gathering)

    def wait(self, ticket: AnyTicket, gathering: Gathering | None) -> None:
        """Wait for a ticket's end; whoever waits sees to it that nothing is held up."""
        longest = gathering.max_wait_s if gathering else POLL_S
        while not ticket.done.wait(min(POLL_S, longest) if ticket.watched else longest):
            self.look_after(ticket, gathering)

    def look_after(self, ticket: AnyTicket, gathering: Gathering | None) -> None:
        """End a ticket that was given up while it waits; open a lane where a run holds it up."""
        if (reason := ticket.given_up()) is not None and self._withdraw(ticket):
            ticket.fail(reason)
        if gathering is None:
            return
        with self._state:
            held_up = any(ticket is other for _, other, _ in self._waiting) and (
                not self._lanes or time.monotonic() - self._begun > self.patience(gathering)
            )
            self._lanes += held_up
            if held_up:
                self._begun = time.monotonic()
        if held_up:
            self._open_lane(ticket)

    def _enter(self) -> bool:
        """Take the free model; False where it is not free.

        Never for a daemon thread: the interpreter ends such threads inside the model, which aborts
        the process. A lane ends after the token at work.
        """
        with self._state:
            daemon = threading.current_thread().daemon
            free = not self._lanes and not self._waiting and not daemon
            if free:
                self._lanes, self._begun = 1, time.monotonic()
            return free

    def _leave(self) -> None:
        """Give the model back, to a lane where somebody waits."""
        with self._state:
            if not self._waiting:
                self._lanes -= 1
                return
        self._open_lane()

    def _queue(self, ticket: AnyTicket, gathering: Gathering) -> None:
        """Let a ticket wait for its turn, and see to it that there is a lane."""
        place = ticket.place
        with self._state:
            begin = self._served
            if place.client is not None:
                begin = max(begin, self._asked.get(place.client, 0.0))
                self._asked[place.client] = begin + len(ticket.items)
            order = (-place.priority, begin, next(self._count))
            self._waiting.append((order, ticket, gathering))
            self._state.notify_all()
            open_lane = not self._lanes
            self._lanes += open_lane
        if open_lane:
            self._open_lane(ticket)

    def _withdraw(self, ticket: AnyTicket) -> bool:
        with self._state:
            kept = [entry for entry in self._waiting if entry[1] is not ticket]
            found = len(kept) < len(self._waiting)
            self._waiting = kept
            return found

    def _open_lane(self, ticket: AnyTicket | None = None) -> None:
        """Start the thread of a lane that is counted already.

        Where no thread can be had any more, the lane is closed again and the callers run their own.
        """
        try:
            _thread(self._lane)
        except RuntimeError:
            with self._state:
                self._lanes -= 1
            if ticket is not None and self._withdraw(ticket):
                self._work([ticket])

    def _lane(self) -> None:
        callers = 0
        while group := self._take(callers):
            callers = len(group)
            if callers == 1:
                group[0].context.run(self._work, group)
            else:
                self._work(group)

    def _take(self, callers: int) -> list[AnyTicket]:
        """The next tickets that run together; closes the lane where nothing waits."""
        with self._state:
            if callers > 1 and len(self._waiting) < callers:
                linger_s = max((g.linger_s for _, _, g in self._waiting), default=_LINGER_S)
                linger_s = max(linger_s, 0.05 * self._lasted)
                self._state.wait_for(lambda: len(self._waiting) >= callers, linger_s)
            if not self._waiting:
                self._lanes -= 1
                if not self._lanes:
                    self._asked.clear()
                return []
            self._waiting.sort(key=lambda entry: entry[0])
            group = _fitting(self._waiting)
            taken = {id(ticket) for ticket in group}
            self._served = max(self._served, self._waiting[0][0][1])
            self._waiting = [entry for entry in self._waiting if id(entry[1]) not in taken]
            self._asked = {who: at for who, at in self._asked.items() if at > self._served}
            self._begun = time.monotonic()
            return group

    def _work(self, group: Sequence[AnyTicket]) -> None:
        """Run tickets together; where that fails, in halves, so that an error is its own row's."""
        inside, since = id(self) in _at_work.get(), time.monotonic()
        token = _at_work.set(_at_work.get() | {id(self)})
        try:
            self._run(group)
        finally:
            _at_work.reset(token)
            if not inside:
                self._note(time.monotonic() - since)

    def _note(self, seconds: float) -> None:
        """A run has lasted so long."""
        with self._state:
            self._lasted = seconds
            self._usual = 0.7 * self._usual + 0.3 * seconds if self._usual else seconds

    def _run(self, group: Sequence[AnyTicket]) -> None:
        for ticket in group:
            if (reason := ticket.given_up()) is not None:
                ticket.fail(reason)
        group = [ticket for ticket in group if not ticket.done.is_set()]
        if not group:
            return
        try:
            group[0].together(group)
        except Exception as error:
            if len(group) == 1:
                group[0].fail(error)
                return
            middle = len(group) // 2
            for half in (group[:middle], group[middle:]):
                if len(half) == 1:  # alone again, so in its own context
                    half[0].context.copy().run(self._run, half)
                else:
                    self._run(half)
        except BaseException as error:  # an interrupt of this thread; nobody may wait for ever
            for ticket in group:
                ticket.fail(error)
            raise
        for ticket in group:
            ticket.fail(RuntimeError("a run ended without an answer for every row"))


_LINGER_S: Final = Gathering().linger_s


def _fitting(waiting: Sequence[tuple[Any, AnyTicket, Gathering]]) -> list[AnyTicket]:
    """The first that waits, and those after it that may run with it."""
    _, first, gathering = waiting[0]
    group, rows = [first], len(first.items)
    for _, ticket, _ in waiting[1:]:
        if ticket.key == first.key and rows + len(ticket.items) <= gathering.max_rows:
            group.append(ticket)
            rows += len(ticket.items)
    return group


def _thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="sightrail-run", daemon=False).start()


_gatherers: WeakKeyDictionary[Any, Gatherer] = WeakKeyDictionary()
_gatherers_guard = threading.Lock()


def gatherer_of(model: Any) -> Gatherer:
    """The queue before a model: one for all guardrails that stand on it."""
    with _gatherers_guard:
        return _gatherers.setdefault(model, Gatherer())


def _after_fork() -> None:
    """The lanes of the parent do not exist in a forked process, and its locks may be held."""
    global _gatherers, _gatherers_guard
    _gatherers, _gatherers_guard = WeakKeyDictionary(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
