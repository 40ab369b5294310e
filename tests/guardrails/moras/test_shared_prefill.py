"""Calls that begin from another's cache: any texts, any padding, the same logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lvlm_helpers import decoded, picture, user
from sightrail.guardrails.model.families import image_token_ids
from sightrail.guardrails.model.prompt import Prompt, PromptBuilder
from sightrail.guardrails.model.shared_prefill import Prefilled, SharedPrefill, plainly_greedy
from tiny_models import fresh, tiny

texts = st.text("abc ?.", min_size=1, max_size=30).filter(str.strip)


def build(family: str, asked: list[str], seed: int = 0) -> Prompt:
    model, processor = tiny(family)
    builder = PromptBuilder(processor, context_length=None, image_token_ids=image_token_ids(model))
    talks = [user(text, picture(seed + row)) for row, text in enumerate(asked)]
    return builder.build([decoded(talk) for talk in talks], prefix=None)


def run(model: Any, inputs: Any, **more: Any) -> torch.Tensor:
    """The logits of the first new token, [B, V]."""
    with torch.no_grad():
        output = model.generate(
            **inputs,
            **more,
            max_new_tokens=1,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return output.logits[0]


def shared(family: str, asked: list[str]) -> SharedPrefill:
    model, _ = tiny(family)
    first = SharedPrefill.of(model, build(family, asked))
    run(model, first.first.inputs, past_key_values=first.first.cache)
    return first


def tokens(inputs: Any, row: int) -> list[int]:
    return inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()


@settings(max_examples=12, deadline=None)
@given(
    pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=3),
    twice=st.booleans(),
    family=st.sampled_from(["llava", "qwen2_vl", "internvl"]),
)
def test_every_row_is_its_prompt_and_gives_its_logits(
    pairs: list[tuple[str, str]], twice: bool, family: str
) -> None:
    model, _ = tiny(family)
    first = shared(family, [one for one, _ in pairs])
    later = build(family, [other for _, other in pairs])
    if twice:
        later = Prompt(
            {name: torch.cat([value, value]) for name, value in later.inputs.items()},
            later.conversations * 2,
        )
    begun = first.begin(later, 0)
    assert begun is not None
    for row in range(later.rows):
        assert tokens(begun.inputs, row) == tokens(later.inputs, row)
    assert 0 < begun.cache.get_seq_length() < begun.length
    found = run(model, begun.inputs, past_key_values=begun.cache)
    torch.testing.assert_close(found, run(model, later.inputs), rtol=1e-4, atol=1e-4)


def test_later_calls_leave_the_first_cache_alone() -> None:
    model, _ = tiny("llava")
    first = shared("llava", ["What?", "Describe the picture."])
    later = build("llava", ["Why?", "Tell me."])
    before = [layer.keys.clone() for layer in first.cache.layers]
    begun = first.begin(later, 0)
    assert begun is not None
    once = run(model, begun.inputs, past_key_values=begun.cache)
    assert all(
        torch.equal(layer.keys, kept)
        for layer, kept in zip(first.cache.layers, before, strict=True)
    )
    again = first.begin(later, 0)
    assert again is not None
    assert torch.equal(run(model, again.inputs, past_key_values=again.cache), once)


def test_other_pictures_are_computed_again() -> None:
    first = shared("llava", ["What?"])
    assert first.begin(build("llava", ["Why?"], seed=9), 0) is None
    assert first.beside(build("llava", ["Why?"], seed=9), 0) is None


def test_a_text_before_the_picture_leaves_too_little_in_common() -> None:
    model, processor = tiny("internvl")
    builder = PromptBuilder(processor, context_length=None, image_token_ids=image_token_ids(model))
    image = {"type": "image", "image": picture(0)}
    turned = [{"role": "user", "content": [{"type": "text", "text": "Why?"}, image]}]
    later = builder.build([decoded(turned)], prefix=None)
    assert shared("internvl", ["What?"]).begin(later, 0) is None


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_continued_answer_goes_on_as_it_would_have(family: str) -> None:
    model, _ = tiny(family)
    later = build(family, ["Why?", "Describe the picture. Tell me."])
    start = shared(family, ["What?", "Describe the picture."]).begin(later, 0)
    assert start is not None
    with torch.no_grad():
        said = model.generate(
            **start.inputs,
            past_key_values=start.cache,
            max_new_tokens=5,
            do_sample=False,
            pad_token_id=0,
        )[:, start.length :]
    silent = Prefilled({}, start.cache)
    begun = start.continued(1, said[1, :3].tolist(), silent)
    assert (begun.spoken, begun.silent) == (3, silent)
    found = run(model, begun.inputs, past_key_values=begun.cache)
    assert int(found.argmax()) == int(said[1, 3])


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "internvl"])
def test_a_greedy_run_says_what_generate_says(family: str) -> None:
    model, _ = tiny(family)
    asked = ["What?", "Describe the picture. Tell me."]
    later = build(family, asked)
    first = SharedPrefill.of(model, build(family, ["Why?", "Describe the image."]))
    for begun, prompt in (
        (lambda: first.begun, first.prompt),  # which fills the cache of the other
        (lambda: first.begin(later, 0), later),
    ):
        with torch.no_grad():
            said = model.generate(
                **prompt.inputs, max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0
            )[:, prompt.length :]
        end = int(said[0, 3])  # one row ends; the other goes on
        start = begun()
        found = start.greedy(model, 6, end_tokens=[end])
        for ours, theirs in zip(found.tolist(), said.tolist(), strict=True):
            stop = theirs.index(end) if end in theirs else len(theirs)
            assert ours[:stop] == theirs[:stop]
        with pytest.raises(InterruptedError):
            start.greedy(model, 6, going_on=_stop)


def _stop() -> None:
    raise InterruptedError


@pytest.mark.parametrize(
    ("habits", "plain"),
    [
        ({}, True),
        ({"do_sample": True, "temperature": 0.2, "top_k": 5}, True),
        ({"repetition_penalty": 1.2}, False),
        ({"use_cache": False}, False),
        ({"suppress_tokens": [3]}, False),
        ({"cache_implementation": "static"}, False),
    ],
)
def test_habits_of_a_checkpoint_are_left_to_generate(habits: dict[str, Any], plain: bool) -> None:
    model, _ = fresh("llava")
    model.generation_config.update(**habits)
    assert plainly_greedy(model) == plain
