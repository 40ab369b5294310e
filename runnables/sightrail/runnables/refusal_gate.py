"""A local model's decision about a request, in front of any chain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import BaseMessage, HumanMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable
from pydantic import Field, field_validator

from sightrail.guardrails.errors import (
    ConfigurationError,
    PromptError,
    RequestRefused,
    SightrailError,
)
from sightrail.guardrails.intake import Limits
from sightrail.guardrails.model.messages import Conversation
from sightrail.guardrails.strict import StrictModel
from sightrail.guardrails.verdict import Verdict

from .checked import CheckedRunnable, Instead, Onward
from .turns import message, read_conversation, refusal_fields
from .walk import is_refused, marked_verdicts, note_on_run, write_marker

if TYPE_CHECKING:
    from sightrail.guardrails import LocalLVLM

    ModelField = LocalLVLM
else:
    ModelField = Any  # pydantic reads annotations, and the model's module would load torch

Outcome = tuple[Verdict, ...] | SightrailError

_UNSAFE = frozenset({"mask", "drop", "refuse", "raise"})
"""A gate changes nothing in a request, so what would have to be masked or dropped does not pass."""


class RefusalGate(StrictModel, CheckedRunnable[Any, Any], extra="forbid"):
    """Ask a guarded local model whether a request is safe, and let only safe ones through.

    Takes a string, a prompt value, a message or a list of messages, pictures included. A safe
    request comes out as it went in; an unsafe one as an ``AIMessage`` with the policy's refusal,
    whose ``response_metadata`` holds ``refused=True`` and the verdicts. With ``guard`` the gate
    stands before a chain, which then never sees an unsafe request:

        ``RefusalGate(model=lvlm).guard(prompt | hosted_model | parser)``

    The local model reads the request once and writes nothing. What it finds is decided by its
    guardrails, such as ``Casa``; pictures are screened as well if a detector is among them. A gate
    passes requests on as they are: one with a picture that the policy would mask or drop is refused
    (``ScreenImages`` covers pictures). Where
    the model's policy says ``raise``, an exception takes the place of the refusal; where it says
    ``allow`` or monitors, everything passes, and the verdicts are on the traced run.

    Args:
        model: a ``LocalLVLM`` with a guardrail that decides.
        refusal: a text in place of the policy's, or a function from the verdicts to whatever is to
            come out; None for the policy's text.
        limits: what intake is willing to decode, in place of the model's own.
        chain: what a safe request goes on to; see ``guard``.

    Raises:
        ConfigurationError: the model has no guardrail.
        RequestRefused: where the policy's action is ``raise``.
    """

    model: ModelField = Field(exclude=True)
    refusal: str | Callable[[tuple[Verdict, ...]], Any] | None = None
    limits: Limits | None = None
    chain: Any = None

    @field_validator("model")
    @classmethod
    def _decides(cls, model: Any) -> Any:
        if not callable(getattr(model, "assess_batch", None)) or not model.guardrails:
            raise ConfigurationError(
                f"{type(model).__name__} decides about nothing; pass a LocalLVLM with a guardrail "
                "that does, such as LocalLVLM.from_pretrained(name, guardrails=[Casa...])."
            )
        return model

    def guard(self, chain: Runnable[Any, Any]) -> RefusalGate:
        """This gate with a chain behind it, which only safe requests reach."""
        return self.model_copy(update={"chain": chain})

    def assess(self, requests: Sequence[Any]) -> list[Outcome]:
        """The verdicts on each request; the exception where one led to one."""
        read = [self._read(request) for request in requests]
        asked = {row: item for row, item in enumerate(read) if isinstance(item, Conversation)}
        told = dict(zip(asked, self._ask(list(asked.values())), strict=True))
        return [
            told[row] if isinstance(item, Conversation) else item for row, item in enumerate(read)
        ]

    # Reading and deciding

    @property
    def _behind(self) -> Runnable[Any, Any] | None:
        return self.chain  # type: ignore[no-any-return]

    def _check(self, requests: list[Any]) -> list[Outcome]:
        return self.assess(requests)

    def _rule(self, request: Any, outcome: Outcome) -> Onward | Instead:
        if not self._refused(request, outcome):
            return Onward(request)
        refusal = self._refusal(outcome)
        return Instead(refusal, refusal)

    @property
    def _lvlm(self) -> LocalLVLM:
        return self.model

    @property
    def _asked(self) -> LocalLVLM:
        if self.limits is None:
            return self._lvlm
        return self._lvlm.with_guardrails(self._lvlm.guardrails, limits=self.limits)

    def _read(self, request: Any) -> Conversation | Outcome:
        """What the model is asked; the verdicts of what an earlier step has refused."""
        try:
            messages = _messages(request)
            if is_refused(messages):
                return marked_verdicts(messages)
            return read_conversation(messages)
        except SightrailError as error:
            return error

    def _ask(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """One run for all; each alone where one of them cannot be read."""
        if not conversations:
            return []
        try:
            return list(self._asked.assess_batch(conversations))
        except SightrailError as error:
            if len(conversations) == 1:
                return [error]
            return [outcome for talk in conversations for outcome in self._ask([talk])]

    def _refused(self, request: Any, outcome: Outcome) -> bool:
        """Whether this is not to go on.

        Raises:
            SightrailError: what it led to; ``RequestRefused`` where the policy says so.
        """
        if isinstance(outcome, SightrailError):
            raise outcome
        note_on_run(type(self).__name__, outcome)
        actions = {verdict.action for verdict in outcome}
        if self._lvlm.policy.monitor or not actions & _UNSAFE:
            return is_refused(_messages(request))
        if "raise" in actions:
            said = next(verdict for verdict in outcome if verdict.action == "raise")
            raise RequestRefused(
                f"The policy refuses this request: {said.summary()}", verdicts=outcome
            )
        return True

    def _refusal(self, outcome: Outcome) -> Any:
        verdicts = outcome if isinstance(outcome, tuple) else ()
        if callable(self.refusal):
            return self.refusal(verdicts)
        text = self._lvlm.policy.refusal_for(verdicts) if self.refusal is None else self.refusal
        refused = message(text, refusal_fields(verdicts, self._lvlm.name))
        return write_marker(refused, verdicts, refused=True)


def _messages(request: Any) -> list[BaseMessage]:
    """A request as messages.

    Raises:
        PromptError: it is nothing that a chat model takes.
    """
    if isinstance(request, str):
        return [HumanMessage(request)]
    if isinstance(request, PromptValue):
        return request.to_messages()
    if isinstance(request, BaseMessage):
        return [request]
    try:
        return list(convert_to_messages(request))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise PromptError(
            f"A {type(request).__name__} is no request; pass a string, a prompt value, a message "
            "or a list of messages."
        ) from error
