"""The benchmark and the report run, and their parts are what their names say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import bench_moras, moras_results


def test_the_benchmark_reports_every_way(tmp_path: Path) -> None:
    out = tmp_path / "moras.json"
    arguments = ["--size", "testbed", "--device", "cpu", "--repeats", "1", "--new-tokens", "3"]
    bench_moras.main([*arguments, "--out", str(out)])
    result = json.loads(out.read_text())["cost"]["testbed"]
    for part in ("first_token", "whole"):
        assert set(result[part]) == {"bare", "plain", "shared", "default", "drafted"}
        assert all(way["median_ms"] > 0 for way in result[part].values())
        assert result[part]["bare"]["ratio_to_bare"] == 1


@pytest.mark.filterwarnings("ignore:.*:UserWarning:matplotlib")  # fonts of the machine
def test_the_report_measures_and_draws(tmp_path: Path) -> None:
    out, drawn = tmp_path / "moras.json", tmp_path / "moras.png"
    out.write_text(json.dumps({"cost": {"kept": 1}}))
    arguments = ["--n", "2", "--only", "moras", "--out", str(out), "--plot", str(drawn)]
    moras_results.main(arguments)
    report = json.loads(out.read_text())
    assert report["cost"] == {"kept": 1}
    measured = {(row["metric"], row["group"]) for row in report["testbed"]["rows"]}
    assert {("attack_success", "picture"), ("over_refusal", "lookalike")} <= measured
    assert 0 <= report["testbed"]["separation"]["risk"]["picture"]["auroc"] <= 1
    assert drawn.stat().st_size > 10_000
