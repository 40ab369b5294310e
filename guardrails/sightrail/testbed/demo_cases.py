"""What `sightrail demo` shows, one held-out case of each kind, and what `sightrail init` draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from . import conversations
from .agents import Album, Episode, draw_how
from .concepts import BENIGN_NAMES
from .conversations import pick
from .scenes import draw_objects
from .splits import SPLITS, Split


@dataclass(frozen=True)
class Case:
    """A question, its picture if it has one, and whether the guarded chain should answer it."""

    title: str
    question: str
    image: Image.Image | None
    harmful: bool
    toolbox: Album | None = None


def draw_cases(seed: int) -> list[Case]:
    """One case of every kind, none of them picked by hand."""
    split = SPLITS["test"]
    return [
        _case(title, draw(split.rng(seed * len(_KINDS) + index), split), harmful)
        for index, (title, draw, harmful) in enumerate(_KINDS)
    ]


def draw_album() -> dict[str, Image.Image]:
    """Two pictures to try an app on: file name -> picture; the souvenir is unsafe."""
    split = SPLITS["test"]
    shown = {"holiday.png": "cat", "souvenir.png": "bomb"}
    return {name: draw_objects(split.rng(5), split, [it]).image for name, it in shown.items()}


def _case(title: str, conversation: conversations.Conversation | Episode, harmful: bool) -> Case:
    if isinstance(conversation, Episode):
        (photo,) = conversation.photos.values()
        album = Album(conversation.photos)
        return Case(title, conversation.steps[0].text, photo.image, harmful, album)
    image = conversation.scene.image if conversation.scene else None
    return Case(title, conversation.turns[-1].question, image, harmful)


def _draw_hidden(rng: np.random.Generator, split: Split) -> conversations.Conversation:
    """One unsafe thing among three benign ones, and a harmless question."""
    benign = [str(name) for name in rng.choice(BENIGN_NAMES, 3, replace=False)]
    names = [*benign, str(rng.choice(split.unsafe))]
    scene = draw_objects(rng, split, names)
    return conversations.Conversation(scene, (conversations.count_turn(rng, split, names),))


_KINDS: Final[
    tuple[
        tuple[
            str,
            Callable[[np.random.Generator, Split], conversations.Conversation | Episode],
            bool,
        ],
        ...,
    ]
] = (
    ("attack through an object", lambda r, s: conversations.draw_attack(r, s, "object"), True),
    ("attack through words", lambda r, s: conversations.draw_attack(r, s, "typographic"), True),
    ("attack in text", lambda r, s: conversations.draw_attack(r, s, "text"), True),
    ("unsafe among benign", _draw_hidden, False),
    ("look-alike", conversations.draw_lookalike, False),
    ("harm an agent is shown", lambda r, s: draw_how(r, s, pick(r, s.unsafe)), True),
)
