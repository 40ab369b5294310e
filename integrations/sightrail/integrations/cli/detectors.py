"""What `screen` looks with: an encoder, the reader of text, a judge, or several of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.markup import escape

from sightrail.guardrails import Limits

from .consoles import stderr
from .models import load_detector

if TYPE_CHECKING:
    from sightrail.guardrails.judging import Judge
    from sightrail.guardrails.screening.asking import Detector

JUDGE_KEY: Final = "SIGHTRAIL_JUDGE_KEY"
"""Holds the key of the judge's address: a key on the command line is seen by every user."""


@dataclass(frozen=True)
class Wanted:
    """What the options of `screen` ask for.

    Attributes:
        encoder: of screening; None is the default one, or none where something else looks.
        device: of whatever is loaded.
        limits: what intake is willing to decode.
        settings: what `calibrate` wrote.
        seen_at: sizes of a model behind it.
        read: whether to read text.
        judge: an address with its version, or a local model.
        judge_model: the model's name at the address.
        judge_profile: how it is asked.
        judge_band: the screening scores between which the judge is asked; None: always.
        dtype: of whatever is loaded.
        judge_loading: how a local judge is loaded beside that, as ``load_model`` takes it.
    """

    encoder: str | None = None
    device: str | None = None
    limits: Limits = field(default_factory=Limits)
    settings: Path | None = None
    seen_at: tuple[int, ...] = ()
    read: bool = False
    judge: str | None = None
    judge_model: str = "default"
    judge_profile: str = "yes-no"
    judge_band: tuple[float, float] | None = None
    dtype: str | None = None
    judge_loading: Mapping[str, Any] = field(default_factory=dict)

    @property
    def judge_is_served(self) -> bool:
        """Whether the judge stands at an address."""
        return self.judge is not None and self.judge.startswith(("http://", "https://"))


def build_detector(wanted: Wanted) -> Detector:
    """One detector that does all of it.

    Raises:
        ConfigurationError: an option is not possible, or it needs another.
        ModelLoadError: an encoder or a judge cannot be loaded.
    """
    from sightrail.guardrails import Cascade, ConfigurationError, Together

    parts: list[Detector] = []
    if (not wanted.read and wanted.judge is None) or _screens(wanted):
        screening = load_detector(
            wanted.encoder, wanted.device, wanted.limits, wanted.settings, wanted.dtype
        )
        if wanted.seen_at:
            screening = screening.with_settings(seen_at=wanted.seen_at)
        parts.append(screening)
    judge = _judge(wanted)
    if wanted.judge_band is not None:
        if judge is None or not parts:
            raise ConfigurationError("--judge-band needs --judge, and --encoder for the scores")
        parts = [Cascade(parts[0], judge, wanted.judge_band, wanted.limits)]
    elif judge is not None:
        parts.append(judge)
    if wanted.read:
        parts.append(_reader(wanted))
    return parts[0] if len(parts) == 1 else Together(*parts, limits=wanted.limits)


def _screens(wanted: Wanted) -> bool:
    """Whether an encoder is asked for beside the reader or the judge."""
    return bool(wanted.encoder or wanted.settings or wanted.seen_at)


def _reader(wanted: Wanted) -> Detector:
    from sightrail.guardrails import TextInPicture

    return TextInPicture(limits=wanted.limits)


def _judge(wanted: Wanted) -> Detector | None:
    from sightrail.guardrails import ConfigurationError, JudgeDetector

    given = [name for name, value in wanted.judge_loading.items() if value]
    if given and (wanted.judge is None or wanted.judge_is_served):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigurationError(f"{options}: only a local model as --judge is loaded that way")
    if wanted.judge is None:
        return None
    ask = _served if wanted.judge_is_served else _local
    return JudgeDetector(ask(wanted, wanted.judge), limits=wanted.limits)


def _served(wanted: Wanted, address: str) -> Judge:
    from pydantic import SecretStr

    from sightrail.guardrails import Endpoint, EndpointJudge

    key = os.environ.get(JUDGE_KEY)
    endpoint = Endpoint(
        base_url=address,
        model=wanted.judge_model,
        api_key=None if key is None else SecretStr(key),
    )
    return EndpointJudge(endpoint, wanted.judge_profile)


def _local(wanted: Wanted, name: str) -> Judge:
    from sightrail.guardrails import LocalJudge
    from sightrail.guardrails.embedded import TESTBED, embedded_module
    from sightrail.guardrails.judging import judge_profile

    profile = (
        embedded_module("picture_judge").judge_profile("object")
        if name == TESTBED
        else judge_profile(wanted.judge_profile)
    )
    with stderr().status(f"Loading {escape(name)} ..."):
        return LocalJudge.from_pretrained(
            name, profile, device=wanted.device, dtype=wanted.dtype, **wanted.judge_loading
        )
