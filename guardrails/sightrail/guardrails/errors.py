"""Every error this library raises on purpose. Each message names the remedy.

SightrailError
  x ConfigurationError      (ValueError)    a setting or argument is not possible
  x ImageError              (ValueError)    a picture cannot be read
  x ImageRefused                            the policy asked for an exception instead of a refusal
  x RequestRefused                          the same, about a request as a whole
  x DeadlineExceeded        (TimeoutError)  an answer was not there in time
  x ModelLoadError          (RuntimeError)  a model, encoder or processor cannot be loaded
  x UnsupportedModelError                   a defence needs something this model cannot give
  x FitMemoryError          (RuntimeError)  a fit does not fit into memory
  x CheckpointError         (OSError)       the state of a fit cannot be written, or read again
  x PromptError             (ValueError)    the conversation cannot be turned into a prompt
  x Abandoned                               the caller's own event ended the request
  x ArtifactError                           a saved artifact is unreadable or made for another model
  x MissingDependencyError  (ImportError)   an optional package is not installed

A refusal is a value (a verdict and a refusal text), not an error, unless the policy says
otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

__all__ = [
    "Abandoned",
    "ArtifactError",
    "CheckpointError",
    "ConfigurationError",
    "DeadlineExceeded",
    "FitMemoryError",
    "ImageError",
    "ImageRefused",
    "MissingDependencyError",
    "ModelLoadError",
    "PromptError",
    "RequestRefused",
    "SightrailError",
    "UnsupportedModelError",
]


class SightrailError(Exception):
    """Base of every error raised on purpose by sightrail."""


class ConfigurationError(SightrailError, ValueError):
    """A setting or argument is not possible; the message says what was given and what is."""


class ImageError(SightrailError, ValueError):
    """A picture cannot be read.

    Attributes:
        reason: a short reason without the picture or its path, safe for logs.
        detail: one sentence more, as safe.
    """

    def __init__(self, message: str, *, reason: str | None = None, detail: str = "") -> None:
        super().__init__(message)
        self.reason = message if reason is None else reason
        self.detail = detail

    @classmethod
    def because(cls, reason: str, detail: str) -> Self:
        """The error for a stable reason (`too_large`) and a sentence about it."""
        return cls(f"{reason}: {detail}", reason=reason, detail=detail)


class ImageRefused(SightrailError):  # noqa: N818 - a decision, not a failure
    """The policy's action is ``raise`` and a picture was not allowed.

    Attributes:
        verdicts: the verdicts that led here, one per picture looked at.
    """

    def __init__(self, message: str, *, verdicts: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.verdicts = tuple(verdicts)


class RequestRefused(SightrailError):  # noqa: N818 - a decision, not a failure
    """The policy's ``on_unsafe_request`` is ``raise`` and a guardrail decided against a request.

    Attributes:
        verdicts: the verdicts on the request.
    """

    def __init__(self, message: str, *, verdicts: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.verdicts = tuple(verdicts)


class Abandoned(SightrailError):  # noqa: N818 - an end that somebody asked for, no failure
    """Nobody waits for the answer any more, so what was done towards it was given up.

    Raised to a call that was given an event to be cancelled by. A stream that was cancelled just
    ends.
    """


class DeadlineExceeded(SightrailError, TimeoutError):  # noqa: N818 - as gRPC and httpx name it
    """An answer was not there by the deadline that its caller set; the message says what to do."""


class ModelLoadError(SightrailError, RuntimeError):
    """A model, encoder or processor cannot be loaded; the message says how to provide it."""


class UnsupportedModelError(SightrailError):
    """A defence needs something this model cannot give; the message lists what can."""


class FitMemoryError(SightrailError, RuntimeError):
    """Memory ran out in a fit even with one request at a time; the message says what to change.

    What was done is kept where the fit was given a checkpoint, and the same call goes on from it.
    """


class CheckpointError(SightrailError, OSError):
    """The state of a fit cannot be written, or cannot be read again.

    What was kept before stays as it was: the same call goes on from there, once there is room.
    """


class PromptError(SightrailError, ValueError):
    """The conversation cannot be turned into a prompt.

    Raised for an empty message list, more images than placeholders, a prompt longer than the
    context, an empty instruction where one is needed, and spans that cannot be found.
    """


class ArtifactError(SightrailError):
    """A saved artifact is unreadable, or was made for another base model."""


class MissingDependencyError(SightrailError, ImportError):
    """An optional package is not installed; the message gives the install command."""
