"""What the documentation shows is what runs: blocks of code, examples, commands, names, links."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cli_helpers import parsed
from repository import ROOT
from serve_helpers import Scripted, completion, scripted
from sightrail.integrations.cli import app
from sightrail.integrations.server import ServerSettings
from sightrail.testbed.demo_cases import draw_album

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md")), ROOT / "SECURITY.md", ROOT / "LICENSES.md"]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
CHECKED = {"python", "console", "toml", "text"}


def shown_as(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def code_blocks(language: str, page: Path) -> Iterator[tuple[int, str]]:
    """First line number and text of every fenced block of this language."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, match.start(1)), match.group(1)


def commands() -> list[str]:
    blocks = (text for page in PAGES for _, text in code_blocks("console", page))
    shown = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    entries = [*app.registered_commands, *app.registered_groups]
    shown += [str(entry.epilog).removeprefix("Example: ") for entry in entries]
    return sorted(set(shown))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What a reader has at hand: the pictures of `sightrail init`, and a hosted model."""
    (tmp_path / "pictures").mkdir()
    for name, image in draw_album().items():
        image.save(tmp_path / "pictures" / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with scripted(Scripted(answer=completion("I see it."))) as address:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
        yield tmp_path


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(code_blocks("python", page))], ids=shown_as
)
def test_a_page_runs_from_top_to_bottom(page: Path, folder: Path) -> None:
    names: dict[str, object] = {"__name__": "page"}
    for line, text in code_blocks("python", page):  # blank lines make errors point into the page
        exec(compile("\n" * line + text, str(page), "exec"), names)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(code_blocks("toml", page))], ids=shown_as
)
def test_settings_of_the_server_are_read(page: Path, tmp_path: Path) -> None:
    for _, text in code_blocks("toml", page):
        (tmp_path / "serve.toml").write_text(text)
        assert ServerSettings.from_file(tmp_path / "serve.toml")


@pytest.mark.parametrize("page", PAGES, ids=shown_as)
def test_no_block_goes_unchecked(page: Path) -> None:
    fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) % 2 == 0
    assert set(fences[0::2]) <= CHECKED
    assert set(fences[1::2]) <= {""}
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"^ +```", text, re.MULTILINE), "an indented block would not be run"


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")  # LlamaIndex's
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
    words = shlex.split(re.split(r" [>|#] ?", command)[0])
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    _CHECKS[Path(words[0]).name](words[1:])


def _check_sightrail(words: list[str]) -> None:
    if words not in (["--install-completion"], ["--show-completion"]):  # not typer's to tell
        parsed(words)


def _check_pip(words: list[str]) -> None:
    """Extras that are asked for exist."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert words[0] in ("install", "check")
    for word in (word for word in words[1:] if "[" in word):
        asked = Requirement("sightrail" + word[word.index("[") :])
        assert asked.extras <= set(project["optional-dependencies"])


def _check_make(words: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(words) <= set(targets)


def _check_python(words: list[str]) -> None:
    """Files of this repository exist; what `sightrail init` wrote has its name."""
    if words[0] == "-m":
        assert words[1] in ("venv", "sightrail.testbed.recipe")
    else:
        starters = ("guarded_agent.py", "guarded_chain.py", "guarded_rag.py")
        assert (ROOT / words[0]).exists() or Path(words[0]).name in starters


_CHECKS = {
    "sightrail": _check_sightrail,
    "pip": _check_pip,
    "make": _check_make,
    "python": _check_python,
    "python3": _check_python,
    "nox": lambda words: None,
    "git": lambda words: None,
    "cd": lambda words: None,
    "export": lambda words: None,
}


@pytest.mark.parametrize("page", PAGES, ids=shown_as)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!http|#)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []
