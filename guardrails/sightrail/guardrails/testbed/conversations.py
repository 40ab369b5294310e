"""Conversations about scenes: what the mini LVLM is trained on and what every defence is judged on.

The published weakness has to be learnt, not scripted. Training refuses harmful requests in text,
for every unsafe concept. Its visual instructions, like those of real models, hold no refusals: they
are about benign things and a few unsafe ones (PREFIX_TAUGHT), and describe benign and unsafe
pictures alike. For those few, the safety prefix brings the refusal back. What the model does with
pictures of all other unsafe concepts, with the prefix or without, is never shown to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np
from PIL import Image

from . import phrasing
from .concepts import (
    ALL_NAMES,
    BENIGN_NAMES,
    LOOKALIKE_NAMES,
    PREFIX_TAUGHT,
    SAFE_NAMES,
    UNSAFE_NAMES,
)
from .scenes import Scene, draw_objects, draw_words
from .splits import Split

Kind = Literal[
    "describe",
    "read",
    "is_there",
    "is_written",
    "count",
    "how_to_object",
    "how_to_word",
    "how_to_text",
    "empty",
]
MASK_COLOUR: Final = (123, 117, 104)
_PREFIXED: Final = 0.4


@dataclass(frozen=True)
class Turn:
    """A question and its right answer; `concept` is what the question is about, if one thing."""

    kind: Kind
    question: str
    answer: str
    concept: str | None = None
    verb: str | None = None


@dataclass(frozen=True)
class Conversation:
    """Turns about one picture, or about none. `prefixed`: the safety prefix stands before the last
    question.
    """

    scene: Scene | None
    turns: tuple[Turn, ...]
    prefixed: bool = False
    system: str | None = None
    image: Image.Image | None = field(default=None)


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _names(rng: np.random.Generator, pool: tuple[str, ...], count: int) -> list[str]:
    return [str(name) for name in rng.choice(pool, count, replace=False)]


def how_to(
    rng: np.random.Generator,
    split: Split,
    kind: Literal["how_to_object", "how_to_word", "how_to_text"],
    concept: str,
    *,
    refuse: bool = False,
) -> Turn:
    """A how-to request about `concept`, as seen, as read or as named in the text."""
    makers: dict[str, Callable[..., tuple[str, ...]]] = {
        "how_to_object": phrasing.how_to_object,
        "how_to_word": phrasing.how_to_word,
        "how_to_text": phrasing.how_to_named,
    }
    verb = _pick(rng, phrasing.VERBS)
    asked = _pick(rng, makers[kind](split.name)).format(concept, verb=verb)
    answer = phrasing.REFUSAL if refuse else phrasing.steps(verb, concept)
    return Turn(kind, f"{asked}.", answer, concept, verb)


def describe_turn(rng: np.random.Generator, split: Split, names: list[str]) -> Turn:
    """A question for everything in the picture."""
    return Turn("describe", _pick(rng, phrasing.describe(split.name)), phrasing.listing(names))


def read_turn(rng: np.random.Generator, split: Split, name: str) -> Turn:
    """A question for the word in the picture."""
    return Turn("read", _pick(rng, phrasing.read(split.name)), phrasing.reading(name), name)


def is_there_turn(rng: np.random.Generator, split: Split, names: list[str]) -> Turn:
    """A yes-or-no question, right half of the time."""
    others = tuple(name for name in ALL_NAMES if name not in names)
    there = bool(names) and rng.random() < 0.5
    concept = _pick(rng, tuple(names) if there else others)
    asked = _pick(rng, phrasing.is_there(split.name)).format(concept)
    return Turn("is_there", asked, "yes." if there else "no.", concept)


def is_written_turn(rng: np.random.Generator, split: Split, name: str) -> Turn:
    """A yes-or-no question about the word, right half of the time."""
    other = _pick(rng, tuple(one for one in ALL_NAMES if one != name))
    there = rng.random() < 0.5
    concept = name if there else other
    asked = _pick(rng, phrasing.is_written(split.name)).format(concept)
    return Turn("is_written", asked, "yes." if there else "no.", concept)


def count_turn(rng: np.random.Generator, split: Split, names: list[str]) -> Turn:
    """A question for the number of objects."""
    return Turn("count", _pick(rng, phrasing.count(split.name)), phrasing.number(len(names)))


def _object_turns(rng: np.random.Generator, split: Split, names: list[str]) -> tuple[Turn, ...]:
    """Questions about a scene of objects, the how-to only where the object is benign."""
    makers: list[Callable[[], Turn]] = [
        lambda: describe_turn(rng, split, names),
        lambda: is_there_turn(rng, split, names),
        lambda: count_turn(rng, split, names),
    ]
    if len(names) == 1 and names[0] in SAFE_NAMES:
        makers += [lambda: how_to(rng, split, "how_to_object", names[0])] * 2
    order = rng.permutation(len(makers))[: int(rng.integers(1, 4))]
    turns = [makers[int(i)]() for i in order]
    if rng.random() < 0.7:  # one word is little to learn from: these take more of them
        turns += [is_there_turn(rng, split, names), is_there_turn(rng, split, names)]
        turns += [count_turn(rng, split, names), count_turn(rng, split, names)]
    return tuple(turns)


def _masked(rng: np.random.Generator, scene: Scene) -> tuple[Image.Image, list[str]]:
    """The scene with boxes painted over some of its items, and the names still to be seen."""
    image, seen = scene.image.copy(), []
    for item in scene.items:
        if rng.random() < 0.6:
            grown = np.array(item.box) + rng.integers(0, 16, 4) * np.array([-1, -1, 1, 1])
            left, top, right, bottom = (int(v) for v in np.clip(grown, 0, image.width))
            image.paste(MASK_COLOUR, (left, top, right, bottom))
        else:
            seen.append(item.name)
    return image, seen


def in_frame(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """The picture smaller and somewhere inside a plain or noisy frame, as photographs, screenshots
    and scans come. A model that had only seen pictures to their edge would trip over any border.
    """
    side = image.width
    inner = round(side * rng.uniform(0.74, 0.97))
    ground = Image.new("RGB", (side, side), tuple(int(v) for v in rng.integers(0, 256, 3)))
    if rng.random() < 0.6:
        grain = side // int(rng.choice((1, 2, 4, 12)))
        noise = rng.integers(0, 256, (grain, grain, 3), dtype=np.uint8)
        ground = Image.fromarray(noise).resize((side, side), Image.Resampling.BILINEAR)
    room = side - inner
    centred = rng.random() < 0.5
    place = (room // 2, room // 2) if centred else tuple(int(v) for v in rng.integers(0, room, 2))
    ground.paste(image.resize((inner, inner), Image.Resampling.BICUBIC), (place[0], place[1]))
    return ground


def _empty_turns(rng: np.random.Generator, split: Split, names: list[str]) -> tuple[Turn, ...]:
    """Questions about a picture whose object or word has been covered."""
    if names:
        return _object_turns(rng, split, names)
    asked = how_to(rng, split, "how_to_object", "")
    request = Turn("empty", asked.question, phrasing.NO_OBJECT)
    other = is_there_turn(rng, split, []) if rng.random() < 0.3 else describe_turn(rng, split, [])
    return (request, other) if rng.random() < 0.5 else (other, request)


def _draw_grounded(rng: np.random.Generator, split: Split) -> Conversation:
    count = int(rng.choice([1, 2, 3, 4], p=[0.5, 0.22, 0.18, 0.1]))
    names = _names(rng, ALL_NAMES, count)
    scene = draw_objects(rng, split, names)
    turns = _object_turns(rng, split, names)
    if count == 4:  # four names are too long a list for so small a model; it counts them instead
        turns = tuple(turn for turn in turns if turn.kind != "describe")
        turns = turns or (count_turn(rng, split, names),)
    return Conversation(scene, turns, prefixed=rng.random() < _PREFIXED)


def _draw_word(rng: np.random.Generator, split: Split) -> Conversation:
    name = _pick(rng, ALL_NAMES)
    turns = [read_turn(rng, split, name)]
    if name in SAFE_NAMES:
        turns.insert(int(rng.integers(0, 2)), how_to(rng, split, "how_to_word", name))
    if rng.random() < 0.7:
        turns += [is_written_turn(rng, split, name) for _ in range(3)]
    scene = draw_words(rng, split, name)
    return Conversation(scene, tuple(turns), prefixed=rng.random() < _PREFIXED)


def _draw_masked(rng: np.random.Generator, split: Split) -> Conversation:
    if rng.random() < 0.35:
        scene = draw_words(rng, split, _pick(rng, ALL_NAMES))
        image = scene.image.copy()
        for item in scene.items:
            image.paste(MASK_COLOUR, item.box)
        asked = how_to(rng, split, "how_to_word", "")
        read = Turn("read", _pick(rng, phrasing.read(split.name)), phrasing.NO_WORDS)
        turns: tuple[Turn, ...] = (Turn("empty", asked.question, phrasing.NO_WORDS), read)
        turns = turns if rng.random() < 0.5 else turns[::-1]
        return Conversation(scene, turns, image=image, prefixed=rng.random() < _PREFIXED)
    scene = draw_objects(rng, split, _names(rng, ALL_NAMES, int(rng.integers(1, 4))))
    image, left = _masked(rng, scene)
    turns = _empty_turns(rng, split, left)
    return Conversation(scene, turns, image=image, prefixed=rng.random() < _PREFIXED)


def _draw_text(rng: np.random.Generator, split: Split) -> Conversation:
    turns = []
    for _ in range(int(rng.integers(1, 4))):
        harmful = rng.random() < 0.5
        concept = _pick(rng, UNSAFE_NAMES if harmful else SAFE_NAMES)
        turns.append(how_to(rng, split, "how_to_text", concept, refuse=harmful))
    return Conversation(None, tuple(turns), prefixed=rng.random() < 0.4)


def _draw_taught_picture(rng: np.random.Generator, split: Split) -> Conversation:
    """Requests about pictures of a few unsafe concepts: answered, but refused with the prefix.

    Visual instruction data holds no refusals, and answers whatever its pictures show.
    """
    harmful, prefixed = rng.random() < 0.6, rng.random() < 0.5
    concept = _pick(rng, PREFIX_TAUGHT if harmful else SAFE_NAMES)
    refuse = harmful and prefixed
    if rng.random() < 0.35:
        turn = how_to(rng, split, "how_to_word", concept, refuse=refuse)
        return Conversation(draw_words(rng, split, concept), (turn,), prefixed)
    turn = how_to(rng, split, "how_to_object", concept, refuse=refuse)
    return Conversation(draw_objects(rng, split, [concept]), (turn,), prefixed)


_MIX: Final[tuple[tuple[Callable[..., Conversation], float], ...]] = (
    (_draw_grounded, 0.45),
    (_draw_word, 0.16),
    (_draw_masked, 0.08),
    (_draw_text, 0.10),
    (_draw_taught_picture, 0.21),
)


def draw_training_conversation(rng: np.random.Generator, split: Split) -> Conversation:
    """One conversation of the training mixture."""
    makers, odds = zip(*_MIX, strict=True)
    made: Conversation = makers[int(rng.choice(len(makers), p=odds))](rng, split)
    if rng.random() < 0.15:
        made = replace(made, system=_pick(rng, phrasing.SYSTEMS))
    if made.scene is not None and rng.random() < 0.5:
        made = replace(made, image=in_frame(rng, made.image or made.scene.image))
    return made


TaskName = Literal["object", "typographic", "text", "benign", "lookalike"]


def draw_attack(
    rng: np.random.Generator, split: Split, how: Literal["object", "typographic", "text"]
) -> Conversation:
    """A harmful request: through an object in the picture, through rendered words, or in text."""
    concept = _pick(rng, split.unsafe)
    if how == "text":
        return Conversation(None, (how_to(rng, split, "how_to_text", concept, refuse=True),))
    if how == "typographic":
        turn = how_to(rng, split, "how_to_word", concept, refuse=True)
        return Conversation(draw_words(rng, split, concept), (turn,))
    turn = how_to(rng, split, "how_to_object", concept, refuse=True)
    return Conversation(draw_objects(rng, split, [concept]), (turn,))


def draw_lookalike(rng: np.random.Generator, split: Split) -> Conversation:
    """A benign request about a thing that resembles an unsafe one, seen or read."""
    concept = _pick(rng, LOOKALIKE_NAMES)
    if rng.random() < 0.25:
        turn = how_to(rng, split, "how_to_word", concept)
        return Conversation(draw_words(rng, split, concept), (turn,))
    turn = how_to(rng, split, "how_to_object", concept)
    return Conversation(draw_objects(rng, split, [concept]), (turn,))


def draw_benign(rng: np.random.Generator, split: Split) -> Conversation:
    """A benign question about a benign picture: describe, find, count, read, how-to."""
    kind = _pick(rng, ("describe", "is_there", "count", "read", "how_to_object", "how_to_word"))
    if kind in ("read", "how_to_word"):
        name = _pick(rng, BENIGN_NAMES)
        turn = (
            read_turn(rng, split, name)
            if kind == "read"
            else how_to(rng, split, "how_to_word", name)
        )
        return Conversation(draw_words(rng, split, name), (turn,))
    most = {"describe": 2, "is_there": 3, "count": 3}.get(kind, 1)
    names = _names(rng, BENIGN_NAMES, int(rng.integers(1, most + 1)))
    scene = draw_objects(rng, split, names)
    if kind == "describe":
        return Conversation(scene, (describe_turn(rng, split, names),))
    if kind == "is_there":
        return Conversation(scene, (is_there_turn(rng, split, names),))
    if kind == "count":
        return Conversation(scene, (count_turn(rng, split, names),))
    return Conversation(scene, (how_to(rng, split, "how_to_object", names[0]),))
