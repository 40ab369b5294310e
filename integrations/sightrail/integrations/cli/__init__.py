"""The command line: `sightrail screen`, `demo`, `eval` and `chat`."""

from .app import app

main = app
"""What the console script calls."""

__all__ = ["app", "main"]
