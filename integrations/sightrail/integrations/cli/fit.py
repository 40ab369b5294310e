"""`sightrail fit KIND`: one command for all that is fitted, its options from its settings.

The kinds are those registered in ``fitting.METHODS``; a command is made when it is asked for, so
that `sightrail --help` loads no model code.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from inspect import Parameter, Signature
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import typer
from typer.core import TyperGroup

from sightrail.guardrails.embedded import TESTBED, embedded_module

from .consoles import printable, stderr, stdout, ticking
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
    from sightrail.guardrails.fitting import Example, FitData, FitMethod, Fitted


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


Settings = TypeVar("Settings")

_SIMPLE = (int, float, str, bool)


def settings_parameters(
    settings: type[Any], *, taken: Collection[str] = ()
) -> dict[str, tuple[Any, None]]:
    """An option for every field that a command line can give, by name: annotation and default.

    No option has a default of its own: what is not given is left to the settings.

    Args:
        settings: a dataclass whose docstring describes its fields under ``Attributes:``.
        taken: names of options that the command has already.
    """
    hints = get_type_hints(settings)
    told = _descriptions(settings.__doc__ or "")
    found = {}
    for field in fields(settings):
        kind = _option_type(hints[field.name])
        if kind is None or field.name in taken:
            continue
        help_text = told.get(field.name, "")
        found[field.name] = (Annotated[kind, typer.Option(help=help_text)], None)
    return found


def given_settings(base: Settings, given: Mapping[str, Any]) -> Settings:
    """The settings with what was given on the command line; None, or nothing listed, was not."""
    names = {field.name for field in fields(base)}  # type: ignore[arg-type]
    changes = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value not in (None, []) and name in names
    }
    return replace(base, **changes)  # type: ignore[type-var]


def _option_type(hint: Any) -> Any:
    """What typer takes for a field's type; None for one that no command line can give."""
    if get_origin(hint) in (Union, UnionType):
        inner = [kind for kind in get_args(hint) if kind is not NoneType]
        return _option_type(inner[0]) if len(inner) == 1 else None
    if hint in _SIMPLE or get_origin(hint) is Literal:
        return hint | None
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if kinds[-1] is Ellipsis:
            return list[kinds[0]] | None  # type: ignore[valid-type]
        return tuple[kinds] | None  # type: ignore[valid-type]
    return None


def _descriptions(docstring: str) -> dict[str, str]:
    """What a Google docstring says about each attribute."""
    _, _, section = docstring.partition("Attributes:\n")
    section = re.split(r"\n\s*\n", section)[0]
    found = re.findall(r"^ {8}(\w+): ((?:.*\n?(?: {12}.*\n?)*))", section + "\n", re.MULTILINE)
    return {name: _sentence(text) for name, text in found}


def _sentence(text: str) -> str:
    plain = " ".join(text.replace("``", "").split())
    return plain[:1].upper() + plain[1:]


def read_data(method: FitMethod, settings: Any, given: Mapping[str, Any]) -> FitData:
    """The data of a fit.

    Raises:
        ConfigurationError: a file cannot be read.
        typer.BadParameter: the testbed beside files, or no prototypes where they are needed.
    """
    names: list[str] = given["data"]
    if names == [TESTBED]:
        drawn: FitData = embedded_module(method.kind).fit_data(settings)
        return drawn
    if TESTBED in names:
        raise typer.BadParameter("The testbed's data stand alone; give --data testbed or files.")
    if method.prototypes and given["prototypes"] is None:
        raise typer.BadParameter("Give unsafe questions in text as --prototypes FILE.jsonl.")
    return _from_files(method, names, given)


def _from_files(method: FitMethod, names: Sequence[str], given: Mapping[str, Any]) -> FitData:
    import numpy as np

    from sightrail.guardrails.fitting import FitData, read_examples

    rng = np.random.default_rng(given["seed"] or 0)
    left: Counter[str] = Counter()
    examples: list[Example] = []
    for name in names:
        read = read_examples(name, given["data_format"], given["pictures"])
        stderr().print(read.summary(), markup=False)
        left.update(read.left_out)
        examples += _drawn(read.examples, given["max_examples"], rng, left)
    order = rng.permutation(len(examples))
    cut = round(given["held_out"] * len(examples))
    return FitData(
        examples=[examples[i] for i in order[cut:]],
        held_out=[examples[i] for i in order[:cut]],
        prototypes=_prototypes(method, given),
        source=", ".join(names),
        left_out=left,
    )


def _drawn(
    examples: Sequence[Example], most: int | None, rng: Any, left: Counter[str]
) -> list[Example]:
    """At most so many of each label, in their order."""
    if most is None:
        return list(examples)
    kept: list[int] = []
    for harmful in (True, False):
        side = [i for i, example in enumerate(examples) if example.harmful == harmful]
        kept += side if len(side) <= most else rng.choice(side, most, replace=False).tolist()
    left["beyond --max-examples"] += len(examples) - len(kept)
    return [examples[i] for i in sorted(kept)]


def _prototypes(method: FitMethod, given: Mapping[str, Any]) -> Sequence[Example]:
    from sightrail.guardrails.fitting import read_examples

    if not method.prototypes:
        return ()
    if given["prototypes"] == TESTBED:
        drawn: Sequence[Example] = embedded_module(method.kind).prototype_questions()
        return drawn
    return read_examples(given["prototypes"]).examples
