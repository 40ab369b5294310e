"""Keeping pictures and words out of the traces of the guard's own steps."""

from __future__ import annotations

from typing import Any


def without_payload() -> Any:
    """A trace policy that records that a hook ran and how long, not the transcript it saw.

    None where the installed langchain has no such policies yet.
    """
    try:
        from langchain.agents.middleware import TracePolicy, omit_payload
    except ImportError:
        return None
    return TracePolicy(process_inputs=omit_payload, process_outputs=omit_payload)
