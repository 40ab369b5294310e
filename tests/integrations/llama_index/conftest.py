"""What the LlamaIndex tests share: every carrier there is, on LlamaIndex's own classes."""

from __future__ import annotations

import pytest

from chain_helpers import RedDetector


@pytest.fixture
def detector() -> RedDetector:
    return RedDetector()
