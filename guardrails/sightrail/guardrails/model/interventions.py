"""What a guardrail does inside the model during one request, the contract it follows, its failures.

A guardrail that breaks, refuses. Everything it does in a request runs under :func:`blamed`, so what
goes wrong inside is known by its name: the pipeline turns ``GuardrailBroke`` into a failed verdict,
and the policy's refusal stands in place of the answer. Errors that the library raises on purpose
pass: they say what the caller can change.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

from transformers import LogitsProcessor

from ..deadline import run_within
from ..errors import Abandoned, SightrailError
from ..verdict import Verdict

if TYPE_CHECKING:
    import torch
    from transformers import LogitsProcessor

    from ..policy import Policy
    from ..verdict import Verdict
    from .doorway import AttentionEdit, HiddenEdit, LinearEdit
    from .families import Host
    from .messages import Conversation
    from .prompt import Prompt
    from .shared_prefill import Prefilled


#: Where on a request's way a guardrail acts, in the order of the way; see ``stack``.
Stage = Literal["screening", "picture", "prompt", "prefill", "decision", "decoding"]

#: What a guardrail can ask of a model. ``first_token``: it makes tokens of its own before the
#: answer, which only one can do.
NEEDS = frozenset(
    {"pixels", "prompt", "attention", "hidden_states", "linear", "logits", "first_token"}
)
#: What only a model whose inside is known can give.
INSIDE = frozenset({"attention", "hidden_states", "linear"})


@dataclass(frozen=True)
class Decision:
    """What a guardrail decided about one request.

    Attributes:
        verdict: what it found, with the action that follows.
        answered: whether the model speaks: it answers, or declines in its own words. Where it does
            not, the user gets the policy's refusal text, or an exception.
    """

    verdict: Verdict
    answered: bool = True

    @classmethod
    def following(cls, verdict: Verdict, policy: Policy, *, own_words: bool = True) -> Decision:
        """What a policy makes of a verdict on a request.

        A guardrail that failed has found nothing safe: unless the policy only monitors, its request
        is not answered, whatever ``on_unsafe_request`` says.

        Args:
            verdict: of the guardrail.
            policy: of the model.
            own_words: whether the guardrail can make the model decline in its own words.
        """
        failed = verdict.status == "failed" and not policy.monitor
        action = policy.on_unsafe_request if failed else policy.request_action
        if not failed and (action == "allow" or verdict.status == "clean"):
            return cls(verdict.taken("allow"))
        taken = verdict.taken("raise" if action == "raise" else "refuse")
        return cls(taken, answered=own_words and action == "decline" and not failed)


class Decisions(Protocol):
    """Decisions on the rows of a batch, which may fall while the model runs."""

    def decided(self) -> Sequence[Decision] | None:
        """One per row; None as long as the run has not come that far."""


@dataclass(frozen=True)
class Settled:
    """Decisions that fell before the run, one per row."""

    decisions: Sequence[Decision]

    def decided(self) -> Sequence[Decision]:
        """All of them."""
        return self.decisions


@dataclass(frozen=True)
class Interventions:
    """One request's changes inside the model.

    Attributes:
        attention: decoder layer -> edit of its attention output.
        hidden_states: decoder layer -> edit of its output; the number of layers stands for the
            output of the final norm.
        linear: name of a linear map in the text tower -> edit of its output.
        logits: processors, applied in order before sampling; see ``processing`` for ``until``.
        answer_logits: processors for the user's answer alone, after every guardrail's hidden
            tokens; they get the tokens [B, t] of the answer so far in place of the whole.
        hidden_tokens: how many of the first generated tokens are the guardrail's own: no user sees
            them, and they count as no output.
        decisions: decides about every row.
        prefilled: the prompt with its beginning computed already, by the bare model. It is left
            aside where another guardrail edits what that computes, or generation needs the whole.
    """

    attention: Mapping[int, AttentionEdit] = field(default_factory=dict)
    hidden_states: Mapping[int, HiddenEdit] = field(default_factory=dict)
    linear: Mapping[str, LinearEdit] = field(default_factory=dict)
    logits: Sequence[LogitsProcessor] = ()
    answer_logits: Sequence[LogitsProcessor] = ()
    hidden_tokens: int = 0
    decisions: Decisions | None = None
    prefilled: Prefilled | None = None

    @property
    def edits(self) -> bool:
        """Whether it changes what the model computes inside."""
        return bool(self.attention or self.hidden_states or self.linear)


@runtime_checkable
class ModelGuardrail(Protocol):
    """A guardrail that acts on the prompt or inside the model.

    ``check`` runs once, when the guardrail is put on a model; ``interventions`` once per batch.
    ``host.tower`` is there only if ``needs`` holds something of ``INSIDE``. A guardrail that needs
    ``"linear"`` has an attribute ``linear_names``: the maps it edits. One that calls the model
    before the answer heeds ``host.cancel``. One that puts a sentence before the user's words and
    needs its place in the prompt (``Spans.prefix``) has an attribute ``prefix``: the sentence.
    """

    @property
    def stage(self) -> Stage:
        """Where it acts; with several places, the first of them."""

    @property
    def needs(self) -> frozenset[str]:
        """What it asks of the model, out of ``NEEDS``."""

    def apply(self, messages: Conversation) -> Conversation:
        """The conversation as the model shall see it; the given one stays as it is."""

    def check(self, host: Host) -> None:
        """Raise a typed error when this model cannot serve the settings."""

    def interventions(self, prompt: Prompt, host: Host) -> Interventions:
        """What to do inside the model for this batch of prompts."""


K = TypeVar("K")


class GuardrailBroke(Exception):  # noqa: N818 - never leaves this package
    """Something went wrong inside a guardrail.

    Attributes:
        guard: the class of the guardrail.
        reason: what went wrong, without anything that a user wrote.
    """

    def __init__(self, guard: str, reason: str) -> None:
        super().__init__(f"{guard} {reason}")
        self.guard, self.reason = guard, reason

    @property
    def verdict(self) -> Verdict:
        """What is said about the request."""
        return Verdict.failed_request(self.guard, self.reason)


@contextlib.contextmanager
def blamed(guard: str) -> Iterator[None]:
    """Whatever goes wrong in the block is this guardrail's failure."""
    try:
        yield
    except (SightrailError, GuardrailBroke):
        raise
    except Exception as error:
        raise GuardrailBroke(guard, f"raised {type(error).__name__}") from error


def interventions_of(
    guard: ModelGuardrail, prompt: Prompt, host: Host, timeout_s: float | None
) -> Interventions:
    """What a guardrail does inside the model for a batch of prompts, each part under its name.

    Args:
        guard: the guardrail.
        prompt: of the batch.
        host: the model; what the guardrail calls itself ends with ``host.cancel``.
        timeout_s: how long it may take for what it does before the answer; None for as long as it
            takes.

    Raises:
        GuardrailBroke: it raised, took too long, or gave something else.
        SightrailError: on purpose.
    """
    name = type(guard).__name__
    deadline = _Deadline(timeout_s, host.cancel)
    host = replace(host, cancel=deadline)
    with blamed(name):
        try:
            made = run_within(timeout_s, lambda: guard.interventions(prompt, host))
        except (TimeoutError, Abandoned) as error:
            if not deadline.passed:
                raise
            raise GuardrailBroke(name, f"took longer than {timeout_s:g} s") from error
    if not isinstance(made, Interventions):
        raise GuardrailBroke(name, f"gave a {type(made).__name__} in place of interventions")
    return replace(
        made,
        attention=_all_blamed(name, made.attention),
        hidden_states=_all_blamed(name, made.hidden_states),
        linear=_all_blamed(name, made.linear),
        logits=[_BlamedProcessor(name, processor) for processor in made.logits],
        answer_logits=[_BlamedProcessor(name, processor) for processor in made.answer_logits],
        decisions=made.decisions and CheckedDecisions(name, made.decisions, prompt.rows),
    )


class _Deadline(threading.Event):
    """Set once the time is over, or once the caller's event is."""

    def __init__(self, seconds: float | None, caller: threading.Event | None) -> None:
        super().__init__()
        self._end = None if seconds is None else time.monotonic() + seconds
        self._caller = caller

    @property
    def passed(self) -> bool:
        """Whether the time is over and the caller still waits."""
        called_off = self._caller is not None and self._caller.is_set()
        return self._end is not None and time.monotonic() >= self._end and not called_off

    def is_set(self) -> bool:
        """Whether the work is to end."""
        return self.passed or (self._caller is not None and self._caller.is_set())


class _Blamed:
    """An edit under the name of its guardrail; ``until`` as the edit's own."""

    def __init__(self, guard: str, work: Callable[..., Any]) -> None:
        self._guard, self._work = guard, work

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)

    def __call__(self, *args: Any) -> Any:
        with blamed(self._guard):
            return self._work(*args)


class _BlamedProcessor(_Blamed, LogitsProcessor):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        changed: torch.Tensor = super().__call__(input_ids, scores)
        return changed


def _all_blamed(guard: str, edits: Mapping[K, Callable[..., Any]]) -> dict[K, Any]:
    return {place: _Blamed(guard, edit) for place, edit in edits.items()}


@dataclass(frozen=True)
class CheckedDecisions:
    """A guardrail's decisions, one for each request or none at all.

    Attributes:
        guard: the class of the guardrail.
        decisions: its own.
        rows: number of requests.
    """

    guard: str
    decisions: Decisions
    rows: int

    def decided(self) -> Sequence[Decision] | None:
        """One per row; None as long as the run has not come that far.

        Raises:
            GuardrailBroke: there are more or fewer, or something else.
        """
        with blamed(self.guard):
            found = self.decisions.decided()
        if found is None:
            return None
        if len(found) != self.rows or not all(isinstance(item, Decision) for item in found):
            reason = f"gave {len(found)} decisions on {self.rows} requests"
            raise GuardrailBroke(self.guard, reason)
        return found
