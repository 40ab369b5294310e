"""The wheel holds every module and data file of the three source roots, and works on its own."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from repository import ROOT, environment, source_files

DATA_LIMIT = 20 * 1024 * 1024
APART = {"all", "inspect"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(  # no isolation, so no network: the build backend is a development dependency
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=300,
    )
    (built,) = folder.glob("*.whl")
    return built


def test_every_file_of_the_source_roots_is_in_it(wheel: Path) -> None:
    expected = {"/".join(path.relative_to(ROOT).parts[1:]) for path in source_files()}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    assert packed == expected
    for path in source_files():
        assert sizes["/".join(path.relative_to(ROOT).parts[1:])] == path.stat().st_size


def test_the_data_stays_small() -> None:
    data = [path for path in source_files() if path.suffix not in (".py", ".pyi")]
    assert sum(path.stat().st_size for path in data) <= DATA_LIMIT


def test_licences_and_the_console_script_are_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (points,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
        assert "sightrail = sightrail.integrations.cli:main" in archive.read(points).decode()
    licences = {Path(name).name for name in names if ".dist-info/licenses/" in name}
    assert licences == {"LICENSE", "LICENSES.md", "NOTICE"}


def test_it_works_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import sightrail.guardrails as g, sightrail.runnables as r;"
        "import sightrail.integrations.cli as c;"
        "from sightrail.testbed.sprites import sprite;"
        "sprite('cat');"
        "print(g.__file__, r.__file__, c.__file__, g.__version__, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    *files, version = done.stdout.split()
    assert [Path(line).is_relative_to(tmp_path) for line in files] == [True] * 3
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert version == project["version"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {version}\n" in citation


def test_the_extra_all_has_every_other_one() -> None:
    """The tests install it. Inspect holds fsspec back, so it stands apart."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    (named,) = (Requirement(line).extras for line in extras["all"])
    assert named == set(extras) - APART


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    """``nox -s constraints`` writes them; a bound below what resolves has never been tried."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    by_name = project["optional-dependencies"]
    extras = [line for name in by_name if name not in APART for line in by_name[name]]
    text = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8")
    pinned = dict(line.split("==") for line in text.splitlines() if "==" in line)
    pins = {canonicalize_name(name): Version(version) for name, version in pinned.items()}
    for line in [*project["dependencies"], *extras]:
        needed = Requirement(line)
        if needed.name != project["name"]:
            (bound,) = needed.specifier
            lowest, tried = Version(bound.version), pins[canonicalize_name(needed.name)]
            assert tried.release[:2] == (*lowest.release, 0)[:2], line
