"""Screening as nodes of a LangGraph graph: screen, decide, answer, refuse, or ask a person."""

from __future__ import annotations

import hmac
import operator
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, NotRequired, TypedDict

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, interrupt

from sightrail.guardrails.carriers.conversation import without_raise
from sightrail.guardrails.carriers.loop import OnVerdict
from sightrail.guardrails.errors import ConfigurationError
from sightrail.guardrails.intake import Limits
from sightrail.guardrails.policy import Policy
from sightrail.guardrails.screening.asking import Detector
from sightrail.guardrails.screening.cache import CachedDetector
from sightrail.runnables.walk import marked_verdicts, read_marker, with_record

from .message_screen import MessageScreen, SeenMessages, message_key, unanswered
from .transcript import ImageRecord, raised_by, records_of, refusal

Decision = Literal["pass", "review", "refuse"]
ReviewDecision = Literal["approve", "edit", "reject", "respond"]

_SHORTEST_SECRET: Final = 16
_ACTION: Final = "show_images"
_DECISIONS: Final[tuple[ReviewDecision, ...]] = ("approve", "edit", "reject", "respond")


class GuardedState(TypedDict):
    """A graph's messages and what was found in them; extend it with keys of your own.

    Attributes:
        messages: as everywhere in LangGraph.
        image_verdicts: a record of every picture looked at, in order.
        image_pending: ids of the messages that the last decision is about.
        image_decision: what the last look led to.
        image_approvals: signatures of the messages that people approved.
    """

    messages: Annotated[list[AnyMessage], add_messages]
    image_verdicts: NotRequired[Annotated[list[ImageRecord], operator.add]]
    image_pending: NotRequired[list[str]]
    image_decision: NotRequired[Decision]
    image_approvals: NotRequired[Annotated[list[str], operator.add]]


@dataclass(eq=False)
class ImageGuardNodes:
    """The nodes of a guarded graph and the edges between them; ``add_to`` puts them in.

    ``screen`` looks and records, and changes no picture. Then it goes on to `answer` when
    everything may pass as it is, else to ``review`` (to ``refuse`` without `review`). ``review``
    interrupts to ask a person in the words of LangChain's ``HumanInTheLoopMiddleware``, showing
    verdicts and no pictures: an action request for each message with such pictures, named
    ``show_images``, and it takes ``{"decisions": [...]}`` with one decision each:

    - ``{"type": "approve"}``: the model gets the pictures of this message as they came.
    - ``{"type": "edit"}``: the policy is carried out on them first (masked, dropped ...).
    - ``{"type": "reject", "message": ...}``: no model is asked; the message, or else the policy's
      refusal, is the answer.
    - ``{"type": "respond", "message": ...}``: no model is asked; the message is the answer.

    Whatever is not of this form rejects. What was not approved is in no later state: it is masked
    or taken out before the graph goes on or ends. Checkpoints from before the decision hold it.

    Each distinct picture is looked at once. Where people are asked the graph needs a checkpointer;
    another process may take up the review. What a person approved stands in the state, signed with
    `secret`, and any process that has the same one goes by it; a signature holds for a message as
    it is, words and pictures. Without a secret another process asks again: callers may send a
    state of their own, and nothing in it proves who wrote it.

    In asynchronous graphs LangGraph runs these nodes in worker threads.

    Attributes:
        detector: has ``screen(images) -> list[Verdict]``.
        policy: what a verdict leads to. Where it says ``raise``, a node ``raise`` ends the run with
            ``ImageRefused`` after the transcript was made safe.
        limits: what intake is willing to decode.
        review: whether a person is asked.
        answer: the name of the node that answers.
        after: the name of the node behind which pictures are screened; the graph's beginning.
        prefix: goes before the names of the nodes, where a graph has such names of its own.
        on_verdict: called with every verdict, in the thread that screens.
        secret: signs what people approved; the same in every process that serves the graph.

    Raises:
        ConfigurationError: a secret of fewer than 16 bytes, or the policy rules a category that the
            detector does not have.
    """

    detector: Detector
    policy: Policy = field(default_factory=Policy)
    limits: Limits = field(default_factory=Limits)
    review: bool = True
    answer: str = "answer"
    after: str = START
    prefix: str = ""
    on_verdict: OnVerdict | None = None
    secret: str | bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.secret, str):
            self.secret = self.secret.encode()
        if self.secret is not None and len(self.secret) < _SHORTEST_SECRET:
            raise ConfigurationError(
                f"The secret has {len(self.secret)} bytes; give at least {_SHORTEST_SECRET}, as of "
                "secrets.token_bytes(32), or none."
            )
        if not isinstance(self.detector, CachedDetector):
            self.detector = CachedDetector(self.detector)
        name = type(self).__name__
        watching = self.policy.model_copy(update={"monitor": True})
        self._watch = MessageScreen(self.detector, watching, self.limits, name, self.on_verdict)
        self._enforce = MessageScreen(self.detector, self.policy, self.limits, name)

    def add_to(self, graph: StateGraph[Any, Any, Any, Any]) -> None:
        """Add the nodes, ``screen`` behind the node `after`.

        Args:
            graph: has the keys of ``GuardedState`` and a node named `answer`, now or later.
        """
        screen, review, refuse, error = (
            f"{self.prefix}{name}" for name in ("screen", "review", "refuse", "raise")
        )
        graph.add_node(screen, self.screen)
        graph.add_node(refuse, self.refuse)
        graph.add_edge(self.after, screen)
        routes: dict[Hashable, str] = {"pass": self.answer, "refuse": refuse}
        if self.review:
            graph.add_node(review, self.ask, destinations=(self.answer, END))
            routes["review"] = review
        graph.add_conditional_edges(screen, self.decide, routes)
        if self.policy == without_raise(self.policy):
            graph.add_edge(refuse, END)
        else:
            graph.add_node(error, self.raise_refusal)
            graph.add_edge(refuse, error)
            graph.add_edge(error, END)

    def screen(self, state: GuardedState) -> dict[str, Any]:
        """Look at every picture in the messages; record, and change no picture."""
        self._recall(state)
        seen = self._watch(state["messages"])
        pending = self._pending(seen)
        return {
            "messages": list(seen.changed),
            "image_verdicts": [
                record for item in seen.seen if item.new for record in self._records(item.message)
            ],
            "image_pending": [str(message.id) for message in pending],
            "image_decision": self._decision(pending, seen.refused),
        }

    def decide(self, state: GuardedState) -> Decision:
        """Where ``screen`` leads to; a state that was never screened is refused."""
        return state.get("image_decision", "refuse")

    def ask(self, state: GuardedState) -> Command[Any]:
        """Interrupt for a person's decisions and carry them out."""
        pending = _pending_in(state)
        requests = [
            {
                "name": _ACTION,
                "args": {"message_id": message.id, "verdicts": self._records(message)},
                "description": "; ".join(v.summary() for v in marked_verdicts([message])),
            }
            for message in pending
        ]
        config = {"action_name": _ACTION, "allowed_decisions": list(_DECISIONS)}
        resumed = interrupt({"action_requests": requests, "review_configs": [config]})
        decisions = _decisions(resumed, len(pending))
        kinds = {decision["type"] for decision in decisions}
        if kinds & {"reject", "respond"}:
            return self._ended(state, pending, decisions)
        approved = [
            self._approved(message)
            for message, decision in zip(pending, decisions, strict=True)
            if decision["type"] == "approve"
        ]
        ids = {message.id for message in approved}
        masked = [message for message in pending if message.id not in ids]
        seen = self._carried_out(masked, state["messages"])
        if seen.refused:
            return self._goto(END, [*seen.changed, refusal(self.policy, seen.refusal_verdicts)])
        signed = [signature for message in approved if (signature := self._signature(message))]
        more = {"image_approvals": signed} if signed else {}
        return self._goto(self.answer, [*seen.changed, *approved], **more)

    def refuse(self, state: GuardedState) -> dict[str, Any]:
        """Take out what the policy does not allow and answer with its refusal."""
        seen = self._carried_out(_pending_in(state), state["messages"])
        verdicts = marked_verdicts(seen.messages or unanswered(state["messages"]))
        return {"messages": [*seen.changed, refusal(self.policy, verdicts)]}

    def raise_refusal(self, state: GuardedState) -> None:
        """Raise what the policy asks for.

        Raises:
            ImageRefused: the refusal that was answered with says so.
        """
        if error := raised_by(state["messages"][-1]):
            raise error

    def _records(self, message: BaseMessage) -> list[ImageRecord]:
        return records_of(type(self).__name__, message, marked_verdicts([message]))

    def _ended(
        self,
        state: GuardedState,
        pending: Sequence[BaseMessage],
        decisions: Sequence[dict[str, Any]],
    ) -> Command[Any]:
        """The end that a person decided on, nothing of what was pending in it."""
        seen = self._carried_out(pending, state["messages"])
        said = [d["message"] for d in decisions if d["type"] == "respond"]
        rejected = [decision for decision in decisions if decision["type"] == "reject"]
        ending = AIMessage("\n".join(said))
        if rejected or not said:
            ending = refusal(self.policy, seen.refusal_verdicts)
            why = "\n".join(decision.get("message") or "" for decision in rejected).strip()
            ending = ending.model_copy(update={"content": why}) if why else ending
        return self._goto(END, [*seen.changed, ending])

    def _goto(self, node: str, messages: Sequence[BaseMessage], **more: Any) -> Command[Any]:
        records = [record for message in messages for record in self._records(message)]
        update = {"messages": list(messages), "image_verdicts": records, "image_pending": []}
        return Command(goto=node, update={**update, **more})

    def _approved(self, message: BaseMessage) -> BaseMessage:
        """A message whose record says that its pictures were let through."""
        allowed = with_record(message, [v.taken("allow") for v in marked_verdicts([message])])
        self._watch.remember(allowed)
        return allowed

    def _signature(self, message: BaseMessage) -> str | None:
        """Proves that a person approved this very message."""
        if not isinstance(self.secret, bytes) or (key := message_key(message)) is None:
            return None
        return hmac.digest(self.secret, key, "sha256").hex()

    def _recall(self, state: GuardedState) -> None:
        """Let pass what a person has approved in another process."""
        approved = state.get("image_approvals")
        if not isinstance(approved, list) or not self.secret:
            return
        for message in state["messages"] if approved else ():
            if read_marker(message) and self._signature(message) in approved:
                self._watch.remember(message)

    def _carried_out(
        self, pending: Sequence[BaseMessage], said: Sequence[BaseMessage]
    ) -> SeenMessages:
        seen = self._enforce(pending, all_open=True, said=said)
        for message in seen.changed:  # or the next turn would look at masked pictures anew
            self._watch.remember(message)
        return seen

    def _pending(self, seen: SeenMessages) -> list[BaseMessage]:
        """Messages with a picture that may not pass as it is, unless their answer stands already.

        What was never looked at counts wherever it stands: a caller may send a whole history.
        """
        open_ids = {id(message) for message in unanswered(seen.messages)}
        return [
            item.message
            for item in seen.seen
            if (item.new or id(item.message) in open_ids)
            and any(verdict.action != "allow" for verdict in item.found)
        ]

    def _decision(self, pending: list[BaseMessage], refused: bool) -> Decision:
        if refused:  # by an earlier step of the chain, which has taken the picture out
            return "refuse"
        if not pending or self.policy.monitor:
            return "pass"
        return "review" if self.review else "refuse"


def _pending_in(state: GuardedState) -> list[BaseMessage]:
    """The messages that the decision is about; all of them where nobody has said which."""
    wanted = state.get("image_pending")
    messages: list[BaseMessage] = list(state["messages"])
    return [m for m in messages if wanted is None or str(m.id) in wanted]


def _decisions(resumed: Any, count: int) -> list[dict[str, Any]]:
    """A person's decisions, one a message; all of them reject where these are not any."""
    given = resumed.get("decisions") if isinstance(resumed, dict) else None
    if isinstance(given, list) and len(given) == count and all(map(_is_decision, given)):
        return given
    return [{"type": "reject"}] * count


def _is_decision(given: Any) -> bool:
    if not isinstance(given, dict) or given.get("type") not in _DECISIONS:
        return False
    message = given.get("message")
    return (
        isinstance(message, str)
        if given["type"] == "respond"
        else message is None or (isinstance(message, str))
    )
