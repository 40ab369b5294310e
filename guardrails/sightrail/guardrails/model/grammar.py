"""Answers that follow a JSON schema, and calls that follow their tool's: a mask on the logits.

llguidance keeps, for each row, which tokens a grammar allows next. It was chosen among three by
trying (a vocabulary of 30,000, one core): it needs 0.12 ms a token and 1.3 ms to compile a nested
schema, xgrammar 0.24 ms and 360 ms, outlines-core 380 ms; it installs nothing else; and it says
which part of a schema it does not know, where a weaker mask would let wrong answers through.

The mask comes last before sampling, so it holds whatever guardrails made of the logits. It counts
from the first token of the user's answer: a guardrail's hidden tokens are before it. A row against
which a guardrail has decided is free of it, because a refusal is no JSON.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import LogitsProcessor

from ..errors import ConfigurationError, MissingDependencyError, UnsupportedModelError
from .tool_calls import CallFormat
from .tools import Tool, ToolChoice

_THOUGHTS: Final = "thoughts: thinking /\\n{0,2}/"
_COMPACT: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True)
class Grammar:
    """What an answer may be.

    Attributes:
        lark: a grammar in llguidance's dialect of Lark. ``@text@`` in it stands for a special
            token, whose number depends on the tokenizer.
        calls: how the calls in such an answer are written; None where it holds none.
    """

    lark: str
    calls: CallFormat | None = None


def answer_grammar(schema: Mapping[str, Any], *, thinking: bool = False) -> Grammar:
    """An answer that is JSON of this schema, after the model's thoughts where these are open."""
    opened, thoughts = ("thoughts ", f"{_THOUGHTS}\n") if thinking else ("", "")
    return Grammar(f"start: {opened}answer\nanswer: {_json(schema)}\n{thoughts}")


def call_grammar(
    tools: Sequence[Tool],
    choice: ToolChoice,
    form: CallFormat,
    *,
    schema: Mapping[str, Any] | None = None,
    thinking: bool = False,
) -> Grammar:
    """An answer that is calls, or (with a schema) either calls or JSON.

    Args:
        tools: those that may be called.
        choice: which of them has to be.
        form: how the model writes calls.
        schema: of an answer in place of calls, where that is left to the model.
        thinking: the prompt has opened the model's thoughts, which come first.
    """
    form = form.forced
    chosen = [tool for tool in tools if choice.name in (None, tool.name)]
    rules = [f"call{number}: {_call(tool, form)}" for number, tool in enumerate(chosen)]
    call = " | ".join(f"call{number}" for number in range(len(chosen)))
    more = ""
    if choice.parallel and form.separator is not None:
        more = f" ({_texts(form.separator)} {'' if form.listed else 'call'})*".replace(" )", ")")
    before, after = _texts(form.before), _texts(form.after)
    if form.listed:
        several = f" ({_texts(form.separator or ', ')} call)*" if choice.parallel else ""
        rules.append(f'calls: {before} "[" call{several} "]"')
        rules.append(f"call: {call}")
    else:
        rules.append(f"calls: call{more}")
        rules.append(f"call: {before} ({call}) {after}")
    answer = " | answer" if schema is not None else ""
    if schema is not None:
        rules.append(f"answer: {_json(schema)}")
    opened = "thoughts " if thinking else ""
    if thinking:
        rules.append(_THOUGHTS)
    return Grammar("\n".join([f"start: {opened}(calls{answer})", *rules, ""]), form)


def _call(tool: Tool, form: CallFormat) -> str:
    parameters = {**_NOTHING, **tool.parameters}
    if form.named is not None:
        return f"{_texts(tool.name + form.named)} {_json(parameters)}"
    head, middle = json.dumps({"name": tool.name})[:-1], f', "{form.arguments}": '
    return f'{_text(head + middle)} {_json(parameters)} "}}"'


_NOTHING: Final[dict[str, Any]] = {"type": "object", "properties": {}}


def _json(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**_closed(schema), 'x-guidance': _COMPACT})}"


def _closed(part: Any) -> Any:
    """A schema whose objects hold what they name and nothing else, unless it says otherwise.

    Free extra fields are what JSON schema allows and nobody asks a model for. What is joined from
    several parts (``allOf``) stays open, as each part would forbid the fields of the others.
    """
    if not isinstance(part, Mapping):
        return part
    made = dict(part)
    for key in _NAMED_PARTS & made.keys():
        if isinstance(made[key], Mapping):
            made[key] = {name: _closed(inner) for name, inner in made[key].items()}
    for key in _LISTED_PARTS & made.keys():
        if isinstance(made[key], list):
            made[key] = [_closed(inner) for inner in made[key]]
    if "items" in made:
        made["items"] = _closed(made["items"])
    if "properties" in made and not _OPENERS & made.keys():
        made["additionalProperties"] = False
    return made


_NAMED_PARTS: Final = frozenset({"properties", "$defs", "definitions"})
_LISTED_PARTS: Final = frozenset({"anyOf", "oneOf", "prefixItems"})
_OPENERS: Final = frozenset({"additionalProperties", "patternProperties", "allOf"})


def _text(text: str) -> str:
    return json.dumps(text) if text else '""'


_MARKS: Final = ("[TOOL_CALLS]", "[ARGS]", "<tool_call>", "</tool_call>")


def _texts(text: str) -> str:
    """Text in which special tokens stand, as terms of a grammar."""
    for mark in _MARKS:
        if mark in text:
            before, _, after = text.partition(mark)
            return " ".join(part for part in (_texts(before), f"@{mark}@", _texts(after)) if part)
    return _text(text) if text else ""


# Compiling


_UNHEARD_OF: Final = "zqvxj"


class Grammars:
    """The grammars of one tokenizer, compiled when they are first needed.

    Args:
        tokenizer: of the model; a fast one.
        vocabulary: how many logits there are.
        end: the ids that end an answer.

    Raises:
        MissingDependencyError: llguidance is not installed.
        UnsupportedModelError: it cannot read this tokenizer, or the tokenizer cannot spell.
    """

    _MOST: Final = 64

    def __init__(self, tokenizer: Any, vocabulary: int, end: frozenset[int]) -> None:
        self._library = _library()
        self._tokens = tokenizer
        self._lock = threading.Lock()
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        # Where a grammar leaves one text, llguidance asks the tokenizer to write it.
        if tokenizer.unk_token_id in tokenizer.encode(_UNHEARD_OF, add_special_tokens=False):
            raise UnsupportedModelError(
                "Structured answers need a tokenizer that can write any word; this model's has "
                "only the words of its vocabulary."
            )
        ends = sorted(end) or [tokenizer.eos_token_id]
        self.size = vocabulary
        self.end = frozenset(ends)
        try:
            from llguidance.hf import from_tokenizer

            known = max(vocabulary, len(tokenizer))
            self._tokenizer = from_tokenizer(tokenizer, n_vocab=known, eos_token=ends)
        except Exception as error:  # it speaks through errors of many kinds
            raise UnsupportedModelError(
                f"Structured answers need a fast tokenizer that llguidance can read: {error}"
            ) from error

    def matcher(self, grammar: Grammar) -> Any:
        """A matcher at the beginning of a grammar.

        Raises:
            ConfigurationError: the grammar cannot be satisfied, or asks for what is not known.
        """
        with self._lock:
            made = self._compiled.get(grammar.lark)
            if made is None:
                made = self._compiled[grammar.lark] = self._compile(grammar.lark)
            self._compiled.move_to_end(grammar.lark)
            while len(self._compiled) > self._MOST:
                self._compiled.popitem(last=False)
            return made.deep_copy()

    def _compile(self, lark: str) -> Any:
        matcher = self._library.LLMatcher(self._tokenizer, self._numbered(lark), log_level=0)
        if not matcher.is_error():
            first = matcher.deep_copy()
            first.compute_bitmask()  # some schemas are known to be impossible only here
            matcher = first if first.is_error() else matcher
        if matcher.is_error():
            said = " ".join(matcher.get_error().partition("<state>")[0].split())
            raise ConfigurationError(
                f"No answer can follow this schema: {said[:300] or 'unknown'}. "
                "Leave the keyword out, and check it on the answer instead."
            )
        return matcher

    def _numbered(self, lark: str) -> str:
        """Special tokens by their number, where the tokenizer has them; else as plain text."""
        known = self._tokens.get_added_vocab()
        for mark in _MARKS:
            told = f"<[{known[mark]}]>" if mark in known else json.dumps(mark)
            lark = lark.replace(f"@{mark}@", told)
        if _THOUGHTS not in lark:
            return lark
        if (end := known.get("</think>")) is not None:
            return f"{lark}thinking: /(?s:.*)/ <[{end}]>\n"
        return f'{lark}thinking[suffix="</think>"]: /(?s:.*)/\n'


_grammars: WeakKeyDictionary[Any, dict[tuple[int, frozenset[int]], Grammars]] = WeakKeyDictionary()
_grammars_guard: Final = threading.Lock()


def grammars_of(tokenizer: Any, vocabulary: int, end: frozenset[int]) -> Grammars:
    """The compiled grammars of a tokenizer, made once: that takes a second with a large one."""
    with _grammars_guard:
        made = _grammars.setdefault(tokenizer, {})
        if (vocabulary, end) not in made:
            made[vocabulary, end] = Grammars(tokenizer, vocabulary, end)
        return made[vocabulary, end]


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MissingDependencyError(
            "Structured answers and forced tool calls need llguidance: pip install "
            "'sightrail[structured]'."
        ) from error
    return llguidance


# Masking


class AllowedTokens(LogitsProcessor):
    """Leave each row the tokens that its grammar allows.

    Args:
        matchers: one per row, at the beginning of its grammar; None for a row without one.
        end: the ids that end an answer.
        free: whether a guardrail has decided against a row, which is free then.
    """

    def __init__(
        self, matchers: Sequence[Any], end: frozenset[int], free: Callable[[int], bool]
    ) -> None:
        self._matchers = list(matchers)
        self._end = sorted(end)
        self._free = free
        self._seen = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores [B, V] for the answers input_ids [B, t] so far, -inf for what is not allowed.

        Where that leaves nothing, the answer ends.
        """
        new, self._seen = input_ids[:, self._seen :].tolist(), input_ids.shape[1]
        rows = [row for row, matcher in enumerate(self._matchers) if matcher is not None]
        allowed = torch.ones(scores.shape, dtype=torch.bool)
        for row in rows:
            matcher = self._matchers[row]
            if self._free(row):
                self._matchers[row] = None
                continue
            for token in new[row]:
                matcher.is_stopped() or matcher.consume_token(token)
            allowed[row] = self._mask(matcher, scores.shape[-1])
        masked = scores.masked_fill(~allowed.to(scores.device), -torch.inf)
        for row in rows:
            if not bool(torch.isfinite(masked[row]).any()):
                masked[row, self._end] = 0.0
        return masked

    def _mask(self, matcher: Any, size: int) -> torch.Tensor:
        """The tokens [V] that may follow; none after the end, or after what was never allowed."""
        if matcher.is_stopped():
            return torch.zeros(size, dtype=torch.bool)
        words = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        bits = np.unpackbits(words, bitorder="little")[:size]
        return torch.from_numpy(bits.astype(bool))
