"""The commands in one application."""

from __future__ import annotations

import typer

from .calibrate import calibrate
from .chat import chat
from .compare import compare
from .demo import demo
from .doctor import doctor
from .errors import CommandGroup
from .evaluate import evaluate
from .fit import fit
from .init import init
from .screen import screen
from .serve import serve

app = typer.Typer(
    name="sightrail",
    cls=CommandGroup,
    no_args_is_help=True,
    help="Guardrails for vision-language models: look inside the picture, act inside the model.",
)
for command, name, example in (
    (demo, "demo", "demo --out out/demo"),
    (init, "init", "init local --out app"),
    (screen, "screen", "screen photos/ --encoder ViT-L-14-336/openai --out out/panels"),
    (doctor, "doctor", "doctor --model MODEL --encoder ViT-L-14-336/openai --pictures photos/"),
    (calibrate, "calibrate", 'calibrate benign/ --source "our photos" --out screening.json'),
    (evaluate, "eval", "eval --model MODEL --benchmark figstep=FOLDER --run runs/figstep"),
    (compare, "compare", "compare runs/figstep --stack bare --stack screen"),
    (chat, "chat", 'chat --model MODEL --image photo.jpg "What is in this picture?"'),
    (serve, "serve", "serve --upstream http://127.0.0.1:8001/v1 --encoder ViT-L-14-336/openai"),
):
    app.command(name, epilog=f"Example: sightrail {example}")(command)
fit_example = "fit casa --model MODEL --data train.jsonl --out casa/"
app.add_typer(fit, name="fit", epilog=f"Example: sightrail {fit_example}")
