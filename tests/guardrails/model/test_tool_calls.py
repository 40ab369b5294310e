"""What a model may write where it should write a call, read whole and piece by piece."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightrail.guardrails.model.tool_calls import (
    FORMATS,
    AnswerReader,
    CallFormat,
    Said,
    format_of,
    read_calls,
    without_calls,
)
from sightrail.guardrails.model.tools import InvalidToolCall, Tool, ToolCall

MISTRAL, OLD_MISTRAL, GEMMA, HERMES, LLAMA = FORMATS
JSON = format_of("nothing known")
F, G = ToolCall("f", {"a": 1}), ToolCall("g", {})


def read(form: CallFormat, text: str, step: int = 1, **how: Any) -> Said:
    """The answer, which has to be the same however it comes."""
    whole = AnswerReader(form.template, **how).end(text)
    reader = AnswerReader(form.template, **how)
    for end in range(0, len(text), step):
        assert whole.text.startswith(reader.read(text[:end]).text)
    assert reader.end(text) == whole
    return whole


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        (HERMES, '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', [F]),
        (HERMES, '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}', [F]),
        (HERMES, '<tool_call>{"function": {"name": "g", "arguments": {}}}</tool_call>', [G]),
        (HERMES, "<tool_call><function=f><parameter=a>1</parameter></function></tool_call>", [F]),
        (MISTRAL, '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]x1[ARGS]{}', [F, G]),
        (OLD_MISTRAL, '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]', [F]),
        (GEMMA, "<start_function_call>call:f{a:1}<end_function_call>", [F]),
        (
            GEMMA,
            '<|tool_call>call:f{a:<|"|>"x", y<|"|>}<tool_call|>',
            [ToolCall("f", {"a": '"x", y'})],
        ),
        (LLAMA, '{"name": "f", "parameters": {"a": 1}}', [F]),
        (LLAMA, '<|python_tag|>{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": '
        "null}", [F, G]),
        (LLAMA, "[f(a=1), g()]", [F, G]),
        (JSON, '```json\n{"name": "f", "arguments": {"a": 1}}\n```', [F]),
        (JSON, "```tool_code\nf(a=1)\n```", [F]),
    ],
)  # fmt: skip
def test_every_family_writes_calls_in_its_own_way(
    form: CallFormat, text: str, expected: list[ToolCall]
) -> None:
    assert read(form, text) == Said(calls=tuple(expected))


def test_words_and_thoughts_stand_apart_from_calls() -> None:
    text = (
        '<think>photo 3, "f"</think>\n\nI look.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}'
        '\n</tool_call>\n<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
    )
    assert read(HERMES, text) == Said("I look.", 'photo 3, "f"', (F, G))


def test_thoughts_that_the_prompt_has_opened() -> None:
    assert read(HERMES, "so <b>\n</think>\n\nYes.", begun="<think>") == Said("Yes.", "so <b>")
    assert read(HERMES, "still thinking", begun="<think>") == Said("", "still thinking")


@pytest.mark.parametrize(
    ("form", "text", "name"),
    [
        (HERMES, '<tool_call>\n{"name": "f", "arguments": {"a":</tool_call>', "f"),
        (HERMES, '<tool_call>\n{"name": "f", "argu', "f"),
        (HERMES, "<tool_call>photo three, please</tool_call>", None),
        (HERMES, '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', "f"),
        (HERMES, '<tool_call>{"name": "f", "arguments": "a = 1"}</tool_call>', "f"),
        (HERMES, '<tool_call>{"name": 7, "arguments": {}}</tool_call>', None),
        (MISTRAL, '[TOOL_CALLS]f[ARGS]{"a": ', "f"),
        (LLAMA, '{"name": "f", "parameters": {"a": ', "f"),
        (LLAMA, "[f(1)]", "f"),
        (LLAMA, "f(a=open('x'))", "f"),
        (LLAMA, "f(**{'a': 1})", "f"),
    ],
)
def test_what_cannot_be_read_is_kept_as_invalid(
    form: CallFormat, text: str, name: str | None
) -> None:
    said = read(form, text)
    (call,) = said.invalid
    assert not said.valid
    assert call.name == name
    assert call.error
    assert call.text


@pytest.mark.parametrize(
    "text",
    ['{"answer": 3}', "[1, 2, 3] is a list", "f(x) is written so", "{", '```json\n{"a": 1}\n```',
     '{"name": "Ada", "age": 36}'],
)  # fmt: skip
def test_json_that_is_no_call_is_the_answer(text: str) -> None:
    assert read(JSON, text) == Said(text)


def test_a_call_of_a_tool_that_does_not_exist_is_the_callers_to_judge() -> None:
    assert read(HERMES, '<tool_call>{"name": "rm", "arguments": {}}</tool_call>').valid


def test_what_is_endless_or_deep_does_not_hang() -> None:
    deep = "[" * 100_000
    assert read_calls(deep) == []
    (call,) = read_calls('{"name": "f", "arguments": "' + "x" * 300_000)
    assert isinstance(call, InvalidToolCall)
    assert len(call.text) <= 200


OWN = {
    "start_anchor": "<|im_start|>assistant\n",
    "defaults": {"role": "assistant"},
    "fields": {
        "thinking": {"open": "<think>", "close": "</think>"},
        "tool_calls": {
            "open_pattern": r"<call:(?P<name>\w+)>",
            "close": ["</call>", "</calls>"],
            "repeats": True,
            "content": "xml-inline",
            "content_args": {"tag_pattern": r"<(?P<key>\w+)=(?P<value>[^>]*)>"},
            "transform": {"function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"close": "<|im_end|>"},
    },
}
PROMPT = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n"
DECLARED = [Tool("f", parameters={"properties": {"a": {"type": "integer"}}})]


def test_a_checkpoint_says_itself_how_it_is_read() -> None:
    reader = AnswerReader(OWN, PROMPT, DECLARED, own=True)
    said = reader.end("hm</think>Look: <call:f><a=1></call><call:f><a=x></calls>")
    assert said == Said("Look:", "hm", (F, ToolCall("f", {"a": "x"})))  # 1 is an integer


def test_a_checkpoints_own_call_that_breaks_its_own_rules_is_invalid() -> None:
    broken = {**OWN["fields"]["tool_calls"], "content": "json"}  # type: ignore[index]
    own = {**OWN, "fields": {**OWN["fields"], "tool_calls": broken}}  # type: ignore[dict-item]
    said = AnswerReader(own, PROMPT, own=True).end("</think><call:f>{'a'</call>And on.")
    assert said.text == "And on."
    assert not said.valid
    assert len(said.invalid) == 1


def test_without_tools_nothing_is_a_call() -> None:
    said = AnswerReader(without_calls(OWN), PROMPT, own=True).end("</think><call:f><a=1></call>")
    assert said.text == "<call:f><a=1></call>"
    assert not said.calls


texts = st.text(max_size=30)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(arguments=st.dictionaries(texts, values, max_size=4))
@settings(max_examples=60, deadline=None)
def test_whatever_the_arguments_hold_comes_back(arguments: dict[str, Any]) -> None:
    marks = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]")
    written = json.dumps(arguments, ensure_ascii=True)
    if any(mark in written for mark in marks):
        return
    call = ToolCall("f", arguments)
    hermes = f'<tool_call>\n{{"name": "f", "arguments": {written}}}\n</tool_call>'
    assert AnswerReader(HERMES.template).end(hermes).calls == (call,)
    assert AnswerReader(MISTRAL.template).end(f"[TOOL_CALLS]f[ARGS]{written}").calls == (call,)


@given(text=st.text(alphabet='<>/[]{}":,abTOLC_ \n\\=()', max_size=80))
@settings(max_examples=200, deadline=None)
def test_no_text_breaks_a_reader(text: str) -> None:
    for form in (*FORMATS, JSON):
        read(form, text, step=7)


@pytest.mark.parametrize(
    "text",
    [
        "name" + " " * 190_000 + "x",
        "call:a" + "\n" * 190_000 + "[ARGS]x",
        "a[CALL_ID]b" + " " * 190_000 + "x",
        "<function=" * 19_000,
        "<function=a>" + "<parameter=" * 17_000,
        "name" + "<arg_key>" * 21_000,
        "name<arg_key>" + " " * 190_000,
        "name" + "<arg_key>a</arg_key><arg_value>" * 6_000,
        "1 " * 95_000,
        'a<|"|>' * 30_000,
    ],
    ids=lambda text: text[:20].strip(),
)
def test_calls_that_make_searching_slow_come_to_an_end(text: str) -> None:
    assert len(read_calls(text)) < 2
