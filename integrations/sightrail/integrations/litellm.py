"""A guardrail for the LiteLLM proxy: pictures are screened on their way to any of its models.

In the proxy's configuration::

    guardrails:
      - guardrail_name: sightrail
        litellm_params:
          guardrail: sightrail.integrations.litellm.SightrailGuardrail
          mode: [pre_call, post_call]
          default_on: true
          sightrail:
            encoder: ViT-L-14-336/openai
            policy: {on_flagged: refuse}
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from sightrail.guardrails import CachedDetector, Limits, Policy, RiskDetector
from sightrail.guardrails.carriers.loop import Framework, PictureLoop, Screened, passed
from sightrail.guardrails.errors import (
    ConfigurationError,
    ImageRefused,
    MissingDependencyError,
    SightrailError,
)
from sightrail.guardrails.model.stopping import in_thread
from sightrail.guardrails.screening.settings import ScreeningSettings

from .server.held_text import HeldText, rest_of_chunks, shown_chunk
from .server.wire import OpenAIWalk

try:
    from litellm.integrations.custom_guardrail import CustomGuardrail
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        f"The guardrail for LiteLLM needs {error.name}; run: pip install 'litellm[proxy]'"
    ) from error

if TYPE_CHECKING:
    from sightrail.guardrails.policy import Surface

LOGGER: Final = logging.getLogger("sightrail.litellm")
_ASKED: Final = ("messages", "input", "prompt", "image", "images", "mask", "file", "system")
"""Where requests hold what a model looks at; everything else is the proxy's own."""


class GuardrailSettings(BaseModel):
    """What stands under ``sightrail:`` in the proxy's configuration.

    Attributes:
        encoder: as for ``RiskDetector.from_pretrained``.
        screening: a file of screening settings.
        device: where the encoder is loaded.
        policy: what a verdict leads to.
        limits: what intake is willing to read.
        remembered: verdicts that are kept, by content.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str | None = None
    screening: Path | None = None
    device: str | None = None
    policy: Policy = Policy()
    limits: Limits = Limits()
    remembered: NonNegativeInt = 2048


class SightrailGuardrail(CustomGuardrail):  # type: ignore[misc, unused-ignore]
    """Screens the pictures of requests (``pre_call``) and of answers (``post_call``).

    The proxy starts without a guardrail that cannot be built, and would pass everything on. So this
    one is always built: with settings that do not work it logs why, and refuses every request.

    Args:
        sightrail: see :class:`GuardrailSettings`.
        kwargs: the proxy's own.
    """

    def __init__(self, sightrail: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._framework = Framework(walk=OpenAIWalk)
        self._policy = Policy()
        self._broken: str | None = None
        self._loops: dict[Surface, PictureLoop] = {}
        try:
            settings = GuardrailSettings.model_validate(sightrail or {})
            self._policy = settings.policy
            self._loops = self._loops_of(settings)
        except (ValidationError, SightrailError) as error:
            self._broken = f"The sightrail guardrail has no usable settings: {error}"
            LOGGER.critical("%s Every request is refused.", self._broken)

    def _loops_of(self, settings: GuardrailSettings) -> dict[Surface, PictureLoop]:
        screening = settings.screening
        own = None if screening is None else ScreeningSettings.from_file(screening)
        detector = RiskDetector.from_pretrained(
            settings.encoder, settings=own, limits=settings.limits, device=settings.device
        )
        seen = CachedDetector(detector, max_items=max(1, settings.remembered))
        surfaces: tuple[Surface, ...] = ("user", "ai")
        return {
            surface: PictureLoop(
                [seen], settings.policy, settings.limits, self._framework, "litellm", surface
            )
            for surface in surfaces
        }

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: Any
    ) -> dict[str, Any]:
        """The request as it may go on; a refusal is answered in the model's place."""
        asked = {name: data[name] for name in _ASKED if data.get(name) is not None}
        seen = await self._screened(asked, "user")
        if seen.refused:
            self.raise_passthrough_exception(
                self._policy.refusal_for(seen.verdicts), data, _told(seen)
            )
        return {**data, **seen.value}

    async def async_post_call_success_hook(
        self, data: dict[str, Any], user_api_key_dict: Any, response: Any
    ) -> Any:
        """The answer as it may be shown."""
        whole = response.model_dump()
        seen = await self._screened(whole, "ai")
        if seen.refused:
            self.raise_passthrough_exception(
                self._policy.refusal_for(seen.verdicts), data, _told(seen), response
            )
        return response if seen.value is whole else type(response).model_validate(seen.value)

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: Any, request_data: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """The answer's pieces; text that may be a picture waits until it is whole."""
        held, last = HeldText(), None
        async for chunk in response:
            if hasattr(chunk, "choices"):
                last = chunk
                yield await self._shown(chunk, await shown_chunk(_dumped(chunk), held, self._text))
            else:
                yield chunk
        if last is not None and (rest := await rest_of_chunks(_dumped(last), held, self._text)):
            yield await self._shown(last, rest)

    async def _shown(self, chunk: Any, told: dict[str, Any]) -> Any:
        """A piece as it may be shown; with a refusal in place of what may not be."""
        seen = await self._screened(told, "ai")
        if seen.refused:
            text = self._policy.refusal_for(seen.verdicts)
            choice = {"index": 0, "delta": {"content": text}, "finish_reason": "content_filter"}
            return type(chunk).model_validate({**told, "choices": [choice]})
        changed = seen.value != _dumped(chunk)
        return type(chunk).model_validate(seen.value) if changed else chunk

    async def _text(self, text: str) -> str:
        seen = await self._screened(text, "ai")
        return self._policy.refusal_for(seen.verdicts) if seen.refused else str(seen.value)

    async def _screened(self, value: Any, surface: Surface) -> Screened:
        if self._broken is not None:
            raise ConfigurationError(self._broken)
        if not self._framework.carriers(value, surface):
            return Screened(value, False, ())
        try:
            (outcome,) = await in_thread(lambda: self._loops[surface].screen([value]))
            return passed(outcome)
        except ImageRefused as refused:
            return Screened(value, True, tuple(refused.verdicts))


def _dumped(chunk: Any) -> dict[str, Any]:
    whole: dict[str, Any] = chunk.model_dump()
    return whole


def _told(seen: Screened) -> dict[str, Any]:
    """For the proxy's records: counts and actions, no content."""
    return {"verdicts": [verdict.summary() for verdict in seen.verdicts]}
