"""What a decision costs: an answer, a refused request, each against the bare model.

The model has random weights of the real size, or is the testbed's size; Casa's adapter and
attention have random weights of the size that training gives them. Medians over paired rounds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import torch
import transformers

from benchmarks.bench_calibration import SIZES, clock, make_prompt
from decision_helpers import ALL_SAFE, ALL_UNSAFE, untrained_on
from sightrail.guardrails import Casa, Policy
from sightrail.guardrails.casa.settings import CasaSettings
from sightrail.guardrails.evaluation.statistics import ratio_of_medians
from sightrail.guardrails.model import doorway
from sightrail.guardrails.model.families import Host, text_tower
from sightrail.guardrails.model.generation import generate
from sightrail.guardrails.model.messages import Conversation, GenerationOptions, TextPart, Turn
from sightrail.guardrails.verdict import Threshold

WAYS: Final = ("bare", "inert", "answered", "answered, attention only", "refused by the policy")
REFUSAL_TOKENS: Final = 12
DECLINED: Final = "declined in 12 tokens"


class Bench:
    """One model of a size, with a Casa for it.

    Args:
        size: one of ``bench_calibration.SIZES``.
        device: where.
        dtype: in which precision.
        new_tokens: of an answer.
    """

    def __init__(self, size: str, device: str, dtype: torch.dtype, new_tokens: int) -> None:
        torch.manual_seed(0)
        config, extra, pictures = SIZES[size]()
        with torch.device(device):
            self.model = transformers.AutoModelForImageTextToText.from_config(
                config, dtype=dtype
            ).eval()
        self.prompt, _ = make_prompt(extra, pictures, self.model)
        asked = (Conversation((Turn("user", (TextPart("what is this?"),)),)),)
        self.prompt = replace(self.prompt, conversations=asked, spans=None)
        self.device, self.tokens = device, new_tokens
        self.tower = text_tower(self.model, wanted_by="benchmark")
        settings = CasaSettings(8, 9, layer=round(self.tower.depth * 2 / 3))
        self.full = untrained_on(self.model, self.tower, settings, size)
        alone = replace(settings, targets=())
        self.attention = untrained_on(self.model, self.tower, alone, size)
        names = self.full.linear_names
        doorway.install(self.tower, self.model, hidden_states=True, linear=names)

    def run(self, way: str) -> float:
        """Seconds of one request."""
        casa, action, limit, tokens = self._setting(way)
        policy = Policy(on_unsafe_request=action)
        host = Host(self.model, None, "bench", None, policy, self.tower)  # type: ignore[arg-type]
        options = GenerationOptions(max_new_tokens=tokens, extra={"min_new_tokens": tokens})
        guard = casa and replace(casa, threshold=Threshold(value=limit, source="bench"))
        if guard is not None:
            guard._ready.update(casa._ready if casa else {})

        def once() -> object:
            made = [] if guard is None else [guard.interventions(self.prompt, host)]
            return generate(
                self.model,
                self.prompt,
                options,
                decode=str,
                pad_token_id=0,
                interventions=made,
                tower=self.tower,
            )

        seconds, _ = clock(once, self.device)
        if casa is not None and guard is not None:
            casa._ready.update(guard._ready)
        return seconds

    def _setting(self, way: str) -> tuple[Casa | None, Any, float, int]:
        return {
            "bare": (None, "allow", 0.0, self.tokens),
            "inert": (None, "allow", 0.0, self.tokens),
            "answered": (self.full, "decline", ALL_SAFE, self.tokens),
            "answered, attention only": (self.attention, "refuse", ALL_SAFE, self.tokens),
            "refused by the policy": (self.full, "refuse", ALL_UNSAFE, self.tokens),
            DECLINED: (self.full, "decline", ALL_UNSAFE, REFUSAL_TOKENS),
        }[way]

    def stock(self) -> None:
        """Take the attention of the doorway away, as the bare model has it."""
        self.model.set_attn_implementation({self.tower.config_key: "sdpa"})

    def opened(self) -> None:
        """And put it back."""
        self.model.set_attn_implementation({self.tower.config_key: doorway.ATTENTION})


def measure(
    size: str, *, device: str, dtype: torch.dtype, rounds: int, new_tokens: int
) -> dict[str, Any]:
    """Ratios of medians to the bare model of the same run, 95 % bootstrap intervals."""
    bench = Bench(size, device, dtype, new_tokens)
    ways = (*WAYS, DECLINED)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for round_ in range(rounds + 1):
        for way in ways if round_ % 2 else reversed(ways):
            bench.stock() if way == "bare" else bench.opened()
            took = bench.run(way)
            if round_:  # the first warms up
                seconds[way].append(took)
    ratios = {
        way: dict(
            zip(("ratio", "low", "high"), ratio_of_medians(some, seconds["bare"]), strict=True)
        )
        | {"median_ms": 1000 * sorted(some)[len(some) // 2]}
        for way, some in seconds.items()
    }
    cuda = device.startswith("cuda")
    return {
        "size": size,
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "threads": torch.get_num_threads(),
        "clock": "wall" if cuda else "CPU time of the process",
        "dtype": str(dtype).removeprefix("torch."),
        "prompt_tokens": bench.prompt.length,
        "new_tokens": new_tokens,
        "rounds": rounds,
        "ways": ratios,
    }
