"""Where things lie in this repository, for tests about the repository itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
SOURCE_ROOTS: Final = tuple(ROOT / name for name in ("guardrails", "runnables", "integrations"))


def source_files() -> list[Path]:
    """Every file of the three source roots that belongs into the wheel."""
    return sorted(
        path
        for root in SOURCE_ROOTS
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )


def environment(*roots: Path, **more: str) -> dict[str, str]:
    """The environment for a child process that imports from these roots."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, roots or SOURCE_ROOTS)), **more}
