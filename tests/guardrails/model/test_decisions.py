"""Guardrails that decide: what a refused request gives, and that hidden tokens stay hidden."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from transformers import LogitsProcessor

from lvlm_helpers import ROWS, Recorder, picture, user
from sightrail.guardrails.errors import RequestRefused, UnsupportedModelError
from sightrail.guardrails.model import LocalLVLM
from sightrail.guardrails.model.interventions import Decision, Interventions
from sightrail.guardrails.policy import Policy
from sightrail.guardrails.verdict import Threshold, Verdict
from tiny_models import every_family, tiny

FORCED = 11
SHORT = {"max_new_tokens": 6}
BAD = "bad"
ASK = user("What is in the image?", picture(1))
ATTACK = user(f"Tell me a {BAD} thing.", picture(1))


class Force(LogitsProcessor):
    """The first token of every row is FORCED, and the rows are decided upon there."""

    def __init__(self, guard: Gate, rows: list[bool], policy: Policy) -> None:
        self.guard, self.rows, self.policy, self.steps = guard, rows, policy, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        if self.steps > 1 or not self.guard.forces:
            return scores
        forced = torch.full_like(scores, -torch.inf)
        forced[:, FORCED] = 0.0
        return forced

    def decided(self) -> Sequence[Decision] | None:
        if (not self.steps and not self.guard.early) or self.guard.silent:
            return None
        return [self._decision(bad) for bad in self.rows]

    def _decision(self, bad: bool) -> Decision:
        threshold = Threshold(value=0.5, source="test")
        verdict = Verdict.on_request("gate", float(bad), threshold, {"bad": float(bad)})
        if not bad:
            return Decision(verdict.taken("allow"))
        action = self.policy.request_action
        if action == "decline":
            return Decision(verdict.taken("refuse"))
        return Decision(verdict.taken(action), answered=action == "allow")


@dataclass
class Gate:
    """Decides against every request that holds the word BAD."""

    forces: bool = True
    early: bool = False
    silent: bool = False
    needs: frozenset[str] = frozenset({"logits"})
    made: list[Force] = field(default_factory=list)
    stage: ClassVar[str] = "decision"

    def apply(self, messages: Any) -> Any:
        return messages

    def check(self, host: Any) -> None:
        pass

    def interventions(self, prompt: Any, host: Any) -> Interventions:
        texts = [" ".join(turn.turns[-1].texts) for turn in prompt.originals]
        force = Force(self, [BAD in text for text in texts], host.policy)
        self.made.append(force)
        return Interventions(logits=[force], hidden_tokens=int(self.forces), decisions=force)


def gated(family: str = "llava", action: str = "refuse", **settings: Any) -> LocalLVLM:
    policy = Policy(on_unsafe_request=action)  # type: ignore[arg-type]
    return LocalLVLM(*tiny(family), guardrails=[Gate(**settings)], policy=policy)


def continued(family: str, messages: Any, **settings: Any) -> str:
    """What transformers itself generates after the prompt and FORCED."""
    lvlm = LocalLVLM(*tiny(family), guardrails=[Recorder()])
    recorder = lvlm.guardrails[0]
    lvlm.chat(messages, max_new_tokens=1)
    inputs = dict(recorder.prompts[0].inputs)
    forced = torch.full((1, 1), FORCED)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], forced], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.zeros_like(forced)], dim=1)
    if "cross_attention_mask" in inputs:
        mask = inputs["cross_attention_mask"]
        inputs["cross_attention_mask"] = torch.cat([mask, mask[:, -1:]], dim=1)
    out = lvlm.model.generate(**inputs, do_sample=False, max_new_tokens=6, **settings)
    new = out[0, inputs["input_ids"].shape[1] :]
    return str(lvlm.processor.tokenizer.decode(new, skip_special_tokens=True)).strip()


@pytest.mark.parametrize("family", every_family())
def test_a_hidden_token_is_read_by_the_model_and_by_nobody_else(family: str) -> None:
    lvlm = gated(family)
    answer = lvlm.chat(ASK, **SHORT)
    assert answer.text == continued(family, ASK)
    assert answer.usage.output_tokens == 6
    assert answer.usage == lvlm.with_guardrails([]).chat(ASK, **SHORT).usage
    chunks = list(lvlm.stream(ASK, **SHORT))
    assert "".join(chunk.text for chunk in chunks) == answer.text
    assert chunks[-1].answer == answer


def test_hidden_tokens_under_beams() -> None:
    settings = {"num_beams": 3, "min_new_tokens": 6}
    answer = gated().chat(ASK, **SHORT, **settings)
    assert answer.text == continued("llava", ASK, **settings)


@pytest.mark.parametrize("forces", [True, False])
@pytest.mark.parametrize("early", [True, False])
def test_a_refused_row_gets_the_policys_text_and_its_neighbours_their_answers(
    forces: bool, early: bool
) -> None:
    lvlm = gated(forces=forces, early=early)
    refused, *rest = lvlm.batch([ATTACK, *ROWS], **SHORT)
    assert refused.refused
    assert refused.finish_reason == "refused"
    assert refused.text == lvlm.policy.refusal_for(refused.verdicts)
    assert refused.usage.output_tokens == 0
    (verdict,) = refused.verdicts
    assert (verdict.subject, verdict.status, verdict.action) == ("request", "flagged", "refuse")
    assert verdict.measures == {"bad": 1.0}
    assert [one.text for one in rest] == [lvlm.chat(row, **SHORT).text for row in ROWS]
    assert not any(one.refused for one in rest)
    if not forces:
        bare = lvlm.with_guardrails([])
        assert [one.text for one in rest] == [bare.chat(row, **SHORT).text for row in ROWS]


@pytest.mark.parametrize("forces", [True, False])
def test_nothing_of_a_refused_request_is_streamed(forces: bool) -> None:
    lvlm = gated(forces=forces)
    (chunk,) = lvlm.stream(ATTACK, **SHORT)
    assert chunk.answer is not None
    assert chunk.text == lvlm.policy.refusal_for(chunk.answer.verdicts)
    assert chunk.answer.refused


def test_a_model_may_decline_in_its_own_words() -> None:
    lvlm = gated(action="decline")
    answer = lvlm.chat(ATTACK, **SHORT)
    assert answer.refused
    assert answer.finish_reason == "refused"
    assert answer.text == continued("llava", ATTACK)
    assert answer.usage.output_tokens == 6


def test_an_exception_where_the_policy_asks_for_one() -> None:
    lvlm = gated(action="raise")
    with pytest.raises(RequestRefused, match=r"gate 1\.000 >= 0\.500") as caught:
        lvlm.chat(ATTACK, **SHORT)
    assert caught.value.verdicts[0].action == "raise"
    with pytest.raises(RequestRefused):
        list(lvlm.stream(ATTACK, **SHORT))
    assert not lvlm.chat(ASK, **SHORT).refused


def test_monitoring_lets_everything_through() -> None:
    lvlm = gated().with_guardrails([Gate()], policy=Policy(monitor=True))
    answer = lvlm.chat(ATTACK, **SHORT)
    assert not answer.refused
    assert answer.verdicts[0].status == "flagged"
    assert answer.verdicts[0].action == "allow"


def test_a_guardrail_that_does_not_decide_stops_the_answer() -> None:
    with pytest.raises(UnsupportedModelError, match="no decision"):
        gated(silent=True).chat(ASK, **SHORT)


@pytest.mark.parametrize("early", [True, False])
def test_assessing_gives_verdicts_and_no_answer(early: bool) -> None:
    lvlm = gated(early=early)
    runs: list[int] = []
    hook = lvlm.model.register_forward_hook(lambda *_: runs.append(1))
    try:
        verdicts = [lvlm.assess(messages) for messages in (ASK, ATTACK)]
    finally:
        hook.remove()
    assert [[v.status for v in found] for found in verdicts] == [["clean"], ["flagged"]]
    assert len(runs) == (0 if early else 2)
    assert lvlm.with_guardrails([]).assess(ASK) == ()


async def test_assessing_in_a_task() -> None:
    (verdict,) = await gated().aassess(ATTACK)
    assert verdict.status == "flagged"


@dataclass
class Scaled:
    """Adds a multiple of a linear map's own output to it."""

    strength: float
    linear_names: tuple[str, ...] = ("layers.0.self_attn.q_proj",)
    needs: frozenset[str] = frozenset({"linear"})
    stage: ClassVar[str] = "prefill"

    def apply(self, messages: Any) -> Any:
        return messages

    def check(self, host: Any) -> None:
        pass

    def interventions(self, prompt: Any, host: Any) -> Interventions:
        def edit(given: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
            assert given.shape[:2] == output.shape[:2]
            return output + self.strength * output

        return Interventions(linear=dict.fromkeys(self.linear_names, edit))


def logits(lvlm: LocalLVLM) -> torch.Tensor:
    recorder = Recorder()
    lvlm.with_guardrails([*lvlm.guardrails, recorder]).chat(ASK, **SHORT)
    return recorder.logits


@pytest.mark.parametrize("family", every_family())
def test_edits_of_linear_maps_belong_to_the_request(family: str) -> None:
    bare = LocalLVLM(*tiny(family))
    before = logits(bare)
    # Kimi K2.5 makes its queries in two steps.
    name = f"layers.0.self_attn.{'q_b_proj' if family == 'kimi_k25' else 'q_proj'}"
    scaled = bare.with_guardrails([Scaled(1.0, (name,))])
    changed = logits(scaled)
    assert not torch.allclose(changed, before)
    assert torch.equal(logits(bare), before)
    assert torch.equal(logits(bare.with_guardrails([Scaled(0.0, (name,))])), before)

    weight = scaled._host.inside("test").module.get_submodule(name).weight
    with torch.no_grad():
        weight.mul_(2)
        oracle = logits(bare)
        weight.div_(2)
    assert torch.allclose(changed, oracle, atol=1e-4)


def test_a_linear_map_that_is_not_there_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match="no_such"):
        LocalLVLM(*tiny("llava"), guardrails=[Scaled(1.0, ("layers.0.no_such",))])


@pytest.mark.parametrize("family", every_family())
def test_what_follows_the_final_norm_is_what_the_head_reads(family: str) -> None:
    seen: list[torch.Tensor] = []

    @dataclass
    class Look(Scaled):
        needs: frozenset[str] = frozenset({"hidden_states", "logits"})
        linear_names: tuple[str, ...] = ()

        def interventions(self, prompt: Any, host: Any) -> Interventions:
            def look(hidden: torch.Tensor, past: int) -> torch.Tensor:
                seen.append(host.head(hidden[:, -1]))
                return hidden

            return Interventions(hidden_states={host.tower.depth: look})

    lvlm = LocalLVLM(*tiny(family), guardrails=[Look(0.0)])
    found = logits(lvlm)[:, 0]
    read = torch.cat(seen)
    if cap := getattr(lvlm.model.config.get_text_config(), "final_logit_softcapping", None):
        read = cap * torch.tanh(read / cap)  # the model caps what its head reads
    assert torch.allclose(read, found, atol=1e-5)
