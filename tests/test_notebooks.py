"""The notebooks run from top to bottom, and what they show is drawn by the library."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from repository import ROOT, environment

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.filterwarnings("default")  # of the machinery that talks to the kernel
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_draws(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(path, as_version=4)
    kernel = NotebookClient(
        notebook, timeout=None, resources={"metadata": {"path": str(ROOT / "notebooks")}}
    )
    kernel.create_kernel_manager()
    launch = ["-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.km.kernel_spec.argv = [sys.executable, *launch]
    asyncio.run(kernel.async_execute())
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    drawn = {kind for output in shown for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= drawn
