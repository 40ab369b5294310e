"""Traces without pictures: handlers of LlamaIndex's events, spans and callbacks, told no pixels."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import singledispatch
from typing import Any, Final, TypeVar

from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.callbacks.schema import CBEventType
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatInProgressEvent,
    LLMChatStartEvent,
)
from llama_index_instrumentation.base import BaseEvent
from llama_index_instrumentation.dispatcher import Dispatcher
from llama_index_instrumentation.event_handlers import BaseEventHandler
from llama_index_instrumentation.span_handlers import BaseSpanHandler
from pydantic import PrivateAttr

from sightrail.guardrails.errors import ConfigurationError

from .screening import LLAMA_INDEX

Told = TypeVar("Told")

_MOST_STREAMS: Final = 256


def hide_images_from(handler: Told) -> Told:
    """The same handler, told of events and spans in which ``[image]`` stands for every picture.

    Text, scores, ids and timings stay. Hidden is whatever a guard would look at: pictures in
    messages, nodes, queries, tool outputs, prompts, workflow events, and those written in any text
    of these; also what may be one (remote addresses in picture blocks, files, unknown blocks).

    What a guard changes stands in traces behind it anyway. This is for what LlamaIndex tells of
    the way to a guard (``AgentInput``, retrieval, a tool's own span, the arguments of a chat
    engine) and for clean pictures. It does not reach what is no handler of LlamaIndex's: the
    stream of a workflow's events, ``verbose=True``, the logs of HTTP clients, instruments that
    patch a provider's client, and `instance` of a span, which is the app's own object. Handlers
    have to write down what they are told at once: an object without pictures is the app's own,
    and agents go on filling theirs.

    Args:
        handler: an event handler or a span handler, for ``dispatcher.add_event_handler`` and
            ``add_span_handler``; a callback handler, for ``CallbackManager([...])``. Or a
            dispatcher or a callback manager: the handlers that it has now are replaced in it, for
            instruments that add their own (``get_dispatcher()`` is the root of all).

    Raises:
        ConfigurationError: it is none of these.

    Example:
        ``get_dispatcher().add_event_handler(hide_images_from(handler))``
    """
    hiding: Told = _hiding(handler)
    return hiding


@singledispatch
def _hiding(handler: Any) -> Any:
    raise ConfigurationError(
        f"hide_images_from takes a handler of LlamaIndex's events, spans or callbacks, a "
        f"dispatcher or a callback manager, got {type(handler).__name__}."
    )


class _Events(BaseEventHandler):
    """Event handler of which every event goes to another, without its pictures."""

    to: BaseEventHandler
    _asked: dict[str, Any] = PrivateAttr(default_factory=dict)

    def handle(self, event: BaseEvent, **kwargs: Any) -> Any:
        return self.to.handle(self._shown(event), **kwargs)

    async def ahandle(self, event: BaseEvent, **kwargs: Any) -> Any:
        return await self.to.ahandle(self._shown(event), **kwargs)

    def _shown(self, event: BaseEvent) -> BaseEvent:
        """The event; every piece of a streamed answer tells the whole conversation again."""
        span = event.span_id or ""
        if isinstance(event, LLMChatInProgressEvent) and span in self._asked:
            piece: BaseEvent = LLAMA_INDEX.hidden(event.model_copy(update={"messages": []}))
            return piece.model_copy(update={"messages": self._asked[span]})
        shown: BaseEvent = LLAMA_INDEX.hidden(event)
        if isinstance(shown, LLMChatStartEvent) and span:
            if len(self._asked) >= _MOST_STREAMS:  # streams that nobody read to the end
                self._asked.clear()
            self._asked[span] = shown.messages
        elif isinstance(shown, LLMChatEndEvent):
            self._asked.pop(span, None)
        return shown


class _Spans(BaseSpanHandler[Any]):
    """Span handler of which every span goes to another, without the pictures in it."""

    _to: BaseSpanHandler[Any] = PrivateAttr()

    def __init__(self, to: BaseSpanHandler[Any]) -> None:
        super().__init__()
        self._to = to
        for name in ("open_spans", "completed_spans", "dropped_spans", "current_span_ids"):
            setattr(self, name, getattr(to, name))

    def span_enter(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        parent_id: str | None = None,
        tags: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        given = _arguments(bound_args)
        self._to.span_enter(id_, given, instance, parent_id=parent_id, tags=tags, **kwargs)

    def span_exit(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        result: Any | None = None,
        **kwargs: Any,
    ) -> None:
        self._to.span_exit(
            id_, _arguments(bound_args), instance, LLAMA_INDEX.hidden(result), **kwargs
        )

    def span_drop(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        err: BaseException | None = None,
        **kwargs: Any,
    ) -> None:
        self._to.span_drop(id_, _arguments(bound_args), instance, err, **kwargs)

    def capture_propagation_context(self) -> dict[str, Any]:
        return self._to.capture_propagation_context()

    def restore_propagation_context(self, context: dict[str, Any]) -> None:
        self._to.restore_propagation_context(context)

    def close(self) -> None:
        self._to.close()

    def new_span(self, *args: Any, **kwargs: Any) -> Any:
        return self._to.new_span(*args, **kwargs)

    def prepare_to_exit_span(self, *args: Any, **kwargs: Any) -> Any:
        return self._to.prepare_to_exit_span(*args, **kwargs)

    def prepare_to_drop_span(self, *args: Any, **kwargs: Any) -> Any:
        return self._to.prepare_to_drop_span(*args, **kwargs)


def _arguments(given: inspect.BoundArguments) -> inspect.BoundArguments:
    shown = {name: LLAMA_INDEX.hidden(value) for name, value in given.arguments.items()}
    return inspect.BoundArguments(given.signature, shown)


class _Callbacks(BaseCallbackHandler):
    """Callback handler of which every event goes to another, without its pictures."""

    def __init__(self, to: BaseCallbackHandler) -> None:
        super().__init__(list(to.event_starts_to_ignore), list(to.event_ends_to_ignore))
        self._to = to

    def on_event_start(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        parent_id: str = "",
        **kwargs: Any,
    ) -> str:
        return self._to.on_event_start(
            event_type, LLAMA_INDEX.hidden(payload), event_id, parent_id, **kwargs
        )

    def on_event_end(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        **kwargs: Any,
    ) -> None:
        self._to.on_event_end(event_type, LLAMA_INDEX.hidden(payload), event_id, **kwargs)

    def start_trace(self, trace_id: str | None = None) -> None:
        self._to.start_trace(trace_id)

    def end_trace(
        self, trace_id: str | None = None, trace_map: dict[str, list[str]] | None = None
    ) -> None:
        self._to.end_trace(trace_id, trace_map)


def _once(kind: type[Any], wrap: Callable[[Any], Any], handlers: list[Any]) -> list[Any]:
    return [handler if isinstance(handler, kind) else wrap(handler) for handler in handlers]


@_hiding.register
def _(handler: BaseEventHandler) -> Any:
    return _Events(to=handler)


@_hiding.register
def _(handler: BaseSpanHandler) -> Any:  # type: ignore[type-arg]
    return _Spans(handler)


@_hiding.register
def _(handler: BaseCallbackHandler) -> Any:
    return _Callbacks(handler)


@_hiding.register
def _(dispatcher: Dispatcher) -> Any:
    dispatcher.event_handlers = _once(_Events, hide_images_from, dispatcher.event_handlers)
    dispatcher.span_handlers = _once(_Spans, hide_images_from, dispatcher.span_handlers)
    return dispatcher


@_hiding.register
def _(manager: CallbackManager) -> Any:
    manager.handlers = _once(_Callbacks, hide_images_from, manager.handlers)
    return manager
