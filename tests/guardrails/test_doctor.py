"""The check-up finds defects that are planted in a model, and none in a sound one."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from decision_helpers import untrained
from defences import border
from moras_helpers import moras
from sightrail.guardrails import (
    JudgeDetector,
    Lexicon,
    LocalJudge,
    LocalLVLM,
    RiskDetector,
    ScreeningSettings,
    TextInPicture,
)
from sightrail.guardrails.doctor import Finding, examine
from sightrail.guardrails.judging import judge_profile as generic_profile
from sightrail.guardrails.model import doorway
from sightrail.guardrails.model.preprocessing import padded_to_square
from sightrail.guardrails.model.prompt import PromptBuilder
from sightrail.integrations.cli.app import app
from sightrail.testbed.picture_judge import judge_profile
from tiny_models import SIDE, fresh, tiny

#: What tiny models lack: tools in their templates, and tokens to spare.
KNOWN = {"tools", "casa: safety tokens"}


def examined(model: Any, processor: Any) -> dict[str, Finding]:
    return {found.check: found for found in examine(LocalLVLM(model, processor))}


def wrong(findings: dict[str, Finding]) -> set[str]:
    return {name for name, found in findings.items() if found.status == "does not hold"} - KNOWN


@pytest.mark.parametrize("family", ["pixtral", "qwen2_vl"])
def test_a_sound_model_holds(family: str) -> None:
    findings = examined(*fresh(family))
    assert wrong(findings) == set()
    assert all(found.status == "ok" for name, found in findings.items() if name not in KNOWN)


def two_bos(model: Any, processor: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PromptBuilder, "_begun", lambda *_: False)


def no_hooks(model: Any, processor: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(doorway, "_hook", lambda *_: None)


def cache_counts(model: Any, processor: Any, patch: pytest.MonkeyPatch) -> None:
    def later(module: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (args[0] * 2 if args[0].shape[1] == 1 else args[0],)

    model.model.language_model.layers[1].mlp.register_forward_pre_hook(later)


def too_narrow(model: Any, processor: Any, patch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
        model.model.language_model.layers[-1].mlp.down_proj.weight.mul_(1e6)
    model.half()


def padding_counts(model: Any, processor: Any, patch: pytest.MonkeyPatch) -> None:
    def mixed(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output if len(output) == 1 else output + 3 * output.flip(0)

    model.model.language_model.layers[1].mlp.register_forward_hook(mixed)


PLANTED: dict[str, tuple[Callable[..., None], set[str]]] = {
    "two BOS": (two_bos, {"prompt"}),
    "hooks removed": (no_hooks, {"doorway", "moras: LM head"}),
    "cached != uncached": (cache_counts, {"cache"}),
    "half precision fails": (too_narrow, {"numbers"}),
    "a batch is not its rows": (padding_counts, {"batch"}),
}


@pytest.mark.parametrize("defect", PLANTED)
def test_a_planted_defect_is_found(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = fresh("pixtral")
    plant, expected = PLANTED[defect]
    plant(model, processor, monkeypatch)
    findings = examined(model, processor)
    assert expected <= wrong(findings)
    if defect != "half precision fails":  # where nothing is a number nothing else holds
        assert wrong(findings) <= expected


def test_what_a_processor_cuts_off_is_told_and_padding_mends_it() -> None:
    model, processor = fresh("llava")
    assert "half is not seen" in examined(model, processor)["picture"].detail
    assert examined(model, padded_to_square(processor))["picture"].status == "ok"


def test_fitted_defences_tell_their_cost_and_a_border_that_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, processor = fresh("llava")
    guards = [untrained("llava", threshold=2.0), moras(tiny("llava")[0]), border(text=None)]
    lvlm = LocalLVLM(model, processor, name="llava")

    def found() -> dict[str, Finding]:
        return {finding.check: finding for finding in examine(lvlm, defences=guards)}

    sound = found()
    for name in ("Casa", "Moras", "VisualSafetyPrompt"):
        assert sound[f"{name}: cost"].status == "ok", sound[f"{name}: cost"].detail
        assert "times as long as bare" in sound[f"{name}: cost"].detail
    assert sound["VisualSafetyPrompt: border"].status == "ok"
    middle = processor.image_processor.__class__(
        size={"shortest_edge": 2 * SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    monkeypatch.setattr(processor, "image_processor", middle)
    cut = found()["VisualSafetyPrompt: border"]
    assert (cut.status, cut.remedy.split(";")[0]) == ("does not hold", "The processor cuts it off")


def test_other_attention_and_missing_templates_are_told() -> None:
    model, processor = fresh("qwen2_vl")
    model.set_attn_implementation("eager")
    found = examined(model, processor)
    assert found["doorway"].status == "could not be tried"
    assert "sdpa" in found["doorway"].detail
    model, processor = fresh("qwen2_vl")
    processor = copy.copy(processor)
    processor.chat_template = None
    found = examined(model, processor)
    assert "chat template" in found["prompt"].detail
    assert found["prompt"].status == "could not be tried"


def test_an_encoder_without_a_threshold_is_told() -> None:
    detector = RiskDetector.from_pretrained("testbed", settings=ScreeningSettings())
    findings = {f.check: f for f in examine(LocalLVLM(*fresh("qwen2_vl")), detector)}
    assert findings["threshold"].status == "does not hold"
    assert "not calibrated" in findings["threshold"].detail
    assert findings["scores"].status == "could not be tried"


def test_the_command_gives_json_and_its_status() -> None:
    done = CliRunner().invoke(app, ["doctor", "--model", "testbed", "--json"])
    told = json.loads(done.stdout)
    assert told["model"] == "testbed"
    assert {"check", "status", "detail", "remedy"} == set(told["findings"][0])
    assert done.exit_code == int(any(f["status"] == "does not hold" for f in told["findings"]))


def test_reader_and_judge_are_tried_where_they_are_given() -> None:
    model, processor = fresh("llava")
    judge = JudgeDetector(LocalJudge.from_pretrained("testbed", judge_profile("object")))
    found = {
        f.check: f
        for f in examine(LocalLVLM(model, processor), reader=TextInPicture(), judge=judge)
    }
    assert (found["reading"].status, found["judge"].status) == ("ok", "ok")
    assert "words read, flagged and clean" in found["reading"].detail
    babbling = JudgeDetector(LocalJudge(model, processor, generic_profile("yes-no")))
    deaf = TextInPicture(reader=Lexicon.default().without("illegal_activity"))
    broken = {f.check: f for f in examine(LocalLVLM(model, processor), reader=deaf, judge=babbling)}
    assert broken["reading"].status == broken["judge"].status == "does not hold"
    assert "calibrate" in broken["judge"].remedy
