"""What the documentation shows is what runs: README blocks, examples, commands, names."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from repository import ROOT
from sightrail.integrations.cli import app

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


GUIDE = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")


def code_blocks(language: str, page: str = README) -> Iterator[tuple[int, str]]:
    """First line number and text of every fenced block of this language."""
    for match in re.finditer(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        yield page.count("\n", 0, match.start(1)), match.group(1)


def commands() -> list[str]:
    blocks = (text for page in (README, GUIDE) for _, text in code_blocks("console", page))
    shown = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    entries = [*app.registered_commands, *app.registered_groups]
    return shown + [str(entry.epilog).removeprefix("Example: ") for entry in entries]


def test_the_readme_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "readme"}
    blocks = list(code_blocks("python"))
    assert blocks
    for line, text in blocks:  # blank lines in front make error messages point into the README
        exec(compile("\n" * line + text, str(ROOT / "README.md"), "exec"), names)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("command", commands())
def test_commands_that_are_shown_exist_with_their_options(command: str) -> None:
    program, name, *rest = shlex.split(command.partition(">")[0])
    assert program == "sightrail"
    within = rest[:1] if name == "fit" else []  # a group: its commands are the defences
    shown = CliRunner().invoke(
        app, [name, *within, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}
    )
    assert shown.exit_code == 0, command
    for option in (word for word in rest if word.startswith("--")):
        assert option in shown.output, f"{command}: no {option}"


def test_links_to_files_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!http|#)([^)]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
