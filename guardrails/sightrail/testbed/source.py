"""Items of the mini world, to evaluate on: drawn from a split and a seed, the same every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from sightrail.guardrails.errors import ConfigurationError
from sightrail.guardrails.evaluation.items import Item, LabelledPicture

from .agents import Album, Episode, draw_agent_benign, draw_how, draw_injection
from .concepts import SAFE_NAMES
from .conversations import Conversation, draw_attack, draw_benign, draw_lookalike, pick
from .judge import ExactJudge
from .scenes import Scene, draw_objects, draw_words
from .splits import SPLITS, Split, SplitName

ATTACKS: Final = ("object", "typographic", "text")
TASK_ATTACKS: Final = ("agent_object", "agent_injection")
BENIGN: Final = ("benign", "lookalike")
SCENES: Final = ("objects_1", "objects_3", "objects_6", "objects_9", "typographic")

_REQUESTS: Final[dict[str, Callable[[np.random.Generator, Split], Conversation]]] = {
    "object": lambda rng, split: draw_attack(rng, split, "object"),
    "typographic": lambda rng, split: draw_attack(rng, split, "typographic"),
    "text": lambda rng, split: draw_attack(rng, split, "text"),
    "benign": draw_benign,
    "lookalike": draw_lookalike,
}
_TASKS: Final[dict[str, Callable[[np.random.Generator, Split], Episode]]] = {
    "agent_object": lambda rng, split: draw_how(rng, split, pick(rng, split.unsafe), refuse=True),
    "agent_injection": lambda rng, split: draw_injection(
        rng, split, pick(rng, split.unsafe), refuse=True
    ),
    "agent_benign": draw_agent_benign,
}


def _rng(split: Split, seed: int, group: str) -> np.random.Generator:
    stream = sum(ord(letter) << (8 * (i % 3)) for i, letter in enumerate(group))
    return np.random.default_rng([split.seed_offset, seed, stream])


def draw_requests(group: str, n: int, split: SplitName, seed: int) -> list[Conversation]:
    """N requests of a group; the same for every stack."""
    return list(_drawn(group, n, split, seed))


def _drawn(group: str, n: int, split: SplitName, seed: int) -> Iterator[Conversation]:
    where = SPLITS[split]
    rng = _rng(where, seed, group)
    return (_REQUESTS[group](rng, where) for _ in range(n))


def draw_items(group: str, n: int, split: SplitName, seed: int) -> Iterator[Item]:
    """The same requests as items; attacks with a picture count as ``picture`` too."""
    groups = (group, "picture") if group in ("object", "typographic") else (group,)
    for number, talk in enumerate(_drawn(group, n, split, seed)):
        (turn,) = talk.turns
        image = None if talk.scene is None else talk.image or talk.scene.image
        yield Item(
            id=f"{group}/{number}",
            groups=groups,
            text=turn.question,
            harmful=group in ATTACKS,
            images=() if image is None else (image,),
            answer=turn.answer,
            match="contained",
        )


def draw_tasks(group: str, n: int, split: SplitName, seed: int) -> Iterator[Item]:
    """Tasks with tools as items: harm in a photo, orders in a photo, and benign ones."""
    where = SPLITS[split]
    rng = _rng(where, seed, group)
    for number in range(n):
        episode = _TASKS[group](rng, where)
        yield Item(
            id=f"{group}/{number}",
            groups=(group,),
            text=episode.steps[0].text,
            harmful=group in TASK_ATTACKS,
            answer=episode.steps[-1].text,
            toolbox=Album(episode.photos),
            calls=tuple(step.call for step in episode.steps if step.call is not None),
        )


def as_messages(talk: Conversation) -> list[dict[str, Any]]:
    """A one-turn conversation as chat messages."""
    parts: list[dict[str, Any]] = []
    if talk.scene is not None:
        parts.append({"type": "image", "image": talk.image or talk.scene.image})
    parts.append({"type": "text", "text": talk.turns[0].question})
    return [{"role": "user", "content": parts}]


def draw_scenes(group: str, n: int, split: SplitName, seed: int) -> Iterator[tuple[Scene, bool]]:
    """N unsafe and n benign scenes of a group, as (scene, is it unsafe).

    An unsafe scene of k objects holds one unsafe object and k - 1 safe ones; look-alikes are among
    the safe ones in both.
    """
    where = SPLITS[split]
    rng = _rng(where, seed, f"scenes {group}")
    return ((_draw_scene(rng, where, group, unsafe), unsafe) for unsafe in [True, False] * n)


def _draw_scene(rng: np.random.Generator, split: Split, group: str, unsafe: bool) -> Scene:
    bad = str(rng.choice(split.unsafe))
    if group == "typographic":
        return draw_words(rng, split, bad if unsafe else str(rng.choice(SAFE_NAMES)))
    count = int(group.removeprefix("objects_"))
    names = [str(name) for name in rng.choice(SAFE_NAMES, count, replace=False)]
    if unsafe:
        names[int(rng.integers(count))] = bad
    return draw_objects(rng, split, names)


@dataclass(frozen=True)
class Testbed:
    """The testbed as a source of items.

    Args:
        n: requests a group, and scenes of either kind a group.
        split: which part of the world they are drawn from.
        seed: of the draws.

    Raises:
        ConfigurationError: n < 1, or there is no such split.
    """

    n: int = 200
    split: SplitName = "test"
    seed: int = 0

    name = "testbed"
    judge = ExactJudge()

    def __post_init__(self) -> None:
        if self.n < 1 or self.split not in SPLITS:
            raise ConfigurationError(
                f"n is {self.n} and split {self.split!r}; n is at least 1, split one of "
                f"{', '.join(SPLITS)}"
            )

    def __len__(self) -> int:
        return self.n * (len(_REQUESTS) + len(_TASKS))

    @property
    def labelled(self) -> int:
        """Scenes of either kind in every group."""
        return 2 * self.n * len(SCENES)

    def items(self) -> Iterator[Item]:
        """Every group's requests, attacks first."""
        for group in _REQUESTS:
            yield from draw_items(group, self.n, self.split, self.seed)
        for group in _TASKS:
            yield from draw_tasks(group, self.n, self.split, self.seed)

    def pictures(self) -> Iterator[LabelledPicture]:
        """Scenes of every kind with the boxes of what is unsafe in them."""
        for group in SCENES:
            for scene, unsafe in draw_scenes(group, self.n, self.split, self.seed):
                boxes = tuple(item.box for item in scene.unsafe_items)
                yield LabelledPicture(group, scene.image, unsafe, boxes)
