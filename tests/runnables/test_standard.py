"""LangChain's own conformance suites on ChatLVLM, over tiny models; nothing leaves the machine.

A tiny LLaVA takes pictures; a tiny InternVL, whose template knows tools, says what a model that was
trained for them would say to the suites' requests, token by token, through the real generation.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from chain_helpers import ShownPictures, WithoutTools
from sightrail.guardrails import LocalLVLM
from sightrail.guardrails.model.interventions import Interventions
from sightrail.runnables import ChatLVLM
from tiny_models import tiny
from tool_templates import TOOLED, Says, tooled


class _OnTinyLlava(ShownPictures):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatLVLM

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": LocalLVLM(*tiny("llava"), name="tiny")}


class TestUnit(WithoutTools, _OnTinyLlava, ChatModelUnitTests):
    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        # An unknown field is an error, and a model on this machine has no key, timeout or retries.
        return {"temperature": 0, "max_tokens": 100, "stop": []}


class TestOffline(WithoutTools, _OnTinyLlava, ChatModelIntegrationTests):
    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {"max_tokens": 16}


ARGUMENTS: dict[str, dict[str, Any]] = {
    "magic_function": {"input": 3},
    "magic_function_no_args": {},
    "greeting_generator": {"answer_style": "pirate"},
    "get_weather": {"location": "San Francisco, CA"},
    "my_adder_tool": {"a": 3, "b": 4},
    "unicode_customer": {"customer_name": "\u4f60\u597d", "description": "\u516c\u53f8"},
}
JOKE = {"setup": "Why?", "punchline": "Because."}


class Trained(Says):
    """Says what a model trained for tools would say."""

    def interventions(self, prompt: Any, host: Any) -> Interventions:
        (talk,) = prompt.originals
        asked = " ".join(talk.request[0].texts)
        if "joke" in asked:
            name = talk.tools[0].name if talk.tools else ""
            said = TOOLED[self.family].written((name, JOKE)) if name else json.dumps(JOKE)
        elif talk.tools and not talk.step:
            name = talk.tools[0].name
            given = ARGUMENTS[name]
            if "\u3053" in asked:
                given = {**given, "customer_name": "\u3053\u3093\u306b\u3061\u306f"}
            said = TOOLED[self.family].written((name, given))
        else:
            said = "It is sunny."
        return Says(said, self.family).interventions(prompt, host)


class _WithTools(_OnTinyLlava):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        guard = Trained("", "internvl")
        return {"model": LocalLVLM(*tooled("internvl"), guardrails=[guard], name="tiny")}

    @property
    def has_tool_calling(self) -> bool:
        return True

    @property
    def has_tool_choice(self) -> bool:
        return True

    @property
    def has_structured_output(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_image_tool_message(self) -> bool:
        return True


class TestUnitWithTools(_WithTools, ChatModelUnitTests):
    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {"temperature": 0, "max_tokens": 100, "stop": []}


class TestOfflineWithTools(_WithTools, ChatModelIntegrationTests):
    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {"max_tokens": 300}

    @pytest.mark.parametrize("method", ["json_schema", "function_calling"])
    @pytest.mark.parametrize("schema_type", ["pydantic", "typeddict", "json_schema"])
    def test_structured_output_by_method(
        self, model: BaseChatModel, schema_type: Any, method: str
    ) -> None:
        """The suite's own test, by every method that takes a schema."""
        self._method = method
        self.test_structured_output(model, schema_type)

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": getattr(self, "_method", "json_schema")}
