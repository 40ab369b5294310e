"""Loading a model, and screening pictures before it sees them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lvlm_helpers import ROWS, Recorder, picture, user
from sightrail.guardrails.errors import ImageError, ImageRefused, ModelLoadError
from sightrail.guardrails.model import LocalLVLM
from sightrail.guardrails.policy import Policy
from sightrail.guardrails.prefix import AttentiveCalibration, SafetyPrefix
from sightrail.guardrails.verdict import Region, Threshold, Verdict
from tiny_models import tiny

SHORT = {"max_new_tokens": 4}
CALIBRATED = SafetyPrefix(calibration=AttentiveCalibration(gamma=1.0))


class BrightDetector:
    """Flags pictures that are bright on average; its region is their left half."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def screen(self, images: list[Any]) -> list[Verdict]:
        self.seen += [picture.image for picture in images]
        return [self._verdict(picture.image) for picture in images]

    def _verdict(self, image: Image.Image) -> Verdict:
        score = float(np.asarray(image).mean() / 255)
        width, height = image.size
        return Verdict(
            status="flagged" if score >= 0.9 else "clean",
            category="bright",
            score=score,
            scores={"bright": score},
            threshold=Threshold(value=0.9, source="test"),
            regions=(Region(box=(0, 0, width // 2, height), category="bright", score=score),),
        )


class BrokenDetector:
    """Raises, or returns too little."""

    def __init__(self, *, raises: bool) -> None:
        self.raises = raises

    def screen(self, images: list[Any]) -> list[Verdict]:
        if self.raises:
            raise OSError("/secret/path is gone")
        return []


def bright() -> Image.Image:
    return Image.new("RGB", (40, 30), "white")


def guarded(policy: Policy | None = None, *guards: Any) -> LocalLVLM:
    return LocalLVLM(*tiny("llava"), guardrails=guards or [BrightDetector()], policy=policy)


def test_a_folder_loads_as_a_hub_id_would(tmp_path: Path) -> None:
    model, processor = tiny("llava")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = LocalLVLM.from_pretrained(tmp_path, guardrails=[CALIBRATED], device="cpu")
    assert loaded.chat(ROWS[0], **SHORT) == guarded(None, CALIBRATED).chat(ROWS[0], **SHORT)
    assert loaded.name == str(tmp_path)
    half = LocalLVLM.from_pretrained(
        str(tmp_path), dtype=torch.bfloat16, device="cpu", local_files_only=True
    )
    assert half.model.dtype == torch.bfloat16
    assert half.with_guardrails([CALIBRATED]).chat(ROWS[0], **SHORT).usage.output_tokens == 4


def test_what_cannot_be_loaded_says_the_remedy(tmp_path: Path) -> None:
    for name in ("nobody/no-such-model", tmp_path, tmp_path / "missing"):
        with pytest.raises(ModelLoadError, match="Hugging Face Hub id") as error:
            LocalLVLM.from_pretrained(name, local_files_only=True)
        assert str(name) in str(error.value)


def test_clean_pictures_pass_with_their_verdict() -> None:
    answer = guarded().chat(user("What?", picture()), **SHORT)
    assert [v.action for v in answer.verdicts] == ["allow"]
    assert answer.text == LocalLVLM(*tiny("llava")).chat(user("What?", picture()), **SHORT).text


def test_masked_pictures_are_what_the_model_sees() -> None:
    recorder = Recorder()
    image = bright()
    answer = guarded(Policy(on_flagged="mask"), BrightDetector(), recorder).chat(
        user("What?", image), **SHORT
    )
    pixels = recorder.prompts[0].inputs["pixel_values"]
    assert pixels[..., :10].mean() < pixels[..., -10:].mean()
    assert [v.action for v in answer.verdicts] == ["mask"]
    assert not answer.refused
    assert np.asarray(image).min() == 255, "the caller's picture is left as it was"


def test_the_model_sees_the_pixels_that_were_screened() -> None:
    detector, recorder = BrightDetector(), Recorder()
    data = io.BytesIO()
    picture().save(data, format="PNG")
    guarded(None, detector, recorder).chat(user("What?", data.getvalue()), **SHORT)
    (conversation,) = recorder.prompts[0].conversations
    assert conversation.images[0] is detector.seen[0]


def test_refused_requests_do_not_run_the_model() -> None:
    policy = Policy(on_flagged="refuse", refusal="No.")
    recorder = Recorder()
    lvlm = guarded(policy, BrightDetector(), recorder)
    answer = lvlm.chat(user("What?", picture(), bright()), **SHORT)
    assert (answer.text, answer.refused, answer.finish_reason) == ("No.", True, "refused")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (0, 0)
    assert [v.action for v in answer.verdicts] == ["allow", "refuse"]
    assert recorder.prompts == []
    (chunk,) = lvlm.stream(user("What?", bright()), **SHORT)
    assert (chunk.text, chunk.answer and chunk.answer.refused) == ("No.", True)


def test_a_refused_row_leaves_the_batch_alone() -> None:
    lvlm = guarded(Policy(on_flagged="refuse"))
    answers = lvlm.batch([ROWS[0], user("What?", bright()), ROWS[2]], **SHORT)
    assert [answer.refused for answer in answers] == [False, True, False]
    assert answers[0] == lvlm.chat(ROWS[0], **SHORT)
    assert answers[2] == lvlm.chat(ROWS[2], **SHORT)


def test_dropped_pictures_leave_a_note() -> None:
    recorder = Recorder()
    policy = Policy(on_flagged="drop", note="[gone]")
    guarded(policy, BrightDetector(), recorder, CALIBRATED).chat(user("What?", bright()), **SHORT)
    (prompt,) = recorder.prompts
    assert "pixel_values" not in prompt.inputs
    assert "[gone]" in tiny("llava")[1].tokenizer.decode(prompt.inputs["input_ids"][0])


def test_raising_and_monitoring() -> None:
    with pytest.raises(ImageRefused) as error:
        guarded(Policy(on_flagged="raise")).chat(user("What?", bright()), **SHORT)
    assert len(error.value.verdicts) == 1
    watched = guarded(Policy(on_flagged="refuse", monitor=True)).chat(
        user("What?", bright()), **SHORT
    )
    assert [v.action for v in watched.verdicts] == ["refuse"]
    assert not watched.refused


@pytest.mark.parametrize("raises", [True, False])
def test_a_broken_detector_is_never_safe(raises: bool) -> None:
    answer = guarded(None, BrokenDetector(raises=raises)).chat(user("What?", picture()), **SHORT)
    assert answer.refused
    assert [v.status for v in answer.verdicts] == ["failed"]
    assert "secret" not in answer.verdicts[0].model_dump_json()
    allowing = guarded(Policy(on_error="allow"), BrokenDetector(raises=raises))
    assert not allowing.chat(user("What?", picture()), **SHORT).refused


def test_detectors_do_not_mind_text() -> None:
    assert not guarded(None, BrokenDetector(raises=True)).chat("What?", **SHORT).refused


def test_pictures_nobody_can_read() -> None:
    broken = user("What?", b"not a picture", picture())
    with pytest.raises(ImageError):
        LocalLVLM(*tiny("llava")).chat(broken, **SHORT)
    answer = guarded().chat(broken, **SHORT)
    assert answer.refused
    assert answer.verdicts[0].status == "not_inspected"
    detector = BrightDetector()
    dropped = guarded(Policy(on_not_inspected="drop"), detector).chat(broken, **SHORT)
    assert not dropped.refused
    assert [v.action for v in dropped.verdicts] == ["drop", "allow"]
    assert len(detector.seen) == 1


def test_repr_names_model_and_guardrails() -> None:
    assert "BrightDetector" in repr(guarded())
    assert "picture" not in repr(guarded())
