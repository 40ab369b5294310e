"""What every framework's wrapper of the local model has: its fields, and the model made of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator, model_validator

from sightrail.guardrails.errors import ConfigurationError
from sightrail.guardrails.intake import Limits
from sightrail.guardrails.policy import Policy

from .model_shelf import ModelShelf

if TYPE_CHECKING:
    from typing import Self

    from sightrail.guardrails import LocalLVLM

_VERBS = ("chat", "stream", "astream", "batch")


class LocalModelFields(BaseModel):
    """The fields of a wrapper; stands before the framework's own base class.

    Weights and guardrails are left out of dumps. A wrapper's docstring says what the fields mean.
    """

    model: Any = Field(exclude=True)
    guardrails: tuple[Any, ...] | None = Field(default=None, exclude=True)
    policy: Policy | None = None
    limits: Limits = Limits()
    device: Any = Field(default=None, exclude=True)
    dtype: Any = Field(default=None, exclude=True)
    temperature: float = 0.0
    max_tokens: int = Field(
        default=256, validation_alias=AliasChoices("max_tokens", "max_new_tokens")
    )
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: list[str] | None = None
    shelf: ModelShelf = Field(default_factory=ModelShelf, exclude=True, repr=False)

    model_config = ConfigDict(arbitrary_types_allowed=True)

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

    @property
    def _model_name(self) -> str:
        return str(self.model) if isinstance(self.model, str | Path) else str(self.model.name)

    def _local(self) -> LocalLVLM:
        """The model with this object's guardrails on; copies of it share their weights."""
        local: LocalLVLM = (
            self.shelf.get(str(self.model), self.device, self.dtype)
            if isinstance(self.model, str | Path)
            else self.model
        )
        if self.guardrails is None and self.policy is None:
            return local
        guardrails = local.guardrails if self.guardrails is None else self.guardrails
        return local.with_guardrails(guardrails, policy=self.policy)

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
