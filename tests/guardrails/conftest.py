"""Fixtures of the library's tests."""

from __future__ import annotations

import pytest

from tiny_models import every_family


@pytest.fixture(params=every_family())
def family(request: pytest.FixtureRequest) -> str:
    """Every model family there is a tiny model of."""
    return str(request.param)
