"""Fitting MoRAS: what comes out on the testbed, and data it cannot be fitted on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cli_helpers import run_cli
from sightrail.guardrails import LocalLVLM
from sightrail.guardrails.errors import ConfigurationError
from sightrail.guardrails.fitting import Example, FitData, load_artifact
from sightrail.guardrails.moras import Moras
from sightrail.guardrails.moras.fit import fit_moras
from sightrail.testbed.concepts import HELD_OUT
from sightrail.testbed.fit_data import draw_examples
from sightrail.testbed.moras import SETTINGS as TESTBED_SETTINGS
from sightrail.testbed.moras import prototype_questions

EACH = 10


@pytest.fixture(scope="module")
def lvlm() -> LocalLVLM:
    return LocalLVLM.from_pretrained("testbed")


def data(examples: list[Example], prototypes: list[Example] | None = None) -> FitData:
    """Every fifth of a label is kept apart."""
    sides = [[e for e in examples if e.harmful == side] for side in (True, False)]
    kept = [e for side in sides for e in side[4::5]]
    asked = prototype_questions()[:12] if prototypes is None else prototypes
    return FitData([e for e in examples if e not in kept], kept, asked, source="here")


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return draw_examples({"object": EACH, "lookalike": EACH}, split="calibration", seed=2)


def test_fit_separates_and_centres_the_base(lvlm: LocalLVLM, examples: list[Example]) -> None:
    done: list[tuple[str, int, int]] = []
    made = fit_moras(
        lvlm, data(examples), TESTBED_SETTINGS, progress=lambda *now: done.append(now)
    ).artifact
    manifest = made.manifest
    assert done[-1] == ("held-out similarities", 4, 4)
    assert {"prototypes", "similarities"} <= {what for what, *_ in done}
    assert made.tensors["prototypes"].shape == (3, 192)
    counts = {"prototypes": 12, "harmful": 8, "benign": 8, "with_pictures": 16, "held_out": 4}
    assert counts.items() <= manifest.data.items()
    assert manifest.results["auroc"] > 0.9
    # Half way between what harmful and benign requests look like.
    low, high = manifest.results["similarity_benign"], manifest.results["similarity_harmful"]
    assert low < manifest.settings["base"] < high
    # Prototypes of refusals: the head makes "I am sorry" of them.
    with torch.no_grad():
        tokens = lvlm.model.get_output_embeddings()(made.tensors["prototypes"]).argmax(-1)
    assert lvlm.processor.tokenizer.decode(tokens) == "i am sorry"
    # What it was fitted with is what it is loaded with.
    assert Moras(made).settings.question_template == TESTBED_SETTINGS.question_template


def test_a_base_that_separates(lvlm: LocalLVLM, examples: list[Example]) -> None:
    settings = replace(TESTBED_SETTINGS, base_rule="separating")
    told = lvlm.with_guardrails([fit_moras(lvlm, data(examples), settings).guardrail])
    risks: dict[bool, list[float]] = {True: [], False: []}
    for example in examples:
        risks[example.harmful].append(told.assess(example.messages())[0].score or 0.0)
    assert sum(r >= 0.5 for r in risks[True]) >= EACH - 1
    assert sum(r >= 0.5 for r in risks[False]) <= 1


def test_the_shipped_artifact_says_what_it_is() -> None:
    shipped = load_artifact("testbed", "moras")
    assert shipped.manifest.base.name == "testbed"
    assert shipped.manifest.data["with_pictures"] > shipped.manifest.data["harmful"]
    folder = Path(str(Path(__file__).parents[3])) / "guardrails/sightrail/testbed/data"
    assert sum(f.stat().st_size for f in (folder / "moras").iterdir()) < 50_000


def test_no_held_out_concept_is_fitted_on() -> None:
    for example in prototype_questions():
        assert not HELD_OUT & set(example.text.replace(".", "").split())


@pytest.mark.parametrize("kept", [[], [True], [False]])
def test_empty_or_one_sided_data(
    lvlm: LocalLVLM, examples: list[Example], kept: list[bool]
) -> None:
    some = [example for example in examples if example.harmful in kept]
    with pytest.raises(ConfigurationError, match="at least 4 of each label"):
        fit_moras(lvlm, data(some))


@pytest.mark.parametrize("wrong", ["none", "benign", "picture"])
def test_prototypes_that_are_none(lvlm: LocalLVLM, examples: list[Example], wrong: str) -> None:
    given = {"none": [], "benign": [Example("hello", False)], "picture": examples[:1]}[wrong]
    with pytest.raises(ConfigurationError, match=r"[Pp]rototypes"):
        fit_moras(lvlm, data(examples, given))


def _jsonl(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_the_command_reads_files_and_writes_an_artifact(
    tmp_path: Path, examples: list[Example]
) -> None:
    lines = []
    for number, example in enumerate(examples[:8] + examples[EACH : EACH + 8]):
        example.pictures()[0].save(tmp_path / f"{number}.png")
        label = "harmful" if example.harmful else "benign"
        lines.append({"text": example.text, "label": label, "image": f"{number}.png"})
    data = _jsonl(tmp_path / "data.jsonl", lines)
    asked = [{"text": e.text, "label": "harmful"} for e in prototype_questions()[:8]]
    questions = _jsonl(tmp_path / "questions.jsonl", asked)
    out = tmp_path / "out"
    command = ("fit", "moras", "--model", "testbed", "--data", data, "--out", out)
    done = run_cli(*command, "--prototypes", questions, "--gamma", 0.2)
    assert done.exit_code == 0, done.output
    assert "auroc" in done.stdout
    assert Moras.from_pretrained(out).settings.gamma == 0.2
    found = load_artifact(out, "moras").manifest.data
    assert (found["prototypes"], found["held_out"]) == (8, 3)
    assert found["harmful"] + found["benign"] == 13  # type: ignore[operator]
    missing = run_cli(*command)
    assert missing.exit_code != 0
    assert "--prototypes" in missing.output
    one_sided = _jsonl(tmp_path / "data.jsonl", lines[:8])
    refused = run_cli(*command[:5], one_sided, *command[6:], "--prototypes", questions)
    assert refused.exit_code == 69
    assert "0 benign" in refused.output
