"""What every framework's wrapper of the local model has: its fields, and the model made of them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import AliasChoices, Field, PrivateAttr, field_validator, model_validator

from ..errors import ConfigurationError
from ..intake import Limits
from ..policy import Policy
from ..strict import GuardrailsField, StrictModel

if TYPE_CHECKING:
    from typing import Self

    from .local_lvlm import LocalLVLM

    ModelField = LocalLVLM | str | Path
else:
    ModelField = Any  # pydantic reads annotations, and the model's module would load torch

_LOADING = ("device", "dtype", "device_map", "quantization", "revision", "trust_remote_code")
_VERBS = ("chat", "stream", "astream", "batch")


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
                from .local_lvlm import LocalLVLM

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
