"""A defence more touches its own folder: here it is this file, and nothing of the library changes.

It does what every kind of defence may do: it has a fitted artifact, puts a sentence before the
user's words, edits hidden states, and decides about requests.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from lvlm_helpers import ROWS, user
from sightrail.guardrails.errors import ArtifactError
from sightrail.guardrails.fitting import (
    Artifact,
    Manifest,
    identify,
    load_artifact,
    save_artifact,
)
from sightrail.guardrails.model import LocalLVLM
from sightrail.guardrails.model.families import Host
from sightrail.guardrails.model.interventions import Decision, Interventions, Settled, Stage
from sightrail.guardrails.model.messages import Conversation
from sightrail.guardrails.model.prompt import Prompt
from sightrail.guardrails.prefix import AttentiveCalibration, SafetyPrefix
from sightrail.guardrails.testing import StubDetector
from sightrail.guardrails.verdict import Threshold, Verdict
from tiny_models import Pair, tiny

SHORT = {"max_new_tokens": 4}


@dataclass(frozen=True, eq=False)
class Toy:
    """Push the last layer along a direction, and refuse what says BAD.

    Attributes:
        artifact: the direction [C].
        strength: 0 is identity.
    """

    artifact: Artifact
    strength: float = 1.0

    stage: ClassVar[Stage] = "prefill"
    needs: ClassVar[frozenset[str]] = frozenset({"prompt", "hidden_states"})

    @classmethod
    def from_pretrained(cls, name: str | Path, strength: float = 1.0) -> Toy:
        return cls(load_artifact(name, "toy"), strength)

    def save_pretrained(self, folder: Path) -> Path:
        return save_artifact(folder, self.artifact)

    def apply(self, messages: Conversation) -> Conversation:
        if not self.strength:
            return messages
        changed: Conversation = SafetyPrefix("Toy words.").apply(messages)
        return changed

    def check(self, host: Host) -> None:
        self.artifact.require_model(host.model, host.name)

    def interventions(self, prompt: Prompt, host: Host) -> Interventions:
        def push(hidden: torch.Tensor, past: int) -> torch.Tensor:
            return hidden + self.strength * self.artifact.tensors["direction"].to(hidden)

        bad = ["BAD" in " ".join(talk.turns[-1].texts) for talk in prompt.originals]
        limit = Threshold(value=0.5, source="the word")
        verdicts = [Verdict.on_request("toy", float(found), limit) for found in bad]
        decisions = [Decision.following(v, host.policy, own_words=False) for v in verdicts]
        return Interventions(
            hidden_states={host.inside("Toy").depth: push} if self.strength else {},
            decisions=Settled(decisions),
        )


def fit_toy(pair: Pair) -> Toy:
    model, _ = pair
    width = model.config.get_text_config().hidden_size
    manifest = Manifest(kind="toy", base=identify(model, "llava"))
    return Toy(Artifact(manifest, {"direction": torch.linspace(-1, 1, width)}))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    folder = fit_toy(tiny("llava")).save_pretrained(tmp_path_factory.mktemp("toy"))
    return Toy.from_pretrained(folder)


def test_it_acts_decides_and_at_strength_zero_it_is_not_there(toy: Toy) -> None:
    bare = LocalLVLM(*tiny("llava"))
    on, off = (bare.with_guardrails([guard]) for guard in (toy, Toy(toy.artifact, strength=0.0)))
    assert on.chat(ROWS[0], **SHORT).text != bare.chat(ROWS[0], **SHORT).text
    assert off.chat(ROWS[0], **SHORT).text == bare.chat(ROWS[0], **SHORT).text
    refused = on.chat(user("Something BAD."), **SHORT)
    assert (refused.refused, refused.verdicts[-1].guardrail) == (True, "toy")
    assert [row.text for row in on.batch(ROWS, **SHORT)] == [on.chat(r, **SHORT).text for r in ROWS]


def test_it_finds_its_place_among_the_others(toy: Toy) -> None:
    calibrated = SafetyPrefix("Stay safe.", AttentiveCalibration(gamma=1.0))
    with pytest.raises(Exception, match="SafetyPrefix and Toy cannot work together"):
        LocalLVLM(*tiny("llava"), guardrails=[toy, calibrated])
    guards = [toy, StubDetector(), SafetyPrefix("Toy words.", AttentiveCalibration(gamma=1.0))]
    answers = [
        LocalLVLM(*tiny("llava"), guardrails=order).chat(ROWS[0], **SHORT)
        for order in itertools.permutations(guards)
    ]
    assert all(answer == answers[0] for answer in answers)


def test_its_artifact_belongs_to_its_model(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="toy artifact was fitted on llava"):
        LocalLVLM(*tiny("pixtral"), guardrails=[toy])
    with pytest.raises(ArtifactError, match="holds a toy artifact, not a casa one"):
        load_artifact(toy.save_pretrained(tmp_path), "casa")
    with pytest.raises(ValueError, match="kind"):
        Manifest(kind="../toy", base=toy.artifact.manifest.base)
