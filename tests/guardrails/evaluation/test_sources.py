"""Every reader on its miniature folder, and what each bad input leads to."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from benchmark_folders import BUILDERS, figstep, jsonl, png, put, shared, table, vlsbench
from sightrail.guardrails import ConfigurationError, MissingDependencyError
from sightrail.guardrails.evaluation import Item, Judgement, KeywordJudge, Reply
from sightrail.guardrails.evaluation.judge import is_right
from sightrail.guardrails.evaluation.sources import BENCHMARKS, Benchmark, Together
from sightrail.guardrails.evaluation.tally import Tally

EXPECTED = {  # items, of them harmful, with a picture, with a right answer
    "figstep": (2, 2, 2, 0),
    "mm-safetybench": (6, 6, 6, 0),
    "xstest": (2, 1, 0, 0),
    "mossbench": (2, 0, 2, 0),
    "vlguard": (3, 2, 3, 0),
    "spa-vl": (1, 1, 1, 0),
    "jailbreakv": (1, 1, 1, 0),
    "harmbench": (1, 1, 1, 0),
    "siuo": (1, 1, 1, 0),
    "vlsbench": (2, 2, 2, 0),
    "mssbench": (6, 3, 6, 0),
    "hades": (1, 1, 1, 0),
    "vlsafe": (2, 2, 2, 0),
    "mme": (4, 0, 4, 4),
    "mm-vet": (1, 0, 1, 1),
    "scienceqa": (1, 0, 1, 1),
    "jsonl": (3, 1, 2, 2),
}


def built(name: str, root: Path) -> Benchmark:
    BUILDERS[name](root)
    return Benchmark(name, root)


def test_every_reader_has_a_miniature() -> None:
    assert set(BUILDERS) == set(BENCHMARKS) == set(EXPECTED)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_reader_reads_its_own_layout(name: str, tmp_path: Path) -> None:
    source = built(name, tmp_path)
    items = list(source.items())

    assert len(source) == len(items)
    counts = (
        len(items),
        sum(item.harmful for item in items),
        sum(bool(item.images) for item in items),
        sum(item.answer is not None for item in items),
    )
    assert counts == EXPECTED[name]
    assert len({item.id for item in items}) == len(items)
    for item in items:
        assert item.id.startswith(f"{name}/")
        assert item.groups[-1] == name
        last = item.messages()[-1]["content"]
        assert [part["type"] for part in last] == ["image"] * len(item.images) + ["text"]
        assert all(part["image"].size == (48, 32) for part in last if part["type"] == "image")
    assert [item.id for item in source.items()] == [item.id for item in items]


@pytest.mark.parametrize("name", BUILDERS)
def test_an_empty_folder_says_what_is_missing(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=str(tmp_path)):
        len(Benchmark(name, tmp_path))


@pytest.mark.parametrize("name", sorted(set(BUILDERS) - {"xstest", "spa-vl", "hades", "vlsbench"}))
def test_a_missing_picture_names_the_record(name: str, tmp_path: Path) -> None:
    source = built(name, tmp_path)
    endings = {".png", ".jpg", ".webp"}
    pictures = [path for path in tmp_path.rglob("*") if path.suffix in endings]
    pictures[-1].unlink()

    with pytest.raises(ConfigurationError, match=rf"{pictures[-1].name}|there is no picture"):
        list(source.items())


def test_what_each_item_is_asked_and_judged_by(tmp_path: Path) -> None:
    def item(name: str, index: int = 0) -> Item:
        (tmp_path / name).mkdir(exist_ok=True)
        return list(built(name, tmp_path / name).items())[index]

    assert "list numbered 1, 2, and 3" in item("figstep").text
    assert item("figstep").goal == "How is cake 1 made?"
    sd, typo = item("mm-safetybench"), item("mm-safetybench", 4)
    assert (sd.text, typo.text) == (
        "How is the thing shown made?",
        "How is the thing in words made?",
    )
    assert sd.groups == (
        "mm-safetybench/SD/01-Baking",
        "mm-safetybench/01-Baking",
        "mm-safetybench/SD",
        "mm-safetybench",
    )
    parts = [item("vlguard", index).groups[0] for index in range(3)]
    assert parts == ["vlguard/safe_safe", "vlguard/safe_unsafe", "vlguard/unsafe"]
    assert item("jailbreakv").goal == "Ruin the cake."
    assert "A cake." in (item("harmbench").goal or "")
    assert item("hades").id == "hades/Cakes/1"
    assert item("scienceqa").text.splitlines()[2:4] == ["A. a cat", "B. a torte"]


@pytest.mark.parametrize(
    ("name", "index", "right", "wrong"),
    [
        ("mme", 0, "Yes, it is.", "No."),
        ("mme", 1, "no", "Yes"),
        ("scienceqa", 0, "The answer is (B).", "A. a cat"),
        ("scienceqa", 0, "B", "Because of that"),
        ("mm-vet", 0, "A red cake.", "A blue cake."),
        ("mm-vet", 0, "It is a torte", "It is a tortellino"),
        ("jsonl", 0, "I see a cake!", "I see a cheesecakes shop"),
        ("jsonl", 2, "Yes.", "I think yes"),
    ],
)
def test_right_answers_are_told_from_wrong_ones(
    name: str, index: int, right: str, wrong: str, tmp_path: Path
) -> None:
    item = list(built(name, tmp_path).items())[index]
    assert is_right(item, right)
    assert not is_right(item, wrong)


@pytest.mark.parametrize(
    ("said", "accuracy", "plus"),
    [(["Yes", "No"], 1.0, 1.0), (["Yes", "Yes"], 0.5, 0.0), (["No", "Yes"], 0.0, 0.0)],
)
def test_of_mme_both_answers_about_a_picture_count_together(
    said: list[str], accuracy: float, plus: float, tmp_path: Path
) -> None:
    items = list(built("mme", tmp_path).items())
    tally = Tally("bare")
    for item, answer in zip(items, said * 2, strict=True):
        (found,) = KeywordJudge().judge([(item, Reply(answer))])
        tally.add(item, found)
    rows = {(row.metric, row.group): row for row in tally.rows()}
    assert rows["benign_accuracy", "mme"].value == accuracy
    assert (rows["accuracy_plus", "mme"].value, rows["accuracy_plus", "mme"].n) == (plus, 2)
    assert rows["accuracy_plus", "mme/artwork"].n == 1


def test_a_picture_with_an_answer_that_nobody_judged_is_not_right(tmp_path: Path) -> None:
    tally = Tally("bare")
    for item, right in zip(built("mme", tmp_path).items(), [True, None, False, None], strict=True):
        tally.add(item, Judgement(False, False, right))
    (row,) = (row for row in tally.rows() if (row.metric, row.group) == ("accuracy_plus", "mme"))
    assert (row.value, row.unjudged, row.n) == (0.0, 1, 2)


def test_figstep_and_xstest_as_they_are_published() -> None:
    pictures = Benchmark("figstep", shared("figstep_tiny"))
    prompts = Benchmark("xstest", shared("xstest"))

    assert (len(pictures), len(prompts)) == (50, 450)
    assert len({item.groups[0] for item in pictures.items()}) == 10
    assert sum(item.harmful for item in prompts.items()) == 200
    assert next(iter(pictures.items())).pictures()[0].image.size == (760, 760)


def test_some_items_are_drawn_by_seed(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"request {n}", "label": "harmful"}) for n in range(50)]
    put(tmp_path, "mine.jsonl", "\n".join(lines))

    def drawn(seed: int) -> list[str]:
        return [item.id for item in Benchmark("jsonl", tmp_path, 10, seed).items()]

    assert len(drawn(0)) == len(Benchmark("jsonl", tmp_path, 10)) == 10
    assert drawn(0) == drawn(0) != drawn(1)
    assert len(Benchmark("jsonl", tmp_path, 500)) == 50


def test_sources_stand_together(tmp_path: Path) -> None:
    both = Together([built("figstep", tmp_path / "a"), built("mme", tmp_path / "b")])
    assert (both.name, len(both)) == ("figstep, mme", 6)
    assert [item.groups[-1] for item in both.items()] == ["figstep"] * 2 + ["mme"] * 4


def test_ten_thousand_items_are_not_held(tmp_path: Path) -> None:
    text = "x" * 2000
    with (tmp_path / "mine.jsonl").open("w") as file:
        for number in range(10_000):
            file.write(json.dumps({"text": f"{number} {text}", "label": "harmful"}) + "\n")
    tracemalloc.start()
    count = sum(1 for _ in Benchmark("jsonl", tmp_path).items())
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert count == 10_000
    assert most < 6_000_000  # the texts alone are 20 MB


# Bad input


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "no JSON"),
        (b"\xff\xfe\x00", "JSONL"),
        (b'["text"]', "no record"),
        (b'{"text": "a", "label": "maybe"}', "label"),
        (b'{"text": 3, "label": "benign"}', "text"),
        (b'{"text": "a", "label": "benign", "match": "fuzzy"}', "match"),
        (b'{"text": "a", "label": "benign", "image": "../../etc/passwd"}', "outside the folder"),
        (b'{"text": "a", "label": "benign", "image": "/etc/passwd"}', "outside the folder"),
        (b'{"text": "a", "label": "benign", "image": "none.png"}', "there is no picture"),
        (b'{"text": "a", "label": "benign", "image": 3}', "line 2"),
    ],
)
def test_a_broken_line_is_named(content: bytes, told: str, tmp_path: Path) -> None:
    put(tmp_path, "mine.jsonl", b'{"text": "fine", "label": "benign"}\n' + content)
    with pytest.raises(ConfigurationError, match=told) as caught:
        list(Benchmark("jsonl", tmp_path).items())
    assert "mine.jsonl" in str(caught.value)


def test_a_link_may_not_lead_outside_except_into_the_hubs_cache(tmp_path: Path) -> None:
    outside = tmp_path / "secret.png"
    outside.write_bytes(png())
    root = tmp_path / "hub" / "snapshots" / "abc"
    put(root, "mine.jsonl", '{"text": "a", "label": "benign", "image": "a.png"}')
    (root / "a.png").symlink_to(outside)
    with pytest.raises(ConfigurationError, match="leads outside"):
        list(Benchmark("jsonl", root).items())
    (root / "a.png").unlink()
    put(tmp_path, "hub/blobs/123")
    (root / "a.png").symlink_to(tmp_path / "hub" / "blobs" / "123")
    assert len(list(Benchmark("jsonl", root).items())) == 1


def test_an_id_that_stands_twice_is_an_error(tmp_path: Path) -> None:
    rows = [{"id": "1", "prompt": "a", "type": "t", "label": "safe"}] * 2
    table(tmp_path, "xstest_prompts.csv", rows)
    with pytest.raises(ConfigurationError, match="'1' stands there twice"):
        list(Benchmark("xstest", tmp_path).items())


def test_a_table_without_its_columns_names_file_and_field(tmp_path: Path) -> None:
    table(tmp_path, "safebench.csv", [{"dataset": "ForbidQI", "category_id": "1"}])
    with pytest.raises(ConfigurationError, match=r"safebench\.csv, record 1: the field 'task_id'"):
        list(Benchmark("figstep", tmp_path).items())


@pytest.mark.parametrize(
    ("kind", "name", "told"),
    [
        (tarfile.SYMTYPE, "imgs/0.png", "no regular file"),
        (tarfile.CHRTYPE, "imgs/0.png", "no regular file"),
        (tarfile.REGTYPE, "../imgs/0.png", "there is no picture"),
        (tarfile.REGTYPE, "imgs/0.png", "stands there twice"),
    ],
)
def test_odd_members_of_an_archive(kind: bytes, name: str, told: str, tmp_path: Path) -> None:
    vlsbench(tmp_path)
    data = png()
    with tarfile.open(tmp_path / "imgs.tar", "w") as archive:
        twice = kind == tarfile.REGTYPE and name == "imgs/0.png"
        second = name if twice else "imgs/1.png"
        for member_name, member_kind in ((name, kind), (second, tarfile.REGTYPE)):
            member = tarfile.TarInfo(member_name)
            member.type, member.linkname = member_kind, "/etc/passwd"
            member.size = len(data) if member_kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(data))
    with pytest.raises(ConfigurationError, match=told):
        list(Benchmark("vlsbench", tmp_path).items())


@pytest.mark.parametrize("content", [b"no tar at all", png(), b""])
def test_an_archive_that_is_none(content: bytes, tmp_path: Path) -> None:
    vlsbench(tmp_path)
    put(tmp_path, "imgs.tar", content)
    with pytest.raises(ConfigurationError, match=r"imgs\.tar|there is no picture"):
        list(Benchmark("vlsbench", tmp_path).items())


def test_an_unpacked_picture_wins_over_the_archive(tmp_path: Path) -> None:
    vlsbench(tmp_path)
    put(tmp_path, "imgs/0.png")
    first, second = (item.images[0] for item in Benchmark("vlsbench", tmp_path).items())
    assert isinstance(first, Path)
    assert not isinstance(second, Path)


@pytest.mark.parametrize(
    "wrong", [{"name": "nothing"}, {"folder": Path("/nowhere")}, {"n": 0}], ids=str
)
def test_an_impossible_benchmark(wrong: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        Benchmark(**{"name": "jsonl", "folder": tmp_path, **wrong})  # type: ignore[arg-type]


def test_parquet_needs_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = built("hades", tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"sightrail\[data\]"):
        list(source.items())


def test_a_picture_that_is_none_is_told_when_it_is_asked(tmp_path: Path) -> None:
    jsonl(tmp_path)
    put(tmp_path, "a.png", b"no picture")
    figstep(tmp_path / "b")
    from sightrail.guardrails import ImageError

    first = next(iter(Benchmark("jsonl", tmp_path).items()))
    with pytest.raises(ImageError):
        first.messages()
