"""``sightrail serve``: an OpenAI-compatible API with the guardrails in it.

``app`` wires the routes; ``local`` answers from a model with the guardrails inside, ``gateway``
stands in front of another server (``upstream``); ``door`` is what every request passes first.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sightrail.guardrails.errors import MissingDependencyError

if TYPE_CHECKING:
    from .app import create_app
    from .settings import ServerSettings
    from .upstream import check_upstream

__all__ = ["ServerSettings", "check_upstream", "create_app"]

_HOME = {"ServerSettings": "settings", "check_upstream": "upstream", "create_app": "app"}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{home}", __name__), name)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"sightrail serve needs {error.name}; install it with: pip install 'sightrail[serve]'"
        ) from error
