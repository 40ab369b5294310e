"""`sightrail init`: a first file to start from, with comments, and two pictures to try it on."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from sightrail.guardrails.embedded import embedded_module

from .consoles import printable, stdout

Kind = Literal["hosted", "local", "rag"]

_NAMES: Final[dict[Kind, str]] = {
    "hosted": "guarded_agent.py",
    "local": "guarded_chain.py",
    "rag": "guarded_rag.py",
}


def init(
    kind: Annotated[
        Kind,
        typer.Argument(
            help="hosted: a LangChain agent on a hosted model; local: a LangChain chain on a model "
            "of your own; rag: a LlamaIndex query engine over pictures."
        ),
    ],
    folder: Annotated[
        Path, typer.Option("--out", file_okay=False, help="Where the files go.")
    ] = Path(),
) -> None:
    """Write a first guarded app, with comments, and two pictures to try it on.

    It runs as written, on the embedded testbed. Nothing that exists is overwritten.
    """
    target = folder / _NAMES[kind]
    if target.exists():
        raise typer.BadParameter(f"{printable(target)} exists; name another folder with --out.")
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for name, image in embedded_module("demo_cases").draw_album().items():
        if not (pictures / name).exists():
            image.save(pictures / name)
    starter = files("sightrail.integrations.cli.starters") / f"{kind}.py"
    target.write_text(starter.read_text(encoding="utf-8"), encoding="utf-8")
    stdout().print(
        f"{printable(target)}, and two pictures in {printable(pictures)}\n"
        f"Run it: python {printable(target)}",
        markup=False,
        soft_wrap=True,
    )
