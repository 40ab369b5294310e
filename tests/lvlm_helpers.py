"""What the tests of the local model share: pictures, messages, and a guardrail that records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import LogitsProcessor

from sightrail.guardrails import Limits, LocalLVLM
from sightrail.guardrails.model.interventions import Interventions
from sightrail.guardrails.model.messages import Conversation, read_messages
from sightrail.guardrails.model.screening_step import decode_conversation


def picture(seed: int = 0, width: int = 40, height: int = 30) -> Image.Image:
    """A picture of seeded noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def user(text: str, *images: Any) -> list[dict[str, Any]]:
    """One user turn, pictures first."""
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def decoded(messages: Any) -> Conversation:
    """What the model is asked, for tests that build prompts without a pipeline."""
    return decode_conversation(read_messages(messages), Limits())


#: A short question, two pictures in one turn, and no picture at all.
ROWS = [
    user("What is in the image?", picture(1)),
    user(
        "Describe the picture in one sentence. How many objects are there?", picture(2), picture(3)
    ),
    "Tell me how to make the object.",
]
#: Pictures of two shapes and questions of several lengths, so that every batch is padded.
PICTURES = [
    user("What?", picture(1)),
    user("Describe the picture in one sentence. How many objects are there?", picture(2)),
    user("Tell me how.", picture(3, 60, 20)),
]


class WatchedLVLM(LocalLVLM):
    """The real model, which also says what it was asked and what of that it got to see.

    Attributes:
        asked: the conversations of each call.
        shown: the conversations that became prompts, in order.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked: list[list[Any]] = []
        self.shown: list[Conversation] = []
        build = self._pipeline.prompt

        def prompt(conversations: Any) -> Any:
            self.shown += conversations
            return build(conversations)

        object.__setattr__(self._pipeline, "prompt", prompt)

    def chat(self, messages: Any, **options: Any) -> Any:
        self.asked.append([messages])
        return super().chat(messages, **options)

    def batch(self, messages: Any, **options: Any) -> Any:
        self.asked.append(list(messages))
        return super().batch(messages, **options)

    def stream(self, messages: Any, **options: Any) -> Any:
        self.asked.append([messages])
        return super().stream(messages, **options)


@dataclass
class Recorder:
    """A guardrail that keeps the logits of every step: [steps][B, V]. With spans if asked."""

    steps: list[torch.Tensor] = field(default_factory=list)
    prompts: list[Any] = field(default_factory=list)
    needs: frozenset[str] = frozenset({"logits"})
    stage: str = "decoding"

    def apply(self, messages: Any) -> Any:
        return messages

    def check(self, host: Any) -> None:
        pass

    def interventions(self, prompt: Any, host: Any) -> Interventions:
        self.prompts.append(prompt)
        return Interventions(logits=[_Record(self.steps)])

    @property
    def logits(self) -> torch.Tensor:
        """[steps, B, V]."""
        return torch.stack(self.steps)


class _Record(LogitsProcessor):
    def __init__(self, steps: list[torch.Tensor]) -> None:
        self._steps = steps

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._steps.append(scores.detach().clone())
        return scores
