"""Structured output of the local model: what is asked of it, and how its answer is parsed.

A refusal is a value, never a parsing error: with ``include_raw`` the message that refuses, and
without it the exception that says so, as for guarded hosted models (see ``guarded_output``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from operator import itemgetter
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import (
    JsonOutputParser,
    PydanticOutputParser,
)
from langchain_core.output_parsers.base import OutputParserLike
from langchain_core.output_parsers.openai_tools import (
    JsonOutputKeyToolsParser,
    PydanticToolsParser,
)
from langchain_core.runnables import (
    Runnable,
    RunnableBranch,
    RunnableGenerator,
    RunnableLambda,
    RunnableMap,
    RunnablePassthrough,
)
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

from sightrail.guardrails.errors import ConfigurationError
from sightrail.guardrails.policy import refusal_error
from sightrail.guardrails.verdict import Verdict


def named(schema: Any, method: str) -> tuple[str, dict[str, Any] | None]:
    """What a schema is called, and the ``response_format`` that asks for it.

    Raises:
        ConfigurationError: a schema that is none, or none where one is needed.
    """
    if method == "json_mode":
        return "", {"type": "json_object"}
    if schema is None:
        raise ConfigurationError(f"method={method!r} needs a schema; json_mode needs none.")
    try:
        if method == "function_calling":
            return str(convert_to_openai_tool(schema)["function"]["name"]), None
        form = _schema(schema)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigurationError(f"The schema cannot be read: {error}") from error
    name = str(form.get("title") or "answer")
    return name, {"type": "json_schema", "json_schema": {"name": name, "schema": form}}


def _schema(schema: Any) -> dict[str, Any]:
    """The JSON schema itself where there is one: it may refer to itself."""
    if isinstance(schema, Mapping):
        return dict(schema)
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return schema.model_json_schema()
    return convert_to_json_schema(schema)


def structured(
    model: Runnable[LanguageModelInput, AIMessage],
    schema: Any,
    name: str,
    method: str,
    *,
    include_raw: bool,
) -> Runnable[LanguageModelInput, Any]:
    """The model and a parser; see ``ChatLVLM.with_structured_output``."""
    parser = _parser(schema, name, calls=method == "function_calling")
    if not include_raw:
        return model | RunnableGenerator(_passed, _apassed) | parser
    raw: Runnable[Any, Any] = RunnableLambda(itemgetter("raw"))
    parsed = RunnableBranch((_is_refused, lambda _: None), raw | parser)
    both = RunnablePassthrough.assign(parsed=parsed, parsing_error=lambda _: None)
    broken = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | both.with_fallbacks([broken], exception_key="parsing_error")


def _parser(schema: Any, name: str, *, calls: bool) -> OutputParserLike[Any]:
    model = isinstance(schema, type) and is_basemodel_subclass(schema)
    if calls and model:
        return PydanticToolsParser(tools=[schema], first_tool_only=True)
    if calls:
        return JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
    return PydanticOutputParser(pydantic_object=schema) if model else JsonOutputParser()


def _is_refused(answer: Mapping[str, Any]) -> bool:
    return bool(answer["raw"].response_metadata.get("refused"))


def _checked(message: BaseMessage) -> BaseMessage:
    """The message.

    Raises:
        ImageRefused, RequestRefused: it says that the answer is refused.
    """
    said = message.response_metadata
    if said.get("refused"):
        verdicts = [Verdict.model_validate(verdict) for verdict in said.get("verdicts", ())]
        raise refusal_error(message.text, verdicts)
    return message


def _passed(messages: Iterator[BaseMessage]) -> Iterator[BaseMessage]:
    yield from map(_checked, messages)


async def _apassed(messages: AsyncIterator[BaseMessage]) -> AsyncIterator[BaseMessage]:
    async for message in messages:
        yield _checked(message)
