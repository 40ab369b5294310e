"""Reading chat messages: what is taken, what is refused, and that nothing is changed."""

from __future__ import annotations

import copy

import pytest

from lvlm_helpers import decoded, picture, user
from sightrail.guardrails.errors import PromptError
from sightrail.guardrails.model.messages import (
    Conversation,
    ImagePart,
    TextPart,
    Turn,
    read_messages,
)


def test_a_string_is_a_user_turn() -> None:
    assert read_messages("Hello?") == Conversation((Turn("user", (TextPart("Hello?"),)),))


def test_a_conversation() -> None:
    image = picture()
    messages = [
        {"role": "system", "content": "Be brief."},
        *user("One?", image, "path.png"),
        {"role": "assistant", "content": [{"type": "text", "text": "Two."}]},
        {"role": "user", "content": "Three?"},
    ]
    before = copy.copy(messages)
    read = read_messages(messages)
    assert [turn.role for turn in read.turns] == ["system", "user", "assistant", "user"]
    assert [part.source for part in read.image_parts] == [image, "path.png"]
    assert read.turns[1].texts == ["One?"]
    assert messages == before
    assert read_messages(read) is read
    assert read.last_user_turn == 3


def test_pictures_are_replaced_in_order() -> None:
    read = read_messages([*user("a", 1, 2), *user("b", 3)])
    swapped = read.with_images([ImagePart("x"), TextPart("gone"), ImagePart("z")])
    assert [part.source for part in swapped.image_parts] == ["x", "z"]
    assert swapped.turns[0].parts == (ImagePart("x"), TextPart("gone"), TextPart("a"))
    assert [part.source for part in read.image_parts] == [1, 2, 3]


def test_pixels_come_after_decoding() -> None:
    read = read_messages(user("a", picture()))
    with pytest.raises(PromptError, match="not decoded"):
        _ = read.images
    assert [image.size for image in decoded(user("a", picture())).images] == [(40, 30)]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "empty"),
        (None, "NoneType"),
        (7, "int"),
        ({"role": "user", "content": "x"}, "in a list"),
        (["x"], "'role' and 'content'"),
        ([{"role": "user"}], "'role' and 'content'"),
        ([{"role": "critic", "content": "x"}], "system, user, assistant, tool"),
        ([{"role": "tool", "content": "x"}], "no user message"),
        ([{"role": "assistant", "tool_calls": [{"id": "a"}]}], "tool call"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}],
            "no JSON object",
        ),
        ([{"role": "user", "content": 3}], "int"),
        ([{"role": "user", "content": [{"type": "video", "video": "x"}]}], "'video'"),
        ([{"role": "user", "content": [{"type": "image"}]}], "'image'"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "'text'"),
        ([{"role": "user", "content": [None]}], "NoneType"),
        ([{"role": "system", "content": "x"}], "no user message"),
    ],
)
def test_bad_messages(messages: object, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        read_messages(messages)  # type: ignore[arg-type]


def test_errors_do_not_repeat_what_people_wrote() -> None:
    with pytest.raises(PromptError) as error:
        read_messages([{"role": "user", "content": [{"type": "secret", "text": "my address"}]}])
    assert "my address" not in str(error.value)
