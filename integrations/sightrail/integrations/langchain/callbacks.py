"""A callback handler: an audit of every picture that LangChain's events show, and a tripwire."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from sightrail.guardrails.intake import Limits
from sightrail.guardrails.policy import Policy
from sightrail.guardrails.screening.asking import Detector
from sightrail.runnables.walk import EVENT

from .audit import ImageAudit


class GuardrailCallbackHandler(BaseCallbackHandler):
    """Looks at every picture on chat model, tool and retriever events.

    It audits: what it sees is written to ``log``, one line of JSON an event, without pictures,
    texts or names of files. Beside a guard it writes down what the guard says that it did, so that
    what was masked, and what was refused before any model ran, is on record as that. With
    ``raise_error=True`` it is a tripwire as well: where the policy says anything but allow it
    raises ``ImageRefused`` and LangChain stops the run.

    What a callback cannot do, whoever wrote it:

    - It changes nothing. It cannot mask or drop a picture; ``ScreenImages`` and
      ``ImageGuardMiddleware`` can. As a tripwire it therefore stops what they would mask.
    - Without ``raise_error`` LangChain catches all that a handler raises, an unwritable log
      included, and goes on with a warning.
    - It sees what has callbacks: a model that is called outside of LangChain is not seen, nor is
      a run to which the handler was not handed (``config={"callbacks": [handler]}`` is inherited by
      the runs inside, a handler given to one model is not).
    - Tokens that are streamed have gone out before the end of the model's run can be looked at.
    - Whoever handles errors of tools inside the graph (``ToolNode(handle_tool_errors=True)``)
      catches the tripwire of a tool's result too: the run goes on, without the result.
    - It serves asynchronous runs as well: LangChain calls it in a worker thread, and as a
      tripwire in the event loop, which waits, so that nothing overtakes it. There is no twin with
      ``async def`` methods on purpose: what such a handler raises is dropped wherever a run is
      synchronous, and a tool without a coroutine is run so inside of asynchronous agents.

    Args:
        detector: has ``screen(images) -> list[Verdict]``; wrapped in a ``CachedDetector``, so that
            history costs nothing.
        policy: what a verdict would lead to.
        limits: what intake is willing to decode.
        log: the file to append to.
        raise_error: whether to be a tripwire.
    """

    def __init__(
        self,
        *,
        detector: Detector,
        policy: Policy | None = None,
        limits: Limits | None = None,
        log: str | os.PathLike[str] | None = None,
        raise_error: bool = False,
    ) -> None:
        self.raise_error = raise_error
        self.run_inline = raise_error
        self._audit = ImageAudit(
            detector, policy or Policy(), limits or Limits(), log, tripwire=raise_error
        )

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """The messages that a chat model is about to get."""
        given = [message for batch in messages for message in batch]
        self._audit.look("on_chat_model_start", given, run_id, parent_run_id)

    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """What a guard in the run (``ScreenImages``, ``ImageGuardMiddleware``) found and did."""
        if name == EVENT:
            self._audit.note(data, run_id)

    def on_llm_start(
        self,
        serialized: dict[str, Any],
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """Prompts that are a picture, written as text."""
        self._audit.look("on_llm_start", prompts, run_id, parent_run_id)

    def on_llm_end(
        self,
        response: LLMResult,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """What a model answered."""
        self._audit.look("on_llm_end", _answers(response), run_id, parent_run_id)

    def on_tool_start(
        self,
        serialized: dict[str, Any],
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        inputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """The arguments of a tool."""
        self._audit.look("on_tool_start", [inputs or input_str], run_id, parent_run_id)

    def on_tool_end(
        self, output: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """What a tool gave back."""
        self._audit.look("on_tool_end", _results(output), run_id, parent_run_id)

    def on_retriever_end(
        self,
        documents: Sequence[Document],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """The documents that a retriever found."""
        self._audit.look("on_retriever_end", list(documents), run_id, parent_run_id)


def _answers(response: LLMResult) -> list[Any]:
    generations = (generation for several in response.generations for generation in several)
    return [
        generation.message if isinstance(generation, ChatGeneration) else generation.text
        for generation in generations
    ]


def _results(output: Any) -> list[Any]:
    """What of a tool's output could be shown to a model: of a command, the messages in it."""
    update = getattr(output, "update", None)
    if isinstance(output, dict | list | tuple | str | BaseMessage) or update is None:
        return [output]
    values = list(update.values()) if isinstance(update, dict) else [update]
    items = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return [item for item in items if isinstance(item, BaseMessage)]
