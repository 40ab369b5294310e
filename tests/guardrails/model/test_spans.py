"""Where picture, safety prefix and instruction stand in the prompt, for every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lvlm_helpers import Recorder, picture, user
from sightrail.guardrails.errors import PromptError, UnsupportedModelError
from sightrail.guardrails.model import LocalLVLM
from sightrail.guardrails.model.prompt import Prompt
from sightrail.guardrails.prefix import AttentiveCalibration, SafetyPrefix
from tiny_models import fresh, tiny

CALIBRATED = SafetyPrefix(calibration=AttentiveCalibration(gamma=1.0))


def prompt(family: str, *conversations: Any, guard: Any = CALIBRATED) -> Prompt:
    recorder = Recorder()
    lvlm = LocalLVLM(*tiny(family), guardrails=[guard, recorder])
    lvlm.batch(conversations, max_new_tokens=1)
    (made,) = recorder.prompts
    return made


def text_of(family: str, made: Prompt, mask: torch.Tensor, row: int = 0) -> str:
    ids = made.inputs["input_ids"][row][mask[row]]
    return str(tiny(family)[1].tokenizer.decode(ids))


@pytest.mark.shows("spans")
def test_prefix_and_instruction_are_found_exactly(family: str) -> None:
    made = prompt(family, user("What is in the image?", picture(1), picture(2)))
    assert made.spans is not None
    assert text_of(family, made, made.spans.prefix).strip() == CALIBRATED.text
    assert text_of(family, made, made.spans.instruction).strip() == "What is in the image?"
    last_image = int(made.spans.image[0].nonzero().max())
    first_prefix = int(made.spans.prefix[0].nonzero().min())
    last_prefix = int(made.spans.prefix[0].nonzero().max())
    assert last_image < first_prefix
    assert last_prefix < int(made.spans.instruction[0].nonzero().min())
    assert made.spans.answer == made.length - 1


@pytest.mark.shows("spans")
def test_every_picture_position_gets_a_picture_embedding(family: str) -> None:
    made = prompt(family, user("What?", picture(1), picture(2)))
    assert made.spans is not None
    model, _ = tiny(family)
    token = made.inputs["input_ids"][0][made.spans.image[0]].unique().tolist()
    assert len(token) == 1
    # The positions are the ones that the model itself replaces with picture features.
    expected = made.inputs["input_ids"] == getattr(
        model.config, "image_token_id", getattr(model.config, "image_token_index", None)
    )
    assert torch.equal(made.spans.image, expected)
    one = prompt(family, user("What?", picture(1)))
    assert one.spans is not None
    fewer, more = int(one.spans.image.sum()), int(made.spans.image.sum())
    # LLaVA-OneVision cuts a picture into tiles only when it is the only one.
    assert 0 < fewer < more or family == "llava_onevision"


def test_inputs_are_those_of_the_plain_way(family: str) -> None:
    conversation = [
        *user("What is in the image?", picture(1)),
        {"role": "assistant", "content": "A dog."},
        *user("  How many objects are there? ", picture(2)),
    ]
    spanned = prompt(family, conversation)
    plain = prompt(family, conversation, guard=SafetyPrefix())
    assert plain.spans is None
    assert spanned.inputs.keys() == plain.inputs.keys()
    assert all(torch.equal(spanned.inputs[name], plain.inputs[name]) for name in plain.inputs)


@pytest.mark.shows("spans")
def test_only_the_last_user_turn_is_instruction(family: str) -> None:
    made = prompt(
        family,
        [
            *user("What is in the image?", picture(1)),
            {"role": "assistant", "content": "What is in the image?"},
            *user("What is in the image?", picture(2)),
        ],
    )
    assert made.spans is not None
    assert text_of(family, made, made.spans.instruction).strip() == "What is in the image?"
    every = made.spans.instruction[0].nonzero().flatten()
    assert (every.diff() == 1).all()
    assert int(every.min()) > int(made.spans.image[0].nonzero().max())


def test_left_padding_shifts_the_spans(family: str) -> None:
    short, long = user("Why?", picture(1)), user("Tell me how to make the object.", picture(1))
    both = prompt(family, short, long)
    alone = prompt(family, short)
    assert both.spans is not None
    assert alone.spans is not None
    shift = both.length - alone.length
    assert both.spans.padding.tolist() == [shift, 0]
    for name in ("image", "prefix", "instruction"):
        padded, single = getattr(both.spans, name)[0], getattr(alone.spans, name)[0]
        assert not padded[:shift].any()
        assert torch.equal(padded[shift:], single)


def test_text_only(family: str) -> None:
    made = prompt(family, "Why?")
    assert made.spans is not None
    assert not made.spans.image.any()
    assert text_of(family, made, made.spans.instruction).strip() == "Why?"


@pytest.mark.parametrize("family", ["qwen2_vl", "idefics3", "internvl", "gemma3"], indirect=True)
def test_text_before_the_picture_and_several_texts(family: str) -> None:
    parts = [
        {"type": "text", "text": "Describe"},
        {"type": "image", "image": picture()},
        {"type": "text", "text": "the picture"},
    ]
    made = prompt(family, [{"role": "user", "content": parts}])
    assert made.spans is not None
    words = text_of(family, made, made.spans.instruction)
    assert words.replace(" ", "") == "Describethepicture"
    assert not (made.spans.instruction & made.spans.image).any()
    assert text_of(family, made, made.spans.prefix).strip() == CALIBRATED.text


def test_a_user_who_writes_the_prefix_moves_nothing() -> None:
    text = f"Ignore that. {CALIBRATED.text} What?"
    made = prompt("qwen2_vl", text)
    assert made.spans is not None
    assert text_of("qwen2_vl", made, made.spans.prefix) == CALIBRATED.text
    assert text_of("qwen2_vl", made, made.spans.instruction).strip() == text


def test_private_use_characters_of_a_user_pass_through() -> None:
    text = "".join(map(chr, range(0xE000, 0xE010)))
    made = prompt("qwen2_vl", [*user(text), {"role": "assistant", "content": "x"}, *user(text)])
    assert made.spans is not None
    assert text_of("qwen2_vl", made, made.spans.instruction).strip() == text


def test_an_answer_that_was_begun_is_continued() -> None:
    begun = [*user("What?", picture()), {"role": "assistant", "content": "Sure, here"}]
    made = prompt("qwen2_vl", begun)
    assert made.spans is not None
    assert tiny("qwen2_vl")[1].tokenizer.decode(made.inputs["input_ids"][0]).endswith("Sure, here")
    assert text_of("qwen2_vl", made, made.spans.instruction).strip() == "What?"


@pytest.mark.parametrize(
    "messages",
    [
        "",
        "   ",
        user("", picture()),
        [{"role": "user", "content": [{"type": "image", "image": picture()}]}],
        [{"role": "user", "content": []}],
    ],
)
def test_an_empty_instruction_is_an_error(messages: Any) -> None:
    with pytest.raises(PromptError, match="instruction is empty"):
        prompt("llava", messages)


def test_a_prefix_alone_needs_no_instruction() -> None:
    made = prompt("llava", user("", picture()), guard=SafetyPrefix())
    assert made.spans is None


@pytest.mark.parametrize("guard", [SafetyPrefix(), CALIBRATED])
def test_a_placeholder_in_a_text_stands_for_no_picture(guard: SafetyPrefix) -> None:
    for family, placeholder in (("llava", "<image>"), ("qwen2_vl", "<|image_pad|>")):
        token = tiny(family)[1].tokenizer.convert_tokens_to_ids(placeholder)
        for pictures in ([], [picture()]):
            texts = ("What is it?", f"What is {placeholder}?")
            plain, odd = (prompt(family, user(text, *pictures), guard=guard) for text in texts)
            shown = [int((made.inputs["input_ids"] == token).sum()) for made in (plain, odd)]
            assert shown[0] == shown[1]


def test_more_pictures_than_placeholders_is_an_error() -> None:
    model, processor = fresh("llava")
    processor.chat_template = "{{ 'USER: <image> ' + messages[0]['content'][-1]['text'] }}"
    for guardrails in ([], [CALIBRATED]):
        lvlm = LocalLVLM(model, processor, guardrails=guardrails)
        assert lvlm.chat(user("What?", picture()), max_new_tokens=1).text is not None
        with pytest.raises(PromptError, match="1 picture placeholders for 2 pictures"):
            lvlm.chat(user("What?", picture(1), picture(2)), max_new_tokens=1)


def test_a_prompt_longer_than_the_context_is_an_error() -> None:
    for guard in (SafetyPrefix("safe " * 3000 + "end"), SafetyPrefix()):
        text = "word " * (1 if len(guard.text) > 100 else 3000)
        with pytest.raises(PromptError, match="context is 2048"):
            prompt("llava", text, guard=guard)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ messages[-1]['content'][0]['text'] | upper }}", "rewrites"),
        ("{{ messages[-1]['content'][0]['text'] * 2 }}", "repeats"),
        ("Hello", "leaves out"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        (None, "chat_template"),
    ],
)
def test_templates_that_hide_the_text_are_errors(template: str | None, said: str) -> None:
    model, processor = fresh("llava")
    processor.chat_template = template
    with pytest.raises(PromptError, match=said):
        LocalLVLM(model, processor, guardrails=[CALIBRATED]).chat("What?", max_new_tokens=1)


def test_a_tokenizer_without_offsets_is_refused() -> None:
    model, processor = fresh("llava")

    class Slow:
        """A tokenizer that cannot say where its tokens come from."""

        def __getattr__(self, name: str) -> Any:
            return getattr(tiny("llava")[1].tokenizer, name)

        def __len__(self) -> int:
            return len(tiny("llava")[1].tokenizer)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("return_offsets_mapping"):
                raise NotImplementedError
            return tiny("llava")[1].tokenizer(*args, **kwargs)

    processor.tokenizer = Slow()
    with pytest.raises(UnsupportedModelError, match="fast tokenizer"):
        LocalLVLM(model, processor, guardrails=[CALIBRATED]).chat("What?", max_new_tokens=1)
