"""`sightrail fit KIND`: one command for all that is fitted, its options from its settings.

The kinds are those registered in ``fitting.METHODS``; a command is made when it is asked for, so
that `sightrail --help` loads no model code.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.core import TyperGroup

from sightrail.guardrails.embedded import TESTBED, embedded_module

from .consoles import printable, stderr, stdout, ticking
from .fit_data import read_data
from .fit_options import given_settings, settings_parameters
from .models import (
    Device,
    DeviceMap,
    Dtype,
    Quantization,
    Revision,
    TrustRemoteCode,
    load_model,
)

if TYPE_CHECKING:
    from sightrail.guardrails.fitting import FitMethod, Fitted

_PARTIAL: Final = "partial"

_COMMON: Final[dict[str, tuple[Any, Any]]] = {
    "model": (
        Annotated[str, typer.Option(help="A model by name or folder, or testbed.")],
        Parameter.empty,
    ),
    "data": (
        Annotated[
            list[str],
            typer.Option(
                help="A data file, or testbed; repeat for several, such as one of each label."
            ),
        ],
        Parameter.empty,
    ),
    "out": (
        Annotated[Path, typer.Option(file_okay=False, help="The folder for the artifact.")],
        Parameter.empty,
    ),
    "data_format": (
        Annotated[
            str | None,
            typer.Option(help="Of the data: plain, llava-instruct, vlguard ...; told by itself."),
        ],
        None,
    ),
    "pictures": (
        Annotated[Path | None, typer.Option(help="Where the pictures of the data lie.")],
        None,
    ),
    "max_examples": (
        Annotated[
            int | None, typer.Option(min=1, help="Draw at most so many of each label and file.")
        ],
        None,
    ),
    "held_out": (
        Annotated[
            float, typer.Option(min=0.05, max=0.5, help="Share of the data kept to measure on.")
        ],
        0.2,
    ),
    "seed": (Annotated[int | None, typer.Option(min=0, help="Of all draws.")], None),
    "tokens_at_once": (
        Annotated[
            int | None,
            typer.Option(min=1, help="That run together at most; lower it where memory is short."),
        ],
        None,
    ),
    "gradient_checkpointing": (
        Annotated[
            bool | None, typer.Option(help="Compute layers twice to save memory; large models do.")
        ],
        None,
    ),
    "device": (Device, None),
    "dtype": (Dtype, None),
    "device_map": (DeviceMap, None),
    "quantization": (Quantization, None),
    "revision": (Revision, None),
    "trust_remote_code": (TrustRemoteCode, False),
}
_LOADING: Final = (
    *("device", "dtype", "device_map", "quantization", "revision", "trust_remote_code"),
)
_PROTOTYPES: Final = (
    Annotated[
        str | None,
        typer.Option(help="A file of unsafe questions in text alone; testbed with --data testbed."),
    ],
    None,
)


class FitGroup(TyperGroup):
    """One command for each kind, made when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The registered kinds."""
        from sightrail.guardrails.fitting import METHODS

        return sorted(METHODS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a kind."""
        from sightrail.guardrails.fitting import fit_method

        if cmd_name not in self.list_commands(ctx):
            return None
        app = typer.Typer(add_completion=False)
        app.command(cmd_name)(_command(fit_method(cmd_name)))
        return typer.main.get_command(app)


def _command(method: FitMethod) -> Any:
    """The function that typer makes a command of."""
    options = dict(_COMMON)
    if method.prototypes:
        options["prototypes"] = _PROTOTYPES
    own = settings_parameters(method.settings, taken={*options, *method.not_fitted})

    def run(**given: Any) -> None:
        _fit(method, given, {name: given.pop(name) for name in own})

    every = {**options, **own}
    run.__doc__ = _help(method)
    run.__annotations__ = {name: kind for name, (kind, _) in every.items()}
    run.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            Parameter(name, Parameter.KEYWORD_ONLY, annotation=kind, default=default)
            for name, (kind, default) in every.items()
        ]
    )
    return run


def _help(method: FitMethod) -> str:
    first = (method.fit.__doc__ or "").strip().partition("\n")[0]
    return (
        f"{first}\n\nWhat is not given is the method's default, or, for the testbed, what was "
        "chosen on its calibration split. A run that was ended goes on where it was when the same "
        "command is given again. The folder gets the artifact and what was measured as pictures."
    )


def _fit(method: FitMethod, given: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    from sightrail.guardrails.fitting import Resources

    model, out = given["model"], given["out"]
    base = embedded_module(method.kind).SETTINGS if model == TESTBED else method.settings()
    settings = given_settings(base, {**changes, "seed": given["seed"]})
    data = read_data(method, settings, given)
    wanted = {name: given[name] for name in ("tokens_at_once", "gradient_checkpointing")}
    resources = replace(Resources(), **{k: v for k, v in wanted.items() if v is not None})
    lvlm = load_model(model, **{name: given[name] for name in _LOADING})
    with ticking() as tick:
        fitted = method.fit(
            lvlm,
            data,
            settings,
            progress=tick,
            checkpoint=out / _PARTIAL,
            resources=resources,
        )
    fitted.save_pretrained(out)
    shutil.rmtree(out / _PARTIAL, ignore_errors=True)
    _tell(fitted, out)


def _tell(fitted: Fitted, out: Path) -> None:
    """Print what was measured, what was left out, and where the outcome lies."""
    manifest = fitted.artifact.manifest
    for name, value in manifest.results.items():
        stdout().print(f"{name:<24} {value:.4f}", markup=False)
    for name, count in manifest.data.items():
        stderr().print(f"{name}: {count}", markup=False)
    stderr().print(f"artifact: {printable(out)}", markup=False)


fit = typer.Typer(
    cls=FitGroup, no_args_is_help=True, help="Train or fit a defence for a model, from examples."
)


@fit.callback()
def _one_command_per_kind() -> None:
    """Without a callback typer would take the group for a single command."""
