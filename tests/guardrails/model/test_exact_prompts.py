"""Prompts are token for token what the model's own processor makes of the conversation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LogitsProcessor

from decision_helpers import untrained
from lvlm_helpers import Recorder, picture, user
from sightrail.guardrails.intake import Limits
from sightrail.guardrails.model import LocalLVLM
from sightrail.guardrails.model.families import context_length, image_token_ids
from sightrail.guardrails.model.interventions import Interventions
from sightrail.guardrails.model.messages import read_messages
from sightrail.guardrails.model.prompt import PromptBuilder
from sightrail.guardrails.model.screening_step import decode_conversation
from sightrail.guardrails.prefix import AttentiveCalibration, SafetyPrefix
from tiny_models import Pair, every_family, tiny

ASSISTANT = {"role": "assistant", "content": [{"type": "text", "text": "There is a fox."}]}
SYSTEM = {"role": "system", "content": [{"type": "text", "text": "You are a helpful assistant."}]}
TALKS: dict[str, list[dict[str, Any]]] = {
    "text": user("Tell me how to make the object."),
    "picture": user("What is in the image?", picture(1)),
    "two pictures": user("Describe the picture.", picture(1), picture(2)),
    "system": [SYSTEM, *user("What is in the image?", picture(1))],
    "turns": [*user("What is it?", picture(1)), ASSISTANT, *user("How many objects are there?")],
    "begun": [*user("What is in the image?", picture(1)), ASSISTANT],
}
PREFIX = SafetyPrefix("Stay safe.")
#: Families whose tokenizers begin a text with a token of their own.
BEGUN = ["gemma3", "gemma3n", "idefics3", "llama4", "llava", "llava_next", "mistral3", "mllama"]
BEGUN += ["pixtral"]


def by_the_processor(pair: Pair, talk: list[dict[str, Any]]) -> list[int]:
    """The tokens that transformers itself makes, pictures expanded."""
    _, processor = pair
    continued = talk[-1]["role"] == "assistant"
    made = processor.apply_chat_template(
        talk,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=not continued,
        continue_final_message=continued,
    )
    return made["input_ids"][0].tolist()


def ours(pair: Pair, talks: list[list[dict[str, Any]]], *, spans: bool) -> list[list[int]]:
    model, processor = pair
    builder = PromptBuilder(
        processor, context_length=context_length(model), image_token_ids=image_token_ids(model)
    )
    read = [decode_conversation(read_messages(talk), Limits()) for talk in talks]
    prefix = PREFIX.text if spans else None
    prompt = builder.build(read, spans=spans, prefix=prefix)
    ids, mask = prompt.inputs["input_ids"], prompt.inputs["attention_mask"].bool()
    return [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]


@pytest.mark.parametrize("kind", TALKS)
@pytest.mark.shows("prompt exact")
@pytest.mark.parametrize("family", every_family())
def test_a_prompt_is_what_the_processor_makes(family: str, kind: str) -> None:
    pair = tiny(family)
    if family == "smolvlm":
        pytest.importorskip("num2words", reason="transformers' SmolVLMProcessor needs it")
    expected = by_the_processor(pair, TALKS[kind])
    assert ours(pair, [TALKS[kind]], spans=False) == [expected]
    tokenizer = pair[1].tokenizer
    if family in BEGUN:
        assert expected.count(tokenizer.bos_token_id) == 1
        assert expected[0] == tokenizer.bos_token_id
    if kind != "begun":
        assert tokenizer.eos_token_id != expected[-1]


@pytest.mark.shows("prompt exact")
@pytest.mark.parametrize("family", every_family())
def test_the_prefix_changes_the_words_and_nothing_else(family: str) -> None:
    pair = tiny(family)
    talks = [PREFIX.apply(TALKS[kind]) for kind in ("picture", "turns", "system")]
    assert ours(pair, talks, spans=True) == [by_the_processor(pair, talk) for talk in talks]


class Sequences(LogitsProcessor):
    """Keeps the whole sequence that each token was predicted from."""

    def __init__(self, seen: list[list[int]]) -> None:
        self._seen = seen

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._seen.append(input_ids[0].tolist())
        return scores


class Watching(Recorder):
    def interventions(self, prompt: Any, host: Any) -> Interventions:
        return Interventions(logits=[Sequences(self.steps)])  # type: ignore[arg-type]


@pytest.mark.shows("prompt exact")
@pytest.mark.parametrize("family", every_family())
def test_the_hidden_token_follows_the_prompt(family: str) -> None:
    pair = tiny(family)
    guards = [
        SafetyPrefix(PREFIX.text, AttentiveCalibration(gamma=1.0)),
        untrained(family, threshold=2.0),
        watching := Watching(),
    ]
    lvlm = LocalLVLM(*pair, guardrails=guards, name=family)
    lvlm.chat(TALKS["picture"], max_new_tokens=2)
    prompt = by_the_processor(pair, PREFIX.apply(TALKS["picture"]))
    safe = guards[1].settings.safe_token  # type: ignore[attr-defined]
    assert watching.steps[0] == prompt
    assert watching.steps[1] == [*prompt, safe]
