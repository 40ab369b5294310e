"""Which lines make a sentence, and what is put before a reader."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sightrail.guardrails.screening.reading.judged import judge_texts
from sightrail.guardrails.screening.reading.readers import GuardReader, TextRisk
from sightrail.guardrails.screening.reading.words import Line, join, passages, script_of, sentences
from sightrail.guardrails.verdict import NotInspected


def line(text: str, left: int = 0, top: int = 0, width: int = 100, height: int = 20) -> Line:
    return Line(text, (left, top, left + width, top + height), 0.9)


def texts(groups) -> list[str]:
    return sorted(join(group) for group in groups)


def test_lines_below_one_another_are_one_passage() -> None:
    page = [line("how to", top=0), line("do it", top=30), line("far away", top=300)]
    assert texts(passages(page)) == ["far away", "how to do it"]


def test_words_of_a_row_are_read_from_the_left() -> None:
    row = [line("world", left=110, top=2), line("hello", left=0, top=0), line("again", top=25)]
    assert texts(passages(row)) == ["hello world again"]


def test_a_headline_and_small_print_are_two_passages() -> None:
    assert len(passages([line("BIG", height=80), line("small", top=90, height=12)])) == 2


def test_a_hyphenated_word_is_whole_again() -> None:
    assert join([line("dyna-"), line("mite", top=30)]) == "dynamite"


def test_letters_below_one_another_are_a_word_up_to_the_next_gap() -> None:
    tops = [0, 22, 44, 90, 112, 134]
    column = [line(c, top=top, width=16) for c, top in zip("catdog", tops, strict=True)]
    assert join(column) == "cat dog"
    assert join([line("a", width=16), line("b", left=40, width=16)]) == "a b"


@pytest.mark.parametrize(
    ("turned", "first", "second"),
    [(90, (60, 0), (30, 0)), (180, (0, 60), (0, 30)), (270, (0, 0), (30, 0))],
)
def test_turned_lines_are_read_in_their_own_order(turned, first, second) -> None:
    upright = turned == 180
    size = {"width": 100, "height": 20} if upright else {"width": 20, "height": 100}
    page = [
        replace(line(text, *place, **size), turned=turned)
        for text, place in (("do it", second), ("how to", first))
    ]
    assert texts(passages(page)) == ["how to do it"]


def test_sentences_end_where_they_end() -> None:
    found = sentences(
        [line("One."), line("two", top=30), line("three!", top=60), line("4", top=90)]
    )
    assert [join(part) for part in found] == ["One.", "two three!", "4"]


def test_scripts_by_letter() -> None:
    assert [script_of(c) for c in "aßж東あ1 "] == [
        "LATIN", "LATIN", "CYRILLIC", "CJK", "HIRAGANA", None, None,
    ]  # fmt: skip


READER = GuardReader(lambda text: "bad thing" in text)


def test_the_sentence_that_says_it_is_flagged_and_not_its_neighbours() -> None:
    lines = (line("Hello."), line("a bad", top=30), line("thing.", top=60), line("Bye.", top=90))
    [judged] = judge_texts(READER, [lines], 0.5)
    assert {where.lines for where in judged.flagged} == {lines[1:3]}
    assert judged.scores == {"unsafe": 1.0}


def test_what_only_the_whole_text_says_flags_all_of_it() -> None:
    lines = (line("a bad."), line("thing.", top=30))
    [judged] = judge_texts(GuardReader(lambda text: "bad. thing" in text), [lines], 0.5)
    assert {where.lines for where in judged.flagged} == {lines}


def test_a_long_text_is_judged_in_pieces() -> None:
    sizes = []
    reader = GuardReader(lambda text: bool(sizes.append(len(text.split()))) or "bad thing" in text)
    lines = tuple(line("ten words " * 5, top=30 * i) for i in range(99))
    [judged] = judge_texts(reader, [(*lines, line("a bad thing", top=30 * 99))], 0.5)
    assert judged.flagged
    assert max(sizes) <= 140


def test_a_reader_is_asked_once_about_all_pictures() -> None:
    calls = []

    class Counting:
        name, scripts = "counting", None
        threshold = READER.threshold

        def read(self, texts):
            calls.append(len(texts))
            return [TextRisk({"x": 0.0})] * len(texts)

    judge_texts(Counting(), [(line("one"),), (), (line("two"),)], 0.5)
    assert calls == [2]


def test_what_a_guard_answers() -> None:
    class Message:
        content = "unsafe\nS1"

    answers = {
        "a": True, "b": 0.7, "c": "safe", "d": "Yes", "e": Message(), "f": {"flagged": False},
        "g": None, "h": "perhaps", "i": 7, "j": float("nan"), "k": {"safe": True},
    }  # fmt: skip
    found = GuardReader(answers.get).read(list(answers))
    scores = [r if isinstance(r, NotInspected) else r.scores["unsafe"] for r in found]
    assert scores[:6] == [1.0, 0.7, 0.0, 1.0, 1.0, 0.0]
    assert all(isinstance(score, NotInspected) for score in scores[6:])


def test_a_guard_that_raises_is_no_safe_answer() -> None:
    found = GuardReader(lambda text: 1 / len(text)).read(["ab", ""])
    assert found[0].scores == {"unsafe": 0.5}
    assert found[1].reason == "guard_failed"
    [judged] = judge_texts(GuardReader(lambda text: 1 / 0), [(line("words"),)], 0.5)
    assert [gap.reason for gap in judged.gaps] == ["guard_failed"]


def test_a_risk_that_is_no_number_is_a_gap() -> None:
    class Unsure:
        scripts = None

        def read(self, texts):
            return [TextRisk({"a": 0.1, "b": float("nan")}) for _ in texts]

    [judged] = judge_texts(Unsure(), [(line("words"),)], 0.5)
    assert [gap.reason for gap in judged.gaps] == ["failed"]
