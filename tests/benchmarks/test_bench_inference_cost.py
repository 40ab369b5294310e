"""The cost benchmark counts, and its formula is the one that made the counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import bench_inference_cost as bench


def test_counts_follow_the_formula_and_the_arithmetic_gives_them_again() -> None:
    known = [700.0, 90.0, 3.0, 400_000.0, 2.0]
    found = []
    for size in bench.FAMILIES["LLaVA-1.5-7B"].measured:
        flops = sum(f * t for f, t in zip(known, bench.terms(*size), strict=True))
        start = bench.Measured("m", "bare", *size, round(flops), 1, 128, 700, 1.0)
        found.append(replace(start, seconds=2.0))
    solved, error = bench.factors(found)
    assert error < 1e-6
    assert solved == pytest.approx(known, rel=1e-3)
    assert set(bench.times(found)["bare"].values()) == {1.0}


def test_a_whole_model_is_counted_without_memory() -> None:
    model = bench.on_meta("LLaVA-1.5-7B")
    parameters = sum(weight.numel() for weight in model.parameters())
    assert 7.0e9 < parameters < 7.1e9
    words, wide = 32_064, 4096
    inside = parameters - 2 * words * wide - 0.33e9  # without embeddings, vision, projector
    steps = 640 + bench.ANSWER - 1
    # Two operations for each weight and token; attention adds a few percent.
    assert bench.bare_flops(model, 640) == pytest.approx(2 * inside * steps, rel=0.05)
    assert bench.vision_flops("LLaVA-1.5-7B", model) == pytest.approx(2 * 0.303e9 * 577, rel=0.1)
