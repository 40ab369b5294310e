"""The commands in one application."""

from __future__ import annotations

import typer

from .chat import chat
from .demo import demo
from .errors import CommandGroup
from .evaluate import evaluate
from .screen import screen

app = typer.Typer(
    name="sightrail",
    cls=CommandGroup,
    no_args_is_help=True,
    help="Guardrails for vision-language models: look inside the picture, act inside the model.",
)
app.command()(screen)
app.command()(demo)
app.command("eval")(evaluate)
app.command()(chat)
