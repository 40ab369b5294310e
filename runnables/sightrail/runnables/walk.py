"""Finding every carrier in a value of LangChain's, putting something else in its place, marking it.

A value is walked in one of two ways. In the *content* of a message every block has to be of a known
kind; an unknown one could hold anything and counts as not inspected. In *data* (tool artifacts,
extra arguments, dict inputs) any JSON may stand: there, whatever is recognisably a picture is taken
as one, and an object that nobody can look into counts as not inspected. Nothing that was passed in
is changed, and a value without carriers comes back as the same object.

A marker stands in ``message.additional_kwargs["sightrail"]``, which every message class has and
every chat model integration leaves alone; in ``metadata["sightrail"]`` of a document, and under the
key ``"sightrail"`` of a dict.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)
from langchain_core.prompt_values import (
    ChatPromptValue,
    ImagePromptValue,
    PromptValue,
    StringPromptValue,
)
from langchain_core.runnables.config import (
    get_callback_manager_for_config,
    var_child_runnable_config,
)

from sightrail.guardrails.carriers import walk
from sightrail.guardrails.carriers.carrier import (
    KEY,
    MAX_DEPTH,
    Carrier,
    Marker,
    from_address,
    says_refused,
    too_deep,
    unknown_block,
    with_marker,
)
from sightrail.guardrails.carriers.kinds import CALL_ARGUMENTS, kind_of
from sightrail.guardrails.carriers.loop import Framework
from sightrail.guardrails.carriers.media import read_media
from sightrail.guardrails.carriers.walk import rebuilt, same_items, with_entries
from sightrail.guardrails.policy import Surface
from sightrail.guardrails.telemetry import verdict_attributes
from sightrail.guardrails.verdict import Verdict

_SURFACES: Final[dict[str, Surface]] = {
    "system": "system",
    "developer": "system",
    "assistant": "ai",
    "ai": "ai",
    "tool": "tool",
    "function": "tool",
}
EVENT: Final = "sightrail.screened"
"""The custom event that every screening sends to the callbacks of the run that it is part of: a
dict of ``component``, ``refused`` and ``verdicts``."""

_ROLES: Final = frozenset({"human", "user", *_SURFACES})


class Walk(walk.Walk):
    """One pass over one value of LangChain's."""

    _in_message = False
    _describing = False
    """Inside metadata, where a dict describes something and is no block itself."""

    def __call__(self, value: Any, *, opaque: bool = False) -> Any:
        """The value with every carrier replaced; a dict is a holder of its own."""
        if not isinstance(value, dict):
            return self._data(value, 0, opaque)
        if _is_message_like(value):  # a list of one, because there it becomes a real message
            (seen,) = self._items([value], 0, opaque)
            return seen
        return self._holding(value, lambda entries, depth: self._mapping(entries, depth, opaque), 0)

    def _surface_of(self, holder: Any) -> Surface | None:
        return surface_of(holder)

    def _words_of(self, holder: Any) -> str:
        if not isinstance(holder, HumanMessage):
            return ""
        content = holder.content
        blocks = [content] if isinstance(content, str) else content
        texts = [b.get("text") if isinstance(b, dict) else b for b in blocks]
        return "\n".join(text for text in texts if isinstance(text, str))

    def _known(self, value: Any, depth: int, opaque: bool) -> Any:
        if isinstance(value, BaseMessage):
            return self._inside(value, self._message, depth)
        if isinstance(value, Document):
            return self._inside(value, self._document, depth)
        if isinstance(value, PromptValue):
            return self._prompt(value, depth)
        return NotImplemented

    def _inside(self, holder: Any, look: Callable[[Any, int], Any], depth: int) -> Any:
        """Look into a holder; a message says of the documents in its artifact what they say too.

        Whoever goes by a message's mark looks at the message, not at what a retriever left in it.
        """
        outer, self._in_message = self._in_message, isinstance(holder, BaseMessage)
        before = self._count
        seen = self._holding(holder, look, depth)
        self._in_message = outer
        if outer:
            self._loose += range(before, self._count)
        return seen

    def _mapping(self, value: Mapping[Any, Any], depth: int, opaque: bool) -> Any:
        if self._describing:
            return self._entries(value, depth, opaque)
        return super()._mapping(value, depth, opaque)

    def _entry(self, key: Any, item: Any, depth: int, opaque: bool) -> Any:
        if _holds_blocks(key, item):
            return self._blocks(item, depth)
        return self._data(item, depth, opaque)

    def _items(self, value: Collection[Any], depth: int, opaque: bool = False) -> Any:
        items = _as_messages(value) if isinstance(value, list) else list(value)
        seen = [self._data(item, depth + 1, opaque) for item in items]
        return value if same_items(seen, items) else rebuilt(value, seen)

    # Messages, documents, prompt values

    def _message(self, message: BaseMessage, depth: int) -> BaseMessage:
        fields: dict[str, Any] = {
            "content": self._content(message.content, depth + 1),
            "additional_kwargs": self._data(message.additional_kwargs, depth + 1, opaque=True),
        }
        if isinstance(message, ToolMessage):
            fields["artifact"] = self._data(message.artifact, depth + 1, opaque=True)
        if isinstance(message, AIMessage):
            fields["tool_calls"] = self._texts(message.tool_calls, depth + 1)
            fields["invalid_tool_calls"] = self._texts(message.invalid_tool_calls, depth + 1)
        changed = {name: new for name, new in fields.items() if new is not getattr(message, name)}
        return message.model_copy(update=changed) if changed else message

    def _document(self, document: Document, depth: int) -> Document:
        text = self._text(document.page_content)
        outside, self._describing = self._describing, True
        metadata = self._data(document.metadata, depth + 1, opaque=True)
        self._describing = outside
        if text is document.page_content and metadata is document.metadata:
            return document
        return document.model_copy(update={"page_content": text, "metadata": metadata})

    def _prompt(self, prompt: PromptValue, depth: int) -> PromptValue:
        if isinstance(prompt, StringPromptValue):
            text = self._text(prompt.text)
            return prompt if text is prompt.text else prompt.model_copy(update={"text": text})
        if isinstance(prompt, ImagePromptValue):
            replaced: PromptValue = self._place(_image_prompt(prompt))
            return replaced
        messages = prompt.to_messages()
        seen = [self._data(message, depth + 1) for message in messages]
        if same_items(seen, messages):
            return prompt
        if isinstance(prompt, ChatPromptValue):
            return prompt.model_copy(update={"messages": seen})
        return ChatPromptValue(messages=seen)

    # The content of a message

    def _content(self, content: Any, depth: int) -> Any:
        return self._text(content) if isinstance(content, str) else self._blocks(content, depth)

    def _blocks(self, blocks: Any, depth: int) -> Any:
        seen = [self._block(block, depth + 1) for block in blocks]
        if same_items(seen, blocks):
            return blocks
        return rebuilt(blocks, seen)

    def _block(self, block: Any, depth: int) -> Any:
        if isinstance(block, str):
            return self._text(block)
        if depth > MAX_DEPTH:
            return self._place(too_deep(block))
        if isinstance(block, list | tuple):
            return self._blocks(block, depth)
        if not isinstance(block, dict):
            return self._place(unknown_block(block))
        carrier = read_media(block)
        return self._place(carrier) if carrier is not None else self._known_block(block, depth)

    def _known_block(self, block: dict[str, Any], depth: int) -> Any:
        kind = kind_of(block)
        if kind == "unknown":
            return self._place(unknown_block(block))
        if kind == "wrapped":
            inner = self._block(block["value"], depth + 1)
            return with_entries(block, {} if inner is block["value"] else {"value": inner})
        if kind == "result":
            with self._on("tool"):
                return self._result(block, depth)
        return self._call(block, depth) if kind == "call" else self._entries(block, depth)

    def _call(self, block: dict[str, Any], depth: int) -> Any:
        """A model's call of a tool: its arguments are text to every model, whatever they name."""
        arguments = {key: value for key, value in block.items() if key in CALL_ARGUMENTS}
        seen = {key: self._texts(value, depth + 1) for key, value in arguments.items()}
        changed = {key: value for key, value in seen.items() if value is not arguments[key]}
        return self._entries(with_entries(block, changed), depth, skipping=CALL_ARGUMENTS)

    def _result(self, block: dict[str, Any], depth: int) -> Any:
        if isinstance(block.get("content"), list | tuple):
            content = self._blocks(block["content"], depth + 1)
            block = with_entries(block, {} if content is block["content"] else {"content": content})
            return self._entries(block, depth, skipping={"content"})
        return self._entries(block, depth)


def surface_of(holder: Any) -> Surface | None:
    """The surface of a message or a retrieved document; None for what has none of its own."""
    if isinstance(holder, Document):
        return "retrieval"
    if isinstance(holder, ToolMessage | FunctionMessage):
        return "tool"
    if isinstance(holder, AIMessage):
        return "ai"
    if isinstance(holder, SystemMessage):
        return "system"
    if isinstance(holder, ChatMessage):
        return _SURFACES.get(holder.role.lower(), "user")
    return "user" if isinstance(holder, BaseMessage) else None


def _holds_blocks(key: Any, item: Any) -> bool:
    """Lists of typed dicts under these names are blocks, wherever they stand."""
    return (
        key in ("content", "content_blocks")
        and isinstance(item, list | tuple)
        and bool(item)
        and all(_is_block(part) for part in item)
    )


def _is_block(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, dict) and "type" in part)


def _is_message_like(value: Any) -> bool:
    """A message as people may write it: ("human", ...) or {"role": ..., "content": ...}."""
    if isinstance(value, dict):
        role, content = value.get("role", value.get("type")), value.get("content")
    elif isinstance(value, tuple | list) and len(value) == 2:
        role, content = value
    else:
        return False
    return isinstance(role, str) and role in _ROLES and isinstance(content, str | list)


def _as_messages(values: list[Any]) -> list[Any]:
    """Real messages in place of message-likes: they alone can carry a verdict.

    LangChain takes both alike, and a list without pictures goes on as it came.
    """
    alike = [_is_message_like(value) for value in values]
    if not any(alike) or not all(
        like or isinstance(value, str | BaseMessage)
        for like, value in zip(alike, values, strict=True)
    ):
        return values
    try:
        return list(convert_to_messages(values))
    except (ValueError, TypeError, KeyError, NotImplementedError):
        return values  # a tool message without its call, say: looked into as data


def _image_prompt(prompt: ImagePromptValue) -> Carrier:
    labels = {"detail": detail} if (detail := prompt.image_url.get("detail")) else {}
    return Carrier(
        from_address(prompt.image_url.get("url")),
        prompt,
        lambda seen: ImagePromptValue(image_url={**labels, "url": seen.url}),
        lambda text: StringPromptValue(text=text),
    )


__all__ = ["LANGCHAIN", "Marker", "is_refused", "marked_verdicts", "messages_of", "read_marker"]


def read_marker(message: BaseMessage) -> Marker | None:
    """The marker on a message, for display and for audits; None where there is no readable one."""
    return Marker.read(message.additional_kwargs.get(KEY))


def is_refused(messages: Iterable[Any]) -> bool:
    """Whether any message is marked as refused, however damaged the rest of its marker is."""
    return any(says_refused(m.additional_kwargs) for m in messages if isinstance(m, BaseMessage))


def marked_verdicts(messages: Iterable[Any]) -> tuple[Verdict, ...]:
    """The verdicts on all messages, in order."""
    markers = [read_marker(m) for m in messages if isinstance(m, BaseMessage)]
    return tuple(verdict for marker in markers if marker for verdict in marker.verdicts)


def as_json(verdicts: Iterable[Verdict]) -> list[dict[str, Any]]:
    """Verdicts for metadata and records; risk maps stay with whoever asked the detector."""
    left_out = {"risk_map", "timings_ms"}
    return [verdict.model_dump(mode="json", exclude=left_out) for verdict in verdicts]


def write_marker(holder: Any, verdicts: Sequence[Verdict], *, refused: bool) -> Any:
    """A copy of the message, document or dict with a marker; "refused" is never taken back."""
    if isinstance(holder, BaseMessage):
        extra = with_marker(holder.additional_kwargs, verdicts, refused=refused)
        return holder.model_copy(update={"additional_kwargs": extra})
    if isinstance(holder, Document):
        metadata = with_marker(holder.metadata, verdicts, refused=refused)
        return holder.model_copy(update={"metadata": metadata})
    return with_marker(holder, verdicts, refused=refused)


def with_record(
    holder: BaseMessage, verdicts: Sequence[Verdict], *, refused: bool = False
) -> BaseMessage:
    """A copy of a message whose marker says this and nothing else."""
    marker = Marker(refused=refused, verdicts=tuple(verdicts)).to_json()
    return holder.model_copy(
        update={"additional_kwargs": {**holder.additional_kwargs, KEY: marker}}
    )


def messages_of(value: Any) -> list[BaseMessage]:
    """The messages of a message, a list of them, a prompt value, or a dict of these."""
    if isinstance(value, BaseMessage):
        return [value]
    if isinstance(value, PromptValue):
        return value.to_messages()
    if isinstance(value, dict):
        return [message for item in value.values() for message in messages_of(item)]
    if isinstance(value, list | tuple):
        return [item for item in value if isinstance(item, BaseMessage)]
    return []


def transcript_of(request: Any) -> list[BaseMessage]:
    """The messages of what a model is asked, in any form that models take."""
    if isinstance(request, str):
        return [HumanMessage(request)]
    if isinstance(request, list | tuple):
        return convert_to_messages(list(request))
    return messages_of(request)


def note_on_run(component: str, verdicts: Sequence[Verdict], *, refused: bool = False) -> None:
    """Add the findings to the traced run this is called in, if any: no pictures, and no text.

    Callbacks and ``astream_events`` get them as the custom event ``EVENT`` besides.

    The tags are ``sightrail:flagged`` and the like, one for each status but clean, so that runs
    can be filtered by what was found in them.
    """
    if not verdicts:
        return
    _dispatch(component, verdicts, refused)
    from langsmith.run_helpers import get_current_run_tree

    run = get_current_run_tree()
    if run is None:
        return
    run.add_metadata({**verdict_attributes(verdicts), "sightrail.component": component})
    found = {f"sightrail:{verdict.status}" for verdict in verdicts if verdict.status != "clean"}
    run.add_tags(sorted(found))


def _dispatch(component: str, verdicts: Sequence[Verdict], refused: bool) -> None:
    """Tell the callbacks of the run this is called in, if it is one of LangChain's."""
    config = var_child_runnable_config.get()
    if config is None:
        return
    manager = get_callback_manager_for_config(config)
    if manager.parent_run_id is None or not manager.handlers:
        return
    told = {"component": component, "refused": refused, "verdicts": as_json(verdicts)}
    manager.on_custom_event(EVENT, told, run_id=manager.parent_run_id)


def _was_refused(value: Any) -> bool:
    return is_refused(messages_of(value))


def _marker_on(value: Any) -> Marker | None:
    return read_marker(value) if isinstance(value, BaseMessage) else None


LANGCHAIN: Final = Framework(
    Walk, write_marker, _was_refused, note_on_run, surface_of, read=_marker_on
)


def hide_images(value: Any) -> Any:
    """A value with ``[image]`` in the place of whatever may be a picture; nothing is screened.

    For what shows an app's data to people or keeps it: LangSmith's
    ``Client(hide_inputs=hide_images, hide_outputs=hide_images)``, the ``mask`` of other tracers, an
    event of ``astream_events`` or a state on its way into a log. A guard changes what comes behind
    it; this reaches what no guard can: the inputs of a run, a tool's own output, the state before
    the first node. Text, ids and other data stay, and a value without pictures is the same object.

    Args:
        value: messages, documents, prompt values, dicts, lists, serialised runs; not changed.
    """
    return LANGCHAIN.hidden(value)
