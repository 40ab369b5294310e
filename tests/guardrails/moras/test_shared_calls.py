"""Sharing the prompt's beginning between MoRAS' calls changes nothing, on every family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from defences import REFUSED, record
from lvlm_helpers import PICTURES, picture, user
from moras_helpers import moras
from sightrail.guardrails.model import Answer, LocalLVLM
from sightrail.guardrails.model.shared_prefill import Prefilled, SharedPrefill, can_share
from tiny_models import tiny

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
SHORT = {"max_new_tokens": 4}
#: What takes every call from its start, whatever it has in common with the others.
PLAIN_FAMILIES = {
    *("gemma3", "glm4v", "kimi_k25", "llama4", "llava_next", "mllama", "molmo2", "qwen2_5_omni"),
}


def guarded(family: str, *more: Any, **changes: Any) -> LocalLVLM:
    if (family, "moras") in REFUSED:
        pytest.skip("MoRAS is refused on this family: see the contract")
    model, processor = tiny(family)
    return LocalLVLM(model, processor, guardrails=[moras(model, **changes), *more])


def measures(answers: Sequence[Answer], name: str) -> torch.Tensor:
    return torch.tensor([answer.verdicts[-1].measures[name] for answer in answers])


def test_shared_calls_equal_the_plain_three(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Prefilled | None] = []
    begin = SharedPrefill.begin

    def watched(self: SharedPrefill, prompt: Any, pad: int | None) -> Prefilled | None:
        begun.append(begin(self, prompt, pad))
        return begun[-1]

    monkeypatch.setattr(SharedPrefill, "begin", watched)
    turns = [
        {"role": "system", "content": "Be kind."},
        *user("What is in the images?", picture(1), picture(4)),
        {"role": "assistant", "content": "Two objects."},
        *user("How many?", picture(3)),
    ]
    batches = [PICTURES, [turns]]
    for messages in batches:
        plain, shared = guarded(family, share=False), guarded(family)
        expected, found = plain.batch(messages, **SHORT), shared.batch(messages, **SHORT)
        assert [a.text for a in found] == [a.text for a in expected]
        assert [a.usage for a in found] == [a.usage for a in expected]
        for name in ("similarity", "risk", "context_risk"):
            torch.testing.assert_close(measures(found, name), measures(expected, name), **CLOSE)
    (_, ours), (_, theirs) = (record(lvlm, PICTURES) for lvlm in (shared, plain))
    torch.testing.assert_close(ours.logits, theirs.logits, **CLOSE)
    # Sharing is stated per family, and where it is stated it happens, in calls 2 and 3.
    shares = family not in PLAIN_FAMILIES
    assert can_share(tiny(family)[0]) == shares
    assert len(begun) == (2 * (len(batches) + 1) if shares else 0)
    assert all(one is not None for one in begun)


@pytest.mark.parametrize("changes", [{"base": 0.999, "alpha": 1e6}, {}])
def test_a_drafted_answer_is_the_answer(
    family: str, changes: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken: list[int] = []
    continued = Prefilled.continued

    def watched(self: Prefilled, row: int, tokens: Sequence[int], silent: Any) -> Prefilled:
        spoken.append(len(tokens))
        return continued(self, row, tokens, silent)

    monkeypatch.setattr(Prefilled, "continued", watched)
    drafting = guarded(family, draft=True, **changes)
    plain = guarded(family, share=False, **changes)
    for options in ({"max_new_tokens": 8}, {"max_new_tokens": 9, "min_new_tokens": 8}):
        found, expected = (lvlm.chat(PICTURES[1], **options) for lvlm in (drafting, plain))
        assert (found.text, found.usage, found.finish_reason) == (
            expected.text,
            expected.usage,
            expected.finish_reason,
        )
    if family in PLAIN_FAMILIES:
        assert not spoken
    elif changes.get("base") == 0.999:
        # Nothing is steered, so the whole draft stands: as long as the visual context.
        assert min(spoken) >= 5
