"""A detector as a setting of LlamaIndex components: checked, and told apart in caches."""

from __future__ import annotations

import re
import uuid
from hashlib import sha256
from typing import Annotated, Any

from pydantic import AfterValidator, PlainSerializer

from sightrail.guardrails.errors import ConfigurationError


def checked(detector: Any) -> Any:
    """The detector.

    Raises:
        ConfigurationError: it is none.
    """
    if not callable(getattr(detector, "screen", None)):
        raise ConfigurationError(
            f"{type(detector).__name__} is no detector: it has no method screen(images). "
            'Pass one such as RiskDetector.from_pretrained("ViT-L-14-336/openai").'
        )
    return detector


def fingerprint(detector: Any) -> str:
    """Tells detectors and their settings apart, in caches and across processes.

    It is made of the detector's repr. One that shows an address in memory says nothing about
    settings, so such a detector gets another fingerprint each time, and no cache answers for it.
    """
    told = repr(detector)
    if re.search(r" at 0x[0-9a-fA-F]+", told):
        told = uuid.uuid4().hex
    return f"{type(detector).__name__}-{sha256(told.encode()).hexdigest()[:16]}"


DetectorField = Annotated[
    Any, AfterValidator(checked), PlainSerializer(fingerprint, return_type=str)
]
"""In a component's serialised form, a detector is its fingerprint."""
