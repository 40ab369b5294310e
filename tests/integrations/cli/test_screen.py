"""`sightrail screen`: which files, which lines, which exit status."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from cli_helpers import GREEN, RED, FirstPixelDetector, json_verdicts, picture, run_cli
from sightrail.guardrails import Limits, ModelLoadError, NotInspected, Verdict
from sightrail.integrations.cli.screen import exit_status

pytestmark = pytest.mark.usefixtures("detector")


# Exit status


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([], 0),
        (["clean"], 0),
        (["clean", "flagged"], 1),
        (["flagged", "not_inspected"], 2),
        (["not_inspected", "flagged"], 2),
        (["failed"], 2),
    ],
)
def test_what_was_not_inspected_wins_over_what_was_flagged(
    statuses: list[str], expected: int
) -> None:
    verdicts = [Verdict(status=status) for status in statuses]  # type: ignore[arg-type]
    assert exit_status(verdicts) == expected


def test_a_picture_seen_in_part_is_not_clean() -> None:
    partly = Verdict(status="clean", not_inspected=(NotInspected(reason="too_many_frames"),))
    assert exit_status([partly]) == 2


def test_single_files(album: Path) -> None:
    assert run_cli("screen", album / "b-clean.png").exit_code == 0
    assert run_cli("screen", album / "below" / "a-flagged.png").exit_code == 1
    assert run_cli("screen", album / "c-broken.png").exit_code == 2
    assert run_cli("screen", album / "missing.png").exit_code == 2
    assert run_cli("screen", album).exit_code == 2


# Which files


def test_a_folder_is_read_recursively_in_a_stable_order(album: Path) -> None:
    found = json_verdicts(run_cli("screen", album, "--json").stdout)
    assert list(found) == ["b-clean.png", "a-flagged.png", "c-broken.png"]
    assert [verdict.status for verdict in found.values()] == ["clean", "flagged", "not_inspected"]
    assert found["c-broken.png"].not_inspected[0].reason == "not_an_image"


def test_hidden_files_are_skipped_and_counted(album: Path) -> None:
    (album / ".hidden").mkdir()
    picture(album / ".hidden" / "inside.png", RED)
    picture(album / ".secret.png", RED)
    result = run_cli("screen", album, "--json")
    assert len(json_verdicts(result.stdout)) == 3
    assert "skipped 2 hidden entries" in result.stderr


def test_a_hidden_file_that_is_named_is_screened(tmp_path: Path) -> None:
    assert run_cli("screen", picture(tmp_path / ".secret.png", RED)).exit_code == 1


def test_nothing_is_screened_twice(album: Path) -> None:
    result = run_cli("screen", album, album / "b-clean.png", album, "--json")
    assert len(result.stdout.splitlines()) == 3


def test_links_are_followed_inside_the_folder_and_not_in_circles(
    album: Path, tmp_path: Path
) -> None:
    inside = album / "inside"
    inside.mkdir()
    picture(inside / "linked.png", RED)
    (album / "link.png").symlink_to(inside / "linked.png")
    (inside / "back").symlink_to(album)
    found = json_verdicts(run_cli("screen", album, "--json").stdout)
    assert found["link.png"].status == "flagged"
    assert len(found) == 5


def test_links_that_lead_out_of_the_folder_are_skipped_and_counted(
    album: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    picture(elsewhere / "private.png", RED)
    (album / "door").symlink_to(elsewhere)
    (album / "window.png").symlink_to(elsewhere / "private.png")
    (album / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    result = run_cli("screen", album, "--json")
    assert "skipped 3 links that lead out of the folder" in result.stderr
    assert not {"private.png", "window.png", "dangling.png"} & json_verdicts(result.stdout).keys()
    named = run_cli("screen", album / "window.png", "--json")
    assert json_verdicts(named.stdout)["window.png"].status == "flagged"


def test_a_name_cannot_write_on_the_terminal(album: Path) -> None:
    hostile = "a\x1b]0;owned\x07\x1b[2K\nclean  forged.png\u202egnp.png"
    picture(album / hostile, RED)
    result = run_cli("screen", album)
    assert "forged" in result.stdout
    assert not [line for line in result.stdout.splitlines() if line.startswith("clean  forged")]
    assert not {"\x1b", "\x07", "\u202e"} & set(result.stdout)
    assert "\\x1b" in result.stdout


def test_output_never_goes_through_a_link(album: Path, tmp_path: Path) -> None:
    victim, out = tmp_path / "victim.txt", tmp_path / "out"
    victim.write_text("mine")
    out.mkdir()
    for found in album.rglob("*.png"):
        (out / f"{found.name}.screened.png").symlink_to(victim)
    run_cli("screen", album, "--out", out)
    assert victim.read_text() == "mine"
    assert [path for path in out.iterdir() if not path.is_symlink()]
    assert {path.suffix for path in out.iterdir()} == {".png"}


def test_a_folder_that_cannot_be_listed_is_reported(
    album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def forbidding(path: str) -> object:
        if str(path).endswith("below"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", forbidding)
    found = json_verdicts(run_cli("screen", album, "--json").stdout)
    assert found["below"].not_inspected[0].reason == "not_a_file"


def test_an_empty_folder_says_that_nothing_was_screened(tmp_path: Path) -> None:
    result = run_cli("screen", tmp_path)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "nothing to screen" in result.stderr


# Output


def test_json_is_alone_on_stdout(album: Path) -> None:
    result = run_cli("screen", album, "--json")
    for line in result.stdout.splitlines():
        json.loads(line)
    assert "3 files: 1 clean, 1 flagged, 1 not inspected" in result.stderr


def test_people_get_one_line_per_file(album: Path) -> None:
    result = run_cli("screen", album)
    clean, flagged, broken = result.stdout.splitlines()
    assert clean.split() == ["clean", f"{album}/b-clean.png", "weapons", "0.100", "<", "0.500"]
    assert "weapons 0.900 >= 0.500" in flagged
    assert broken.startswith("not inspected")
    assert "not_an_image" in broken


@pytest.mark.parametrize(
    "name", ["[red]bold.png", "[nonsense=].png", "a b.png", "ümläut.png", "$x^2$.png", "-x"]
)
def test_odd_names_are_shown_as_they_are(name: str, tmp_path: Path) -> None:
    if name == "-x":
        Image.new("RGB", (40, 30), GREEN).save(tmp_path / name, format="PNG")
    else:
        picture(tmp_path / name, GREEN)
    result = run_cli("screen", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert name in result.stdout


def test_a_name_that_is_no_text_is_shown_and_named_in_json(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    picture(path, GREEN)
    shown = run_cli("screen", tmp_path, "--out", tmp_path / "out")
    assert shown.exit_code == 0, shown.output
    assert "caf\N{REPLACEMENT CHARACTER}.png" in shown.stdout
    (line,) = run_cli("screen", path, "--json").stdout.splitlines()
    assert Path(json.loads(line)["path"]) == path


# Errors


def test_one_broken_batch_does_not_stop_the_rest(
    detector: FirstPixelDetector, tmp_path: Path
) -> None:
    for number in range(40):
        picture(tmp_path / f"{number:02}.png", (1, 2, 3) if number == 20 else GREEN)
    detector.explode_on = (1, 2, 3)
    result = run_cli("screen", tmp_path, "--json")
    found = json_verdicts(result.stdout)
    assert result.exit_code == 2
    assert detector.batches == [16, 16, 8]
    assert [v.status for v in found.values()] == ["clean"] * 16 + ["failed"] * 16 + ["clean"] * 8
    assert "secret detail" not in result.output


def test_large_pictures_travel_in_smaller_batches(
    detector: FirstPixelDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sightrail.integrations.cli.batches._MAX_PIXELS", 3000)
    for number in range(5):
        picture(tmp_path / f"{number}.png", GREEN)  # 1200 pixels each
    assert run_cli("screen", tmp_path).exit_code == 0
    assert detector.batches == [3, 2]


@pytest.mark.parametrize(
    "arguments",
    [["screen"], ["screen", "--mask", "paint", "x.png"], ["screen", "--nothing"], ["nothing"]],
)
def test_a_wrong_command_line_has_a_status_of_its_own(arguments: list[str]) -> None:
    result = run_cli(*arguments)
    assert result.exit_code == 64
    assert "Traceback" not in result.output


def test_an_encoder_that_cannot_be_loaded_is_one_line(
    album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ModelLoadError("The encoder 'nonsense' cannot be loaded.\nName another one.")

    monkeypatch.setattr("sightrail.integrations.cli.detectors.load_detector", fail)
    result = run_cli("screen", album, "--encoder", "nonsense", "--json")
    assert result.exit_code == 69
    assert result.stdout == ""
    assert result.stderr.strip() == (
        "error: The encoder 'nonsense' cannot be loaded. Name another one."
    )


def test_an_output_that_cannot_be_written_is_one_line(album: Path) -> None:
    result = run_cli("screen", album, "--out", album / "c-broken.png" / "out")
    assert result.exit_code == 74
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_encoder_is_named_by_option_or_environment(
    album: Path, monkeypatch: pytest.MonkeyPatch, detector: FirstPixelDetector
) -> None:
    asked: list[tuple[object, ...]] = []

    def note(*arguments: object) -> FirstPixelDetector:
        asked.append(arguments)
        return detector

    monkeypatch.setattr("sightrail.integrations.cli.detectors.load_detector", note)
    run_cli("screen", album)
    run_cli("screen", album, SIGHTRAIL_ENCODER="testbed")
    run_cli("screen", album, "--encoder", "a/b", "--device", "cpu", SIGHTRAIL_ENCODER="testbed")
    assert [named[:2] for named in asked] == [(None, None), ("testbed", None), ("a/b", "cpu")]


def test_limits_reach_the_detector(
    album: Path, monkeypatch: pytest.MonkeyPatch, detector: FirstPixelDetector
) -> None:
    asked: list[Limits] = []

    def note(
        encoder: object, device: object, limits: Limits, settings: object, dtype: object
    ) -> FirstPixelDetector:
        asked.append(limits)
        return detector

    monkeypatch.setattr("sightrail.integrations.cli.detectors.load_detector", note)
    run_cli("screen", album, "--max-pixels", "99", "--max-frames", "7")
    assert [(one.max_pixels, one.max_frames) for one in asked] == [(99, 7)]
    assert run_cli("screen", album, "--seen-at", "4").exit_code == 64


# Pictures of the verdicts


def test_out_writes_a_panel_per_picture(album: Path, tmp_path: Path) -> None:
    out = tmp_path / "panels"
    result = run_cli("screen", album, "--out", out)
    assert result.exit_code == 2
    assert sorted(path.name for path in out.iterdir()) == [
        "a-flagged.png.screened.png",
        "b-clean.png.screened.png",
    ]
    assert "2 pictures in" in result.stderr
    for path in out.iterdir():
        with Image.open(path) as panel:
            assert panel.width > 2 * panel.height


def test_equal_names_get_numbers(tmp_path: Path) -> None:
    for folder in ("one", "two", "three"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        picture(tmp_path / "in" / folder / "cat.png", GREEN)
    out = tmp_path / "out"
    run_cli("screen", tmp_path / "in", "--out", out)
    assert sorted(path.name for path in out.iterdir()) == [
        "cat.png-2.screened.png",
        "cat.png-3.screened.png",
        "cat.png.screened.png",
    ]


def test_the_pictures_themselves_are_never_written_to(tmp_path: Path) -> None:
    one = picture(tmp_path / "cat.png", GREEN)
    other = picture(tmp_path / "cat.png.screened.png", RED)
    before = one.read_bytes(), other.read_bytes()
    run_cli("screen", tmp_path, "--out", tmp_path)
    assert (one.read_bytes(), other.read_bytes()) == before
    assert (tmp_path / "cat.png-2.screened.png").exists()


@pytest.mark.parametrize("mask", ["fill", "blur"])
def test_a_panel_shows_the_picture_covered(mask: str, album: Path, tmp_path: Path) -> None:
    flagged = album / "below" / "a-flagged.png"
    assert run_cli("screen", flagged, "--out", tmp_path / "out", "--mask", mask).exit_code == 1


def test_a_large_picture_has_a_small_panel(tmp_path: Path) -> None:
    Image.new("RGB", (4000, 200), RED).save(tmp_path / "wide.png")
    assert run_cli("screen", tmp_path / "wide.png", "--out", tmp_path / "out").exit_code == 1
    with Image.open(tmp_path / "out" / "wide.png.screened.png") as panel:
        assert max(panel.size) < 2000
