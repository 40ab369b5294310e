"""One run of the model for many requests, each of which LangChain follows by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable

from langchain_core.outputs import ChatResult

from sightrail.guardrails.errors import SightrailError
from sightrail.guardrails.model.screening_step import ScreenedConversation


class SharedBatch:
    """The results of a batch, computed when the first of them is asked for.

    LangChain wants each request of a batch to have its own callbacks and its own cache entry, the
    model wants to see all of them at once. So every request asks for its own result here.

    Args:
        count: number of requests.
        size: at most this many in one run.
        read: the conversation of a request; may raise.
        answer: the results of several conversations in one run; may raise.
    """

    def __init__(
        self,
        count: int,
        size: int,
        read: Callable[[int], ScreenedConversation],
        answer: Callable[[list[ScreenedConversation]], list[ChatResult]],
    ) -> None:
        self._count = count
        self._size = size
        self._read = read
        self._answer = answer
        self._outcomes: list[ChatResult | Exception] | None = None
        self._lock = threading.Lock()

    def result(self, row: int) -> ChatResult:
        """The result of one request.

        Raises:
            Exception: what this request, and no other, led to.
        """
        with self._lock:
            if self._outcomes is None:
                self._outcomes = self._run()
        outcome = self._outcomes[row]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _run(self) -> list[ChatResult | Exception]:
        outcomes: dict[int, ChatResult | Exception] = {}
        readable: dict[int, ScreenedConversation] = {}
        for row in range(self._count):
            try:
                readable[row] = self._read(row)
            except Exception as error:
                outcomes[row] = error
        rows = list(readable)
        for start in range(0, len(rows), self._size):
            some = {row: readable[row] for row in rows[start : start + self._size]}
            outcomes |= self._run_together(some)
        return [outcomes[row] for row in range(self._count)]

    def _run_together(
        self, conversations: dict[int, ScreenedConversation]
    ) -> dict[int, ChatResult | Exception]:
        try:
            results = self._answer(list(conversations.values()))
        except SightrailError as error:  # one request that cannot be answered spoils the common run
            if len(conversations) == 1:
                return dict.fromkeys(conversations, error)
            alone = [self._run_together({row: asked}) for row, asked in conversations.items()]
            return {row: outcome for outcomes in alone for row, outcome in outcomes.items()}
        return dict(zip(conversations, results, strict=True))
