"""What CASA is trained and measured on in the mini world: mostly text, few pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from sightrail.guardrails.casa.settings import FitSettings
from sightrail.guardrails.fitting import FitData

from .fit_data import Group, draw_examples
from .prefix import CALIBRATION

SETTINGS: Final = FitSettings(
    steps=900,
    batch=32,
    learning_rate=6e-4,
    smoothing=0.2,
    over_refusal=0.02,
    heads=1,
    width=8,
    targets=("q_proj", "v_proj"),
    calibrated=0.2,
    calibration=CALIBRATION,
    tokens=("<assistant>", "▁sorry"),
)
"""The mini world's vocabulary has nothing to spare, so C_safe is the token that opens an answer:
the model has always answered after it. After ``safe``, a word like any other, the adapter had to
teach the answers anew, and of 26 yes-or-no questions 11 were answered right in place of 26
(calibration split). ``sorry`` begins no answer.

Chosen on the calibration split, one seed, also with three unsafe concepts (explosion, cigarette,
bone) left out of the training (400 to 500 steps): their rendered words were told from benign
requests with an AUROC of 0.975, and at 1 % false alarms 16 % of them were found by an attention of
4 heads of 32 and 57 % by one of 8, which has less room to learn words by heart; fewer still (4,
and an adapter of rank 1) found 31 %, and an adapter of rank 2 spoiled answers. Layer 6 of 6 did no
better than layer 4, nor smoothing 0.3, nor 0.1 with twice the words."""

TEXT: Final[Mapping[Group, int]] = {"text": 1200, "benign_text": 1200}
PICTURES: Final[Mapping[Group, int]] = {
    "object": 200,
    "typographic": 300,
    "benign": 1200,
    "lookalike": 300,
}
"""Three in ten of the harmful requests. More of the benign ones: what an adapter breaks is found
in questions about pictures, and a look-alike is a look-alike in pictures alone."""
QUESTIONS: Final[Mapping[Group, int]] = {"kind_text": 1200}
"""Beside text alone: else every benign example is a how-to request, and any other question, such as
pictures bring along, is a stranger that looks unsafe."""
TASKS: Final[Mapping[Group, int]] = {
    "agent_benign": 1800,
    "agent_begun": 300,
    "agent_object": 150,
    "agent_injection": 150,
}
"""Steps of an agent: what is decided at each stands on the whole transcript, tools included."""
FRAMED: Final = 0.3
"""Of the pictures, so that a border around one does not change what is decided about it."""

HELD_OUT: Final[Mapping[Group, int]] = {
    "text": 40,
    "object": 80,
    "typographic": 80,
    "benign": 400,
    "lookalike": 240,
    "benign_text": 40,
    "agent_object": 40,
    "agent_injection": 40,
    "agent_begun": 100,
    "agent_benign": 300,
}
"""Mostly benign: the threshold lies where two in a hundred of them would be refused."""


def fit_data(settings: FitSettings) -> FitData:
    """Examples of the train split, and of the calibration split to measure on.

    Benign ones to train on come without an answer: the model's own is what it is to keep.
    """
    more = QUESTIONS if settings.text_only else {**PICTURES, **TASKS}
    counts = {**TEXT, **more}
    train = draw_examples(counts, split="train", seed=settings.seed, framed_share=FRAMED)
    return FitData(
        examples=[
            example if example.harmful else replace(example, answer=None) for example in train
        ],
        held_out=draw_examples(HELD_OUT, split="calibration", seed=settings.seed),
        source="testbed",
    )
