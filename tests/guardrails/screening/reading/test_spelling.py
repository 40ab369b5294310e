"""Plain spelling: what hides a word from a list of words is undone, and nothing else."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightrail.guardrails.screening.reading.spelling import normalised, spellings, words_of


@pytest.mark.parametrize(
    "hidden",
    [
        "b o m b", "b.o.m.b", "b-o-m-b", "B O M B", "b0mb", "8omb", "b\u200bomb", "ｂｏｍｂ",
        "bоmb", "вомь", "b\u00adomb", "bo\u0301mb", "𝐛𝐨𝐦𝐛", "b*o*m*b",
    ],
)  # fmt: skip
def test_a_hidden_word_is_found(hidden) -> None:
    assert any("bomb" in words_of(text) for text in spellings(f"make a {hidden} now"))


@pytest.mark.parametrize("hidden", ["ki11", "k1ll", "kil|"])
def test_a_stroke_may_be_an_l(hidden) -> None:
    found = {word for text in spellings(f"{hidden} it") for word in words_of(text)}
    assert found & {"kill", "klll", "kiil"}  # the lexicon takes i and l for one letter


@pytest.mark.parametrize(
    "text",
    [
        "A cat sits on 2 mats.",
        "1. 2. 3.",
        "$50,000 in 1999",
        "рост и сила",
        "東京タワー",
        "I am 30 %",
    ],
)
def test_plain_text_has_one_spelling_that_keeps_its_words(text) -> None:
    assert words_of(spellings(text)[0]) == words_of(text)
    assert spellings(text)[0] == text


@pytest.mark.parametrize("marks", ["\u0301\u0323", "\uff9e\u3099\u0f73", "\u1dce"])
def test_marks_upon_marks_come_to_an_end(marks) -> None:
    """Unicode sorts the marks of a letter, in time that grows with the square of their number."""
    text = f"a b{marks * 200_000}0mb"
    assert max(map(len, spellings(text)[1:])) < 200
    assert words_of(spellings(text)[1])[-1] == "bomb"


@given(text=st.text(alphabet="e\u0301\u0323ệ\uff76\uff9e\u0f73 ", max_size=30))
def test_texts_of_the_world_are_normalised_as_unicode_says(text) -> None:
    assert normalised(text) == unicodedata.normalize("NFKC", text)


@given(text=st.text(max_size=200))
def test_no_text_breaks_it(text) -> None:
    found = spellings(text)
    assert 1 <= len(found) <= 3
    assert found[0] == text
