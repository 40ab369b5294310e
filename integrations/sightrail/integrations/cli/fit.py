"""`sightrail fit`: training of the defences that have any."""

from __future__ import annotations

import typer

from .fit_casa import fit_casa
from .fit_davsp import fit_davsp
from .fit_moras import fit_moras

fit = typer.Typer(
    no_args_is_help=True,
    help="Train or fit a defence for a model, from examples.",
)
fit.command("casa")(fit_casa)
fit.command("davsp")(fit_davsp)
fit.command("moras")(fit_moras)


@fit.callback()
def _one_command_per_defence() -> None:
    """Without a callback typer would make a single command the whole of `fit`."""
