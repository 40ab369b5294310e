"""Exit statuses, and errors that end as one line on stderr instead of a traceback.

  0   clean                              64  the command line is wrong
  1   something was flagged              69  a model, encoder or setting is not usable
  2   something could not be inspected   74  a file could not be written

2 wins over 1: a run that did not see everything is not a finding, it is unfinished.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import typer
from rich.text import Text
from typer.core import TyperGroup

from sightrail.guardrails.errors import CheckpointError, SightrailError

from .consoles import stderr

CLEAN: Final = 0
FLAGGED: Final = 1
NOT_INSPECTED: Final = 2
USAGE: Final = 64
UNAVAILABLE: Final = 69
NOT_WRITTEN: Final = 74

_SMALLER: Final = (
    "Load the model in --dtype bfloat16, in --quantization 4bit or over several devices "
    "(--device-map auto), or give it smaller pictures."
)
_TYPER_USAGE: Final = 2  # typer's own status for a wrong command line; ours means something else


@contextmanager
def _statuses() -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise _ended(str(error), NOT_WRITTEN) from error
    except SightrailError as error:
        raise _ended(str(error), UNAVAILABLE) from error
    except OSError as error:
        if error.errno == errno.EPIPE:  # `sightrail ... | head`: typer ends this quietly
            raise
        raise _ended(str(error), NOT_WRITTEN) from error
    except typer.Exit:
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which may not be loaded
            raise _ended(f"Memory ran out: {error} {_SMALLER}", UNAVAILABLE) from error
        if getattr(error, "exit_code", None) == _TYPER_USAGE:
            error.exit_code = USAGE  # type: ignore[attr-defined]
        raise


def _ended(message: str, status: int) -> typer.Exit:
    stderr().print(
        Text.assemble(("error: ", "bold red"), " ".join(message.split())), soft_wrap=True
    )
    return typer.Exit(status)


class CommandGroup(TyperGroup):
    """The commands, with this module's exit statuses."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the options of the group itself."""
        with _statuses():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Parse and run a command."""
        with _statuses():
            return super().invoke(ctx)
