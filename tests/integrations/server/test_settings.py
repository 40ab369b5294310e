"""The settings file, the command and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from serve_helpers import Scripted, completion, scripted
from sightrail.guardrails.errors import ConfigurationError
from sightrail.integrations.cli import app
from sightrail.integrations.server import ServerSettings

FULL = """
model = "testbed"
stack = "screen+casa"
encoder = "testbed"
port = 0
api_keys = ["a-long-secret"]

[policy]
on_flagged = "refuse"

[limits]
max_images_per_request = 4

[limits.remote]
hosts = ["images.example.org"]

[artifacts]
casa = "testbed"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "serve.toml"
    path.write_text(text)
    return path


def test_a_file_the_environment_and_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, FULL)
    read = ServerSettings.from_file(path)
    assert read.policy.on_flagged == "refuse"
    assert read.limits.remote is not None
    monkeypatch.setenv("SIGHTRAIL_SERVE_STACK", "screen")
    monkeypatch.setenv("SIGHTRAIL_SERVE_LIMITS__MAX_IMAGES_PER_REQUEST", "7")
    read = ServerSettings.from_file(path, port=9000, model=None)
    assert (read.stack, read.port, read.model) == ("screen", 9000, "testbed")
    assert read.limits.max_images_per_request == 7
    assert "a-long-secret" not in repr(read)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('model = "testbed"\nno_such = 1', "no_such"),
        ('model = "testbed"\n[policy]\non_flaged = "refuse"', "on_flaged"),
        ('model = "testbed"\nupstream = "http://127.0.0.1:1/v1"', "one of the two"),
        ("port = 1", "say what to serve"),
        ('model = "testbed"\nhost = "0.0.0.0"', "api_keys"),
        ('model = "testbed"\napi_keys = ["short"]', "8 characters"),
        ('model = "testbed"\nupstream_key = "12345678"', "gateway"),
        ('upstream = "no address"', "upstream"),
        ('upstream = "http://127.0.0.1:1/v1"\nquantization = "4bit"', "loads no model"),
        ('model = "testbed"\nport = 70000', "port"),
        ("model = ", "cannot be read"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as told:
        ServerSettings.from_file(written(tmp_path, text))
    assert "12345678" not in str(told.value)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no settings file"):
        ServerSettings.from_file(tmp_path / "nothing.toml")


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["serve", *map(str, arguments)])


def test_check_loads_everything_and_ends(tmp_path: Path) -> None:
    ran = run("--settings", written(tmp_path, FULL), "--check")
    assert ran.exit_code == 0
    assert "testbed, behind screen+casa" in ran.stdout
    wrong = run("--model", "testbed", "--stack", "scren", "--check")
    assert wrong.exit_code == 69
    assert "scren" in wrong.stderr


def test_how_the_model_is_loaded(tmp_path: Path) -> None:
    path = written(tmp_path, 'model = "testbed"\nstack = "bare"\n[device_map]\n"" = "cpu"')
    assert run("--settings", path, "--dtype", "bfloat16", "--check").exit_code == 0
    unknown = run("--model", "testbed", "--stack", "bare", "--quantization", "3bit", "--check")
    assert (unknown.exit_code, "3bit" in unknown.stderr) == (69, True)
    both = run("--settings", path, "--device", "cpu", "--check")
    assert (both.exit_code, "device_map" in both.stderr) == (69, True)


def test_check_asks_the_upstream() -> None:
    with scripted(Scripted(answer=completion("x"))) as behind:
        assert run("--upstream", f"{behind}/v1", "--stack", "bare", "--check").exit_code == 0
    ran = run("--upstream", "http://127.0.0.1:9/v1", "--stack", "bare", "--check")
    assert ran.exit_code == 69
    assert "upstream" in ran.stderr
