"""Every defence that acts on prompts or inside the model, ready for the contract suite.

A new defence is one line in ``DEFENCES``: how it is built so strong that it is seen, how it is
built at strength zero, and a plain oracle of what it computes. The suite is
``guardrails/test_contract.py``; it runs every defence on every family of ``tiny_models``.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from decision_helpers import ALL_UNSAFE, untrained, with_peft
from dense_calibration import Setting, dense
from lvlm_helpers import PICTURES, Recorder, picture, user
from moras_helpers import StateSteering, artifact, moras
from sightrail.guardrails import VisualSafetyPrompt
from sightrail.guardrails.casa.weights import unpack
from sightrail.guardrails.davsp import Frame
from sightrail.guardrails.davsp.border import inner_box
from sightrail.guardrails.model import Answer, LocalLVLM
from sightrail.guardrails.model.families import text_tower
from sightrail.guardrails.model.interventions import Interventions
from sightrail.guardrails.prefix import AttentiveCalibration, SafetyPrefix
from sightrail.guardrails.prefix.safety_prefix import resolve_layers
from tiny_models import Pair, fresh, tiny

TOKENS = 5
SLIDING = ("gemma3", "gemma3n", "llama4", "llava_next")
Logits = torch.Tensor
Messages = Any


class RecorderOfAnswers(Recorder):
    """Records the answer's logits, [steps, B, V], as every guardrail before it has made them."""

    def interventions(self, prompt: Any, host: Any) -> Interventions:
        made = super().interventions(prompt, host)
        return replace(made, logits=(), answer_logits=made.logits)


def record(
    lvlm: LocalLVLM, rows: Sequence[Messages], **options: Any
) -> tuple[list[Answer], Recorder]:
    """Answer the rows as one batch, and what the model said at every step of the answers."""
    last = RecorderOfAnswers()
    watched = lvlm.with_guardrails([*lvlm.guardrails, last])
    return watched.batch(rows, **{"max_new_tokens": TOKENS, **options}), last


def same(found: Answer, expected: Answer) -> None:
    """Equal answers; scores may differ by rounding."""
    for name in ("text", "usage", "finish_reason", "refused", "tool_calls", "step"):
        assert getattr(found, name) == getattr(expected, name), name
    for ours, theirs in zip(found.verdicts, expected.verdicts, strict=True):
        assert (ours.status, ours.action, ours.guardrail) == (
            theirs.status,
            theirs.action,
            theirs.guardrail,
        )
        assert ours.measures == pytest.approx(theirs.measures, abs=1e-4)


async def same_at_once(jobs: Sequence[tuple[LocalLVLM, Any, Answer]], **settings: Any) -> None:
    """Every model answers as expected while the others answer, in threads and in tasks."""
    answered = await asyncio.gather(
        *(
            asyncio.to_thread(lvlm.chat, row, **settings) if i % 2 else lvlm.achat(row, **settings)
            for i, (lvlm, row, _) in enumerate(jobs)
        )
    )
    for found, (_, _, expected) in zip(answered, jobs, strict=True):
        same(found, expected)


@dataclass(frozen=True)
class Defence:
    """One defence as the contract needs it.

    Attributes:
        on: its guardrails for a model of a family, strong enough to be seen in every answer.
        off: the same at strength zero.
        oracle: (ours, theirs), the logits of the first row of ``PICTURES`` with the defence, and as
            a plain computation gives them; both [steps, B, V].
        column: its name in docs/families.md.
        without: what remains of the defence when it is off; for most nothing.
    """

    on: Callable[[str, Pair], Any]
    off: Callable[[str, Pair], Any]
    oracle: Callable[[str], tuple[Logits, Logits]]
    column: str
    without: tuple[Any, ...] = ()

    def guarded(self, family: str, pair: Pair | None = None) -> LocalLVLM:
        """A tiny model with the defence on."""
        model = pair or tiny(family)
        return LocalLVLM(*model, guardrails=[self.on(family, model)], name=family)

    def zero(self, family: str, pair: Pair | None = None) -> LocalLVLM:
        """A tiny model with the defence at strength zero."""
        model = pair or tiny(family)
        return LocalLVLM(*model, guardrails=[self.off(family, model)], name=family)

    def bare(self, family: str, pair: Pair | None = None) -> LocalLVLM:
        """A tiny model without the defence."""
        return LocalLVLM(*(pair or tiny(family)), guardrails=list(self.without), name=family)

    def pictures(self, lvlm: LocalLVLM) -> list[Messages]:
        """Conversations that strength zero leaves as they are."""
        border = next((g for g in lvlm.guardrails if isinstance(g, VisualSafetyPrompt)), None)
        return [PICTURES[0]] if border is None else [border.apply(PICTURES[0])]


# The calibrated safety prefix


def calibrated(**settings: Any) -> SafetyPrefix:
    """Every layer and a strength that is seen in the logits."""
    values = {"gamma": 2.0, "band": (0.0, 1.0), "decode": True, **settings}
    return SafetyPrefix(calibration=AttentiveCalibration(**values))


def dense_attention(
    family: str, *, rule: str = "product", decode: bool = True, gamma: float = 0.7
) -> tuple[Logits, Logits]:
    """Dense eager attention with the printed formula, in every row."""
    model, processor = fresh(family)
    guard = calibrated(gamma=gamma, rule=rule, decode=decode, band=(0.0, 0.7))
    # The oracle knows no sliding cache.
    steps = 1 if decode and family in SLIDING else TOKENS
    lvlm = LocalLVLM(model, processor, guardrails=[guard])
    _, ours = record(lvlm, PICTURES[:1], max_new_tokens=steps)
    tower = text_tower(model, wanted_by="test")
    spans = ours.prompts[0].spans
    setting = Setting(
        prefix=spans.prefix,
        rows=spans.instruction.cumsum(1) > 0 if decode else spans.instruction,
        layers=resolve_layers(guard.calibration, tower.depth, tower.self_attention),
        gamma=gamma,
        rule=rule,
        decode=decode,
    )
    plain = LocalLVLM(model, processor, guardrails=[SafetyPrefix()])
    with dense(model, setting):
        _, theirs = record(plain, PICTURES[:1], max_new_tokens=steps)
    return ours.logits, theirs.logits


# CASA, with random weights


def peft_adapter(family: str) -> tuple[Logits, Logits]:
    """The prompt as peft's own LoRA reads it, before the safety token is chosen."""
    pair = fresh(family)
    guard = untrained(family, pair=pair)
    first = Recorder(stage="prefill")  # before the token is chosen
    LocalLVLM(*pair, guardrails=[first, guard], name=family).chat(PICTURES[0], max_new_tokens=1)
    model, _ = pair
    adapter = unpack(guard.artifact.tensors, guard.settings, model.device, model.dtype).adapter
    assert adapter is not None
    theirs = with_peft(model, adapter, guard.settings.rank)
    with torch.no_grad():
        logits = theirs(**first.prompts[0].inputs, use_cache=False).logits[:, -1]
    return first.logits[:1], logits[None]


# MoRAS, with random prototypes


def mixed_states(family: str) -> tuple[Logits, Logits]:
    """The published form: states after the final norm are mixed, before the LM head."""
    model, processor = tiny(family)
    answers, ours = record(LocalLVLM(model, processor, guardrails=[moras(model)]), PICTURES[:1])
    risks = torch.tensor([answer.verdicts[-1].measures["risk"] for answer in answers])
    assert bool(((risks > 0.05) & (risks < 0.95)).all()), "neither form may be trivial"
    published = StateSteering(artifact(model).tensors["prototypes"], risks)
    _, theirs = record(LocalLVLM(model, processor, guardrails=[published]), PICTURES[:1])
    return ours.logits, theirs.logits


# DAVSP, with a border of noise


def border(text: str | None = "Stay safe.") -> VisualSafetyPrompt:
    """A border of noise on a square canvas."""
    pixels = np.random.default_rng(5).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    return VisualSafetyPrompt(Frame(pixels, inner_box((56, 56), 0.1)), "fixed", text)


def bordered_by_hand(family: str) -> tuple[Logits, Logits]:
    """The picture pasted into the border by Pillow, the sentence written by the user."""
    guard, image = border(), picture(1)
    left, top, right, bottom = guard.frame.box
    canvas = Image.fromarray(guard.frame.pixels)
    canvas.paste(image.resize((right - left, bottom - top), Image.Resampling.BICUBIC), (left, top))
    _, ours = record(LocalLVLM(*tiny(family), guardrails=[guard]), PICTURES[:1])
    _, theirs = record(LocalLVLM(*tiny(family)), [user("Stay safe. What?", canvas)])
    return ours.logits, theirs.logits


DEFENCES: dict[str, Defence] = {
    "prefix": Defence(
        on=lambda family, pair: calibrated(),
        off=lambda family, pair: calibrated(gamma=0.0),
        oracle=dense_attention,
        column="calibration",
        without=(SafetyPrefix(),),
    ),
    "casa": Defence(
        on=lambda family, pair: untrained(family, pair=pair, threshold=ALL_UNSAFE),
        off=lambda family, pair: untrained(family, pair=pair, strength=0),
        oracle=peft_adapter,
        column="CASA",
    ),
    "moras": Defence(
        on=lambda family, pair: moras(pair[0]),
        # Nothing is similar enough: r = sigmoid(1e6 (S - base)) is 0 in float32.
        off=lambda family, pair: moras(pair[0], base=0.999, alpha=1e6, share=False),
        oracle=mixed_states,
        column="MoRAS",
    ),
    "davsp": Defence(
        on=lambda family, pair: border(),
        # A border has no strength: what stands in it already stays as it is.
        off=lambda family, pair: border(text=None),
        oracle=bordered_by_hand,
        column="DAVSP",
    ),
}


#: What is refused at construction, with the words of the refusal.
REFUSED = {("gemma3n", "moras"): "soft-caps its logits"}


@functools.cache
def bare_logits(family: str, defence: str) -> Logits:
    """What a model says through which no defence has ever acted."""
    pair = fresh(family)
    zero = DEFENCES[defence].zero(family)
    rows = DEFENCES[defence].pictures(zero)
    _, said = record(DEFENCES[defence].bare(family, pair), rows)
    return said.logits
