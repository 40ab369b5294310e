"""What every public pydantic part is made of: unknown fields are errors, and guards do not vanish.

A part that guards something must never come back without its guard: not from a copy, a pickle, a
worker process or a serialised form. Where it cannot come back whole, it says so at once.
"""

from __future__ import annotations

import inspect
import pickle
import re
import uuid
from hashlib import sha256
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    PlainSerializer,
    SkipValidation,
    model_validator,
)

from .errors import ConfigurationError
from .screening.asking import Detector, check_categories, checked_detector


class StrictModel(BaseModel):
    """Forbids unknown fields; pickles whole, or raises.

    It stands before a framework's own base class: LlamaIndex's leaves out of a pickle, in silence,
    whatever cannot be pickled, and takes it from the original as well. A framework's base may
    allow unknown fields, and the last base's word counts, so a class of two bases says
    ``extra="forbid"`` itself.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if cls.model_config.get("extra") != "forbid":
            raise TypeError(f'{cls.__name__} takes unknown fields; add extra="forbid" to its bases')

    @model_validator(mode="after")
    def _rules_of_categories_that_exist(self) -> Self:
        detector, policy = getattr(self, "detector", None), getattr(self, "policy", None)
        if detector is not None and policy is not None:
            check_categories((detector,), policy)
        return self

    def __getstate__(self) -> dict[Any, Any]:
        """All fields.

        Raises:
            ConfigurationError: a field cannot travel to another process.
        """
        state = BaseModel.__getstate__(self)
        for name in _own_fields(type(self)):
            try:
                pickle.dumps(state["__dict__"].get(name))
            except Exception as error:
                raise ConfigurationError(
                    f"{type(self).__name__} cannot be pickled, because its {name} cannot "
                    f"({type(error).__name__}: {error}). Give it one that can (a model by its name "
                    "or folder, a detector from from_pretrained), or make it in the process that "
                    "uses it."
                ) from error
        return {**state, "__dict__": dict(state["__dict__"])}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        BaseModel.__setstate__(self, state)


def _own_fields(kind: type[BaseModel]) -> list[str]:
    """The fields that this package declares; a framework's own are the framework's to care for."""
    ours = [base for base in kind.__mro__ if base.__module__.startswith("sightrail.")]
    return [name for base in ours for name in inspect.get_annotations(base)]


def fingerprint(guard: Any) -> str:
    """Tells guards and their settings apart, in caches and across processes, without showing them.

    It is made of the repr. One that shows an address in memory says nothing about settings, so
    such a guard gets another fingerprint each time, and no cache answers for it.
    """
    told = repr(guard)
    if re.search(r" at 0x[0-9a-fA-F]+", told):
        told = uuid.uuid4().hex
    return f"{type(guard).__name__}-{sha256(told.encode()).hexdigest()[:16]}"


def _restored(guard: Any) -> Any:
    """Refuse the fingerprint of a guard in its place.

    Raises:
        ConfigurationError: it is one.
    """
    if isinstance(guard, str) and re.search(r"-[0-9a-f]{16}$", guard):
        raise ConfigurationError(
            f"{guard!r} is the name of a guard in a serialised form, not the guard; make it anew "
            "and pass it, as in from_dict(data, detector=detector)."
        )
    return guard


def _detector(detector: Any) -> Detector:
    return checked_detector(_restored(detector))


def _guards(guardrails: Any) -> tuple[Any, ...] | None:
    if guardrails is None:
        return None
    if isinstance(guardrails, str) or not isinstance(guardrails, list | tuple):
        raise ConfigurationError(
            f"guardrails must be a list, got {type(guardrails).__name__}; write guardrails=[...]."
        )
    return tuple(_restored(guard) for guard in guardrails)


def _fingerprints(guardrails: tuple[Any, ...] | None) -> list[str] | None:
    return None if guardrails is None else [fingerprint(guard) for guard in guardrails]


DetectorField = Annotated[
    SkipValidation[Detector],
    AfterValidator(_detector),
    PlainSerializer(fingerprint, return_type=str),
]
"""A detector; in a serialised form it is its fingerprint."""

GuardrailsField = Annotated[
    SkipValidation[tuple[Any, ...] | None],
    AfterValidator(_guards),
    PlainSerializer(_fingerprints, return_type=list[str] | None),
]
"""Guardrails of a local model, or None for those it has; serialised they are fingerprints."""
