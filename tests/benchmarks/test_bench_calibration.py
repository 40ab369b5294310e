"""The benchmark runs, and its four ways do what their names say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import bench_calibration


@pytest.mark.filterwarnings("ignore:.*:UserWarning:torch")  # no warning of ours is hidden
def test_the_benchmark_reports_every_way(tmp_path: Path) -> None:
    out = tmp_path / "calibration.json"
    arguments = ["--size", "testbed", "--device", "cpu", "--repeats", "1", "--new-tokens", "3"]
    bench_calibration.main([*arguments, "--out", str(out)])
    result = json.loads(out.read_text())
    assert result["prompt_tokens"] == 64 + 66
    for part in ("prefill", "whole"):
        assert set(result[part]) == set(bench_calibration.WAYS)
        assert all(way["median_ms"] > 0 for way in result[part].values())
    assert result["prefill"]["bare"]["ratio_to_bare"] == 1
