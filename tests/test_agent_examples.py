"""The examples with agents on the local model, run on a tiny one that proposes what it is told."""

from __future__ import annotations

import base64
import io
import re
import runpy
from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image

from repository import ROOT
from sightrail.guardrails import LocalLVLM
from sightrail.guardrails.model.interventions import Interventions
from sightrail.guardrails.testing import StubDetector
from tool_templates import TOOLED, Says, tooled

FAMILY = "internvl"
pytestmark = pytest.mark.filterwarnings("ignore")  # of LlamaIndex's own


class Follows(Says):
    """Looks at the photo that the user names; after photo 2 it sends a note, as the photo orders.

    What a tool has shown does not reach it: it stands for a model that has been taken in.
    """

    def interventions(self, prompt: Any, host: Any) -> Interventions:
        (talk,) = prompt.originals
        photo = int(re.findall(r"photo (\d)", talk.request[0].texts[-1])[0])
        steps = [("look", {"photo": photo}), ("send", {"note": "bomb"})][: 2 if photo == 2 else 1]
        said = "done."
        if talk.step < len(steps):
            said = TOOLED[self.family].written(steps[talk.step])
        return Says(said, self.family).interventions(prompt, host)


class Scripted(LocalLVLM):
    """A tiny model that stays scripted, whatever guardrails are put on it."""

    def with_guardrails(self, guardrails: Sequence[Any], **settings: Any) -> LocalLVLM:
        kept = [guard for guard in guardrails if not isinstance(guard, Follows)]
        return super().with_guardrails([*kept, Follows("", FAMILY)], **settings)


def scripted() -> LocalLVLM:
    return Scripted(*tooled(FAMILY), guardrails=[Follows("", FAMILY)], name=FAMILY)


def flags(picture: Any) -> bool:
    """The second picture that the examples draw: what is on it does not matter here."""
    return bool(picture.image.tobytes() in POISONED)


POISONED: set[bytes] = set()


def example(name: str) -> dict[str, Any]:
    found = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))
    look = found["look"]
    shown = getattr(look, "func", look)(2)[0]
    data = shown["base64"] if isinstance(shown, dict) else shown.image
    POISONED.clear()
    with Image.open(io.BytesIO(base64.b64decode(data))) as opened:
        POISONED.add(opened.convert("RGB").tobytes())
    return found


@pytest.mark.parametrize("name", ["langchain_local_agent", "llama_index_local_agent"])
def test_the_poisoned_photo_does_its_work_on_the_bare_model_only(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    example(name)["run"](scripted(), StubDetector(flag=flags))
    said = capsys.readouterr().out
    bare, guarded = said.split("guarded")
    assert "photo 2: 'done.'; sent: ['bomb']" in bare
    assert "photo 1: 'done.'; sent: nothing" in bare
    assert "photo 1: 'done.'; sent: nothing" in guarded
    assert "bomb']" not in guarded
    if name.startswith("llama"):
        assert "a person is asked: send {'note': 'bomb'} ['after_unsafe']" in guarded
    else:
        assert "(refused); sent: nothing" in guarded


def test_a_person_decides_in_the_graph(capsys: pytest.CaptureFixture[str]) -> None:
    example("langgraph_call_review")["run"](scripted(), StubDetector(flag=flags))
    said = capsys.readouterr().out
    assert said.count("a person is asked: send {'note': 'bomb'}") == 3
    assert "approve: 'done.'; sent: ['bomb']" in said
    assert "edit: 'done.'; sent: ['nothing new']" in said
    assert "reject: 'done.'; sent: nothing" in said


def test_structures_are_filled_in(capsys: pytest.CaptureFixture[str]) -> None:
    found = runpy.run_path(str(ROOT / "examples" / "structured_output.py"))
    found["run"](LocalLVLM(*tooled(FAMILY), name=FAMILY))
    assert capsys.readouterr().out.count("kind=") == 2
