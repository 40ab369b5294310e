"""ChatLVLM with tools and structures, as LangChain's own parts use it."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.tools import tool
from langgraph.errors import GraphRecursionError
from pydantic import BaseModel, Field

from defences import DEFENCES
from sightrail.guardrails import LocalLVLM
from sightrail.guardrails.errors import ConfigurationError, PromptError, RequestRefused
from sightrail.runnables import ChatLVLM
from tool_templates import TOOLED, Says, SaysInTurn, tooled

FAMILY = "internvl"


class Found(BaseModel):
    """What was found."""

    kind: Literal["cat", "dog"]
    count: int = Field(ge=0, le=9)


@tool
def look(photo: int) -> str:
    """Look at a photo."""
    return f"photo {photo}: a cat"


def chat(*guards: Any) -> ChatLVLM:
    local = LocalLVLM(*tooled(FAMILY), guardrails=guards, name=FAMILY)
    return ChatLVLM(model=local, max_tokens=120)


def calling() -> ChatLVLM:
    return chat(Says(TOOLED[FAMILY].written(("look", {"photo": 3})), FAMILY))


def test_calls_are_langchains_own_whole_and_streamed() -> None:
    model = calling().bind_tools([look])
    answer = model.invoke("What is in photo 3?")
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("look", {"photo": 3})
    assert answer.response_metadata["finish_reason"] == "tool_calls"
    whole: Any = None
    for piece in model.stream("What is in photo 3?"):
        whole = piece if whole is None else whole + piece
    assert isinstance(whole, AIMessageChunk)
    assert [c["args"] for c in whole.tool_calls] == [{"photo": 3}]
    assert whole.usage_metadata == answer.usage_metadata


def test_a_call_that_is_cut_off_is_invalid_streamed_as_well() -> None:
    cut = chat(Says('<tool_call>\n{"name": "look", "arguments": {"photo":', FAMILY))
    model = cut.bind_tools([look])
    whole: Any = None
    for piece in model.stream("Hi"):
        whole = piece if whole is None else whole + piece
    for answer in (model.invoke("Hi"), whole):
        assert not answer.tool_calls
        assert [c["name"] for c in answer.invalid_tool_calls] == ["look"]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_keeps_its_type(method: Any) -> None:
    model = chat().with_structured_output(Found, method=method)
    assert isinstance(model.invoke("Hi"), Found)
    *_, last = model.stream("Hi")
    assert last == model.invoke("Hi")
    raw = chat().with_structured_output(Found, method=method, include_raw=True).invoke("Hi")
    assert isinstance(raw["raw"], AIMessage)
    assert isinstance(raw["parsed"], Found)


def test_a_refusal_is_no_parsing_error() -> None:
    guarded = chat(DEFENCES["casa"].on(FAMILY, tooled(FAMILY)))
    with pytest.raises(RequestRefused):
        guarded.with_structured_output(Found).invoke("Hi")
    raw = guarded.with_structured_output(Found, include_raw=True).invoke("Hi")
    assert raw["parsed"] is None
    assert raw["parsing_error"] is None
    assert raw["raw"].response_metadata["refused"]


def test_what_no_method_is_called_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="method"):
        chat().with_structured_output(Found, method="yaml")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="schema"):
        chat().with_structured_output(None)  # type: ignore[arg-type]


def test_agents_run_on_the_local_model() -> None:
    state = create_agent(chat(), [], response_format=Found).invoke({"messages": [("user", "Hi")]})
    assert isinstance(state["structured_response"], Found)
    endless = create_agent(calling(), [look])
    with pytest.raises(GraphRecursionError):
        endless.invoke({"messages": [("user", "Hi")]}, {"recursion_limit": 5})


def test_a_tool_that_does_not_exist_is_told_to_the_model() -> None:
    erase = TOOLED[FAMILY].written(("erase", {"everything": True}))
    agent = create_agent(chat(SaysInTurn(erase, FAMILY, steps=("done.",))), [look])
    messages = agent.invoke({"messages": [("user", "Hi")]})["messages"]
    assert messages[-2].status == "error"
    assert "erase" in messages[-2].text
    assert messages[-1].text == "done."


def test_arguments_that_are_no_json_end_the_run_as_invalid_calls() -> None:
    broken = "<tool_call>\n{'photo': 3,\n</tool_call>"
    messages = create_agent(chat(Says(broken, FAMILY)), [look]).invoke({"messages": "Hi"})
    last = messages["messages"][-1]
    assert not last.tool_calls
    assert last.invalid_tool_calls[0]["error"]


def test_a_result_that_is_too_long_is_a_typed_error() -> None:
    @tool
    def dump() -> str:
        """Give everything."""
        return "word " * 5000

    agent = create_agent(chat(Says(TOOLED[FAMILY].written(("dump", {})), FAMILY)), [dump])
    with pytest.raises(PromptError, match="context"):
        agent.invoke({"messages": "Hi"})


def test_tokens_are_counted_by_the_models_own_tokenizer() -> None:
    local = LocalLVLM(*tooled(FAMILY))
    assert chat().get_num_tokens("Hello there") == len(local.token_ids("Hello there")) > 0
