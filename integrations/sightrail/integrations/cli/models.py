"""Loading what a command needs, with a notice where the testbed is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.markup import escape

from .consoles import stderr

if TYPE_CHECKING:
    import torch

    from sightrail.guardrails import Limits, LocalLVLM, RiskDetector

# How a model is loaded: options of every command that loads one.
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps ...")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, float16 or bfloat16.")]
DeviceMap = Annotated[str | None, typer.Option(help="auto, balanced ...")]
Quantization = Annotated[str | None, typer.Option(help="4bit or 8bit.")]
Revision = Annotated[str | None, typer.Option(help="Commit, branch or tag.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
]

# What a model is guarded with: options of every command that builds a stack by name.
ScreeningEncoder = Annotated[
    str | None,
    typer.Option(envvar="SIGHTRAIL_ENCODER", help="The screening encoder, as for screen."),
]
MorasFolder = Annotated[str | None, typer.Option(help="Folder of a MoRAS artifact.")]
CasaFolder = Annotated[str | None, typer.Option(help="Folder of a CASA artifact.")]
DavspFolder = Annotated[str | None, typer.Option(help="Folder of a DAVSP artifact.")]
EvidenceFolder = Annotated[
    str | None, typer.Option(help="Folder of what calibrate --stack wrote, for the stack all.")
]

EXAMPLE_ENCODER: Final = "ViT-L-14-336/openai"

_TESTBED_NOTICE: Final = (
    "note: the embedded testbed encoder knows only its own mini world of drawn scenes; on any "
    "other picture its verdict means nothing. Name a real one, for example: --encoder {example}"
)


def load_detector(
    encoder: str | None,
    device: str | None,
    limits: Limits | None = None,
    settings: Path | None = None,
    dtype: str | None = None,
) -> RiskDetector:
    """The detector on the named encoder (None: the default real one), within these limits.

    Raises:
        ModelLoadError: the encoder cannot be loaded.
        ConfigurationError: the settings file is unusable, or there is no such number format.
    """
    from sightrail.guardrails import RiskDetector  # loads torch
    from sightrail.guardrails.screening.settings import ScreeningSettings

    own = None if settings is None else ScreeningSettings.from_file(settings)
    with stderr().status(f"Loading {escape(encoder or 'the encoder')} ..."):
        detector = RiskDetector.from_pretrained(
            encoder, settings=own, limits=limits, device=device, dtype=_number_format(dtype)
        )
    if detector.is_testbed:
        notice = _TESTBED_NOTICE.format(example=EXAMPLE_ENCODER)
        stderr().print(notice, style="yellow", soft_wrap=True, markup=False)
    return detector


def _number_format(dtype: str | None) -> torch.dtype | None:
    """An encoder's number format; ``auto`` is the one it is used in by default."""
    import torch

    from sightrail.guardrails import ConfigurationError
    from sightrail.guardrails.model.loading import DTYPES

    if dtype is not None and dtype not in DTYPES:
        raise ConfigurationError(f"Unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}.")
    return None if dtype in (None, "auto") else getattr(torch, dtype)


def load_model(
    name: str, guardrails: Sequence[Any] = (), device: str | None = None, **how: Any
) -> LocalLVLM:
    """The local model by name or folder; ``how`` as ``LocalLVLM.from_pretrained`` takes it.

    Raises:
        ModelLoadError: it cannot be loaded.
    """
    from transformers.utils import logging

    from sightrail.guardrails import LocalLVLM

    logging.disable_progress_bar()  # the status below says it, and stderr stays readable in logs
    with stderr().status(f"Loading {escape(name)} ..."):
        return LocalLVLM.from_pretrained(name, guardrails=guardrails, device=device, **how)
