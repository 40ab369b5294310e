"""Guardrails for LangChain's agents, callbacks and LangGraph.

Every name is loaded when it is first used; the middleware and the nodes need the package
``langchain`` (``pip install "sightrail[langchain]"``), the callbacks only ``langchain-core``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from sightrail.guardrails.errors import MissingDependencyError

if TYPE_CHECKING:
    from .callbacks import GuardrailCallbackHandler
    from .middleware import ImageGuardMiddleware
    from .nodes import GuardedState, ImageGuardNodes
    from .transcript import ImageRecord

_HOME: Final = {
    "GuardedState": "nodes",
    "GuardrailCallbackHandler": "callbacks",
    "ImageGuardMiddleware": "middleware",
    "ImageGuardNodes": "nodes",
    "ImageRecord": "transcript",
}

__all__ = [
    "GuardedState",
    "GuardrailCallbackHandler",
    "ImageGuardMiddleware",
    "ImageGuardNodes",
    "ImageRecord",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{home}", __name__), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("langchain", "langgraph"):
            raise
        raise MissingDependencyError(
            f'{name} needs the package langchain; install it: pip install "sightrail[langchain]"'
        ) from error


def __dir__() -> list[str]:
    return sorted(__all__)
