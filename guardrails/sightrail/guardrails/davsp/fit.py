"""Training a visual safety prompt for a model, from examples to a border that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from ..errors import ConfigurationError
from ..fitting import FitData, FitMethod, Fitted, Report, Resources
from ..fitting.memory import frozen, in_pieces
from ..fitting.run import FitRun
from ..progress import Progress, silent
from .border import AroundPicture
from .fit import BorderLearner, BorderLoss
from .harmfulness import Direction, choose_direction
from .preprocess import DifferentiablePreprocessing
from .report import measure_held_out
from .requests import TOGETHER, PictureRequest, Reader, prepare_requests
from .settings import DavspSettings
from .visual_safety_prompt import VisualSafetyPrompt

if TYPE_CHECKING:
    from ..model import LocalLVLM

REFERENCE_CANVAS: Final = (336, 336)
"""Canvas of a relative border, which is scaled to each picture's own size."""

LEAST: Final = 8
"""Examples of each label, and refused harmful ones: fewer give no direction worth the name."""


@dataclass(frozen=True)
class TrainedBorder:
    """A trained border and what it was trained with.

    Attributes:
        prompt: the guardrail.
        requests: what it was trained on.
        loss: what was lowered; its ``direction`` has layer, vector and margins.
    """

    prompt: VisualSafetyPrompt
    requests: tuple[PictureRequest, ...]
    loss: BorderLoss


def fit_davsp(
    lvlm: LocalLVLM,
    data: FitData,
    settings: DavspSettings | None = None,
    *,
    progress: Progress = silent,
    checkpoint: Path | None = None,
    resources: Resources | None = None,
) -> Fitted:
    """Train a border around every picture (DAVSP) that brings out what the model knows of harm.

    See ``fitting.Fit``. What has no picture is left out and counted. ``data.held_out`` is measured
    before and after.

    Raises:
        UnsupportedModelError: the model's image preprocessing cannot be differentiated through.
        ConfigurationError: the examples do not suffice, or a setting does not fit the model.
        FitMemoryError: not even one request at a time fits into memory.
    """
    chosen = settings or DavspSettings()
    # Before anything is kept: a model whose pictures cannot be trained through is refused.
    DifferentiablePreprocessing(lvlm.processor.image_processor)
    run = FitRun.begin(
        "davsp",
        lvlm,
        data,
        chosen,
        progress=progress,
        checkpoint=checkpoint,
        resources=resources,
    )
    trained = train_border(run, chosen)
    report = measure_held_out(trained, run) if data.held_out else Report()
    assert trained.prompt.manifest is not None
    kept = {name: round(value, 4) for name, value in report.results.items()}
    results = trained.prompt.manifest.results | kept
    manifest = trained.prompt.manifest.model_copy(update={"results": results})
    prompt = replace(trained.prompt, manifest=manifest)
    files = {"border.png": prompt.to_png, **report.files}
    return Fitted(prompt.artifact, prompt, Report(report.results, files))


def train_border(run: FitRun, settings: DavspSettings) -> TrainedBorder:
    """Prepare the requests, find the direction, and train."""
    images = run.lvlm.processor.image_processor
    preprocessing = DifferentiablePreprocessing(images)
    canvas = preprocessing.canvas()
    placement = AroundPicture(
        canvas or REFERENCE_CANVAS,
        settings.width,
        relative=canvas is None,
        mean=tuple(255 * level for level in images.image_mean),
    )
    requests = prepare_requests(run, run.data.examples, settings.text, least=LEAST)
    reader = Reader(run.lvlm.model, run.lvlm.processor)
    direction = find_direction(reader, requests, settings, run)
    loss = BorderLoss(reader, preprocessing, placement, direction, settings)
    values = BorderLearner.trained(loss, requests, run)
    artifact = run.artifact(
        asdict(settings) | {"layer": direction.layer},
        {},
        {"mu_plus": direction.mu_plus, "mu_minus": direction.mu_minus},
        [request.example for request in requests],
    )
    prompt = VisualSafetyPrompt(
        placement.frame(values),
        sizing="fixed" if canvas else "relative",
        text=settings.text,
        manifest=artifact.manifest,
    )
    return TrainedBorder(prompt, tuple(requests), loss)


def find_direction(
    reader: Reader, requests: Sequence[PictureRequest], settings: DavspSettings, run: FitRun
) -> Direction:
    """Layer, vector and margins from the clean pictures of refused and of benign requests.

    Raises:
        ConfigurationError: the model refuses too few of the harmful ones even with the safety
            prompt, or has no such layer.
    """
    known = [request for request in requests if request.harmful and request.refused]
    if len(known) < LEAST:
        raise ConfigurationError(
            f"The model refuses {len(known)} of the harmful requests with the safety prompt; at "
            f"least {LEAST} are needed to find what a refused request looks like inside. Give more "
            "examples, or a stronger text."
        )
    refused = clean_states(reader, known, run)
    benign = clean_states(reader, [r for r in requests if not r.harmful], run)
    if settings.layer is not None and settings.layer > refused.shape[1]:
        raise ConfigurationError(
            f"layer is {settings.layer}, but the model has {refused.shape[1]} decoder layers."
        )
    found = choose_direction(refused, benign, margin=settings.margin, layer=settings.layer)
    if settings.mu is not None:
        found = replace(found, mu_plus=settings.mu[0], mu_minus=settings.mu[1])
    return replace(found, vector=found.vector.to(reader.model.device))


def clean_states(reader: Reader, requests: Sequence[PictureRequest], run: FitRun) -> Tensor:
    """Hidden states at the last prompt token [N, L, d], on the CPU in the model's number format."""
    found: list[Tensor] = []

    @torch.no_grad()
    def piece(rows: Sequence[int]) -> None:
        talks = [requests[row].conversation() for row in rows]
        found.append(reader.read(reader.inputs(talks)).states.cpu())
        run.progress("hidden states", sum(map(len, found)), len(requests))

    with frozen(reader.model):
        for start in range(0, len(requests), TOGETHER):
            rows = range(start, min(start + TOGETHER, len(requests)))
            talks = [requests[row].conversation() for row in rows]
            length = int(reader.inputs(talks)["input_ids"].shape[1])
            in_pieces(rows, length, piece, run.budget)
    return torch.cat(found)


METHOD: Final = FitMethod("davsp", DavspSettings, fit_davsp, VisualSafetyPrompt.from_pretrained)
