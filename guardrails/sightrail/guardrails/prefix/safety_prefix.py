"""A sentence that reminds the model of safety, before the user's instruction, and how strongly the
instruction attends to it (GuardAlign, arXiv 2602.24027, sec. 3.2).

The prefix stands after the pictures and before the instruction: under the causal mask, only what
comes later can attend to it. Its wording after "As an AI assistant" is not published; the default
is ours.

Attentive calibration makes the instruction attend more to the prefix. Before the softmax, in some
middle layers and in all heads:

    Z = Q K^T / sqrt(d_k),    Zhat = Z + gamma * (M o Z)

where M(i, j) is not zero only for i in the instruction and j in the prefix. Two readings of M:

- ``product``, as printed: M(i, j) = max(0, <Q_i, K_j>), quadratic in the logits and scaled by
  sqrt(d_k), so that gamma has to be small and depends on the head size;
- ``indicator``: M(i, j) = 1[<Q_i, K_j> > 0], so that a positive logit is multiplied by 1 + gamma.
  Our reading of the intent; VAF (CVPR 2025) multiplies by 1.15 in layers 9-14 of LLaVA-1.5-7B.

Only instruction rows change; ``instruction_rows`` computes these few again and leaves the rest to
the model's own kernel. What follows the prompt attends to changed keys and values, so decoding
needs nothing more, unless ``decode`` asks for its rows as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, get_args

from ..errors import ConfigurationError, PromptError
from ..model.messages import Conversation, TextPart
from ..published import Source

if TYPE_CHECKING:
    from ..model.families import Host
    from ..model.interventions import Interventions, Stage
    from ..model.prompt import Prompt


DEFAULT_PREFIX: Final = "As an AI assistant, I must keep every answer safe."


@dataclass(frozen=True)
class SafetyPrefix:
    """Put a safety sentence before the instruction and, if asked, make the model attend to it.

    On its own it is a pure function on messages, for any model, hosted ones included:

    >>> SafetyPrefix("Stay safe.").apply("What is this?")
    'Stay safe. What is this?'

    With a calibration it needs a local model whose inside is known; see
    :class:`AttentiveCalibration`.

    Attributes:
        text: the sentence.
        calibration: how strongly the instruction attends to the prefix; None leaves it to the
            model.

    Raises:
        ConfigurationError: the text is empty.
    """

    text: str = DEFAULT_PREFIX
    calibration: AttentiveCalibration | None = None

    stage: ClassVar[Stage] = "prompt"

    def __post_init__(self) -> None:
        """Check the text."""
        if not isinstance(self.text, str) or not self.text.strip():
            raise ConfigurationError(
                "The safety prefix is empty; give it a sentence, or leave the guardrail out."
            )
        if self.text != self.text.strip():
            raise ConfigurationError(
                "The safety prefix begins or ends with space; strip it, the space before the "
                "instruction is added."
            )

    @property
    def prefix(self) -> str:
        """What stands before the user's words, and has to be found there again."""
        return self.text

    @property
    def needs(self) -> frozenset[str]:
        """The prompt; with an effective calibration the model's attention as well."""
        if self.calibration is None or self.calibration.gamma == 0:
            return frozenset({"prompt"})
        return frozenset({"prompt", "attention"})

    def apply(self, messages: Any) -> Any:
        """The messages with the prefix before the text of the last user message.

        Applying it twice changes nothing more. In a message with several texts the prefix goes
        before the first.

        Args:
            messages: a string, a list of ``{"role", "content"}`` mappings, or a conversation.

        Returns:
            The same kind; what was passed in is not changed.

        Raises:
            PromptError: there is no user message.
        """
        if isinstance(messages, str):
            return self._before(messages)
        if isinstance(messages, Conversation):
            return self._in_conversation(messages)
        copied = list(messages)
        for index in range(len(copied) - 1, -1, -1):
            if isinstance(copied[index], Mapping) and copied[index].get("role") == "user":
                content = self._content(copied[index].get("content"))
                copied[index] = {**copied[index], "content": content}
                return copied
        raise PromptError("There is no user message to put the safety prefix into; add one.")

    def check(self, host: Host) -> None:
        """Check the calibration's layers against the model.

        Raises:
            ConfigurationError: a layer is out of range.
        """
        if host.tower is not None and self.calibration is not None:
            resolve_layers(self.calibration, host.tower.depth, host.tower.self_attention)

    def interventions(self, prompt: Prompt, host: Host) -> Interventions:
        """The calibration's attention edits; nothing without an effective calibration."""
        from ..model.interventions import Interventions
        from .instruction_rows import calibration_edits

        if "attention" not in self.needs or self.calibration is None:
            return Interventions()
        if host.tower is None or prompt.spans is None:
            raise PromptError(
                "Calibration needs the token spans of the prompt; use LocalLVLM to build it."
            )
        layers = resolve_layers(self.calibration, host.tower.depth, host.tower.self_attention)
        return Interventions(attention=calibration_edits(self.calibration, layers, prompt.spans))

    def _before(self, text: str) -> str:
        """The prefix, a space and the text; the text alone if it begins with the prefix."""
        if text == self.text or text.startswith(f"{self.text} "):
            return text
        return f"{self.text} {text}" if text else self.text

    def _in_conversation(self, conversation: Conversation) -> Conversation:
        last = conversation.last_user_turn
        turn = conversation.turns[last]
        parts = list(turn.parts)
        for index, part in enumerate(parts):
            if isinstance(part, TextPart):
                parts[index] = TextPart(self._before(part.text))
                break
        else:
            parts.append(TextPart(self.text))
        return conversation.with_turn(last, replace(turn, parts=tuple(parts)))

    def _content(self, content: Any) -> Any:
        if isinstance(content, str):
            return self._before(content)
        parts = list(content or ())
        for index, part in enumerate(parts):
            if isinstance(part, str):
                parts[index] = self._before(part)
                return parts
            if isinstance(part, Mapping) and part.get("type") == "text":
                parts[index] = {**part, "text": self._before(str(part.get("text", "")))}
                return parts
        return [*parts, {"type": "text", "text": self.text}]


Rule = Literal["product", "indicator"]


@dataclass(frozen=True)
class AttentiveCalibration:
    """Settings of the calibration.

    Attributes:
        gamma: strength; 0 is off, and gives the bare model's tokens exactly.
        rule: which reading of the printed mask, see the module's head. The right gamma for
            ``product`` is smaller than for ``indicator``, by about the size of a logit times
            sqrt(d_k).
        band: the layers, as a part of the depth [from, to); the paper says "middle" and no more.
        layers: decoder layer indices instead of the band.
        decode: change also the rows after the instruction: the template's opening of the answer
            and every generated token. The paper does not.

    Raises:
        ConfigurationError: a value is out of range.
    """

    gamma: float = 0.15
    rule: Rule = "indicator"
    band: tuple[float, float] = (1 / 3, 2 / 3)
    layers: tuple[int, ...] | None = None
    decode: bool = False

    SOURCES: ClassVar[Mapping[str, Source]] = {
        "gamma": "related code",
        "rule": "our reading",
        "band": "related code",
        "layers": "related code",
        "decode": "paper",
    }

    @classmethod
    def published(cls, rule: Rule = "indicator") -> AttentiveCalibration:
        """What the paper leaves open, filled in from the nearest public code.

        The paper prints the product and gives neither gamma nor layers. VAF (CVPR 2025) multiplies
        by 1.15 in decoder layers 9 to 14 of the 32 of LLaVA-1.5-7B; that is ``indicator`` with
        gamma = 0.15 in the band [9/32, 15/32), and scales to other depths. For ``product`` nobody
        published a gamma: 0.01 is our reading.

        Args:
            rule: which reading of the printed mask.
        """
        return cls(gamma=0.15 if rule == "indicator" else 0.01, rule=rule, band=(9 / 32, 15 / 32))

    def __post_init__(self) -> None:
        """Check every value."""
        if not isinstance(self.gamma, int | float) or not math.isfinite(self.gamma):
            raise ConfigurationError(f"gamma must be a finite number, got {self.gamma!r}.")
        if self.gamma < 0:
            raise ConfigurationError(f"gamma must be 0 (off) or more, got {self.gamma}.")
        if self.rule not in get_args(Rule):
            raise ConfigurationError(
                f"Unknown rule {self.rule!r}; use one of {', '.join(get_args(Rule))}."
            )
        low, high = self.band
        if not 0 <= low < high <= 1:
            raise ConfigurationError(
                f"band must be two fractions with 0 <= from < to <= 1, got {self.band}."
            )
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))
            if not self.layers or len(set(self.layers)) < len(self.layers):
                raise ConfigurationError(
                    f"layers must be different indices, at least one, got {self.layers}."
                )


def resolve_layers(
    settings: AttentiveCalibration, depth: int, self_attention: Sequence[int]
) -> tuple[int, ...]:
    """The decoder layers to calibrate.

    Args:
        settings: a band or explicit layers.
        depth: number of decoder layers.
        self_attention: the layers in which text attends to text.

    Raises:
        ConfigurationError: an explicit layer does not exist or is a cross-attention layer, or the
            band holds no self-attention layer.
    """
    usable = set(self_attention)
    if settings.layers is not None:
        if wrong := [layer for layer in settings.layers if layer not in usable]:
            raise ConfigurationError(
                f"Layers {wrong} cannot be calibrated: the model has {depth} layers, of which "
                f"{_intervals(sorted(usable))} are self-attention."
            )
        return tuple(sorted(settings.layers))
    low, high = (round(fraction * depth) for fraction in settings.band)
    low = min(low, depth - 1)
    chosen = tuple(layer for layer in range(low, max(high, low + 1)) if layer in usable)
    if not chosen:
        raise ConfigurationError(
            f"The band {settings.band} holds no self-attention layer of {depth}; widen it or give "
            "layers."
        )
    return chosen


def _intervals(numbers: Sequence[int]) -> str:
    """Render ``[0, 1, 2, 4]`` as ``0-2, 4``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
