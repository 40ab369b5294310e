"""Fields of pydantic models as arguments in the API reference, with their types and defaults.

The reference is read from the source without running it, and pydantic makes a model's ``__init__``
while it runs. griffe itself does the same for dataclasses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import griffe


class ModelFields(griffe.Extension):
    """Give every class that documents arguments and has no ``__init__`` the one of its fields."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Once all modules are read, so that bases are known."""
        for model in _classes(pkg):
            documented = model.docstring is not None and "Args:" in model.docstring.value
            if documented and "__init__" not in model.all_members:
                fields = {field.name: field for base in _with_bases(model) for field in _own(base)}
                itself = griffe.Parameter("self", kind=griffe.ParameterKind.positional_only)
                made = griffe.Parameters(itself, *fields.values())
                init = griffe.Function("__init__", parameters=made, parent=model)
                model.set_member("__init__", init)


def _classes(of: griffe.Module | griffe.Class) -> Iterator[griffe.Class]:
    for member in list(of.members.values()):
        if isinstance(member, griffe.Class):
            yield member
        if isinstance(member, griffe.Module | griffe.Class):
            yield from _classes(member)


def _with_bases(model: griffe.Class) -> list[griffe.Class]:
    """The bases that are read, farthest first, and the class itself."""
    return [*reversed(model.mro()), model]


def _own(model: griffe.Class) -> Iterator[griffe.Parameter]:
    """The fields that a class declares: annotated, public, of its instances."""
    for member in model.members.values():
        declared = isinstance(member, griffe.Attribute) and "property" not in member.labels
        if declared and member.is_public and "ClassVar" not in str(member.annotation or "ClassVar"):
            kind, default = griffe.ParameterKind.keyword_only, _default(member.value)
            yield griffe.Parameter(
                member.name, annotation=member.annotation, kind=kind, default=default
            )


def _default(value: str | griffe.Expr | None) -> str | griffe.Expr | None:
    if not (isinstance(value, griffe.ExprCall) and value.canonical_path == "pydantic.Field"):
        return value
    given = {
        argument.name: argument.value
        for argument in value.arguments
        if isinstance(argument, griffe.ExprKeyword)
    }
    if "default_factory" in given:
        return griffe.ExprCall(function=given["default_factory"], arguments=[])
    positional = [part for part in value.arguments if not isinstance(part, griffe.ExprKeyword)]
    return given.get("default", positional[0] if positional else None)
