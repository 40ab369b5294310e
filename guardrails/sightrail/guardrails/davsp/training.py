"""The training of the border: sign-gradient steps on the pixels, the model frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..fitting.memory import ScaledGradients, added, frozen, in_pieces, layers_computed_twice
from ..model.messages import Conversation
from .border import Placement, levels_to_pixels
from .harmfulness import Direction, hinge
from .preprocess import DifferentiablePreprocessing
from .requests import PictureRequest, Reader, with_pixels
from .settings import DavspSettings

if TYPE_CHECKING:
    from ..fitting.run import FitRun

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
