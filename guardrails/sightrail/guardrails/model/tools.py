"""What a caller asks of an answer beside its words: tools that may be called, which of them have to
be, and a JSON schema; and the calls that a model makes.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from pydantic import BaseModel

from ..errors import ConfigurationError

#: What a tool may be called. Anything else could be mistaken for the syntax around it.
_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.:/-]{0,126}[A-Za-z0-9_])?")
_ID_LETTERS: Final = string.ascii_letters + string.digits

ToolSource: TypeAlias = "Mapping[str, Any] | type[BaseModel] | Tool"
"""A tool as callers write it: OpenAI's form, its inner part, or a pydantic model."""

ResponseFormat: TypeAlias = "Mapping[str, Any] | type[BaseModel]"
"""A JSON schema, a pydantic model, or OpenAI's ``json_schema`` and ``json_object`` forms."""

_ANY_OBJECT: Final[dict[str, Any]] = {"type": "object"}


@dataclass(frozen=True)
class Tool:
    """A tool that the model is told about.

    Attributes:
        name: letters, digits and ``_ . : / -``.
        description: what it does.
        parameters: JSON schema of its arguments, an object.

    Raises:
        ConfigurationError: a name that could be mistaken for syntax, or parameters that are no
            schema of an object.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: dict(_NO_PARAMETERS))

    def __post_init__(self) -> None:
        """Check name and parameters."""
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"A tool cannot be called {str(self.name)[:60]!r}; use up to 128 letters, digits "
                "and _ . : / - with a letter or digit at both ends."
            )
        given = self.parameters
        if not isinstance(given, Mapping) or given.get("type", "object") != "object":
            raise ConfigurationError(
                f"The parameters of the tool {self.name} must be the JSON schema of an object."
            )
        try:
            json.dumps(given)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigurationError(
                f"The parameters of the tool {self.name} are no JSON: {error}"
            ) from error

    @property
    def declared(self) -> dict[str, Any]:
        """The form in which chat templates take it."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": {**_NO_PARAMETERS, **self.parameters},
            },
        }


_NO_PARAMETERS: Final[dict[str, Any]] = {"type": "object", "properties": {}}


@dataclass(frozen=True)
class ToolCall:
    """A call that the model proposes; whether it is carried out is its caller's decision.

    Attributes:
        name: of the tool, which may be one that does not exist.
        arguments: what it is called with.
        id: by which its result refers to it; drawn anew for every answer.
    """

    name: str
    arguments: Mapping[str, Any]
    id: str = field(default_factory=lambda: new_call_id(), compare=False)


@dataclass(frozen=True)
class InvalidToolCall:
    """Something that was meant as a call and cannot be read as one.

    Attributes:
        name: of the tool; None where not even that can be read.
        text: what the model wrote as arguments, or the whole of it.
        error: what is wrong with it.
        id: as a call's.
    """

    name: str | None
    text: str
    error: str
    id: str = field(default_factory=lambda: new_call_id(), compare=False)


@dataclass(frozen=True)
class ToolChoice:
    """Whether the model may, must or must not call tools.

    Attributes:
        kind: ``auto`` leaves it to the model, ``required`` wants at least one call.
        name: the one tool that has to be called; only with ``required``.
        parallel: whether several calls may be made at once.
    """

    kind: Literal["none", "auto", "required"] = "auto"
    name: str | None = None
    parallel: bool = True

    @property
    def forced(self) -> bool:
        """Whether the answer has to be a call."""
        return self.kind == "required"


def new_call_id() -> str:
    """Nine letters and digits, as the strictest chat templates want them."""
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(9))


def read_tools(tools: Sequence[ToolSource] | None) -> tuple[Tool, ...]:
    """Read what a caller passed as ``tools``.

    Args:
        tools: ``{"type": "function", "function": {"name", "description", "parameters"}}``, the
            inner part of that alone, or a pydantic model whose fields are the parameters.

    Raises:
        ConfigurationError: something that is no tool, or two of one name.
    """
    if isinstance(tools, str | Mapping) or not isinstance(tools or (), Sequence):
        raise ConfigurationError(f"tools must be a list, got {type(tools).__name__}.")
    read = tuple(_tool(tool) for tool in tools or ())
    names = [tool.name for tool in read]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f"Two tools are called {', '.join(twice)}; give each its name.")
    return read


def read_tool_choice(
    choice: ToolChoice | str | bool | Mapping[str, Any] | None,
    tools: Sequence[Tool],
    *,
    parallel: bool = True,
) -> ToolChoice:
    """Read what a caller passed as ``tool_choice``.

    Args:
        choice: ``"auto"`` (also None), ``"none"``, ``"required"`` (also ``"any"`` and True), a
            tool's name, or ``{"type": "function", "function": {"name": ...}}``.
        tools: those there are.
        parallel: whether several calls may be made at once.

    Raises:
        ConfigurationError: there is no such choice, or no such tool.
    """
    if isinstance(choice, ToolChoice):
        return choice
    if isinstance(choice, Mapping):
        inner = choice.get("function", choice)
        choice = inner.get("name") if isinstance(inner, Mapping) else None
        if choice is None:
            raise ConfigurationError('tool_choice names no tool; write {"function": {"name": ..}}.')
    named = {tool.name for tool in tools}
    if isinstance(choice, str) and choice in named:
        return ToolChoice("required", choice, parallel=False)
    if choice in (None, False, "auto"):
        return ToolChoice("auto", parallel=parallel)
    if choice == "none":
        return ToolChoice("none")
    if choice in (True, "any", "required"):
        if not tools:
            raise ConfigurationError("A call is required, and there is no tool; pass tools.")
        return ToolChoice("required", parallel=parallel)
    raise ConfigurationError(
        f"tool_choice is 'auto', 'none', 'required' or a tool's name, got {str(choice)[:60]!r}; "
        f"the tools are {', '.join(sorted(named)) or 'none'}."
    )


def _tool(tool: Any) -> Tool:
    if isinstance(tool, Tool):
        return tool
    if isinstance(tool, type) and issubclass(tool, BaseModel):
        return Tool(tool.__name__, (tool.__doc__ or "").strip(), tool.model_json_schema())
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise ConfigurationError(
            f"A {type(tool).__name__} among the tools is no tool; write {{'type': 'function', "
            "'function': {'name': ..., 'description': ..., 'parameters': JSON schema}}."
        )
    description, parameters = inner.get("description"), inner.get("parameters")
    return Tool(inner["name"], str(description or ""), parameters or dict(_NO_PARAMETERS))


def read_response_format(given: ResponseFormat | None) -> dict[str, Any] | None:
    """The JSON schema that a caller asks for; None where any text will do.

    Raises:
        ConfigurationError: it is no schema, or one that nothing finite satisfies.
    """
    if given is None:
        return None
    if isinstance(given, type) and issubclass(given, BaseModel):
        return _checked(given.model_json_schema())
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            f"response_format is a JSON schema or a pydantic model, got {type(given).__name__}."
        )
    match given.get("type"):
        case "text" if len(given) == 1:
            return None
        case "json_object" if len(given) == 1:
            return dict(_ANY_OBJECT)
        case "json_schema":
            inner = given.get("json_schema", given)
            schema = inner.get("schema") if isinstance(inner, Mapping) else None
            if not isinstance(schema, Mapping):
                raise ConfigurationError(
                    'response_format of type json_schema needs {"json_schema": {"schema": ...}}.'
                )
            return _checked(schema)
    return _checked(given)


def _checked(schema: Mapping[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"The schema is no JSON: {error}") from error
    if not _finite(schema, schema, frozenset()):
        raise ConfigurationError(
            "The schema asks for itself without end, so nothing satisfies it; make the field that "
            "refers back optional, or a list that may be empty."
        )
    return dict(schema)


def _finite(part: Any, whole: Mapping[str, Any], above: frozenset[str]) -> bool:
    """Whether something finite can satisfy a schema: what it requires must end somewhere."""
    if not isinstance(part, Mapping):
        return True
    if isinstance(reference := part.get("$ref"), str):
        if reference in above:
            return False
        if not _finite(_resolved(reference, whole), whole, above | {reference}):
            return False
    for key in ("anyOf", "oneOf"):
        options = part.get(key)
        if not isinstance(options, list) or not options:
            continue
        if not any(_finite(option, whole, above) for option in options):
            return False
    return all(_finite(needed, whole, above) for needed in _required(part))


def _required(part: Mapping[str, Any]) -> Iterator[Any]:
    properties, names = part.get("properties"), part.get("required")
    if isinstance(properties, Mapping) and isinstance(names, list):
        yield from (properties[name] for name in names if name in properties)
    if isinstance(part.get("minItems"), int) and part["minItems"] > 0:
        yield part.get("items")
        yield from part.get("prefixItems") or ()
    yield from part.get("allOf") or ()


def _resolved(reference: str, whole: Mapping[str, Any]) -> Any:
    found: Any = whole
    for key in reference.removeprefix("#").split("/")[1:]:
        found = found.get(key.replace("~1", "/").replace("~0", "~"), {}) if found else {}
        if not isinstance(found, Mapping):
            return {}
    return found
