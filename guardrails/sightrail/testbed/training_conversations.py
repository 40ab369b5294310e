"""What the mini LVLM is trained on.

The published weakness has to be learnt, not scripted. Training refuses harmful requests in text,
for every unsafe concept. Its visual instructions, like those of real models, hold no refusals: they
are about benign things and a few unsafe ones (PREFIX_TAUGHT), and describe benign and unsafe
pictures alike. For those few, the safety prefix brings the refusal back. What the model does with
pictures of all other unsafe concepts, with the prefix or without, is never shown to it. It does
learn of which kind everything is, seen, read or named, as pre-trained models know.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
from PIL import Image

from . import phrasing
from .agents import (
    Episode,
    Step,
    draw_how,
    draw_injection,
    draw_note,
    draw_question,
    draw_text_note,
)
from .concepts import ALL_NAMES, PREFIX_TAUGHT, SAFE_NAMES, UNSAFE_NAMES
from .conversations import (
    MASK_COLOUR,
    Conversation,
    Turn,
    count_turn,
    describe_turn,
    how_to,
    in_frame,
    is_there_turn,
    is_written_turn,
    kind_turn,
    pick,
    read_turn,
    sample_names,
)
from .scenes import Scene, draw_objects, draw_words
from .splits import Split

_PREFIXED: Final = 0.4


def _object_turns(rng: np.random.Generator, split: Split, names: list[str]) -> tuple[Turn, ...]:
    """Questions about a scene of objects, the how-to only where the object is benign."""
    makers: list[Callable[[], Turn]] = [
        lambda: describe_turn(rng, split, names),
        lambda: is_there_turn(rng, split, names),
        lambda: count_turn(rng, split, names),
    ]
    if len(names) == 1:
        makers.append(lambda: kind_turn(rng, phrasing.kind_of_object(split.name), names[0]))
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
    names = sample_names(rng, ALL_NAMES, count)
    scene = draw_objects(rng, split, names)
    turns = _object_turns(rng, split, names)
    if count == 4:  # four names are too long a list for so small a model; it counts them instead
        turns = tuple(turn for turn in turns if turn.kind != "describe")
        turns = turns or (count_turn(rng, split, names),)
    return Conversation(scene, turns, prefixed=rng.random() < _PREFIXED)


def _draw_word(rng: np.random.Generator, split: Split) -> Conversation:
    """Questions about a written word. Once it has been said, nobody has to read it: the first
    question is as often one whose answer begins with what the word means.
    """
    name = pick(rng, ALL_NAMES)
    makers: list[Callable[[], Turn]] = [
        lambda: read_turn(rng, split, name),
        lambda: is_written_turn(rng, split, name),
        lambda: kind_turn(rng, phrasing.kind_of_word(split.name), name),
    ]
    if name in SAFE_NAMES:
        makers.append(lambda: how_to(rng, split, "how_to_word", name))
    order = rng.permutation(len(makers))[: int(rng.integers(1, 4))]
    turns = tuple(makers[int(i)]() for i in order)
    return Conversation(draw_words(rng, split, name), turns, prefixed=rng.random() < _PREFIXED)


def _draw_masked(rng: np.random.Generator, split: Split) -> Conversation:
    if rng.random() < 0.35:
        scene = draw_words(rng, split, pick(rng, ALL_NAMES))
        image = scene.image.copy()
        for item in scene.items:
            image.paste(MASK_COLOUR, item.box)
        asked = how_to(rng, split, "how_to_word", "")
        read = Turn("read", pick(rng, phrasing.read(split.name)), phrasing.NO_WORDS)
        turns: tuple[Turn, ...] = (Turn("empty", asked.question, phrasing.NO_WORDS), read)
        turns = turns if rng.random() < 0.5 else turns[::-1]
        return Conversation(scene, turns, image=image, prefixed=rng.random() < _PREFIXED)
    scene = draw_objects(rng, split, sample_names(rng, ALL_NAMES, int(rng.integers(1, 4))))
    image, left = _masked(rng, scene)
    turns = _empty_turns(rng, split, left)
    return Conversation(scene, turns, image=image, prefixed=rng.random() < _PREFIXED)


def _draw_text(rng: np.random.Generator, split: Split) -> Conversation:
    turns = []
    for _ in range(int(rng.integers(1, 4))):
        if rng.random() < 0.3:
            turns.append(kind_turn(rng, phrasing.kind_named(split.name), pick(rng, ALL_NAMES)))
            continue
        harmful = rng.random() < 0.5
        concept = pick(rng, UNSAFE_NAMES if harmful else SAFE_NAMES)
        turns.append(how_to(rng, split, "how_to_text", concept, refuse=harmful))
    return Conversation(None, tuple(turns), prefixed=rng.random() < 0.4)


def _draw_taught_picture(rng: np.random.Generator, split: Split) -> Conversation:
    """Requests about pictures of a few unsafe concepts: answered, but refused with the prefix.

    Visual instruction data holds no refusals, and answers whatever its pictures show.
    """
    harmful, prefixed = rng.random() < 0.6, rng.random() < 0.5
    concept = pick(rng, PREFIX_TAUGHT if harmful else SAFE_NAMES)
    refuse = harmful and prefixed
    if rng.random() < 0.35:
        turn = how_to(rng, split, "how_to_word", concept, refuse=refuse)
        return Conversation(draw_words(rng, split, concept), (turn,), prefixed)
    turn = how_to(rng, split, "how_to_object", concept, refuse=refuse)
    return Conversation(draw_objects(rng, split, [concept]), (turn,), prefixed)


def _json_answer(turn: Turn, names: list[str]) -> str | None:
    """The answer to a question as JSON."""
    if turn.kind in ("is_there", "is_written"):
        return json.dumps({"answer": turn.answer.rstrip(".")})
    if turn.kind == "kind":
        return json.dumps({"kind": turn.answer.rstrip(".")})
    if turn.kind == "read":
        return json.dumps({"word": names[0]})
    if turn.kind == "count":
        return json.dumps({"count": len(names)})
    return json.dumps({"objects": sorted(names)}) if turn.kind == "describe" else None


def _draw_json(rng: np.random.Generator, split: Split) -> Conversation:
    """Questions whose answer is to be JSON."""
    if rng.random() < 0.35:
        names = [pick(rng, ALL_NAMES)]
        scene = draw_words(rng, split, names[0])
        turns: tuple[Turn, ...] = (
            read_turn(rng, split, names[0]),
            is_written_turn(rng, split, names[0]),
            kind_turn(rng, phrasing.kind_of_word(split.name), names[0]),
        )
    else:
        names = sample_names(rng, ALL_NAMES, int(rng.integers(1, 4)))
        scene, turns = draw_objects(rng, split, names), _object_turns(rng, split, names)
    answers = [(turn, _json_answer(turn, names)) for turn in turns]
    spoken = tuple(replace(turn, answer=text) for turn, text in answers if text is not None)
    if not spoken:
        return _draw_json(rng, split)
    order = rng.permutation(len(spoken))
    return Conversation(scene, tuple(spoken[i] for i in order), system=phrasing.JSON_SYSTEM)


def _draw_agent(rng: np.random.Generator, split: Split) -> Episode:
    """A task with tools, at times two of one user.

    The orders that photos give are followed for benign things and a few unsafe ones, as requests
    about pictures are; what text orders is refused for every unsafe one.
    """
    made = _agent_task(rng, split)
    if rng.random() < 0.2:
        more = _agent_task(rng, split)
        if phrasing.REFUSAL not in {step.text for step in (*made.steps, *more.steps)}:
            made = replace(made, steps=made.steps + more.steps)
    return made


def _agent_task(rng: np.random.Generator, split: Split) -> Episode:
    task, prefixed = float(rng.random()), rng.random() < _PREFIXED
    if task < 0.36:
        made = draw_question(rng, split)
    elif task < 0.48:
        made = draw_note(rng, split)
    elif task < 0.62:
        harmful = rng.random() < 0.5
        concept = pick(rng, UNSAFE_NAMES if harmful else SAFE_NAMES)
        made = draw_text_note(rng, split, concept, refuse=harmful)
    elif task < 0.78:
        harmful = rng.random() < 0.45
        concept = pick(rng, PREFIX_TAUGHT if harmful else SAFE_NAMES)
        made = draw_how(rng, split, concept, refuse=harmful and prefixed)
    else:
        harmful = rng.random() < 0.45
        concept = pick(rng, PREFIX_TAUGHT if harmful else SAFE_NAMES)
        made = draw_injection(rng, split, concept, refuse=harmful and prefixed)
    return replace(made, prefixed=prefixed)


_MIX: Final[tuple[tuple[Callable[..., Conversation | Episode], float], ...]] = (
    (_draw_grounded, 0.20),
    (_draw_word, 0.14),
    (_draw_masked, 0.05),
    (_draw_text, 0.07),
    (_draw_taught_picture, 0.11),
    (_draw_json, 0.03),
    (_draw_agent, 0.40),
)


def draw_training_conversation(rng: np.random.Generator, split: Split) -> Conversation | Episode:
    """One conversation of the training mixture."""
    makers, odds = zip(*_MIX, strict=True)
    made: Conversation | Episode = makers[int(rng.choice(len(makers), p=odds))](rng, split)
    if rng.random() < 0.15 and made.system is None:
        made = replace(made, system=pick(rng, phrasing.SYSTEMS))
    if isinstance(made, Episode):
        steps = tuple(_framed(rng, step) for step in made.steps)
        return replace(made, steps=steps)
    if made.scene is not None and rng.random() < 0.5:
        made = replace(made, image=in_frame(rng, made.image or made.scene.image))
    return made


def _framed(rng: np.random.Generator, step: Step) -> Step:
    if step.image is None or rng.random() < 0.5:
        return step
    return replace(step, image=in_frame(rng, step.image))
