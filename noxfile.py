"""Everything that has to hold before a change is merged, each part alone: ``nox -l`` lists them.

All but ``floors`` and ``lowest`` run in the environment that nox itself is in, the one that
``make`` sets up.
"""

from __future__ import annotations

import shutil
import sys
from importlib import metadata
from pathlib import Path

import nox

nox.needs_version = ">=2026.4"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "contracts", "tests", "floors", "site", "wheel"]

ROOT = Path(__file__).parent
LOWEST = ROOT / ".venv-lowest"
CONSTRAINTS = ROOT / "constraints-lowest.txt"
#: Tests that between them use every dependency but Ray and what needs a GPU; a few minutes.
FLOORS = (
    "tests/test_exports.py",
    "tests/guardrails/test_guarantees.py",
    "tests/guardrails/test_intake.py",
    "tests/guardrails/test_policy.py",
    "tests/guardrails/test_roc.py",
    "tests/guardrails/test_contract.py",
    "tests/guardrails/test_verdict_drawing.py",
    "tests/guardrails/fitting/test_examples.py",
    "tests/guardrails/intake/test_pdf.py",
    "tests/guardrails/screening/test_patches_and_regions.py",
    "tests/guardrails/screening/test_testbed_detector.py",
    "tests/guardrails/screening/test_transport.py",
    "tests/guardrails/screening/test_verdict_store.py",
    "tests/guardrails/screening/reading/test_text_in_picture.py::test_it_travels_and_serves_threads",
    "tests/runnables/test_carriers.py",
    "tests/runnables/test_chat_lvlm.py",
    "tests/runnables/test_structures.py",
    "tests/runnables/test_tracing.py",
    "tests/integrations/cli/test_screen.py",
    "tests/integrations/langchain/test_middleware.py",
    "tests/integrations/llama_index/test_lvlm.py",
    "tests/integrations/llama_index/test_nodes.py",
    "tests/integrations/server/test_local.py",
)
#: Of the contract suite, which runs every defence on every family, one family.
ONE_FAMILY = "not test_contract or qwen2_vl"

#: Gigabytes of libraries that torch brings; see ``lowest``.
CUDA = ("nvidia-", "cuda-", "triton")


def run(session: nox.Session, module: str, *args: str, env: dict[str, str] | None = None) -> None:
    """Run a module of this environment."""
    session.run(sys.executable, "-m", module, *args, env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """Rules of style, and the format."""
    run(session, "ruff", "check", ".")
    run(session, "ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """The library, strictly, and in typing_tests what its public types accept and reject."""
    run(session, "mypy")


@nox.session
def contracts(session: nox.Session) -> None:
    """Which package may import which."""
    session.run(str(Path(sys.executable).with_name("lint-imports")), external=True)


@nox.session
def tests(session: nox.Session) -> None:
    """The everyday suite, a worker a core; further arguments go to pytest."""
    run(session, "pytest", "-n", "logical", *session.posargs)


@nox.session(default=False)
def notebooks(session: nox.Session) -> None:
    """The notebooks alone, from top to bottom; ``tests`` runs them too."""
    run(session, "pytest", "tests/test_notebooks.py", *session.posargs)


@nox.session(default=False)
def long(session: nox.Session) -> None:
    """The cases beyond the everyday suite."""
    options = ["-m", "long", "--hypothesis-profile=long", "-n", "logical"]
    run(session, "pytest", *options, *session.posargs)


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """The everyday suite, and which lines of the library it ran."""
    options = ["--cov", "--cov-report=term:skip-covered", "--cov-report=html:out/coverage"]
    run(session, "pytest", "-n", "logical", *options, *session.posargs)


@nox.session
def floors(session: nox.Session) -> None:
    """A part of the suite that uses every dependency, on the oldest that pyproject allows."""
    _on_the_oldest(session, "-k", ONE_FAMILY, *FLOORS)


@nox.session(default=False)
def lowest(session: nox.Session) -> None:
    """The everyday suite on the oldest dependencies that pyproject allows."""
    _on_the_oldest(session, *session.posargs)


def _on_the_oldest(session: nox.Session, *args: str) -> None:
    python = _lowest_environment(session)
    roots = [str(ROOT / root) for root in ("guardrails", "runnables", "integrations")]
    env = {"PYTHONPATH": ":".join(roots)}
    # What old releases deprecate is not ours to mend.
    options = ["-n", "logical", "-W", "default"]
    session.run(python, "-m", "pytest", *options, *args, external=True, env=env)


def _lowest_environment(session: nox.Session) -> str:
    """A second environment, made anew when its versions have changed.

    Only what the constraints name is installed. Of CUDA's libraries, most of an environment's size,
    it gets those that this environment has: torch asks for their major version.
    """
    python, made = LOWEST / "bin" / "python", LOWEST / CONSTRAINTS.name
    text = CONSTRAINTS.read_text(encoding="utf-8")
    if made.exists() and made.read_text(encoding="utf-8") == text:
        return str(python)
    shutil.rmtree(LOWEST, ignore_errors=True)
    session.run(sys.executable, "-m", "venv", str(LOWEST))
    pins = LOWEST / "pins.txt"
    lines = [line for line in text.splitlines() if not _is_here_already(line)]
    pins.write_text("\n".join(lines), encoding="utf-8")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    session.run(*pip, "--requirement", str(pins), external=True)
    here, there = _packages(Path(sys.prefix)), _packages(LOWEST)
    for library in here.glob("nvidia/**/*.so*"):
        link = there / library.relative_to(here)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(library)
    made.write_text(text, encoding="utf-8")
    return str(python)


def _is_here_already(line: str) -> bool:
    name = line.partition("==")[0]
    return name.startswith(CUDA) and any(metadata.distributions(name=name))


def _packages(environment: Path) -> Path:
    return next(environment.glob("lib/python3*/site-packages"))


@nox.session(default=False)
def constraints(session: nox.Session) -> None:
    """Write constraints-lowest.txt anew from pyproject's lower bounds."""
    options = ["--resolution", "lowest-direct", "--python-version", "3.11", "--no-annotate"]
    header = ["--custom-compile-command", "nox -s constraints", "--quiet"]
    what = ["pyproject.toml", "--extra", "all", "--group", "test"]
    out = ["--output-file", CONSTRAINTS.name, "--upgrade"]
    run(session, "uv", "pip", "compile", *options, *header, *what, *out)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Write what docs/ states as measured, and the picture of the README."""
    env = {"PYTHONPATH": str(ROOT / "tests")}
    session.run(sys.executable, "-m", "conformance", "docs/conformance.md", env=env)
    tables = "tests/benchmarks/results_markdown.py"
    pages = ["docs/results.md", "README.md", "guardrails/sightrail/testbed/README.md"]
    session.run(sys.executable, tables, "docs/results.json", *pages)
    session.run(sys.executable, "tests/benchmarks/readme_picture.py", "docs/picture.png")


@nox.session
def site(session: nox.Session) -> None:
    """Build the web site into out/site, offline; a broken link or name is an error."""
    run(session, "mkdocs", "build", "--quiet", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel and the source distribution, and use the wheel on its own."""
    run(session, "build", "--no-isolation", "--outdir", "dist")
    run(session, "pytest", "tests/test_wheel.py")
