"""Settings of the whole test run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

# Before torch is imported. The tests' models are so small that more threads only wait for each
# other: with one, the suite takes a fraction of the processor time, and workers share the cores.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
# Nothing is downloaded. Tokenizers warn when a process forks after they have used threads.
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

from repository import SHAPED  # noqa: E402

# The shapes and types in the signatures of the maths hold at every call. Before any is imported.
install_import_hook(SHAPED, "beartype.beartype")

# No test asserts how long something takes, so hypothesis does not either. The everyday run draws
# the same examples each time; the long one draws others.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("everyday", unhurried, derandomize=True)
settings.register_profile("long", unhurried, max_examples=500)
settings.load_profile("everyday")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
