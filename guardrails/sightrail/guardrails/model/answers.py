"""What the local model gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ..verdict import Verdict
    from .tools import InvalidToolCall, ToolCall

FinishReason = Literal["stop", "length", "refused", "tool_calls"]


@dataclass(frozen=True)
class Usage:
    """Tokens of one request.

    Attributes:
        input_tokens: prompt tokens, image positions included, padding not.
        output_tokens: tokens the model produced, its end token included.
    """

    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Answer:
    """One answer, or one refusal.

    Attributes:
        text: what to show. For a refused request it is the policy's refusal text, or the model's
            own words where the policy lets it decline.
        refused: a guardrail refused the request. A model that declines of its own accord is not
            ``refused``.
        verdicts: one verdict per picture and detector, in the order the pictures came; then those
            on the request as a whole (``subject`` is ``"request"``), and on the calls that the
            policy has a rule for (``"calls"``).
        usage: tokens read and written.
        finish_reason: ``"stop"`` (end token or a stop text), ``"tool_calls"`` (the same, with
            calls), ``"length"``, or ``"refused"``.
        tool_calls: what the model proposes to call; none where the answer is refused.
        held_calls: in place of these, where the policy wants a person to approve them first.
        invalid_tool_calls: what was meant as a call and cannot be read.
        reasoning: what the model thought before, where it marks its thoughts.
        step: how many times tools had given something back since the user spoke. A refusal at step
            0 refuses the request; at a later one it refuses to go on from there.
    """

    text: str
    refused: bool
    verdicts: tuple[Verdict, ...]
    usage: Usage
    finish_reason: FinishReason
    tool_calls: tuple[ToolCall, ...] = ()
    invalid_tool_calls: tuple[InvalidToolCall, ...] = ()
    reasoning: str = ""
    step: int = 0
    held_calls: tuple[ToolCall, ...] = ()

    def _repr_html_(self) -> str:
        """What a notebook shows: the outcome, and every verdict on the way to it."""
        from ..verdict_drawing import trace_html

        return trace_html(self.text, self.verdicts)


@dataclass(frozen=True)
class AnswerChunk:
    """A piece of a streamed answer.

    Attributes:
        text: the new text. All pieces joined are exactly ``answer.text``.
        answer: the whole answer, on the last piece only.
        reasoning: what is new of the model's thoughts.
        tool_calls: calls, each once, valid or not. They come at the end: until then a guardrail
            may still refuse.
    """

    text: str
    answer: Answer | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCall | InvalidToolCall, ...] = ()
