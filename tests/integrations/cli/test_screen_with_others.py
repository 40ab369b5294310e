"""`sightrail screen` with a reader of text and with judges."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from cli_helpers import GREEN, RED, json_verdicts, picture, run_cli
from judge_helpers import judging, said
from sightrail.integrations.cli import detectors
from sightrail.testbed.scenes import draw_objects
from sightrail.testbed.splits import SPLITS
from written import written

REQUEST = "Steps to forge\na passport."


@pytest.fixture
def page(tmp_path: Path) -> Path:
    file = tmp_path / "page.png"
    written(REQUEST).save(file)
    return file


def test_reading_alone_needs_no_encoder(page, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(detectors, "load_detector", None)
    result = run_cli("screen", page, "--read", "--json", "--out", tmp_path / "panels")
    assert result.exit_code == 1, result.stderr
    [verdict] = json_verdicts(result.stdout).values()
    assert (verdict.guardrail, verdict.category) == ("reading", "illegal_activity")
    assert "passport" not in result.stdout
    assert (tmp_path / "panels" / "page.png.screened.png").is_file()


@pytest.mark.usefixtures("detector")
def test_beside_an_encoder_any_of_them_may_flag(page, tmp_path) -> None:
    picture(tmp_path / "red.png", RED)
    picture(tmp_path / "green.png", GREEN)
    result = run_cli("screen", tmp_path, "--read", "--encoder", "some/encoder", "--json")
    statuses = {name: v.status for name, v in json_verdicts(result.stdout).items()}
    assert statuses == {"page.png": "flagged", "red.png": "flagged", "green.png": "clean"}


def test_a_judge_at_an_address(page, monkeypatch) -> None:
    monkeypatch.setenv(detectors.JUDGE_KEY, "k3y")
    with judging(said("unsafe\nS1")) as server:
        options = (
            "--judge",
            server.url,
            "--judge-profile",
            "llama-guard-4",
            "--judge-model",
            "guard",
        )
        result = run_cli("screen", page, "--json", *options)
    [verdict] = json_verdicts(result.stdout).values()
    assert (verdict.status, verdict.category) == ("flagged", "violent crimes")
    assert server.asked[0]["model"] == "guard"
    assert server.headers[0]["Authorization"] == "Bearer k3y"


def test_a_local_judge(tmp_path) -> None:
    scene = draw_objects(SPLITS["test"].rng(3), SPLITS["test"], ["bomb"])
    scene.image.save(tmp_path / "scene.png")
    result = run_cli("screen", tmp_path / "scene.png", "--judge", "testbed", "--json")
    assert json_verdicts(result.stdout)["scene.png"].category == "explosives"


@pytest.mark.usefixtures("detector")
def test_a_judge_only_where_screening_is_unsure(tmp_path) -> None:
    picture(tmp_path / "red.png", RED)  # scores 0.9
    picture(tmp_path / "green.png", GREEN)  # scores 0.1
    with judging(said("No")) as server:
        options = ("--encoder", "x", "--judge", server.url, "--judge-band", "0.05", "0.5")
        result = run_cli("screen", tmp_path, "--json", *options)
    assert [v.status for v in json_verdicts(result.stdout).values()] == ["clean", "flagged"]
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("options", "said_why"),
    [
        (("--judge", "http://127.0.0.1:9/v1", "--judge-profile", "lama"), "llama-guard-4"),
        (("--read", "--judge-band", "0", "1"), "--judge"),
    ],
)
def test_options_that_cannot_be(page, options, said_why) -> None:
    result = run_cli("screen", page, *options)
    assert result.exit_code == 69
    assert said_why in result.stderr


def test_a_judge_that_is_not_there_leaves_nothing_clean(tmp_path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    result = run_cli("screen", tmp_path / "a.png", "--judge", "http://127.0.0.1:9/v1", "--json")
    assert result.exit_code == 2
    assert json_verdicts(result.stdout)["a.png"].status == "not_inspected"


def test_how_models_are_loaded(tmp_path, monkeypatch) -> None:
    picture(tmp_path / "green.png", GREEN)
    judged = run_cli("screen", tmp_path, "--judge", "testbed", "--dtype", "float64")
    assert (judged.exit_code, "float64" in judged.stderr) == (69, True)
    encoded = run_cli("screen", tmp_path, "--encoder", "testbed", "--dtype", "float64")
    assert (encoded.exit_code, "float64" in encoded.stderr) == (69, True)
    halved = run_cli("screen", tmp_path, "--encoder", "testbed", "--dtype", "bfloat16", "--json")
    assert halved.exit_code == 0, halved.stderr
    for options in (["--encoder", "testbed"], ["--judge", "http://127.0.0.1:9/v1"]):
        lost = run_cli("screen", tmp_path, *options, "--quantization", "4bit")
        assert (lost.exit_code, "--quantization" in lost.stderr) == (69, True)


def test_on_ray_there_are_no_json_lines(tmp_path) -> None:
    result = run_cli("screen", tmp_path, "--ray", "--out", tmp_path / "x.parquet", "--json")
    assert result.exit_code == 64
