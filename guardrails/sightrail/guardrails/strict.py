"""What every public pydantic part is made of: unknown fields are errors, and guards do not vanish.

A part that guards something must never come back without its guard: not from a copy, a pickle, a
worker process or a serialised form. Where it cannot come back whole, it says so at once.
"""

from __future__ import annotations

import inspect
import pickle
import re
import threading
import uuid
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    SkipValidation,
    field_validator,
    model_validator,
)

from .errors import ConfigurationError
from .intake import Limits
from .policy import Policy
from .screening.asking import Detector, check_categories, checked_detector

if TYPE_CHECKING:
    from .model.local_lvlm import LocalLVLM

    ModelField = LocalLVLM | str | Path
else:
    ModelField = Any  # pydantic reads annotations, and the model's module would load torch

_LOADING = ("device", "dtype", "device_map", "quantization", "revision", "trust_remote_code")
_VERBS = ("chat", "stream", "astream", "batch")


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


class ModelShelf:
    """Models loaded by name, once for all wrappers that were made from one another.

    A wrapper shares its shelf with its copies, so that a call with other settings does not load the
    weights again. What is on it stays in its process: a pickled shelf is empty.
    """

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], LocalLVLM] = {}
        self._lock = threading.Lock()

    def get(self, name: str, **how: Any) -> LocalLVLM:
        """The model of that name, loaded at the first call.

        Raises:
            ModelLoadError: it cannot be loaded.
        """
        key = (name, repr(sorted(how.items())))
        with self._lock:
            if key not in self._models:
                from .model.local_lvlm import LocalLVLM

                self._models[key] = LocalLVLM.from_pretrained(name, **how)
            return self._models[key]

    def __deepcopy__(self, memo: Any) -> ModelShelf:
        return self

    def __reduce__(self) -> tuple[type[ModelShelf], tuple[()]]:
        return ModelShelf, ()


class LocalModelFields(StrictModel):
    """The fields of a wrapper; stands before the framework's own base class.

    Weights are left out of dumps, guardrails are fingerprints there. A wrapper's docstring says
    what the fields mean.
    """

    model: ModelField = Field(exclude=True)
    guardrails: GuardrailsField = None
    policy: Policy | None = None
    limits: Limits | None = None
    device: Any = Field(default=None, exclude=True)
    dtype: Any = Field(default=None, exclude=True)
    device_map: Any = Field(default=None, exclude=True)
    quantization: Any = Field(default=None, exclude=True)
    revision: str | None = None
    trust_remote_code: bool = False
    temperature: float = 0.0
    max_tokens: int = Field(
        default=256, validation_alias=AliasChoices("max_tokens", "max_new_tokens")
    )
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: list[str] | None = None
    shelf: ModelShelf = Field(default_factory=ModelShelf, exclude=True, repr=False)

    _guarded: tuple[tuple[Any, ...], LocalLVLM] | None = PrivateAttr(default=None)
    """The model with the guardrails on, and what it was made from."""

    @field_validator("model")
    @classmethod
    def _is_model(cls, model: Any) -> Any:
        if isinstance(model, str | Path) or all(
            callable(getattr(model, verb, None)) for verb in _VERBS
        ):
            return model
        raise ConfigurationError(
            f"{type(model).__name__} is no local model; pass a LocalLVLM, or the name or folder of "
            "one."
        )

    @model_validator(mode="after")
    def _guardrails_fit(self) -> Self:
        if not isinstance(self.model, str | Path):
            self._local()
        return self

    def __getstate__(self) -> dict[Any, Any]:
        """Without what was made of the fields, which is made anew."""
        state = super().__getstate__()
        private = dict(state.get("__pydantic_private__") or {}, _guarded=None)
        return {**state, "__pydantic_private__": private}

    @property
    def _model_name(self) -> str:
        return str(self.model) if isinstance(self.model, str | Path) else str(self.model.name)

    def _local(self) -> LocalLVLM:
        """The model with this object's guardrails on; copies of it share their weights."""
        local: LocalLVLM = (
            self.shelf.get(str(self.model), **{name: getattr(self, name) for name in _LOADING})
            if isinstance(self.model, str | Path)
            else self.model
        )
        if self.guardrails is None and self.policy is None and self.limits is None:
            return local
        made_from = (local, self.guardrails, self.policy, self.limits)
        known = self._guarded
        if known is None or any(a is not b for a, b in zip(known[0], made_from, strict=True)):
            guardrails = local.guardrails if self.guardrails is None else self.guardrails
            guarded = local.with_guardrails(guardrails, policy=self.policy, limits=self.limits)
            self._guarded = known = (made_from, guarded)
        return known[1]

    def _call_settings(self, given: dict[str, Any]) -> dict[str, Any]:
        """The settings of one call, by the names that ``LocalLVLM.chat`` knows; None is not given.

        Our own stop texts are not among them: frameworks pass stop texts in different ways.
        """
        given = {name: value for name, value in given.items() if value is not None}
        own = {
            "max_new_tokens": given.pop("max_tokens", self.max_tokens),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "seed": self.seed,
        }
        return {**own, **given}
