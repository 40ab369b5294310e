"""The stack of one model: its guardrails in the order in which a request meets them.

The order is the order of the data, whatever the order of ``guardrails=[...]``:

1. ``screening``: detectors look at the picture as it came, and mask or refuse. One that saw a
   border would judge the border.
2. ``picture``: what is put around or onto the pictures that screening lets pass, and the text that
   goes with it.
3. ``prompt``: what is put before the user's words. The safety prefix comes first of all texts, so
   that its place is known and everything after it can attend to it.
4. ``prefill``: edits while the model reads the prompt.
5. ``decision``: whether the request is answered.
6. ``decoding``: what changes the tokens of the answer.

Guardrails of one stage are ordered by the names of their classes; two detectors of one class keep
the order in which they are listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeGuard, get_args

from ..errors import ConfigurationError
from .interventions import INSIDE, NEEDS, ModelGuardrail, Stage, blamed
from .messages import Conversation, read_messages

if TYPE_CHECKING:
    from ..screening.asking import Detector

    #: What ``guardrails=[...]`` takes.
    Guardrail: TypeAlias = Detector | ModelGuardrail

STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
_CONTRACT: Final = ("stage", "needs", "apply", "check", "interventions")
_PROBE: Final = "What is this?"


@dataclass(frozen=True)
class GuardrailStack:
    """The guardrails of one model, in the order in which a request meets them.

    Attributes:
        detectors: look at pictures before the prompt is made.
        inner: act on the prompt or inside the model.
    """

    detectors: tuple[Detector, ...]
    inner: tuple[ModelGuardrail, ...]

    @property
    def needs(self) -> frozenset[str]:
        """Everything the inner guardrails ask for."""
        return frozenset[str]().union(*(guard.needs for guard in self.inner))

    @property
    def linear_names(self) -> list[str]:
        """The linear maps that they edit."""
        return [name for guard in self.inner for name in getattr(guard, "linear_names", ())]

    @property
    def inside(self) -> list[str]:
        """Names of the guardrails that need the inside of the model."""
        return [type(guard).__name__ for guard in self.inner if guard.needs & INSIDE]

    @property
    def prefix(self) -> str | None:
        """The safety prefix, whose place in the prompt has to be known; None without one."""
        return next((text for guard in self.inner if (text := prefix_of(guard))), None)

    def prompted(self, conversation: Conversation) -> Conversation:
        """The conversation as the model shall see it, one guardrail after the other."""
        for guard in self.inner:
            with blamed(type(guard).__name__):
                conversation = read_messages(guard.apply(conversation))
        return conversation

    def without(self, kind: str) -> GuardrailStack:
        """The same without the inner guardrail of a class."""
        inner = [guard for guard in self.inner if type(guard).__name__ != kind]
        return replace(self, inner=tuple(inner))


def prefix_of(guard: ModelGuardrail) -> str | None:
    """The safety prefix that a guardrail puts before the user's words, None if it puts none."""
    return getattr(guard, "prefix", None)


def build_stack(guardrails: Sequence[Guardrail]) -> GuardrailStack:
    """Put guardrails in order.

    Args:
        guardrails: in any order.

    Raises:
        ConfigurationError: one is neither a detector nor a model guardrail, or they cannot work
            together; the message says which and why.
    """
    if not isinstance(guardrails, Sequence) or isinstance(guardrails, str):
        raise ConfigurationError(
            f"guardrails must be a list, got {type(guardrails).__name__}; write guardrails=[...]."
        )
    detectors = [guard for guard in guardrails if _is_detector(guard)]
    inner = [_inner(guard) for guard in guardrails if not _is_detector(guard)]
    stack = GuardrailStack(
        tuple(sorted(detectors, key=lambda guard: type(guard).__qualname__)),
        tuple(sorted(inner, key=lambda g: (STAGES.index(g.stage), type(g).__qualname__))),
    )
    _check_together(stack)
    return stack


def _is_detector(guard: object) -> TypeGuard[Detector]:
    return hasattr(guard, "screen") and not isinstance(guard, type)


def _inner(guard: Any) -> ModelGuardrail:
    """Make sure that this is a guardrail of the model.

    Raises:
        ConfigurationError: it is not, or it names a stage or a need that does not exist.
    """
    name = type(guard).__name__
    if isinstance(guard, type) or not isinstance(guard, ModelGuardrail):
        lacks = [part for part in _CONTRACT if not hasattr(guard, part)]
        missing = f" It has no {', '.join(lacks)}." if 0 < len(lacks) < len(_CONTRACT) else ""
        raise ConfigurationError(
            f"{guard!r} is not a guardrail; pass objects such as RiskDetector or SafetyPrefix "
            f"(a class must be called first).{missing}"
        )
    if guard.stage not in STAGES:
        raise ConfigurationError(
            f"{name} names the stage {guard.stage!r}; there are {', '.join(STAGES)}."
        )
    if guard.stage == "screening":
        raise ConfigurationError(
            f"{name} names the stage 'screening' and has no screen(pictures); a detector has."
        )
    if unknown := guard.needs - NEEDS:
        raise ConfigurationError(
            f"{name} has unknown needs {sorted(unknown)}; there are {', '.join(sorted(NEEDS))}."
        )
    return guard


def _check_together(stack: GuardrailStack) -> None:
    kinds = [type(guard) for guard in stack.inner]
    if doubled := {kind.__name__ for kind in kinds if kinds.count(kind) > 1}:
        raise ConfigurationError(f"{', '.join(sorted(doubled))} stands twice; keep one of each.")
    _one_alone(stack, [g for g in stack.inner if prefix_of(g)], "put a safety prefix first")
    speaking = [guard for guard in stack.inner if "first_token" in guard.needs]
    _one_alone(stack, speaking, "choose the first token before the answer")
    if stack.prefix is not None:
        _check_prefix_first(stack, stack.prefix)


def _one_alone(stack: GuardrailStack, guards: Sequence[ModelGuardrail], what: str) -> None:
    if len(guards) > 1:
        names = " and ".join(type(guard).__name__ for guard in guards)
        raise ConfigurationError(f"{names} cannot work together: both {what}. Keep one of them.")


def _check_prefix_first(stack: GuardrailStack, prefix: str) -> None:
    """Try on a question whether the safety prefix comes out in front of all other texts."""
    texts = stack.prompted(read_messages(_PROBE)).turns[-1].texts
    if texts and texts[0].startswith(prefix):
        return
    owner = next(guard for guard in stack.inner if prefix_of(guard))
    others = ", ".join(type(guard).__name__ for guard in stack.inner if guard is not owner)
    raise ConfigurationError(
        f"{type(owner).__name__} and {others} cannot work together: one of the others puts a text "
        "before the safety prefix, or takes it out, so that its place in the prompt is not known. "
        "Let that one name an earlier stage ('picture' or 'prompt')."
    )
