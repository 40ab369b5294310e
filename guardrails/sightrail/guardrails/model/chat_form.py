"""How a conversation is handed to a model's chat template, tools and their results included.

Templates differ in what they take: arguments as an object or as JSON text, contents as parts or as
text, pictures in a tool's result or not at all, one call in a turn or several. What a template does
with each is found out once, by letting it render a small conversation and looking for every piece.
Whatever it cannot render is told in words, so nothing of a transcript is lost on the way.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal
from weakref import WeakKeyDictionary

from ..errors import PromptError, UnsupportedModelError
from .messages import Conversation, ImagePart, Part, TextPart, Turn
from .tools import Tool, ToolCall

Chat = list[dict[str, Any]]


@dataclass(frozen=True)
class ToolStyle:
    """What a chat template does with tools.

    Attributes:
        declares: it tells the model which tools there are.
        turns: it renders calls and results.
        arguments: the form in which it takes a call's arguments.
        spoken: the form of what the model says beside a call.
        results: the form of a tool's result.
        pictures: where pictures that a tool returned may stand: in its result, in a user's turn
            after it, or nowhere.
        parallel: whether a turn may hold several calls.
        thinks: it opens the model's thoughts where an answer begins.
    """

    declares: bool = False
    turns: bool = False
    arguments: Literal["object", "text"] = "object"
    spoken: Literal["parts", "text"] = "parts"
    results: Literal["parts", "text"] = "parts"
    pictures: Literal["inside", "after"] | None = None
    parallel: bool = False
    thinks: bool = False


def apply_template(processor: Any, chat: Chat, tools: Sequence[Tool] = ()) -> str:
    """Let the model's own chat template render a chat.

    A chat that ends with the model's words is continued; otherwise a new answer is opened.

    Raises:
        PromptError: there is no template, or it refuses.
    """
    continued = chat[-1]["role"] == "assistant"
    more: dict[str, Any] = {}
    if tools:
        more["tools"] = [tool.declared for tool in tools]
        if "tools_in_user_message" in template_text(processor):
            more["tools_in_user_message"] = False  # Llama's would render a list of parts as text
    try:
        text = processor.apply_chat_template(
            chat,
            tokenize=False,
            add_generation_prompt=not continued,
            continue_final_message=continued,
            **more,
        )
    except Exception as error:
        if not getattr(processor, "chat_template", None):
            raise PromptError(
                "This model has no chat template: it may be a base model that was never trained "
                "to answer; take its chat or instruct version. Otherwise set "
                "processor.chat_template, or put one into its folder as chat_template.jinja."
            ) from error
        # Templates speak through jinja exceptions of many kinds: no template at all, an unknown
        # role, roles that do not alternate.
        raise PromptError(
            f"The model's chat template cannot render this conversation: {error} "
            "Check the order of roles, or set processor.chat_template."
        ) from error
    return str(text)


def template_text(processor: Any) -> str:
    """The chat template itself; of several, all."""
    template = getattr(processor, "chat_template", None)
    if template is None:
        template = getattr(processor.tokenizer, "chat_template", None)
    return template if isinstance(template, str) else repr(template or "")


def chat_of(processor: Any, conversation: Conversation) -> Chat:
    """A conversation as its template takes it, each text of a turn as a part of its own."""
    if not conversation.has_tool_turns:
        return [{"role": t.role, "content": _parts(t.parts)} for t in conversation.turns]
    style = style_of(processor)
    return [_message(turn, style) for turn in conversation.turns]


def shaped(processor: Any, conversation: Conversation) -> Conversation:
    """A conversation in a form that the model's chat template renders whole.

    Whatever in a text is structure to this model (special tokens, marks of calls, what opens a turn
    in its template) is taken apart by a space: a text, of the user or of a tool, cannot end its
    turn and speak as somebody else. An answer that is begun, at the very end, stays as it is.

    Raises:
        UnsupportedModelError: there are tools, and the template does not know tools.
    """
    if conversation.tools and not style_of(processor).declares:
        raise UnsupportedModelError(
            "The chat template of this model knows no tools. Set processor.chat_template to one "
            "that does (that of the language model inside, for example), ask for a structured "
            "answer with response_format, or use a model trained for tools."
        )
    conversation = _harmless(processor, conversation)
    if not conversation.has_tool_turns:
        return conversation
    style = style_of(processor)
    if style.turns and (native := _native(conversation, style)) is not None:
        try:
            apply_template(processor, chat_of(processor, native), native.tools)
        except PromptError:
            return conversation.told()  # this order of turns is one that it refuses
        return native
    return conversation.told()


def _parts(parts: Sequence[Part]) -> list[dict[str, Any]]:
    return [
        {"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": part.text}
        for part in parts
    ]


def _message(turn: Turn, style: ToolStyle) -> dict[str, Any]:
    if turn.role == "tool":
        content = _parts(turn.parts) if style.results == "parts" else "\n".join(turn.texts)
        told = {"name": turn.name or "tool", "tool_call_id": _short(turn.call_id or "")}
        return {"role": "tool", "content": content, **told}
    if not turn.calls:
        return {"role": turn.role, "content": _parts(turn.parts)}
    words = [part for part in turn.parts if not isinstance(part, TextPart) or part.text]
    said = _parts(words) if style.spoken == "parts" else "\n".join(turn.texts)
    calls = [_called(call, style) for call in turn.calls]
    return {"role": turn.role, "content": said, "tool_calls": calls}


def _called(call: ToolCall, style: ToolStyle) -> dict[str, Any]:
    arguments = dict(call.arguments)
    given = arguments if style.arguments == "object" else json.dumps(arguments, default=str)
    function = {"name": call.name, "arguments": given}
    return {"type": "function", "id": _short(call.id), "function": function}


def _short(id: str) -> str:
    """Nine letters and digits, which Mistral's templates insist on."""
    known = re.fullmatch(r"[A-Za-z0-9]{9}", id)
    return id if known else hashlib.sha256(id.encode()).hexdigest()[:9]


def _native(conversation: Conversation, style: ToolStyle) -> Conversation | None:
    """The turns as the template takes them; None where the transcript cannot be brought there."""
    turns = list(_one_by_one(conversation.turns) if not style.parallel else conversation.turns)
    if not _answered(turns):
        return None
    if any(turn.role == "tool" and turn.image_parts for turn in turns):
        if style.pictures is None:
            return None
        if style.pictures == "after":
            turns = list(_pictures_after(turns))
    return replace(conversation, turns=tuple(turns))


def _answered(turns: Sequence[Turn]) -> bool:
    """Whether every call has its result right after it, and every result its call."""
    waiting: set[str] = set()
    for turn in turns:
        if turn.role == "tool":
            if turn.call_id not in waiting:
                return False
            waiting.discard(turn.call_id)
        elif waiting:
            return False
        waiting |= {call.id for call in turn.calls}
    return not waiting


def _one_by_one(turns: Sequence[Turn]) -> Iterator[Turn]:
    """Several calls of one turn as turns of one call, each followed by its result."""
    turns = list(turns)
    while turns:
        turn = turns.pop(0)
        if len(turn.calls) < 2:
            yield turn
            continue
        count = next((n for n, t in enumerate(turns) if t.role != "tool"), len(turns))
        results, turns = turns[:count], turns[count:]
        for number, call in enumerate(turn.calls):
            yield replace(turn, calls=(call,), parts=turn.parts if not number else ())
            yield from (result for result in results if result.call_id == call.id)


def _pictures_after(turns: Sequence[Turn]) -> Iterator[Turn]:
    """The pictures of results in a turn of the user's, after the last result of a step."""
    shown: list[Part] = []
    name: str | None = None
    for turn in turns:
        if turn.role != "tool":
            if shown:
                yield Turn("user", tuple(shown), name=name)
            shown, name = [], None
            yield turn
            continue
        if pictures := turn.image_parts:
            name = turn.name or "tool"
            several = "Picture" if len(pictures) == 1 else f"{len(pictures)} pictures"
            pictures = [replace(part, surface=part.surface or "tool") for part in pictures]
            shown += [*pictures, TextPart(f"{several} returned by the tool {name}.")]
        texts = tuple(part for part in turn.parts if isinstance(part, TextPart))
        yield replace(turn, parts=texts or (TextPart("See the picture below."),))
    if shown:
        yield Turn("user", tuple(shown), name=name)


def _harmless(processor: Any, conversation: Conversation) -> Conversation:
    """The same, with everything in its texts that is structure taken apart by a space."""
    structure = _structure_of(processor)

    def apart(part: Part, pattern: re.Pattern[str]) -> Part:
        if isinstance(part, ImagePart) or not pattern.search(part.text):
            return part
        return TextPart(pattern.sub(_apart, part.text))

    def cleaned(turn: Turn) -> Turn:
        pattern = structure[turn.role != "assistant"]
        parts = tuple(apart(part, pattern) for part in turn.parts)
        return turn if parts == turn.parts else replace(turn, parts=parts)

    *turns, last = conversation.turns
    begun = last.role == "assistant" and not last.calls
    seen = (*map(cleaned, turns), last if begun else cleaned(last))
    same = all(new is old for new, old in zip(seen, conversation.turns, strict=True))
    return conversation if same else replace(conversation, turns=seen)


def _apart(found: re.Match[str]) -> str:
    return f"{found[0][0]} {found[0][1:]}" if found[0][-1] != ":" else f"{found[0][:-1]} :"


_Structure = tuple[re.Pattern[str], re.Pattern[str]]
_structures: WeakKeyDictionary[Any, tuple[tuple[str, int], _Structure]] = WeakKeyDictionary()


def _structure_of(processor: Any) -> _Structure:
    """What is structure in a model's own words, and in those of everybody else.

    A model's own words may hold marks of thoughts and calls, which its template reads.
    """
    tokenizer = processor.tokenizer
    state = (template_text(processor), len(tokenizer))
    known = _structures.get(processor)
    if known is None or known[0] != state:
        added = tokenizer.added_tokens_decoder.values()
        marks = {*tokenizer.all_special_tokens, *(t.content for t in added if t.special)}
        kinds = ("image_token", "video_token", "audio_token", "boi_token", "eoi_token")
        marks |= {m for kind in kinds if isinstance(m := getattr(processor, kind, None), str)}
        marks = {mark for mark in marks if len(mark.strip()) > 2} - _CALL_MARKS
        marks |= _role_marks(processor)
        known = _structures[processor] = (state, (_any_of(marks), _any_of(marks | _CALL_MARKS)))
    return known[1]


def _any_of(marks: Iterable[str]) -> re.Pattern[str]:
    longest = sorted(marks, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or r"(?!)")


def _role_marks(processor: Any) -> set[str]:
    """What opens a turn where that is plain text, as ``ASSISTANT:``."""
    said = ["sightrail_first", "sightrail_second", "sightrail_third"]
    chat = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in zip(("user", "assistant", "user"), said, strict=True)
    ]
    try:
        text = apply_template(processor, chat)
    except PromptError:
        return set()
    pieces = re.split("|".join(said), text)
    return {found for piece in pieces for found in re.findall(r"[^\W\d_]{3,}:", piece)}


_CALL_MARKS: Final = frozenset(
    {"<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"}
    | {"<start_function_call>", "<end_function_call>", "<|tool_call>", "<tool_call|>"}
    | {"[TOOL_CALLS]", "[ARGS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[INST]", "[/INST]"}
    | {"<|python_tag|>", "<|python_start|>"}
)

# Finding out what a template does

_styles: WeakKeyDictionary[Any, tuple[str, ToolStyle]] = WeakKeyDictionary()

_NAME, _VALUE, _WORDS, _RESULT = "probe_name", "probe_value", "probe_words", "probe_result"
_PROBE: Final = Tool(_NAME, "Looks.", {"type": "object", "properties": {"at": {"type": "string"}}})
_ASKED: Final = Turn("user", (TextPart("Look."),))
_CALLS: Final = (ToolCall(_NAME, {"at": _VALUE}, "probe0001"), ToolCall(_NAME, {}, "probe0002"))
_LOOKED: Final = Turn("tool", (TextPart(_RESULT),), call_id="probe0001", name=_NAME)
_ARGUMENTS: Final[tuple[Literal["object", "text"], ...]] = ("object", "text")
_CONTENTS: Final[tuple[Literal["parts", "text"], ...]] = ("parts", "text")
_LISTED: Final = ("'type'", '"type": "text"', '"type":"text"')
"""What is seen where a template has written a list of parts as if it were a text."""


def style_of(processor: Any) -> ToolStyle:
    """What the chat template of a processor does with tools; found out once for each template."""
    template = template_text(processor)
    known = _styles.get(processor)
    if known is None or known[0] != template:
        known = _styles[processor] = (template, _probed(processor))
    return known[1]


def _probed(processor: Any) -> ToolStyle:
    style = ToolStyle(declares=_declares(processor), thinks=_thinks(processor))
    best: ToolStyle | None = None
    for arguments, spoken, results in itertools.product(_ARGUMENTS, _CONTENTS, _CONTENTS):
        tried = replace(style, turns=True, arguments=arguments, spoken=spoken, results=results)
        said = _rendered(processor, tried, [_ASKED, _calling(_CALLS[:1]), _LOOKED])
        if said is None or any(piece not in said for piece in (_NAME, _VALUE, _RESULT)):
            continue
        best = best or tried
        if _WORDS in said:  # some templates leave out what is said beside a call
            best = tried
            break
    if best is None:
        return style
    second = replace(_LOOKED, call_id="probe0002")
    both = _rendered(processor, best, [_ASKED, _calling(_CALLS), _LOOKED, second])
    parallel = both is not None and both.count(_RESULT) == 2
    return replace(best, parallel=parallel, pictures=_pictures(processor, best))


def _calling(calls: tuple[ToolCall, ...]) -> Turn:
    return Turn("assistant", (TextPart(_WORDS),), calls=calls)


def _declares(processor: Any) -> bool:
    try:
        said = apply_template(processor, [_message(_ASKED, ToolStyle())], [_PROBE])
    except PromptError:
        return False
    return _NAME in said and not any(listed in said.replace(" ", "") for listed in ("'type'",))


def _thinks(processor: Any) -> bool:
    if "<think>" not in template_text(processor):
        return False
    try:
        said = apply_template(processor, [_message(_ASKED, ToolStyle())])
    except PromptError:
        return False
    return said.rstrip().endswith("<think>")


def _rendered(processor: Any, style: ToolStyle, turns: Sequence[Turn]) -> str | None:
    """The rendering; None where the template refuses, or writes a list as if it were a text."""
    try:
        said = apply_template(processor, [_message(turn, style) for turn in turns])
    except PromptError:
        return None
    return None if any(listed in said for listed in _LISTED) else said


def _pictures(processor: Any, style: ToolStyle) -> Literal["inside", "after"] | None:
    picture = ImagePart(b"")
    before = [_ASKED, _calling(_CALLS[:1])]
    bare = _rendered(processor, style, [*before, _LOOKED])
    if style.results == "parts" and bare is not None:
        shown = replace(_LOOKED, parts=(picture, *_LOOKED.parts))
        said = _rendered(processor, style, [*before, shown])
        if said is not None and _placed(processor, said, bare):
            return "inside"
    after = Turn("user", (picture, TextPart(_WORDS)), name=_NAME)
    said = _rendered(processor, style, [*before, _LOOKED, after])
    return "after" if said is not None and _placed(processor, said, "") else None


def _placed(processor: Any, said: str, bare: str) -> bool:
    """Whether a picture has its place in a rendering."""
    placeholder = getattr(processor, "image_token", None)
    found = said.count(placeholder) - bare.count(placeholder) if placeholder else 0
    return found == 1 if found else len(said) > len(bare) and not placeholder
