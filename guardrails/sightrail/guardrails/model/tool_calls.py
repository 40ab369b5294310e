"""Reading an answer: what the model says, what it thinks, and the calls that it proposes.

The delimiters come from a *response template* of transformers: the checkpoint's own where its
tokenizer has one, else one of the few below, chosen by what the chat template writes. transformers'
incremental parser finds the regions. What stands in a call is read here, so that a call nobody can
read is kept as invalid, where transformers' parser would give the whole answer up.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from .tools import InvalidToolCall, Tool, ToolCall

if TYPE_CHECKING:
    from tokenizers import AddedToken

AnyCall = ToolCall | InvalidToolCall

_LONGEST: Final = 200_000
"""Characters of one call that are read; what is longer is no call."""

_OPENED: Final = "sightrail_opened"
_NOWHERE: Final = "\x00"
"""A start anchor that no prompt holds: the beginning that is handed over is read whole."""

THOUGHTS: Final[dict[str, Any]] = {
    "start_anchor": _NOWHERE,
    "defaults": {},
    "fields": {"reasoning_content": {"open": "<think>", "close": "</think>"}, "content": {}},
}
"""The response template of an answer without calls."""

_REASONING: Final = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class CallFormat:
    """How a family writes its calls, for checkpoints without a response template.

    Attributes:
        marks: a chat template that holds one of these writes calls so.
        opening: regular expression of what stands before a call, or before all of them.
        closing: the same of what follows; None where a call lasts to the end of the answer.
        before: what a forced call begins with; special tokens are known by their text.
        after: what it ends with.
        arguments: what the arguments are called in a call's JSON.
        separator: what stands between two calls; None where only one can be made at a time.
        listed: whether the calls stand in one JSON list.
        named: the call is a name, this text, and then its arguments alone.
    """

    marks: tuple[str, ...]
    opening: str
    closing: str | None = None
    before: str = ""
    after: str = ""
    arguments: str = "arguments"
    separator: str | None = None
    listed: bool = False
    named: str | None = None

    @property
    def forced(self) -> CallFormat:
        """How a call is written that a grammar forces: plain JSON where no mark is known."""
        return self if self.before or self.closing is None else _GENERIC

    @property
    def template(self) -> dict[str, Any]:
        """The response template."""
        calls = {"open_pattern": self.opening, "repeats": True}
        if self.closing is not None:
            calls["close_pattern"] = self.closing
        return {**THOUGHTS, "fields": {**THOUGHTS["fields"], "tool_calls": calls}}


_GENERIC: Final = CallFormat(
    # The whole answer is a call: JSON, Python, or either in a fence.
    marks=(),
    opening=r"\A\s*(?:<\|python_tag\|>|<\|python_start\|>|```(?:json|tool_code|tool_call)?\s)?\s*"
    r"(?=[\[{]|[A-Za-z_][\w.]*\()",
)

FORMATS: Final[tuple[CallFormat, ...]] = (
    CallFormat(  # Mistral since v11: Pixtral, Mistral 3
        marks=("[TOOL_CALLS]' + tool", "[ARGS]"),
        opening=r"\[TOOL_CALLS\]",
        closing=r"(?=\[TOOL_CALLS\])",
        before="[TOOL_CALLS]",
        separator="",
        named="[ARGS]",
    ),
    CallFormat(  # Mistral before
        marks=("[TOOL_CALLS]",),
        opening=r"\[TOOL_CALLS\]",
        closing=r"(?=\[TOOL_CALLS\])",
        before="[TOOL_CALLS]",
        separator=", ",
        listed=True,
    ),
    CallFormat(  # Gemma
        marks=("<|tool_call>", "<start_function_call>"),
        opening=r"<\|tool_call>|<start_function_call>",
        closing=r"<tool_call\|>|<end_function_call>",
    ),
    CallFormat(  # Hermes, which Qwen and InternVL have taken over
        marks=("<tool_call>",),
        opening=r"\s*<tool_call>",
        closing=r"</tool_call>",
        before="<tool_call>\n",
        after="\n</tool_call>",
        separator="\n",
    ),
    CallFormat(  # Llama 3.1, 3.2 and 4
        marks=("<|python_tag|>", "<|python_start|>", "<|eot_id|>", "<|eot|>"),
        opening=_GENERIC.opening,
        arguments="parameters",
    ),
)


def format_of(chat_template: str) -> CallFormat:
    """How a model with this chat template writes calls; plain JSON where nothing tells."""
    return next(
        (known for known in FORMATS if any(mark in chat_template for mark in known.marks)), _GENERIC
    )


@dataclass(frozen=True)
class Said:
    """What an answer holds.

    Attributes:
        text: what the user is told.
        reasoning: what the model thought before.
        calls: those it proposes, in order; with those that cannot be read.
    """

    text: str = ""
    reasoning: str = ""
    calls: tuple[AnyCall, ...] = ()

    def follows(self, earlier: Said) -> bool:
        """Whether it goes on where an earlier state of the same answer has ended."""
        longer = (self.text, self.reasoning) != (earlier.text, earlier.reasoning)
        goes_on = self.text.startswith(earlier.text)
        return longer and goes_on and self.reasoning.startswith(earlier.reasoning)

    @property
    def valid(self) -> tuple[ToolCall, ...]:
        """The calls that can be carried out."""
        return tuple(call for call in self.calls if isinstance(call, ToolCall))

    @property
    def invalid(self) -> tuple[InvalidToolCall, ...]:
        """The others."""
        return tuple(call for call in self.calls if isinstance(call, InvalidToolCall))


@dataclass
class AnswerReader:
    """Reads one answer as it comes.

    Args:
        template: a response template of transformers.
        begun: what the prompt has written of the answer already, such as ``<think>``; for the
            checkpoint's own template the whole prompt, in which it finds that by itself.
        tools: those the model was told about.
        own: whether the template is the checkpoint's own: its calls are read as it says.
    """

    template: Mapping[str, Any]
    begun: str = ""
    tools: Sequence[Tool] = ()
    own: bool = False
    _text: str = field(default="", init=False)
    _reasoning: str = field(default="", init=False)
    _calls: list[AnyCall] = field(default_factory=list, init=False)
    _fed: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Begin with what the prompt has written."""
        from transformers.utils.chat_parsing import ResponseParser

        self._parser = ResponseParser(_with_raw_calls(self.template), prefix=self.begun)
        self._marks = _written(self.template)

    def keeps(self, token: AddedToken) -> bool:
        """Whether a token has to be seen: a mark of the template, or no special token at all."""
        return not token.special or token.content in self._marks

    def read(self, text: str) -> Said:
        """What is certain of an answer that begins with ``text``, longer at every call."""
        new, self._fed = text[self._fed :], max(self._fed, len(text))
        self._take(self._parser.feed(new))
        return self._said()

    def end(self, text: str) -> Said:
        """What the whole answer holds."""
        self.read(text)
        _, events = self._parser.finalize()
        self._take(events)
        return self._said()

    def _said(self) -> Said:
        return Said(self._text.strip(), self._reasoning.strip(), tuple(self._calls))

    def _take(self, events: Sequence[Mapping[str, Any]]) -> None:
        for event in events:
            kind, name = event["type"], event.get("field")
            if kind == "region_chunk" and name == "content":
                self._text += event["text"]
            elif kind == "region_chunk" and name in _REASONING:
                self._reasoning += event["text"]
            elif kind == "region_close" and name == "tool_calls":
                self._called(event["value"])

    def _called(self, region: Any) -> None:
        opened, body = region["opened"], region["body"]
        calls = self._read_region(opened, body)
        if not calls and opened.strip().removeprefix("```") in ("", "json"):
            self._text += opened + body  # JSON that is no call is the answer itself
        elif not calls:
            calls = [InvalidToolCall(None, body.strip()[:_LONGEST], "no call can be read from it")]
        self._calls += calls

    def _read_region(self, opened: str, body: str) -> list[AnyCall]:
        if not self.own or len(body) > _LONGEST:
            return read_calls(body)
        return _read_by(self.template, opened + body, self.tools) or read_calls(body)


def without_calls(template: Mapping[str, Any]) -> dict[str, Any]:
    """A response template for answers in which nothing can be called."""
    fields = {name: part for name, part in template["fields"].items() if name != "tool_calls"}
    return {**template, "fields": fields}


def _written(value: Any) -> str:
    """Every text of a template, without the backslashes of regular expressions."""
    if isinstance(value, str):
        return re.sub(r"\\(.)", r"\1", value) + "\n"
    values = value.values() if isinstance(value, Mapping) else value
    return "".join(map(_written, values)) if isinstance(value, Mapping | list) else ""


def _with_raw_calls(template: Mapping[str, Any]) -> dict[str, Any]:
    """A response template whose calls are handed over as they were written."""
    fields = dict(template["fields"])
    calls = fields.get("tool_calls")
    if calls is not None and (opening := _opening(calls)):
        fields["tool_calls"] = {
            **{key: calls[key] for key in ("close", "close_pattern") if key in calls},
            "open_pattern": f"(?P<{_OPENED}>{opening})",
            "content_args": {"strip": False},
            "repeats": True,
            "transform": {"opened": f"{{{_OPENED}}}", "body": "{content}"},
        }
    return {**template, "fields": fields}


def _opening(calls: Mapping[str, Any]) -> str:
    if (literal := calls.get("open")) is None:
        return str(calls.get("open_pattern") or "")
    literals = [literal] if isinstance(literal, str) else sorted(literal, key=len, reverse=True)
    return "|".join(re.escape(text) for text in literals)


def _read_by(template: Mapping[str, Any], written: str, tools: Sequence[Tool]) -> list[AnyCall]:
    """The calls of one region, read by the checkpoint's own template; none where it cannot."""
    from transformers.utils.chat_parsing import parse_response

    own = template["fields"]["tool_calls"]
    alone = {key: value for key, value in own.items() if key not in ("close", "close_pattern")}
    only = {"start_anchor": _NOWHERE, "defaults": {}, "fields": {"tool_calls": alone}}
    declared: list[Any] = [tool.declared for tool in tools]
    try:
        found = parse_response(written, only, prefix="", tools=declared).get("tool_calls") or []
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    listed = [item for call in found for item in (call if isinstance(call, list) else [call])]
    return [_from_json(item) for item in listed]


def read_calls(body: str) -> list[AnyCall]:
    """The calls in a piece of text, in whatever form it is; none where it is no call at all.

    Known are JSON (one call, a list, several one after the other), ``name[ARGS]{...}``,
    ``<function=name><parameter=key>value</parameter></function>``,
    ``name<arg_key>key</arg_key><arg_value>value</arg_value>``, ``call:name{...}`` and Python.
    """
    text = _unfenced(body)
    if len(text) > _LONGEST:
        return [InvalidToolCall(None, text[:200], f"longer than {_LONGEST} characters")]
    for read in (_function_tags, _argument_tags, _named, _json_values, _python):
        try:
            if calls := list(read(text)):
                return calls
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
    return _unreadable(text)


def _unfenced(text: str) -> str:
    text = text.strip()
    return text.removesuffix("```").strip() if text.endswith("```") else text


_NAMED: Final = re.compile(
    r"(?:call:)?(?P<name>[\w.:/-]+?)\s*(?:\[CALL_ID\](?P<id>\w+)\s*)?(?:\[ARGS\]\s*)?(?=\{)"
)
_FUNCTION: Final = re.compile(r"<function=([^>\n]{1,200})>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER: Final = re.compile(
    r"<parameter=([^>\n]{1,200})>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL
)
_TAGGED: Final = re.compile(r"<arg_key>([^<]*)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_BETWEEN: Final = re.compile(r"[ \t\r\n,;]*")
_QUOTES: Final = re.compile(r'<\|"\|>(.*?)<\|"\|>|<escape>(.*?)<escape>', re.DOTALL)
_BARE_KEY: Final = re.compile(r"(?<=[{,])\s*(\w+)\s*:")
_NAME_IN: Final = re.compile(r'"name"\s*:\s*"([^"\\\n]{1,128})"')


def _function_tags(text: str) -> Iterator[AnyCall]:
    for name, inside in _FUNCTION.findall(text):
        arguments = {key: _value(value) for key, value in _PARAMETER.findall(inside)}
        yield ToolCall(name.strip(), arguments)


def _argument_tags(text: str) -> Iterator[AnyCall]:
    """GLM's form: a name, and then each argument's key and value between marks of their own."""
    head, mark, _ = text.partition("<arg_key>")
    if mark and (name := head.strip()) and not name.startswith(("{", "[")):
        end = text.rfind("</arg_value>") + len("</arg_value>")  # so that every search ends soon
        found = _TAGGED.findall(text, 0, end)
        yield ToolCall(name, {key.strip(): _value(value) for key, value in found})


def _value(text: str) -> Any:
    """A parameter without quotes: JSON where it is, else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _named(text: str) -> Iterator[AnyCall]:
    """``name[ARGS]{...}`` and ``call:name{key:<|"|>text<|"|>}``."""
    if (head := _NAMED.match(text)) is None:
        return
    body = text[head.end() :]
    arguments = _load(_quoted(body) if _QUOTES.search(body) or _bare(body) else body)
    yield _call(head["name"], arguments, body)


def _bare(body: str) -> bool:
    return bool(re.match(r"\{\s*\w+\s*:", body))


def _quoted(body: str) -> str:
    """Gemma's arguments as JSON: keys without quotes, texts between marks of their own."""
    kept: list[str] = []

    def keep(found: re.Match[str]) -> str:
        kept.append(json.dumps(found[1] if found[1] is not None else found[2]))
        return f"\x01{len(kept) - 1}\x02"

    keyed = _BARE_KEY.sub(r'"\1":', _QUOTES.sub(keep, body))
    return re.sub("\x01(\\d+)\x02", lambda found: kept[int(found[1])], keyed)


def _load(text: str) -> Any:
    return json.loads(text)


def _json_values(text: str) -> Iterator[AnyCall]:
    """One JSON value after the other, between them at most a comma, a semicolon or space."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        for item in value if isinstance(value, list) else [value]:
            if _is_call(item):
                yield _from_json(item)
        if (space := _BETWEEN.match(text, at)) is not None:
            at = space.end()


def _is_call(item: Any) -> bool:
    inner = item.get("function", item) if isinstance(item, Mapping) else None
    if isinstance(inner, str):  # {"function": "name", "arguments": ...}
        inner = {**item, "name": inner}
    return isinstance(inner, Mapping) and "name" in inner and bool(_ARGUMENTS & inner.keys())


_ARGUMENTS: Final = frozenset({"arguments", "parameters", "args"})


def _from_json(item: Any) -> AnyCall:
    if not isinstance(item, Mapping):
        return InvalidToolCall(None, json.dumps(item, default=str), "a call is an object")
    inner = item.get("function", item)
    inner = {**item, "name": inner} if isinstance(inner, str) else inner
    if not isinstance(inner, Mapping):
        return InvalidToolCall(None, json.dumps(item, default=str), "a call is an object")
    key = next((key for key in ("arguments", "parameters", "args") if key in inner), None)
    arguments = inner[key] if key else {}
    return _call(inner.get("name"), arguments, json.dumps(arguments, default=str))


def _call(name: Any, arguments: Any, written: str) -> AnyCall:
    if isinstance(arguments, str):
        written = arguments
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            return InvalidToolCall(_name(name), written, "the arguments are no JSON")
    if not isinstance(name, str) or not name:
        return InvalidToolCall(None, written, "it does not say which tool")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        return InvalidToolCall(name, written, "the arguments are no JSON object")
    return ToolCall(name, dict(arguments))


def _name(name: Any) -> str | None:
    return name if isinstance(name, str) and name else None


def _python(text: str) -> Iterator[AnyCall]:
    """``[f(a=1), g()]``; every argument a literal, and by name."""
    body = ast.parse(text, mode="eval").body
    nodes = body.elts if isinstance(body, ast.List | ast.Tuple) else [body]
    if not all(isinstance(node, ast.Call) for node in nodes):
        return
    for node in nodes:
        if isinstance(node, ast.Call):
            yield _from_python(node)


def _from_python(node: ast.Call) -> AnyCall:
    name, written = ast.unparse(node.func), ast.unparse(node)
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        return InvalidToolCall(name, written, "every argument needs its name")
    try:
        arguments = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
        json.dumps(arguments)
    except (ValueError, TypeError, RecursionError):
        return InvalidToolCall(name, written, "an argument is no plain value")
    return ToolCall(name, arguments)


def _unreadable(text: str) -> list[AnyCall]:
    """What looks like a call and is none: it names a tool, but its arguments cannot be read."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        pass
    else:
        return []  # it is whole, and something else
    if found := _NAME_IN.search(text):
        return [InvalidToolCall(found[1], text, "the call is no complete JSON")]
    head = _NAMED.match(text)
    if head is not None and ("[ARGS]" in text or text.startswith("call:")):
        return [InvalidToolCall(head["name"], text, "the arguments are no complete JSON")]
    return []
