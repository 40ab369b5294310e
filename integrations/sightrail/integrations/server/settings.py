"""Everything the server can be told, in one settings file or by environment variables."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Any, Final, Self

from pydantic import (
    AnyHttpUrl,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from sightrail.guardrails.errors import ConfigurationError
from sightrail.guardrails.evaluation.stacks import Fitted
from sightrail.guardrails.intake import Limits
from sightrail.guardrails.policy import Policy

_LOADING: Final = {"dtype", "device_map", "quantization", "revision", "trust_remote_code"}
_EXAMPLES: Final = 'model = "testbed" or upstream = "http://127.0.0.1:8001/v1"'


class ServerSettings(BaseSettings):
    """What is served, what guards it, and what a client may ask of it.

    Read from a TOML file (:meth:`from_file`) and from variables such as ``SIGHTRAIL_SERVE_PORT``;
    a variable wins over the file, an argument over both. An unknown name is an error.

    Attributes:
        model: a local model by name or folder, with the guardrails inside; or
        upstream: the address (up to ``/v1``) of an OpenAI-compatible server to stand in front of.
        upstream_key: its API key. Clients' own headers are never passed on.
        name: what the local model is called by clients; its own name by default.
        stack: the defences, joined by ``+``, as in ``sightrail eval``. A gateway can screen, put
            the prefix and the border on; what acts inside the model needs ``model``.
        encoder: the screening encoder, as for ``sightrail screen``.
        screening: a file of screening settings, as ``sightrail calibrate`` writes it.
        artifacts: where fitted defences lie: folders, by name of the defence.
        device: where models are loaded.
        dtype: in which number format the local model is loaded, as for ``sightrail doctor``.
        device_map: spreads it over several devices: ``"auto"``, or a table of module and device.
            ``device`` is left out then.
        quantization: ``"4bit"`` or ``"8bit"``.
        revision: of the model on the Hub: commit, branch or tag.
        trust_remote_code: run Python code that comes with the model.
        policy: what a verdict leads to.
        limits: what intake is willing to read. Remote addresses are fetched only where
            ``limits.remote`` names their hosts; files of this machine never.
        max_rows: conversations in one run of the local model.
        max_wait_s: a run that lasts longer no longer holds up what waits.
        remembered: verdicts on pictures that are kept, by content.
        host: address to listen on.
        port: port to listen on; 0 is any free one.
        api_keys: any of these lets a client in. Without a key the server listens on this machine
            only, unless ``anonymous``.
        anonymous: let everybody in who can reach the address.
        max_body_bytes: size of one request.
        max_requests: requests at work or waiting; beyond, 429 with Retry-After.
        max_tokens: most new tokens a client may ask the local model for.
        default_tokens: new tokens where the client does not say.
        header_timeout_s: for a request's head to arrive.
        body_timeout_s: for its body to arrive.
        request_timeout_s: for its answer; what takes longer is given up with 504.
        shutdown_s: how long requests at work may go on once the server is told to stop.

    Raises:
        ConfigurationError: from :meth:`from_file`, with what is wrong where.
    """

    model_config = SettingsConfigDict(
        env_prefix="SIGHTRAIL_SERVE_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
    )

    model: str | None = None
    upstream: AnyHttpUrl | None = None
    upstream_key: SecretStr | None = None
    name: str | None = None
    stack: str = "screen"
    encoder: str | None = None
    screening: Path | None = None
    artifacts: dict[Fitted, str] = Field(default_factory=dict)
    device: str | None = None
    dtype: str | None = None
    device_map: str | dict[str, int | str] | None = None
    quantization: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    policy: Policy = Policy()
    limits: Limits = Limits()
    max_rows: PositiveInt = 16
    max_wait_s: PositiveFloat = 1.0
    remembered: NonNegativeInt = 2048
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    api_keys: tuple[SecretStr, ...] = ()
    anonymous: bool = False
    max_body_bytes: PositiveInt = 64 * 1024 * 1024
    max_requests: PositiveInt = 128
    max_tokens: PositiveInt = 4096
    default_tokens: PositiveInt = 256
    header_timeout_s: PositiveFloat = 10.0
    body_timeout_s: PositiveFloat = 60.0
    request_timeout_s: PositiveFloat = 300.0
    shutdown_s: PositiveFloat = 30.0

    @model_validator(mode="after")
    def _one_mode(self) -> Self:
        if (self.model is None) == (self.upstream is None):
            raise ValueError(f"say what to serve: {_EXAMPLES}, one of the two")
        if self.upstream is None and self.upstream_key is not None:
            raise ValueError("upstream_key is for a gateway; there is no upstream")
        if self.upstream is not None and (given := sorted(_LOADING & self.model_fields_set)):
            raise ValueError(f"{', '.join(given)}: a gateway loads no model")
        return self

    @model_validator(mode="after")
    def _keys(self) -> Self:
        if any(len(key.get_secret_value()) < 8 for key in self.api_keys):
            raise ValueError("an API key has at least 8 characters")
        if not self.api_keys and not self.anonymous and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host} can be reached from other machines: set api_keys, or "
                "anonymous = true to let everybody in"
            )
        return self

    @classmethod
    def from_file(cls, path: Path | None, **given: Any) -> Self:
        """The settings of a TOML file (None for none), the environment, and what is given.

        Raises:
            ConfigurationError: a file that cannot be read, an unknown name, an impossible value.
        """
        if path is not None and not path.is_file():
            raise ConfigurationError(f"There is no settings file {path}.")
        chosen = {name: value for name, value in given.items() if value is not None}
        try:
            return cls._reading(path)(**chosen)
        except ValidationError as error:
            raise ConfigurationError(f"Server settings: {_told(error)}") from error
        except (OSError, TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"The settings file {path} cannot be read: {error}") from error

    @classmethod
    def _reading(cls, path: Path | None) -> type[Self]:
        """This class with a file below the environment."""

        class Reading(cls):  # type: ignore[misc, valid-type]
            @classmethod
            def settings_customise_sources(
                cls,
                settings_cls: type[BaseSettings],
                init_settings: PydanticBaseSettingsSource,
                env_settings: PydanticBaseSettingsSource,
                dotenv_settings: PydanticBaseSettingsSource,
                file_secret_settings: PydanticBaseSettingsSource,
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                read = [TomlConfigSettingsSource(settings_cls, path)] if path else []
                return (init_settings, env_settings, *read)

        return Reading


def _told(error: ValidationError) -> str:
    """What is wrong, without the values: they may be keys."""
    return "; ".join(
        f"{'.'.join(map(str, part['loc'])) or 'settings'}: {part['msg']}"
        for part in error.errors(include_url=False, include_input=False)
    )


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
