"""A sentence that reminds the model of safety, before the user's instruction.

The prefix stands after the pictures and before the instruction: under the causal mask, only what
comes later can attend to it.

Reference: GuardAlign, arXiv 2602.24027, sec. 3.2. Its wording after "As an AI assistant" is not
published; the default is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ..errors import ConfigurationError, PromptError
from ..model.messages import Conversation, TextPart
from .attentive_calibration import AttentiveCalibration, resolve_layers

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
