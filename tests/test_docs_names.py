"""What texts name exists: commands, options, arguments of calls, files, messages."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from cli_helpers import below, command_line, parsed
from repository import ROOT, source_files

PACKAGES = (
    "sightrail.guardrails",
    "sightrail.guardrails.evaluation",
    "sightrail.guardrails.testing",
    "sightrail.runnables",
    "sightrail.integrations.langchain",
    "sightrail.integrations.llama_index",
    "sightrail.integrations.server",
)
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
CHANGELOG = ROOT / "CHANGELOG.md"  # shows what is an error now
READABLE = {".md", ".py", ".toml", ".yaml", ".ipynb"}
TEXTS = [
    *PAGES,
    *(path for path in source_files() if path.suffix in READABLE),
    *(path for path in sorted((ROOT / "examples").rglob("*")) if path.suffix in READABLE),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]


def shown_as(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def options(command: Any) -> set[str]:
    return {
        name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


def code_spans(page: Path) -> Iterator[str]:
    """Code inside sentences, as one line each."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for match in re.finditer(r"(?<!`)`([^`]+)`(?!`)", text):
        yield " ".join(match.group(1).replace("\\|", "|").split())


def mentions(path: Path) -> set[str]:
    """Commands that a text names, whole or in part: marked as code, or on a line of their own."""
    text = path.read_text(encoding="utf-8")
    marked = re.findall(r"`sightrail ([a-z][^`]*)`", text)
    alone = re.findall(r"^[#$ ]*sightrail ([a-z].* --.*)$", text, re.MULTILINE)
    return {" ".join(found.split()) for found in [*marked, *alone]}


@pytest.mark.parametrize("path", [path for path in TEXTS if mentions(path)], ids=shown_as)
def test_commands_that_a_text_names_have_the_options_it_names(path: Path) -> None:
    for mention in mentions(path):
        name, *rest = re.split(r"[ ,]+", mention)
        assert name in below(command_line()), mention
        command = below(command_line())[name]
        known = options(command).union(*map(options, below(command).values()))
        named = {word.split("=")[0] for word in rest if word.startswith("--")}
        assert named <= known, mention


def test_a_command_line_that_does_not_parse_is_noticed() -> None:
    assert parsed(shlex.split("eval --stack casa --n 5")) == {"stack": ["casa"], "n": "5"}
    for wrong in ("eval --stacks all", "fit casa --data"):
        with pytest.raises(Exception, match=r"[Nn]o such option|requires an argument"):
            parsed(shlex.split(wrong))


@cache
def public() -> dict[str, Any]:
    modules = [import_module(name) for name in PACKAGES]
    return {name: getattr(module, name) for module in modules for name in module.__all__}


def arguments(what: Any) -> set[str] | None:
    """The names that a call of it takes; None where it takes any."""
    parameters = inspect.signature(what).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters}


def called(node: ast.AST) -> Any:
    """What of the library a call in a text calls, if anything."""
    if isinstance(node, ast.Name):
        return public().get(node.id)
    if isinstance(node, ast.Attribute) and (owner := called(node.value)) is not None:
        return getattr(owner, node.attr)
    return None


def calls(code: str) -> Iterator[ast.Call]:
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.Call))


@pytest.mark.parametrize("page", [page for page in PAGES if page != CHANGELOG], ids=shown_as)
def test_arguments_that_a_page_names_exist(page: Path) -> None:
    for span in code_spans(page):
        for call in calls(span):
            known = arguments(what) if (what := called(call.func)) is not None else None
            if known is not None:
                named = {keyword.arg for keyword in call.keywords if keyword.arg}
                assert named <= known, span


@pytest.mark.parametrize("page", PAGES, ids=shown_as)
def test_files_that_a_page_names_exist(page: Path) -> None:
    for span in code_spans(page):
        for word in span.split():
            if re.match(r"(tests|examples|docs|notebooks|guardrails|integrations)/\w", word):
                roots = (ROOT, ROOT / "tests")  # docs/threats.md names tests from their folder
                assert any((folder / word.rstrip("/.,;:")).exists() for folder in roots), span


@cache
def messages() -> str:
    """Every text that the library may say, with what it fills in left out."""
    trees = [
        ast.parse(path.read_text(encoding="utf-8"))
        for path in source_files()
        if path.suffix == ".py"
    ]
    nodes = (node for tree in trees for node in ast.walk(tree))
    said = (node.value for node in nodes if isinstance(node, ast.Constant))
    return "\n".join(text for text in said if isinstance(text, str))


def quoted() -> list[str]:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    others = ("Extra inputs", "Token indices", "Loading weights")  # pydantic's and transformers'
    found = [text for heading in headings for text in re.findall(r'"([^"]+)"', heading)]
    return [text for text in found if not text.startswith(others)]


@pytest.mark.parametrize("message", quoted())
def test_messages_that_are_explained_are_those_of_the_code(message: str) -> None:
    for part in filter(None, (part.strip(" .,;()") for part in message.split("..."))):
        assert part in messages(), f"nothing says {part!r}"


def test_every_extra_and_every_dependency_is_told_of() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for page in (ROOT / "README.md", ROOT / "docs" / "getting-started.md"):
        text = page.read_text(encoding="utf-8")
        assert [name for name in extras if name != "all" and name not in text] == []
    licences = (ROOT / "LICENSES.md").read_text(encoding="utf-8")
    needed = {Requirement(line).name for line in chain(project["dependencies"], *extras.values())}
    assert {name for name in needed - {"sightrail"} if name not in licences} == set()


def scripts(page: Path) -> list[str]:
    return [
        re.sub(r"-m benchmarks\.(\w+)", r"tests/benchmarks/\1.py", span)
        for span in code_spans(page)
        if re.search(r"\bpython (tests/\S+\.py|-m benchmarks\.)", span)
    ]


@pytest.mark.parametrize("page", [page for page in PAGES if scripts(page)], ids=shown_as)
def test_scripts_that_a_page_names_have_the_options_it_names(page: Path) -> None:
    for span in scripts(page):
        _, _, rest = span.partition("python ")
        name, *words = rest.split()
        source = (ROOT / name).read_text(encoding="utf-8")
        for option in (word for word in words if word.startswith("--")):
            assert f'"{option}"' in source, span
