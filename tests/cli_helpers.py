"""A detector that goes by the first pixel, and ways to run and to read the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import typer
from PIL import Image
from typer.testing import CliRunner, Result

from sightrail.guardrails import ImageError, Picture, Region, RiskMap, Verdict, read_picture
from sightrail.guardrails.verdict import Threshold
from sightrail.integrations.cli import app

Run = Callable[..., Result]
RED = (230, 20, 20)
GREEN = (20, 200, 20)


class FirstPixelDetector:
    """Red is unsafe; `explode_on` names a pixel at which it breaks, as a faulty encoder would."""

    encoder_name = "first-pixel"
    is_testbed = False

    def __init__(self, explode_on: tuple[int, int, int] | None = None) -> None:
        self.explode_on = explode_on
        self.batches: list[int] = []

    def screen(self, sources: Sequence[Any]) -> list[Verdict]:
        self.batches.append(len(sources))
        return [self._screen(source) for source in sources]

    def _screen(self, source: Any) -> Verdict:
        try:
            picture = source if isinstance(source, Picture) else read_picture(source)
        except ImageError as error:
            return Verdict.uninspected(error.reason)
        first = picture.image.getpixel((0, 0))
        if first == self.explode_on:
            raise RuntimeError("secret detail")
        unsafe = first == RED
        width, height = picture.image.size
        box = (0, 0, width // 2, height // 2)
        score = 0.9 if unsafe else 0.1
        return Verdict(
            status="flagged" if unsafe else "clean",
            category="weapons",
            score=score,
            threshold=Threshold(value=0.5, source="test"),
            scores={"weapons": score},
            regions=(Region(box=box, category="weapons", score=score),) if unsafe else (),
            risk_map=RiskMap(size=(width, height), boxes=(box,), scores=(score,)),
            image_size=(width, height),
            encoder=self.encoder_name,
        )


def picture(path: Path, colour: tuple[int, int, int]) -> Path:
    Image.new("RGB", (40, 30), colour).save(path)
    return path


def run_cli(*arguments: object, **environment: str) -> Result:
    """Run the command line in this process."""
    plain = {"COLUMNS": "200", "TERM": "dumb", **environment}
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=plain)


def json_verdicts(stdout: str) -> dict[str, Verdict]:
    """File name -> verdict of a --json run, whose stdout holds nothing else."""
    entries = [json.loads(line) for line in stdout.splitlines()]
    assert all(set(entry) == {"path", "verdict"} for entry in entries)
    return {
        os.path.basename(entry["path"]): Verdict.model_validate(entry["verdict"])
        for entry in entries
    }


@cache
def command_line() -> Any:
    return typer.main.get_command(app)


def parsed(words: list[str]) -> dict[str, Any]:
    """What the command line makes of these words, without running anything."""
    command = command_line()
    while words and words[0] in below(command):
        command, words = below(command)[words[0]], words[1:]
    context = command.context_class(command)
    given, _, _ = command.make_parser(context).parse_args(list(words))
    return dict(given)


def below(command: Any) -> dict[str, Any]:
    """The commands of a group by name."""
    if not hasattr(command, "list_commands"):
        return {}
    context = command.context_class(command)
    return {name: command.get_command(context, name) for name in command.list_commands(context)}
