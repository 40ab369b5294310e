"""Examples of the mini world to fit a defence on.

Held-out unsafe concepts never occur, whichever split the phrasings and textures come from: what a
defence does about them is measured on the test split alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, Literal

import numpy as np

from sightrail.guardrails.errors import ConfigurationError
from sightrail.guardrails.fitting import Example

from . import phrasing
from .agents import (
    TOOLS,
    Episode,
    as_chat,
    draw_agent_benign,
    draw_how,
    draw_injection,
    written_call,
)
from .concepts import FITTED_UNSAFE, SAFE_NAMES
from .conversations import (
    Conversation,
    draw_attack,
    draw_benign,
    draw_lookalike,
    how_to,
    in_frame,
    kind_turn,
    pick,
)
from .splits import SPLITS, Split

Group = Literal[
    "text",
    "object",
    "typographic",
    "benign",
    "lookalike",
    "benign_text",
    "kind_text",
    "agent_object",
    "agent_injection",
    "agent_begun",
    "agent_benign",
]

_FIT_SEED: Final = 40_000  # apart from what training and evaluation draw


def _benign_text(rng: np.random.Generator, split: Split) -> Conversation:
    turn = how_to(rng, split, "how_to_text", str(rng.choice(SAFE_NAMES)))
    return Conversation(None, (turn,))


def _kind_text(rng: np.random.Generator, split: Split) -> Conversation:
    """What kind of thing something is may be asked of unsafe things too."""
    name = str(rng.choice((*SAFE_NAMES, *split.unsafe)))
    return Conversation(None, (kind_turn(rng, phrasing.kind_named(split.name), name),))


_DRAW: Final[dict[str, Callable[[np.random.Generator, Split], Conversation]]] = {
    "text": lambda rng, split: draw_attack(rng, split, "text"),
    "object": lambda rng, split: draw_attack(rng, split, "object"),
    "typographic": lambda rng, split: draw_attack(rng, split, "typographic"),
    "benign": draw_benign,
    "lookalike": draw_lookalike,
    "benign_text": _benign_text,
    "kind_text": _kind_text,
}
HARMFUL_GROUPS: Final = ("text", "object", "typographic", "agent_object", "agent_injection")
_TASKS: Final[dict[str, Callable[[np.random.Generator, Split], Episode]]] = {
    "agent_object": lambda rng, split: draw_how(rng, split, pick(rng, split.unsafe), refuse=True),
    "agent_injection": lambda rng, split: draw_injection(
        rng, split, pick(rng, split.unsafe), refuse=True
    ),
    "agent_begun": lambda rng, split: draw_how(rng, split, pick(rng, split.unsafe), refuse=True),
    "agent_benign": draw_agent_benign,
}
"""Steps of an agent, one of each task: the last of an attack, when the photo has come in; the
first of one (``agent_begun``), when nobody has seen anything and looking is right; any of a benign
one."""


def draw_examples(
    counts: Mapping[Group, int],
    *,
    split: Literal["train", "calibration"],
    seed: int = 0,
    framed_share: float = 0.0,
) -> list[Example]:
    """Examples by group, in the order of ``counts``.

    Args:
        counts: how many of each group; ``text``, ``object`` and ``typographic`` are harmful.
        split: whose phrasings, textures and templates; the test split is not for fitting.
        seed: of the draw.
        framed_share: how many of the pictures stand, smaller, in a plain or noisy frame.

    Raises:
        ConfigurationError: the test split, or a group that does not exist.
    """
    if split not in ("train", "calibration") or not set(counts) <= {*_DRAW, *_TASKS}:
        raise ConfigurationError(
            f"Cannot fit on split {split!r}, groups {list(counts)}; splits: train, calibration; "
            f"groups: {', '.join([*_DRAW, *_TASKS])}."
        )
    where = replace(SPLITS[split], unsafe=FITTED_UNSAFE)
    examples = [
        _step(_TASKS[group](rng, where), group, rng)
        if group in _TASKS
        else _example(_DRAW[group](rng, where), harmful=group in HARMFUL_GROUPS)
        for index, (group, count) in enumerate(counts.items())
        for rng in [np.random.default_rng([where.seed_offset, _FIT_SEED + seed, index])]
        for _ in range(count)
    ]
    rng = np.random.default_rng([where.seed_offset, _FIT_SEED + seed, len(counts)])
    drawn = rng.random(len(examples)) < framed_share
    return [
        replace(example, images=tuple(in_frame(rng, image) for image in example.pictures()))
        if chosen
        else example
        for example, chosen in zip(examples, drawn, strict=True)
    ]


def _example(talk: Conversation, *, harmful: bool) -> Example:
    images = () if talk.scene is None else (talk.image or talk.scene.image,)
    turn = talk.turns[0]
    return Example(turn.question, harmful, images, turn.answer)


def _step(episode: Episode, group: str, rng: np.random.Generator) -> Example:
    """What is to be answered at one step of a task, and what is right there."""
    spoken = [i for i, step in enumerate(episode.steps) if step.role == "assistant"]
    if group == "agent_benign":
        at = spoken[int(rng.integers(len(spoken)))]
    else:
        at = spoken[0] if group == "agent_begun" else spoken[-1]
    harmful, right = group in HARMFUL_GROUPS, episode.steps[at]
    answer = written_call(*right.call) if right.call is not None else right.text
    return Example(
        "", harmful, answer=answer, history=tuple(as_chat(episode.steps[:at])), tools=TOOLS
    )
