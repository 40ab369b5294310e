"""Every command that loads a model takes the options that say how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from cli_helpers import run_cli
from sightrail.guardrails.fitting import METHODS
from sightrail.integrations.cli.app import app

LOADING = {"device", "dtype", "device_map", "quantization", "revision", "trust_remote_code"}


def commands() -> dict[str, Any]:
    root: Any = typer.main.get_command(app)
    fits = root.commands["fit"]
    made = {f"fit {kind}": fits.get_command(None, kind) for kind in METHODS}
    return made | {name: root.commands[name] for name in root.commands if name != "fit"}


def test_every_command_that_takes_a_model_takes_how_it_is_loaded() -> None:
    taken = {name: {option.name for option in made.params} for name, made in commands().items()}
    asked = {name for name, options in taken.items() if "model" in options}
    assert asked == {"calibrate", "chat", "doctor", "eval", "serve", *(f"fit {k}" for k in METHODS)}
    for name in asked | {"screen"}:
        assert taken[name] >= LOADING, name


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("questions") / "mine.jsonl"
    rows = [{"text": f"What is it? {n}", "label": ("benign", "harmful")[n % 2]} for n in range(48)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_calibration_loads_the_model_as_it_is_told(questions: Path, tmp_path: Path) -> None:
    asked = ("calibrate", questions, "--source", "x", "--false-alarms", 0.2, "--out", tmp_path)
    how = ("--model", "testbed", "--stack", "casa")
    done = run_cli(*asked, *how, "--dtype", "bfloat16", "--revision", "main")
    assert done.exit_code == 0, done.output
    for wrong, said in (("--dtype", "int3"), ("--quantization", "3bit")):
        lost = run_cli(*asked, *how, wrong, said)
        assert (lost.exit_code, said in lost.output) == (69, True), lost.output
    unread = run_cli(*asked, "--encoder", "testbed", "--quantization", "8bit")
    assert unread.exit_code == 64
