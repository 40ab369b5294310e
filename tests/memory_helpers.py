"""How much memory a piece of code takes at its peak, decoders' own buffers included."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MIB = 1024


def resident() -> tuple[int, int]:
    """What this process holds now, and held at the most, in KiB; Linux alone tells."""
    status = STATUS.read_text(encoding="ascii")
    now, peak = (re.search(rf"{name}:\s*(\d+) kB", status) for name in ("VmRSS", "VmHWM"))
    assert now is not None
    assert peak is not None
    return int(now[1]), int(peak[1])


@contextmanager
def at_most(kib: int) -> Iterator[None]:
    """Fails where the code in it makes the process grow by more than this at any moment.

    Elsewhere than on Linux nothing is measured: nobody forgets an earlier peak there.
    """
    if not FORGET.exists():
        yield
        return
    FORGET.write_text("5", encoding="ascii")  # the peak starts again from here
    before, _ = resident()
    yield
    grown = resident()[1] - before
    assert grown <= kib, f"grew by {grown} KiB, more than {kib}"
