"""The check-up finds defects that are planted in a model, and none in a sound one."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from typer.testing import CliRunner

from decision_helpers import untrained
from defences import border
from lvlm_helpers import picture
from moras_helpers import moras
from more_devices import FIRST, more_devices, spread
from sightrail.guardrails import (
    JudgeDetector,
    Lexicon,
    LocalJudge,
    LocalLVLM,
    RiskDetector,
    ScreeningSettings,
    TextInPicture,
    doctor,
    read_picture,
)
from sightrail.guardrails.doctor import Finding, examine
from sightrail.guardrails.judging import judge_profile as generic_profile
from sightrail.guardrails.model import doorway, prompt
from sightrail.guardrails.model.preprocessing import padded_to_square
from sightrail.guardrails.model.prompt import PromptBuilder
from sightrail.guardrails.model.template import text_ranges
from sightrail.guardrails.prefix import instruction_rows
from sightrail.guardrails.prefix.instruction_rows import calibrate_logits
from sightrail.guardrails.testing import StubDetector, StubGuardrail
from sightrail.integrations.cli.app import app
from sightrail.testbed.picture_judge import judge_profile
from tiny_models import SIDE, fresh, tiny
from tool_templates import TOOLED, tooled

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


def moved_spans(model: Any, processor: Any, patch: pytest.MonkeyPatch) -> None:
    def swapped(*args: Any) -> Any:
        ranges = text_ranges(*args)
        return replace(ranges, prefix=ranges.instruction, instruction=ranges.prefix)

    patch.setattr(prompt, "text_ranges", swapped)


def calibration_at_rest(model: Any, processor: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(instruction_rows, "calibrate_logits", lambda logits, *_: logits)


PLANTED: dict[str, tuple[str, Callable[..., None], set[str]]] = {
    "two BOS": ("pixtral", two_bos, {"prompt"}),
    "spans of others": ("pixtral", moved_spans, {"spans", "calibration"}),
    "hooks removed": ("pixtral", no_hooks, {"doorway", "moras: LM head"}),
    "calibration at rest": ("pixtral", calibration_at_rest, {"calibration"}),
    "cached != uncached": ("pixtral", cache_counts, {"cache"}),
    "half precision fails": ("pixtral", too_narrow, {"numbers"}),
    "a batch is not its rows": ("pixtral", padding_counts, {"batch"}),
}


@pytest.mark.parametrize("defect", PLANTED)
def test_a_planted_defect_is_found(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family, plant, expected = PLANTED[defect]
    model, processor = fresh(family)
    plant(model, processor, monkeypatch)
    findings = examined(model, processor)
    assert expected <= wrong(findings)
    if defect != "half precision fails":  # where nothing is a number nothing else holds
        assert wrong(findings) <= expected


def check(found: Callable[[LocalLVLM], Finding], model: Any, processor: Any) -> Finding:
    """One check by itself, ended as the check-up ends it."""
    return doctor._tried("it", found, LocalLVLM(model, processor))


def test_what_a_processor_cuts_off_is_told_and_padding_mends_it() -> None:
    model, processor = fresh("llava")
    cut = check(doctor._picture_seen, model, processor)
    assert (cut.status, "the left of a wide one" in cut.detail) == ("does not hold", True)
    assert check(doctor._picture_seen, model, padded_to_square(processor)).status == "ok"


@pytest.mark.parametrize("family", sorted(TOOLED))
def test_a_call_in_the_templates_own_form_is_read_back(family: str) -> None:
    assert check(doctor._tools, *tooled(family)).status == "ok"


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (lambda written: written.replace("<tool_call>", "<<call>>"), "read as 0 calls"),
        (lambda written: written.replace("'arguments': call", "'given': call"), "read as"),
        (lambda written: tiny("internvl")[1].chat_template, "leaves out tools"),
    ],
    ids=["other marks", "other keys", "no tools"],
)
def test_calls_that_nobody_can_read_are_found(
    change: Callable[[str], str], detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = tooled("internvl")
    monkeypatch.setattr(processor, "chat_template", change(processor.chat_template))
    found = check(doctor._tools, model, processor)
    assert (found.status, detail in found.detail) == ("does not hold", True), found
    assert found.remedy


def test_a_model_without_tokens_to_spare_is_found() -> None:
    model, processor = fresh("pixtral")
    assert check(doctor._tokens, model, processor).status == "ok"
    with torch.no_grad():  # rows that nobody trained are often all the same
        model.get_output_embeddings().weight[len(processor.tokenizer) :] = 1.0
    found = check(doctor._tokens, model, processor)
    assert (found.status, "--tokens" in found.remedy) == ("does not hold", True)


@pytest.mark.parametrize("where", ["nan", "meta"])
def test_weights_that_are_none_are_found(where: str) -> None:
    model, processor = fresh("pixtral")
    with torch.no_grad():
        if where == "nan":
            model.model.vision_tower.patch_conv.weight[0, 0, 0, 0] = torch.nan
        else:
            model.model.vision_tower.patch_conv.to("meta")
    found = check(doctor._placement, model, processor)
    assert (found.status, "patch_conv" in found.detail) == ("does not hold", True)


def test_state_that_stays_on_the_first_device_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> Finding:
        model, processor = fresh("llava")
        with more_devices():
            spread(model)
            lvlm = LocalLVLM(model, processor, gather=False)
            return doctor._tried("it", doctor._calibration, lvlm)

    assert found().status == "ok", found()
    monkeypatch.setattr(instruction_rows, "calibrate_logits", on_the_first)
    assert found().status == "does not hold"


def on_the_first(logits: torch.Tensor, scaling: Any, target: torch.Tensor, *rest: Any) -> Any:
    return calibrate_logits(logits, scaling, target.to(FIRST), *rest)


def test_a_defence_that_breaks_has_no_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = fresh("pixtral")

    def broken(*_: Any) -> Any:
        raise ValueError("no")

    monkeypatch.setattr(instruction_rows, "calibrate_logits", broken)
    found = check(doctor._cost, model, processor)
    assert (found.status, "failed on this model" in found.detail) == ("does not hold", True)
    guard = StubGuardrail(fail=ValueError("no"))
    (cost,) = (
        each
        for each in examine(LocalLVLM(model, processor), defences=[guard])
        if each.check == "StubGuardrail: cost"
    )
    assert (cost.status, "failed on this model" in cost.detail) == ("does not hold", True)


def test_scores_that_tell_nothing_apart_are_found() -> None:
    pictures = [read_picture(picture(at)) for at in range(3)]
    flags_all = doctor._scores(cast("Any", StubDetector(flag=True)), pictures)
    assert flags_all.status == "does not hold"
    assert "calibrate the threshold" in flags_all.remedy
    detector = RiskDetector.from_pretrained("testbed")
    sound = doctor._scores(detector, pictures)
    assert "of 3 flagged" in sound.detail


#: Every check, and the test here that plants what it is there for.
FOUND = {
    **{name: "a planted defect" for _, _, names in PLANTED.values() for name in names},
    "picture": "cut off",
    "tools": "calls that nobody can read",
    "casa: safety tokens": "no tokens to spare",
    "placement": "weights that are none",
    "cost": "a defence that breaks",
    "threshold": "without a threshold",
    "scores": "tell nothing apart",
    "reading": "reader and judge",
    "judge": "reader and judge",
}


def test_there_is_a_planted_defect_for_every_check() -> None:
    judge = JudgeDetector(LocalJudge.from_pretrained("testbed", judge_profile("object")))
    lvlm = LocalLVLM.from_pretrained("testbed")
    detector = RiskDetector.from_pretrained("testbed")
    checks = {f.check for f in examine(lvlm, detector, reader=TextInPicture(), judge=judge)}
    assert checks == set(FOUND)


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
