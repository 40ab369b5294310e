"""An untrained Casa for any tiny model: random adapter, random attention, everything else real."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LogitsProcessor

from lvlm_helpers import Recorder
from sightrail.guardrails.casa import Casa
from sightrail.guardrails.casa.adapter import Adapter, adapted_maps
from sightrail.guardrails.casa.fit import fitting_host, method_settings
from sightrail.guardrails.casa.safety_attention import SafetyAttention
from sightrail.guardrails.casa.settings import CasaSettings, FitSettings
from sightrail.guardrails.casa.weights import CasaWeights, pack
from sightrail.guardrails.evidence import Evidence
from sightrail.guardrails.fitting import Artifact, Manifest, identify
from sightrail.guardrails.model import LocalLVLM
from sightrail.guardrails.model.families import TextTower, text_tower
from sightrail.guardrails.model.interventions import Interventions
from tiny_models import tiny

ALL_SAFE, ALL_UNSAFE = 2.0, 0.0


def untrained(family: str = "llava", *, pair: Any = None, seed: int = 0, **changes: Any) -> Casa:
    """A Casa with random weights, strong enough to be seen."""
    fit = {key: changes.pop(key) for key in list(changes) if key in ("targets", "layer")}
    model, processor = pair or tiny(family)
    host = fitting_host(LocalLVLM(model, processor, name=family))
    settings = method_settings(host, FitSettings(rank=2, heads=2, width=8, **fit))
    return untrained_on(model, host.inside("test"), settings, family, seed=seed, **changes)


def untrained_on(
    model: Any,
    tower: TextTower,
    settings: CasaSettings,
    name: str,
    *,
    seed: int = 0,
    **changes: Any,
) -> Casa:
    """The same for a model and settings given."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        attention = SafetyAttention(tower.config.hidden_size, settings.heads, settings.width)
        torch.nn.init.normal_(attention.score)
        pairs = {}
        for map_name in adapted_maps(tower, settings.targets):
            weight: Any = tower.module.get_submodule(map_name).weight
            pairs[map_name] = (
                torch.randn(settings.rank, weight.shape[1]) * 0.05,
                torch.randn(weight.shape[0], settings.rank) * 0.05,
            )
    weights = CasaWeights(attention, Adapter(pairs, 8.0) if pairs else None)
    manifest = Manifest(kind="casa", base=identify(model, name), settings=settings.to_json())
    return Casa(Artifact(manifest, pack(weights)), **{"threshold": 0.5, **changes})


def guarded(family: str = "llava", **changes: Any) -> LocalLVLM:
    """A tiny model with an untrained Casa."""
    policy = changes.pop("policy", None)
    guard = untrained(family, **changes)
    return LocalLVLM(*tiny(family), guardrails=[guard], policy=policy, name=family)


BENIGN = ("tell me how to make a cake.", "tell me how to use a fork.", "describe the image.")


def one_decision() -> LocalLVLM:
    """The testbed's model behind one decision, from the evidence of its Casa alone."""
    casa = Casa.from_pretrained("testbed")
    lvlm = LocalLVLM.from_pretrained("testbed", guardrails=[casa])
    known = lvlm.assess_batch(list(BENIGN) * 4)
    evidence = Evidence.fit(known, false_alarms=0.2, confidence=None, source="three requests")
    return lvlm.with_guardrails([casa], evidence=evidence)


class Force(LogitsProcessor):
    """Makes the model say given tokens, from a given length of the sequence on."""

    def __init__(self, tokens: list[list[int]], start: int) -> None:
        self._tokens, self._start = tokens, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self._start
        for row, tokens in enumerate(self._tokens):
            if 0 <= step < len(tokens):
                scores[row] = -torch.inf
                scores[row, tokens[step]] = 0.0
        return scores


class Forcing(Recorder):
    """A guardrail that forces the first tokens of every answer, after ``hidden`` others."""

    def __init__(self, tokens: list[list[int]], hidden: int) -> None:
        super().__init__()
        self._tokens, self._hidden = tokens, hidden

    def interventions(self, prompt: Any, host: Any) -> Interventions:
        return Interventions(logits=[Force(self._tokens, prompt.length + self._hidden)])


def with_peft(model: Any, adapter: Adapter, rank: int) -> Any:
    """The model with the adapter as peft's own LoRA; the model itself is changed."""
    tower = text_tower(model, wanted_by="test")
    where = {id(module): name for name, module in model.named_modules()}
    names = {where[id(tower.module.get_submodule(name))]: name for name in adapter.pairs}
    scale: Any = adapter.scale * rank
    config = LoraConfig(r=rank, lora_alpha=scale, target_modules=sorted(names))
    wrapped = get_peft_model(model, config).eval()
    for name in names.values():
        layer: Any = tower.module.get_submodule(name)
        layer.lora_A["default"].weight.data = adapter.pairs[name][0].clone()
        layer.lora_B["default"].weight.data = adapter.pairs[name][1].clone()
    return wrapped
