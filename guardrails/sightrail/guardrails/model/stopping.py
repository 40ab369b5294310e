"""While an answer is written: what ends it, and what may be shown before its end is known.

Each row of a run has its own end and is told its own tokens as they come. A stream's run is in
another thread; its text comes out as soon as it is certain.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from transformers import StoppingCriteria

from ..errors import UnsupportedModelError
from .messages import GenerationOptions

if TYPE_CHECKING:
    from .generation import Generation
    from .interventions import Decision, Decisions


Decode = Callable[[Sequence[int]], str]


class StopAtText(StoppingCriteria):
    """Finish a row once its answer contains one of the stop texts.

    Args:
        stop: the texts.
        prompt_length: length of the (padded) prompt; only what follows is looked at.
        decode: token ids to text.
    """

    def __init__(self, stop: Sequence[str], prompt_length: int, decode: Decode) -> None:
        self._stop = tuple(stop)
        self._prompt_length = prompt_length
        self._decode = decode

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object
    ) -> torch.Tensor:
        """Say per row of input_ids [B, T] whether it is done: bool [B]."""
        answers = input_ids[:, self._prompt_length :].tolist()
        done = [find_stop(self._decode(answer), self._stop) is not None for answer in answers]
        return torch.tensor(done, device=input_ids.device)


class StreamCancel(threading.Event):
    """The end of one stream or answer: set by itself, or by an event of the caller, which it never
    sets.

    The caller's event may belong to many requests; one that ends must not end the others.
    """

    def __init__(self, caller: threading.Event | None = None) -> None:
        super().__init__()
        self._caller = caller

    def is_set(self) -> bool:
        """Whether this one has ended, or the caller wants it to."""
        return super().is_set() or (self._caller is not None and self._caller.is_set())


class Cancelled(StoppingCriteria):
    """Finish every row once one of the events is set: the reader of a stream went away."""

    def __init__(self, events: Collection[threading.Event]) -> None:
        self._events = events

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object
    ) -> torch.Tensor:
        """Say whether to stop, the same for every row: bool [B]."""
        cancelled = any(event.is_set() for event in self._events)
        return torch.full((input_ids.shape[0],), cancelled, device=input_ids.device)


class Decided(StoppingCriteria):
    """Finish the rows that a guardrail decided not to answer.

    Args:
        waiting: the decisions that fall in this run.
        rows: number of prompts; beams of a prompt stand next to each other.
        decide_only: finish every row once all decisions have fallen.
    """

    def __init__(self, waiting: Sequence[Decisions], rows: int, *, decide_only: bool) -> None:
        self._waiting = waiting
        self._rows = rows
        self._decide_only = decide_only

    def row(self, row: int) -> tuple[Decision, ...]:
        """What was decided about a row so far."""
        fallen = (one.decided() for one in self._waiting)
        return tuple(decisions[row] for decisions in fallen if decisions is not None)

    def all_ended(self) -> bool:
        """Whether no row is left for the model to answer."""
        return all(self.ended(row) for row in range(self._rows))

    def complete(self) -> bool:
        """Whether every decision has fallen."""
        return all(one.decided() is not None for one in self._waiting)

    def require_all(self) -> None:
        """Make sure that nothing was answered undecided.

        Raises:
            UnsupportedModelError: the run is over and a guardrail has not decided.
        """
        if undecided := [one for one in self._waiting if one.decided() is None]:
            names = ", ".join(getattr(one, "guard", type(one).__name__) for one in undecided)
            raise UnsupportedModelError(
                f"{names} came to no decision in this run, so nothing is answered; the model does "
                "not generate the way the guardrail expects."
            )

    def ended(self, row: int) -> bool:
        """Whether the model has nothing more to say for a row."""
        found = self.row(row)
        complete = self._decide_only and len(found) == len(self._waiting)
        return complete or not all(decision.answered for decision in found)

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object
    ) -> torch.Tensor:
        """Say for each row of input_ids [B, T] whether it is done: bool [B]."""
        beams = len(input_ids) // self._rows
        ended = [self.ended(row) for row in range(self._rows) for _ in range(beams)]
        return torch.tensor(ended, device=input_ids.device)


def find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop text begins in ``text``, or None."""
    found = [index for index in (text.find(s) for s in stop) if index >= 0]
    return min(found) if found else None


def finished_text(text: str, stop: Sequence[str]) -> str:
    """The answer's text: cut before the first stop text, without surrounding space."""
    end = find_stop(text, stop)
    return text[:end].strip()


def showable_text(text: str, stop: Sequence[str]) -> str:
    """The part of a growing text that will surely be in the finished one.

    Held back: a trailing piece that could become a stop text, the replacement character of a
    character whose bytes are not complete, and trailing space.
    """
    if find_stop(text, stop) is not None:
        return finished_text(text, stop)
    text = text.rstrip("�")
    held = max((_overlap(text, s) for s in stop), default=0)
    return text[: len(text) - held].strip()


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of ``stop`` that ends ``text``."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)


@dataclass(frozen=True)
class Row:
    """What is one row's own in a run of several.

    Attributes:
        options: its limit, its stop texts and its seed; the rest is the same for all rows.
        given_up: whether nobody waits for it any more; it ends after the token at work then.
        take: is handed the new tokens of the answer as they come.
        ended: is handed the row's answer once it is whole, while other rows go on.
    """

    options: GenerationOptions
    given_up: Callable[[], bool] = lambda: False
    take: Callable[[list[int]], None] | None = None
    ended: Callable[[Generation], None] | None = None


class OnceEach:
    """Hands on the tokens of an answer, each once, also where the answer is begun anew.

    Args:
        take: is handed the new tokens.
    """

    def __init__(self, take: Callable[[list[int]], None]) -> None:
        self._take = take
        self._handed = self._seen = 0

    def begin(self) -> None:
        """The answer begins, perhaps for another time."""
        self._seen = 0

    def __call__(self, new: list[int]) -> None:
        """Take the tokens that follow those of the calls before."""
        known = max(0, self._handed - self._seen)
        self._seen += len(new)
        if new[known:]:
            self._take(new[known:])
        self._handed = max(self._handed, self._seen)


def begun_anew(row: Row) -> Row:
    """The row for one more run: what it was told already is not told again."""
    if row.take is None:
        return row
    take = row.take if isinstance(row.take, OnceEach) else OnceEach(row.take)
    take.begin()
    return replace(row, take=take)


class RowByRow(StoppingCriteria):
    """Ends every row where it would end alone. For runs of one beam.

    Args:
        rows: one per row of the run.
        begin: length of the sequence where the answers begin.
        end_tokens: what ends an answer.
        decode: token ids to text, for stop texts.
        decided: what the guardrails have decided.
        made: the generation of a row with these tokens.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        begin: int,
        end_tokens: set[int],
        decode: Decode,
        decided: Decided,
        made: Callable[[int, list[int]], Generation],
    ) -> None:
        self._rows = rows
        self._seen = begin
        self._end_tokens = end_tokens
        self._decode = decode
        self._decided = decided
        self._made = made
        self._tokens: list[list[int]] = [[] for _ in rows]
        self._over = [False] * len(rows)
        self._told: set[int] = set()

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object
    ) -> torch.Tensor:
        """Say for each row of input_ids [B, T] whether it is done: bool [B]."""
        new = input_ids[:, self._seen :].tolist()
        self._seen = max(self._seen, input_ids.shape[1])
        for index, tokens in enumerate(new):
            if not self._over[index]:
                self._step(index, tokens)
        if self._decided.complete():
            self._tell()
        return torch.tensor(self._over, device=input_ids.device)

    def _step(self, index: int, new: list[int]) -> None:
        row, tokens = self._rows[index], self._tokens[index]
        tokens += new
        answered = not self._decided.ended(index)
        if new and row.take is not None and answered:
            row.take(new)
        self._over[index] = (
            not answered
            or len(tokens) >= row.options.max_new_tokens
            or bool(self._end_tokens.intersection(new))
            or (bool(row.options.stop) and bool(new) and self._stopped(tokens, row.options.stop))
            or row.given_up()
        )

    def _stopped(self, tokens: list[int], stop: tuple[str, ...]) -> bool:
        return find_stop(self._decode(tokens), stop) is not None

    def _tell(self) -> None:
        """Report the rows that ended, each once; not before every guardrail has decided."""
        for index, row in enumerate(self._rows):
            if self._over[index] and index not in self._told and row.ended is not None:
                self._told.add(index)
                row.ended(self._made(index, self._tokens[index]))


T = TypeVar("T")


class TokenStream:
    """The tokens of one row on their way from the run to the reader of a stream."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[list[int] | None] = queue.SimpleQueue()

    def put(self, tokens: list[int]) -> None:
        """Take new tokens."""
        self._items.put(tokens)

    def end(self) -> None:
        """No more tokens follow."""
        self._items.put(None)

    def read(self, waiting: Callable[[], None], every_s: float) -> Iterator[list[int]]:
        """Yield the tokens until the end; call ``waiting`` whenever none came for ``every_s``."""
        while True:
            try:
                tokens = self._items.get(timeout=every_s)
            except queue.Empty:
                waiting()
                continue
            if tokens is None:
                return
            yield tokens


class _Step(NamedTuple):
    """What a thread tells the event loop: a piece, or (once, last) the end and what led to it."""

    piece: Any = None
    ended: bool = False
    error: BaseException | None = None


async def in_thread(work: Callable[[], T]) -> T:
    """Run ``work`` in a thread of its own, with the caller's context variables.

    ``asyncio.to_thread`` has few threads on a small machine: requests that wait for one of them do
    not wait for the model yet, and could not be gathered.
    """

    def once() -> Iterator[T]:
        yield work()

    async for result in _pieces(once):
        return result
    raise AssertionError("a thread gave no result")  # `once` yields or raises


async def stream_in_thread(
    pieces: Callable[[], Iterator[T]], cancel: threading.Event
) -> AsyncGenerator[T, None]:
    """Read an iterator in a thread of its own; leaving early sets ``cancel`` and waits for its end.

    The wait is shielded, so that a cancelled task still ends what it began.
    """
    ended = asyncio.Event()
    try:
        async for piece in _pieces(pieces, ended):
            yield piece
    finally:
        cancel.set()
        await asyncio.shield(ended.wait())


async def _pieces(
    pieces: Callable[[], Iterator[T]], ended: asyncio.Event | None = None
) -> AsyncGenerator[T, None]:
    """What an iterator yields in a thread, with the caller's context variables."""
    loop = asyncio.get_running_loop()
    steps: asyncio.Queue[_Step] = asyncio.Queue()

    def tell(step: _Step) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(take, step)

    def take(step: _Step) -> None:
        steps.put_nowait(step)
        if step.ended and ended is not None:
            ended.set()

    def run() -> None:
        try:
            for piece in pieces():
                tell(_Step(piece))
        except BaseException as error:  # raised where it is awaited
            tell(_Step(ended=True, error=error))
        else:
            tell(_Step(ended=True))

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), name="sightrail-call").start()
    while not (step := await steps.get()).ended:
        yield step.piece
    if step.error is not None:
        raise step.error
