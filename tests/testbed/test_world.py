"""The mini world: what it draws is what its labels say, and its splits share nothing."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightrail.testbed import DATA, phrasing
from sightrail.testbed.agents import Episode
from sightrail.testbed.concepts import (
    ALL_NAMES,
    BENIGN_NAMES,
    HELD_OUT,
    KIND_OF,
    KINDS,
    LOOKALIKE_NAMES,
    PREFIX_TAUGHT,
    UNSAFE_NAMES,
)
from sightrail.testbed.conversations import (
    draw_attack,
    draw_benign,
    draw_lookalike,
)
from sightrail.testbed.scenes import (
    BACKGROUND_LABEL,
    Scene,
    draw_objects,
    draw_words,
    label_of,
)
from sightrail.testbed.splits import SPLITS, SplitName
from sightrail.testbed.sprites import sprite
from sightrail.testbed.training_conversations import draw_training_conversation

SPLIT_NAMES: tuple[SplitName, ...] = ("train", "calibration", "test")


def test_the_world_has_about_sixty_concepts_in_three_kinds() -> None:
    assert len(ALL_NAMES) == len(set(ALL_NAMES)) == 60
    assert len(UNSAFE_NAMES) + len(LOOKALIKE_NAMES) + len(BENIGN_NAMES) == 60
    assert set(UNSAFE_NAMES) > HELD_OUT
    assert not HELD_OUT & set(PREFIX_TAUGHT)


def test_every_concept_is_of_one_kind_and_no_kind_is_both_safe_and_unsafe() -> None:
    assert sorted(name for names in KINDS.values() for name in names) == sorted(ALL_NAMES)
    assert not {KIND_OF[name] for name in UNSAFE_NAMES} & {
        KIND_OF[name] for name in (*LOOKALIKE_NAMES, *BENIGN_NAMES)
    }


@pytest.mark.parametrize("name", ALL_NAMES)
def test_every_concept_has_a_picture_of_its_own(name: str) -> None:
    ours = np.asarray(sprite(name).resize((32, 32)))

    assert ours[..., 3].mean() > 30
    others = (np.asarray(sprite(other).resize((32, 32))) for other in ALL_NAMES if other != name)
    assert all(np.abs(ours.astype(int) - other).mean() > 2 for other in others)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 9), split=st.sampled_from(SPLIT_NAMES))
def test_objects_lie_in_their_boxes_and_are_labelled(
    seed: int, count: int, split: SplitName
) -> None:
    rng = SPLITS[split].rng(seed)
    names = [str(name) for name in rng.choice(ALL_NAMES, count, replace=False)]

    scene = draw_objects(rng, SPLITS[split], names)

    assert [item.name for item in scene.items] == names
    for item in scene.items:
        left, top, right, bottom = item.box
        assert 0 <= left < right <= scene.image.width
        assert 0 <= top < bottom <= scene.image.height
        rows, columns = np.nonzero(scene.labels == label_of(item.name, "object"))
        assert len(rows) > 0, "an object that nothing shows"
        assert left <= columns.min() <= columns.max() < right
        assert top <= rows.min() <= rows.max() < bottom


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31), name=st.sampled_from(ALL_NAMES), split=st.sampled_from(SPLIT_NAMES)
)
def test_a_word_is_inside_the_picture_and_its_box_is_labelled(
    seed: int, name: str, split: SplitName
) -> None:
    scene = draw_words(SPLITS[split].rng(seed), SPLITS[split], name)

    (item,) = scene.items
    left, top, right, bottom = item.box
    assert 0 <= left < right <= scene.image.width
    assert 0 <= top < bottom <= scene.image.height
    assert (scene.labels[top:bottom, left:right] == label_of(name, "word")).all()
    outside = scene.labels.copy()
    outside[top:bottom, left:right] = BACKGROUND_LABEL
    assert (outside == BACKGROUND_LABEL).all()


def _same(one: Scene, other: Scene) -> bool:
    return one.image.tobytes() == other.image.tobytes() and one.items == other.items


def test_a_seed_draws_the_same_scene_again_and_other_splits_another() -> None:
    scenes = [
        draw_objects(SPLITS[split].rng(5), SPLITS[split], ["cat", "bomb"])
        for split in ("train", "train", "calibration", "test")
    ]

    assert _same(scenes[0], scenes[1])
    assert not any(_same(a, b) for a, b in combinations(scenes[1:], 2))


def test_splits_share_no_texture_template_or_phrasing() -> None:
    makers = (
        phrasing.how_to_object,
        phrasing.how_to_word,
        phrasing.how_to_named,
        phrasing.describe,
        phrasing.read,
        phrasing.is_there,
        phrasing.is_written,
        phrasing.count,
        phrasing.kind_of_object,
        phrasing.kind_of_word,
        phrasing.kind_named,
    )
    for one, other in combinations(SPLIT_NAMES, 2):
        a, b = SPLITS[one], SPLITS[other]
        assert a.seed_offset != b.seed_offset
        assert not set(a.textures) & set(b.textures)
        assert not set(a.text_templates) & set(b.text_templates)
        for maker in makers:
            assert maker(one)
            assert maker(other)
            assert not set(maker(one)) & set(maker(other))


def test_defences_never_meet_the_held_out_concepts_before_the_test() -> None:
    assert not HELD_OUT & set(SPLITS["calibration"].unsafe)
    rng = SPLITS["calibration"].rng(0)
    for _ in range(60):
        talk = draw_attack(rng, SPLITS["calibration"], "object")
        assert talk.turns[0].concept not in HELD_OUT


def test_training_shows_harm_through_pictures_for_the_taught_concepts_alone() -> None:
    """For all others, what the model does must be learnt, not scripted."""
    rng, split = SPLITS["train"].rng(1), SPLITS["train"]
    asked = 0
    for _ in range(800):
        talk = draw_training_conversation(rng, split)
        for turn in () if isinstance(talk, Episode) else talk.turns:
            if talk.scene is None or turn.kind not in ("how_to_object", "how_to_word"):
                continue
            if turn.concept in UNSAFE_NAMES:
                assert turn.concept in PREFIX_TAUGHT
                assert (turn.answer == phrasing.REFUSAL) == talk.prefixed
                asked += 1
    assert asked > 10


def test_training_says_of_what_kind_pictured_written_and_named_things_are() -> None:
    rng, split = SPLITS["train"].rng(2), SPLITS["train"]
    drawn = (draw_training_conversation(rng, split) for _ in range(2600))
    talks = [talk for talk in drawn if not isinstance(talk, Episode)]
    found = [(talk, turn) for talk in talks for turn in talk.turns if turn.kind == "kind"]

    for _, turn in found:
        kind = KIND_OF[turn.concept or ""]
        assert turn.answer in (f"{kind}.", json.dumps({"kind": kind}))
    found = [(talk, turn) for talk, turn in found if turn.answer.endswith(".")]
    for pictured in (True, False):
        kinds = {turn.answer for talk, turn in found if (talk.scene is not None) == pictured}
        assert len(kinds) == len(KINDS)


def test_evaluation_items_are_what_they_claim() -> None:
    rng, split = SPLITS["test"].rng(3), SPLITS["test"]
    for _ in range(40):
        attack = draw_attack(rng, split, "typographic")
        assert attack.scene is not None
        assert attack.scene.unsafe_items
        assert draw_attack(rng, split, "text").scene is None
        for benign in (draw_benign(rng, split), draw_lookalike(rng, split)):
            assert benign.scene is not None
            assert not benign.scene.unsafe_items


def test_shipped_data_stays_within_twenty_megabytes() -> None:
    files = [path for path in Path(DATA).rglob("*") if path.is_file()]

    assert sum(path.stat().st_size for path in files) <= 20_000_000
