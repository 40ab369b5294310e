"""`sightrail init`: every starter runs as it was written, beside the pictures that come with it."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from cli_helpers import run_cli
from serve_helpers import Scripted, completion, data_url, scripted


def started(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Write a starter and run it."""
    result = run_cli("init", kind, "--out", folder)
    assert result.exit_code == 0, result.output
    (path,) = folder.glob("*.py")
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    runpy.run_path(str(path), run_name="__main__")


def test_the_local_chain_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started("local", tmp_path, monkeypatch)
    printed = capsys.readouterr()
    bare, guarded = printed.out.splitlines()
    assert bare.split(maxsplit=1)[1].startswith("sure")
    assert not guarded.split(maxsplit=1)[1].startswith("sure")
    assert "flagged" in printed.err


def test_the_query_engine_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started("rag", tmp_path, monkeypatch)
    seen = capsys.readouterr().err
    assert "holiday.png: clean" in seen
    assert "souvenir.png: flagged" in seen


class Album(Scripted):
    """A hosted model that opens the souvenir, then says that it has seen it."""

    async def handle(self, request: Request) -> Response:
        call = {"name": "open_picture", "arguments": json.dumps({"name": "souvenir.png"})}
        calls = [{"id": "call_1", "type": "function", "function": call}]
        self.answer: Any = completion("I have seen it." if self.bodies else None)
        if not self.bodies:
            self.answer["choices"][0]["message"]["tool_calls"] = calls
        return await super().handle(request)


def test_the_hosted_agent_runs_as_written_and_its_model_gets_the_masked_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    monkeypatch.setenv("OPENAI_API_KEY", "none")
    upstream = Album()
    with scripted(upstream) as address:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
        started("hosted", tmp_path, monkeypatch)
    printed = capsys.readouterr()
    assert printed.out.strip() == "I have seen it."
    assert "flagged" in printed.err
    wire = json.dumps(upstream.bodies[1])
    assert "data:image/png;base64," in wire
    assert data_url(Image.open(tmp_path / "pictures" / "souvenir.png")) not in wire


def test_nothing_that_exists_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "holiday.png").write_bytes(b"mine")
    assert run_cli("init", "local", "--out", tmp_path).exit_code == 0
    (tmp_path / "guarded_chain.py").write_text("mine")
    result = run_cli("init", "local", "--out", tmp_path)
    assert result.exit_code == 64
    assert "exists" in result.stderr
    assert (tmp_path / "guarded_chain.py").read_text() == "mine"
    assert (tmp_path / "pictures" / "holiday.png").read_bytes() == b"mine"
