"""Policies fail closed: the strictest action wins, and nothing passes that was not looked at."""

from __future__ import annotations

from itertools import product
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from sightrail.guardrails import (
    ImageRefused,
    NotInspected,
    Policy,
    Region,
    Verdict,
    apply_policy,
)
from sightrail.guardrails.policy import UnseenAction
from sightrail.guardrails.screening.regions import MARGIN
from sightrail.guardrails.verdict import Action, Threshold

STRICTNESS = ("allow", "mask", "drop", "refuse", "raise")
THRESHOLD = Threshold(value=0.5, source="test")
REGION = Region(box=(4, 4, 12, 12), category="weapons", score=0.9)

actions = st.sampled_from(get_args(Action))
unseen = st.sampled_from(get_args(UnseenAction))
categories = st.sampled_from(["weapons", "drugs", "gore"])
policies = st.builds(
    Policy,
    on_flagged=actions,
    categories=st.dictionaries(categories, actions),
    on_not_inspected=unseen,
    on_error=unseen,
    monitor=st.booleans(),
)


def flagged(
    scores: dict[str, float] | None = None, regions: tuple[Region, ...] = (REGION,)
) -> Verdict:
    scores = scores or {"weapons": 0.9}
    top = max(scores, key=lambda name: scores[name])
    return Verdict(
        status="flagged",
        category=top,
        score=scores[top],
        scores=scores,
        threshold=THRESHOLD,
        regions=regions,
    )


def picture() -> Image.Image:
    return Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))


# Deciding


@given(policies)
def test_clean_is_allowed_under_every_policy(policy: Policy) -> None:
    assert policy.decide(Verdict(status="clean")) == "allow"


@given(policies)
def test_the_unseen_follow_their_own_settings(policy: Policy) -> None:
    assert policy.decide(Verdict.uninspected("truncated")) == policy.on_not_inspected
    assert policy.decide(Verdict.failed("broken")) == policy.on_error


def test_the_defaults_fail_closed() -> None:
    policy = Policy()
    assert policy.decide(Verdict.uninspected("truncated")) == "refuse"
    assert policy.decide(Verdict.failed("broken")) == "refuse"
    assert policy.decide(flagged()) == "mask"
    assert policy.decide(flagged(regions=())) == "refuse"


@given(policies, st.dictionaries(categories, st.floats(0, 1), min_size=1))
def test_the_strictest_flagged_category_wins(policy: Policy, scores: dict[str, float]) -> None:
    scores = {**scores, "weapons": 0.9}
    verdict = flagged(scores)
    found = {*verdict.flagged_categories}
    expected = max(
        (policy.categories.get(name, policy.on_flagged) for name in found), key=STRICTNESS.index
    )
    assert policy.decide(verdict) == expected


@given(policies, st.dictionaries(categories, st.floats(0, 1), min_size=1), categories)
def test_one_more_finding_never_relaxes_the_decision(
    policy: Policy, scores: dict[str, float], more: str
) -> None:
    scores = {**scores, "weapons": 0.9}
    before = policy.decide(flagged(scores))
    after = policy.decide(flagged({**scores, more: 1.0}))
    assert STRICTNESS.index(after) >= STRICTNESS.index(before)


@given(policies)
def test_a_part_that_was_not_seen_never_relaxes_the_decision(policy: Policy) -> None:
    hidden = (NotInspected(reason="too_many_frames"),)
    for verdict in (Verdict(status="clean"), flagged()):
        partly = verdict.model_copy(update={"not_inspected": hidden})
        stricter = {policy.decide(verdict), policy.on_not_inspected}
        assert policy.decide(partly) == max(stricter, key=STRICTNESS.index)


def test_a_flagged_verdict_without_scores_still_finds_its_category() -> None:
    policy = Policy(on_flagged="allow", categories={"drugs": "refuse"})
    assert policy.decide(Verdict(status="flagged", category="drugs")) == "refuse"
    assert policy.decide(Verdict(status="flagged")) == "allow"
    assert Policy().decide(Verdict(status="flagged")) == "refuse"


def test_the_category_counts_even_where_the_scores_leave_it_out() -> None:
    policy = Policy(on_flagged="mask", categories={"drugs": "raise"})
    verdict = flagged().model_copy(update={"category": "drugs"})
    assert policy.decide(verdict) == "raise"


@pytest.mark.parametrize(
    "fields",
    [
        {"on_flagged": "ignore"},
        {"on_not_inspected": "mask"},
        {"on_error": "mask"},
        {"categories": {"weapons": "maybe"}},
        {"mask": "pixelate"},
        {"on_flaged": "refuse"},
    ],
)
def test_impossible_policies_are_rejected(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Policy(**fields)  # type: ignore[arg-type]


@given(policies)
def test_policies_round_trip_through_json(policy: Policy) -> None:
    assert Policy.model_validate_json(policy.model_dump_json()) == policy


# Carrying out


def test_allow_hands_on_the_very_picture() -> None:
    image = picture()
    applied = apply_policy(image, Verdict(status="clean"), Policy())
    assert applied.image is image
    assert applied.verdict.action == applied.action == "allow"


@pytest.mark.parametrize("how", ["fill", "blur"])
def test_mask_covers_the_regions_and_little_else(how: str) -> None:
    image, before = picture(), picture()
    applied = apply_policy(image, flagged(), Policy(mask=how))  # type: ignore[arg-type]
    assert applied.action == "mask"
    assert image.tobytes() == before.tobytes()
    assert applied.image is not None
    old, new = np.asarray(image), np.asarray(applied.image)
    changed = (old != new).any(axis=2)
    inside = np.zeros_like(changed)
    inside[4:12, 4:12] = True
    reach = round(MARGIN * min(image.size))
    around = np.zeros_like(changed)
    around[max(0, 4 - reach) : 12 + reach, max(0, 4 - reach) : 12 + reach] = True
    assert changed[inside].mean() > 0.9
    assert not changed[~around].any()


@pytest.mark.parametrize("action", ["drop", "refuse"])
def test_drop_and_refuse_hand_on_no_picture(action: str) -> None:
    applied = apply_policy(picture(), flagged(), Policy(on_flagged=action))  # type: ignore[arg-type]
    assert applied.image is None
    assert applied.verdict.action == applied.action == action


def test_raise_carries_the_verdict() -> None:
    with pytest.raises(ImageRefused) as caught:
        apply_policy(picture(), flagged(), Policy(on_flagged="raise"))
    assert caught.value.verdicts[0].action == "raise"
    assert "weapons" in str(caught.value)


def test_a_picture_that_could_not_be_decoded_is_refused() -> None:
    applied = apply_policy(None, Verdict.uninspected("truncated"), Policy())
    assert (applied.action, applied.image) == ("refuse", None)


def test_there_is_nothing_to_cover_without_a_picture() -> None:
    assert apply_policy(None, flagged(), Policy(on_flagged="mask")).action == "refuse"


@given(policies, st.sampled_from(["clean", "flagged", "not_inspected", "failed"]))
def test_a_monitor_records_the_decision_and_changes_nothing(policy: Policy, status: str) -> None:
    policy = policy.model_copy(update={"monitor": True})
    verdict = flagged() if status == "flagged" else Verdict(status=status)  # type: ignore[arg-type]
    image = picture()
    applied = apply_policy(image, verdict, policy)
    assert applied.image is image
    assert applied.verdict.action == policy.decide(verdict)


@pytest.mark.parametrize(("first", "second"), list(product(STRICTNESS, STRICTNESS)))
def test_the_order_of_categories_does_not_matter(first: str, second: str) -> None:
    policy = Policy(categories={"weapons": first, "drugs": second})  # type: ignore[dict-item]
    one = policy.decide(flagged({"weapons": 0.8, "drugs": 0.9}))
    other = policy.decide(flagged({"drugs": 0.8, "weapons": 0.9}))
    assert one == other == max(first, second, key=STRICTNESS.index)


REQUEST = Verdict.on_request("casa", 0.9, THRESHOLD).taken("refuse")
PICTURE = flagged().taken("refuse")


@pytest.mark.parametrize(
    ("verdicts", "named"),
    [
        ((REQUEST,), "request"),
        ((REQUEST.taken("raise"),), "request"),
        ((flagged().taken("mask"), REQUEST), "request"),
        ((PICTURE, REQUEST), "image"),
        ((PICTURE, REQUEST.taken("allow")), "image"),
        ((), "image"),
    ],
)
def test_the_refusal_names_what_was_refused(verdicts: tuple[Verdict, ...], named: str) -> None:
    for policy in (Policy(), Policy.model_validate_json(Policy().model_dump_json())):
        assert policy.refusal_for(verdicts) == f"I am sorry, I cannot help with that {named}."


def test_a_text_of_ones_own_wins() -> None:
    own = Policy(refusal="No.")
    assert (own.refusal_for([PICTURE]), own.refusal_for([REQUEST])) == ("No.", "No.")
    both = Policy(refusal="Not this picture.", request_refusal="Ask something else.")
    assert both.refusal_for([PICTURE]) == "Not this picture."
    assert both.refusal_for([REQUEST]) == "Ask something else."
