"""The recipes under examples/deploy hold settings, commands and paths that work."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("pydantic_settings", reason="the serve extra is not installed")

from repository import ROOT
from sightrail.integrations.server import ServerSettings

DEPLOY = ROOT / "examples" / "deploy"
KEYS = ("a-key-for-this-test",)


def loaded(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def test_the_settings_files_are_settings() -> None:
    gateway = ServerSettings.from_file(DEPLOY / "gateway.toml", api_keys=KEYS)
    assert gateway.upstream is not None
    assert gateway.policy.on("tool").on_flagged == "drop"
    local = ServerSettings.from_file(DEPLOY / "local.toml")
    assert set(local.artifacts) == set(local.stack.split("+")) - {"screen"}


def test_the_gateway_is_where_the_recipes_say(monkeypatch: pytest.MonkeyPatch) -> None:
    (compose,) = loaded("docker-compose.yaml")
    deployment, service = loaded("kubernetes.yaml")
    settings = ServerSettings.from_file(DEPLOY / "gateway.toml", api_keys=KEYS)
    gateway = compose["services"]["gateway"]
    assert gateway["ports"] == [f"{settings.port}:{settings.port}"]
    assert str(settings.upstream) == "http://vllm:8000/v1"
    assert compose["services"]["vllm"]["expose"] == ["8000"]
    assert "ports" not in compose["services"]["vllm"]
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["ports"] == [{"containerPort": settings.port}]
    assert service["spec"]["ports"][0]["targetPort"] == settings.port
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert pod["terminationGracePeriodSeconds"] > settings.shutdown_s
    for named in (container["env"][0]["name"], *gateway["environment"]):
        monkeypatch.setenv(named, '["a-key-of-the-secret"]')
        assert len(ServerSettings.from_file(DEPLOY / "gateway.toml").api_keys) == 1


def test_the_calibration_is_where_the_gateway_looks_for_it() -> None:
    settings = ServerSettings.from_file(DEPLOY / "gateway.toml", api_keys=KEYS)
    assert settings.screening is not None
    name = settings.screening.name
    assert f"--out {name}" in (DEPLOY / "gateway.toml").read_text()
    (compose,) = loaded("docker-compose.yaml")
    assert f"./{name}:/srv/sightrail/{name}:ro" in compose["services"]["gateway"]["volumes"]
    assert f"--from-file={name}" in (DEPLOY / "kubernetes.yaml").read_text()
    assert "WORKDIR /srv/sightrail" in (DEPLOY / "Dockerfile").read_text()
    (proxy,) = loaded("litellm.yaml")
    local = ServerSettings.from_file(DEPLOY / "local.toml").screening
    told = proxy["guardrails"][0]["litellm_params"]["sightrail"]["screening"]
    assert {Path(told).name, local.name if local else ""} == {name}


def test_no_two_services_write_into_one_volume() -> None:
    (compose,) = loaded("docker-compose.yaml")
    named = [
        mount.partition(":")[0]
        for service in compose["services"].values()
        for mount in service["volumes"]
        if not mount.startswith(".")
    ]
    assert sorted(named) == sorted(compose["volumes"])


def commands() -> list[list[str]]:
    unit = (DEPLOY / "sightrail.service").read_text().splitlines()
    started = [shlex.split(line.partition("=")[2]) for line in unit if line.startswith("ExecStart")]
    (compose,) = loaded("docker-compose.yaml")
    image = [["sightrail", "serve", *compose["services"]["gateway"]["command"]]]
    return [command[1:] for command in started + image]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_the_commands_exist(command: list[str], tmp_path: Path) -> None:
    """Each ends at the settings file, which is not on this machine: the options are understood."""
    told = [str(tmp_path / "x.toml") if part.endswith(".toml") else part for part in command]
    run = [sys.executable, "-c", "from sightrail.integrations.cli import main; main()", *told]
    ran = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, "no settings file" in " ".join(ran.stderr.split())) == (69, True)


def test_the_guardrail_of_the_proxy_is_a_class() -> None:
    (config,) = loaded("litellm.yaml")
    named = config["guardrails"][0]["litellm_params"]
    module, _, name = named["guardrail"].rpartition(".")
    path = ROOT / "integrations" / Path(*module.split(".")).with_suffix(".py")
    assert f"class {name}" in path.read_text()
