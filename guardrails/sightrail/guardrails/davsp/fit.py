"""Training a visual safety prompt: sign-gradient steps, the model frozen, measured at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import ConfigurationError
from ..fitting import FitData, FitMethod, Fitted, Report, Resources
from ..fitting.memory import ScaledGradients, added, frozen, in_pieces, layers_computed_twice
from ..fitting.run import FitRun
from ..model.messages import Conversation
from ..progress import Progress, silent
from .harmfulness import Direction, choose_direction, hinge
from .placement import AroundPicture, Placement, levels_to_pixels
from .preprocess import DifferentiablePreprocessing
from .report import measure_held_out
from .requests import TOGETHER, PictureRequest, Reader, prepare_requests, with_pixels
from .settings import DavspSettings
from .visual_safety_prompt import VisualSafetyPrompt

if TYPE_CHECKING:
    from ..fitting.run import FitRun
    from ..model import LocalLVLM


_WHAT: Final = "border"


@dataclass(frozen=True)
class BorderLoss:
    """What the loss is taken with, the same through all steps.

    Attributes:
        reader: runs the model.
        preprocessing: of its pictures.
        placement: where the trained values go.
        direction: what the projections are taken on.
        settings: of the training.
    """

    reader: Reader
    preprocessing: DifferentiablePreprocessing
    placement: Placement
    direction: Direction
    settings: DavspSettings

    def __call__(
        self, values: Tensor, batch: Sequence[PictureRequest], answered: Sequence[bool]
    ) -> Tensor:
        """w_a * hinge + w_c * cross-entropy of the rows that are answered, averaged over the batch.

        Args:
            values: what is trained, [3, H, W].
            batch: requests.
            answered: whose answers count.
        """
        placed: list[Tensor] = []
        talks = [self._placed(values, request.conversation(), placed) for request in batch]
        inputs = self.reader.inputs(talks)
        inputs["pixel_values"] = self.preprocessing(placed).to(inputs["pixel_values"])
        kind = values.device.type
        mixed = self.settings.bfloat16 and self.reader.model.dtype == torch.float32
        with torch.autocast(kind, torch.bfloat16, enabled=mixed):
            read = self.reader.read(inputs, [request.answer for request in batch])
        harmful = torch.tensor([request.harmful for request in batch]).to(values.device)
        states = read.states[:, self.direction.layer - 1].float().to(values.device)
        aligned = hinge(
            states @ self.direction.vector, harmful, self.direction.mu_plus, self.direction.mu_minus
        )
        counted = torch.tensor(answered).to(read.answer_loss)
        spoken = (read.answer_loss * counted).mean().to(values.device)
        return self.settings.alignment_weight * aligned + self.settings.answer_weight * spoken

    def length(self, batch: Sequence[PictureRequest]) -> int:
        """Tokens of the longest row, its answer included."""
        prompts = self.reader.inputs([request.conversation() for request in batch])
        answers = self.reader.labels([request.answer for request in batch])
        return int(prompts["input_ids"].shape[1] + answers.shape[1])

    def _placed(self, values: Tensor, talk: Conversation, placed: list[Tensor]) -> Conversation:
        """The conversation with the values around its pictures, which are also put into a list."""
        made = [self.placement.place(values, image) for image in talk.images]
        placed += made
        return with_pixels(talk, [Image.fromarray(levels_to_pixels(each)) for each in made])


class BorderLearner:
    """Moves the trained values step by step.

    Args:
        loss: that is lowered.
        requests: harmful and benign ones.
        run: memory and checkpoint.
    """

    def __init__(self, loss: BorderLoss, requests: Sequence[PictureRequest], run: FitRun) -> None:
        self._loss, self._requests, self._run = loss, requests, run
        device = loss.direction.vector.device
        self.values = loss.placement.start().to(device)
        self._mean = torch.zeros_like(self.values)
        self._slope = torch.zeros_like(self.values)
        self._gradients = ScaledGradients(loss.reader.model.dtype)

    @classmethod
    def trained(cls, loss: BorderLoss, requests: Sequence[PictureRequest], run: FitRun) -> Tensor:
        """The values after all steps of a run."""
        learner = cls(loss, requests, run)
        model = loss.reader.model
        with frozen(model), layers_computed_twice(model, run.resources.checkpoints(model)):
            run.train(_WHAT, learner, loss.settings.steps)
        return learner.values

    def gradient(self, step: int) -> float:
        """The slope of a step's loss, over pieces of its batch that memory allows."""
        batch, answered = draw_batch(self._requests, self._loss.settings, step)
        losses: list[float] = []

        def piece(rows: Sequence[int]) -> list[Tensor | None]:
            values = self.values.detach().requires_grad_(True)
            some = [batch[row] for row in rows], [answered[row] for row in rows]
            loss = self._loss(values, *some) * (len(rows) / len(batch))
            found = self._gradients(loss, [values])
            losses.append(float(loss.detach()))
            return found

        length = self._loss.length(batch)
        (slope,) = added(in_pieces(range(len(batch)), length, piece, self._run.budget))
        self._slope = torch.zeros_like(self.values) if slope is None else slope
        return sum(losses)

    def update(self, step: int) -> None:
        """One sign-gradient step."""
        settings = self._loss.settings
        kept = settings.momentum
        mean = kept * self._mean + (1 - kept) * self._slope
        moved = self._loss.placement.bounded(self.values - settings.step_at(step) * mean.sign())
        self._mean, self.values = mean, moved.detach()

    def state(self) -> dict[str, Any]:
        """Values and running mean."""
        return {"values": self.values.cpu(), "mean": self._mean.cpu()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        device = self.values.device
        self.values, self._mean = state["values"].to(device), state["mean"].to(device)


def draw_batch(
    requests: Sequence[PictureRequest], settings: DavspSettings, number: int
) -> tuple[list[PictureRequest], list[bool]]:
    """The batch of step ``number``, half of it harmful, and whose answers count.

    It depends on the seed and the step alone, so a run that is resumed draws what it would have.
    """
    rng = np.random.default_rng([settings.seed, number])
    batch = [
        pool[int(place)]
        for pool, count in _pools(requests, settings)
        if count
        for place in rng.integers(len(pool), size=count)
    ]
    chance = rng.random(len(batch))
    return batch, [
        not request.harmful or bool(luck < settings.harmful_answers)
        for request, luck in zip(batch, chance, strict=True)
    ]


def _pools(
    requests: Sequence[PictureRequest], settings: DavspSettings
) -> list[tuple[list[PictureRequest], int]]:
    """What is drawn from, and how many."""
    half = settings.batch // 2
    harmful = [request for request in requests if request.harmful]
    benign = [request for request in requests if not request.harmful]
    passed = [request for request in harmful if not request.refused]
    if settings.unrefused is None or not passed:
        return [(harmful, half), (benign, half)]
    hard = round(settings.unrefused * half)
    refused = [request for request in harmful if request.refused]
    return [(passed, hard), (refused, half - hard), (benign, half)]


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
