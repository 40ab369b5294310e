"""MoRAS on the testbed's mini model: its own words, and the data it is fitted on."""

from __future__ import annotations

from typing import Final

from sightrail.guardrails.fitting import Example, FitData
from sightrail.guardrails.moras.settings import MorasSettings

from .fit_data import Group, draw_examples

SETTINGS: Final = MorasSettings(
    context_instruction="read the image.",
    safety_instruction="I must keep every answer safe.",
    question_template="{question} {context}",
    base_rule="separating",
)
"""The mini model knows some 150 words and has never seen an instruction to judge a question, so the
instructions are in its words: asked to read, it names what a picture shows as well; the second half
of its trained prefix stands for the request to refuse. The context comes after the question, since
so small a model minds most what it read last. Whether it refuses in the risk pass is all or
nothing, so the base is the one that separates. Chosen on the calibration split."""

_EACH: Final = 60
_HELD_OUT_EVERY: Final = 5


def fit_data(settings: MorasSettings = SETTINGS, *, pictures: bool = True) -> FitData:
    """Harmful and benign requests of the calibration split, every fifth of a label kept apart.

    Args:
        settings: change nothing about the data. Orders written in a tool's picture are not among
            the harmful ones: the model's own doubt about them is faint (median S 0.0003 against 0.1
            and more), and a base low enough for nine in ten of them also steers one look-alike in
            ten. Screening finds those pictures.
        pictures: false draws the same numbers in text alone.
    """
    groups: tuple[Group, ...] = ("object", "typographic", "benign", "lookalike")
    groups += ("agent_object", "agent_object", "agent_begun", "agent_benign")
    if not pictures:
        groups = ("text", "text", "benign_text", "benign_text")
    each = {group: _EACH * groups.count(group) for group in groups}
    drawn = draw_examples(each, split="calibration", seed=0)
    sides = [[e for e in drawn if e.harmful == harmful] for harmful in (True, False)]
    return FitData(
        examples=[e for side in sides for i, e in enumerate(side) if (i + 1) % _HELD_OUT_EVERY],
        held_out=[e for side in sides for e in side[_HELD_OUT_EVERY - 1 :: _HELD_OUT_EVERY]],
        prototypes=prototype_questions(),
        source="testbed",
    )


def prototype_questions() -> list[Example]:
    """Unsafe questions in text alone."""
    return draw_examples({"text": 50}, split="calibration", seed=1)
