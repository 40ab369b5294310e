"""Corpora with Ray (``screen_corpus``), and the server with replicas (``serve_application``)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sightrail.guardrails.errors import MissingDependencyError

if TYPE_CHECKING:
    from .corpus import CorpusSettings, screen_corpus, statuses
    from .replicas import serve_application

_HOME = {
    "CorpusSettings": "corpus",
    "screen_corpus": "corpus",
    "serve_application": "replicas",
    "statuses": "corpus",
}
__all__ = ["CorpusSettings", "screen_corpus", "serve_application", "statuses"]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{home}", __name__), name)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"This needs {error.name}; install it with: pip install 'sightrail[ray,serve]'"
        ) from error
