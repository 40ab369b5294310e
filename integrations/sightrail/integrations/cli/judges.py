"""The judge of answers that a command line names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

if TYPE_CHECKING:
    from sightrail.guardrails.evaluation import Judge

KEY: Final = "SIGHTRAIL_JUDGE_API_KEY"


def judge_named(
    name: str | None,
    url: str | None,
    model: str | None,
    local: str | None,
    prompt: Path | None,
    *,
    pictures: bool,
    loading: Mapping[str, Any] | None = None,
) -> Judge | None:
    """The judge; None for the one that fits the source.

    Args:
        name: a list of words, or a profile of a judge model.
        url: an OpenAI-compatible address at which that model is asked.
        model: its name there.
        local: or a model to load here.
        prompt: a prompt of one's own.
        pictures: whether it sees the pictures.
        loading: how a model to load here is loaded, as ``load_model`` takes it.

    Raises:
        ConfigurationError: there is none of that name, or a setting is not possible.
        BadParameter: options that do not go together.
    """
    from sightrail.guardrails.evaluation.judge import KEYWORDS, KeywordJudge, ModelJudge
    from sightrail.guardrails.judging import Endpoint, EndpointJudge, LocalJudge, answer_profile

    if url is None and model is None and local is None:
        if name is not None and name not in KEYWORDS:
            raise typer.BadParameter(
                f"{name!r} is a judge model: say where it is (--judge-url and --judge-model, or "
                f"--judge-local). Lists of words are {', '.join(KEYWORDS)}."
            )
        return None if name is None else KeywordJudge(name)
    if name is None or (url is None) != (model is None) or (url is None) == (local is None):
        raise typer.BadParameter(
            "A judge model needs --judge PROFILE, and either --judge-url with --judge-model, or "
            "--judge-local."
        )
    profile = answer_profile(name, prompt)
    if local is not None:
        return ModelJudge(LocalJudge.from_pretrained(local, profile, **loading or {}), pictures)
    endpoint = Endpoint(base_url=url or "", model=model or "", api_key=os.environ.get(KEY) or None)
    return ModelJudge(EndpointJudge(endpoint, profile), pictures)
