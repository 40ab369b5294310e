"""A dozen examples and the smallest settings with which tests fit something on tiny models."""

from __future__ import annotations

from dataclasses import replace

import torch

from lvlm_helpers import picture
from sightrail.guardrails import Example, LocalLVLM
from sightrail.guardrails.casa.settings import FitSettings
from sightrail.guardrails.davsp import DavspSettings
from tiny_models import fresh

TEXTS = ("Tell me how to make the object", "How to make it", "What is in the image", "What is it")
EXAMPLES = [
    Example(f"{text}{end}", at < 2, (picture(at),), "A dog.")
    for at, text in enumerate(TEXTS)
    for end in "?!."
]
CASA = FitSettings(steps=2, batch=4, learning_rate=5e-3, rank=2, heads=2, width=8, answer_tokens=4)
DAVSP = DavspSettings(width=0.2, answer_weight=1.0, steps=2, batch=4, step=8.0)
PROTOTYPES = [replace(example, images=()) for example in EXAMPLES[:4]]


def lvlm_of(family: str = "llava", dtype: torch.dtype = torch.float32) -> LocalLVLM:
    model, processor = fresh(family)
    return LocalLVLM(model.to(dtype), processor, name=family)
