"""Models loaded by name, once for all chat models that were made from one another."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightrail.guardrails import LocalLVLM


class ModelShelf:
    """Keeps what was loaded as long as somebody keeps the shelf.

    A chat model shares its shelf with its copies, so that a call with other settings
    (``with_config(configurable=...)``) does not load the weights again.
    """

    def __init__(self) -> None:
        self._models: dict[tuple[str, str, str], LocalLVLM] = {}
        self._lock = threading.Lock()

    def get(self, name: str, device: Any, dtype: Any) -> LocalLVLM:
        """The model of that name, loaded at the first call.

        Raises:
            ModelLoadError: it cannot be loaded.
        """
        key = (name, str(device), str(dtype))
        with self._lock:
            if key not in self._models:
                from sightrail.guardrails import LocalLVLM

                self._models[key] = LocalLVLM.from_pretrained(name, device=device, dtype=dtype)
            return self._models[key]
