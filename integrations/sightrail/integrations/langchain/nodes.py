"""Screening as nodes of a LangGraph graph: screen, decide, answer, refuse, or ask a person."""

from __future__ import annotations

import operator
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, NotRequired, TypedDict

from langchain_core.messages import AnyMessage, BaseMessage
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, interrupt

from sightrail.guardrails.intake import Limits
from sightrail.guardrails.policy import Policy
from sightrail.guardrails.screening.asking import Detector
from sightrail.guardrails.screening.cache import CachedDetector
from sightrail.runnables.walk import marked_verdicts

from .message_screen import MessageScreen, SeenMessages, unanswered
from .records import ImageRecord, records_of
from .transcript import refusal

Decision = Literal["pass", "review", "refuse"]
Ruling = Literal["allow", "enforce", "refuse"]

_QUESTION: Final = "The policy does not let these pictures pass as they are. What is to be done?"
_RULINGS: Final[tuple[Ruling, ...]] = ("allow", "enforce", "refuse")


class GuardedState(TypedDict):
    """A graph's messages and what was found in them; extend it with keys of your own.

    Attributes:
        messages: as everywhere in LangGraph.
        image_verdicts: a record of every picture looked at, in order.
        image_pending: ids of the messages that the last decision is about.
        image_decision: what the last look led to.
    """

    messages: Annotated[list[AnyMessage], add_messages]
    image_verdicts: NotRequired[Annotated[list[ImageRecord], operator.add]]
    image_pending: NotRequired[list[str]]
    image_decision: NotRequired[Decision]


@dataclass(eq=False)
class ImageGuardNodes:
    """The nodes of a guarded graph and the edges between them; ``add_to`` puts them in.

    ``screen`` looks and records, and changes no picture. Then it goes on to `answer` when
    everything may pass as it is, else to ``review`` (to ``refuse`` without `review`). ``review``
    interrupts to ask a person, showing verdicts and no pictures, and goes by what they say:
    "allow" to `answer` with the pictures as they came, "enforce" to ``enforce``, which carries the
    policy out before it goes to `answer`, and anything else to ``refuse``.

    Each distinct picture is looked at once. Where people are asked the graph needs a checkpointer,
    and its checkpoints hold the pictures until the decision. What a person allowed is asked about
    again by a process that has not seen it yet: nothing in a transcript proves who wrote it.

    In asynchronous graphs LangGraph runs these nodes in worker threads.

    Attributes:
        detector: has ``screen(images) -> list[Verdict]``.
        policy: what a verdict leads to.
        limits: what intake is willing to decode.
        review: whether a person is asked.
        answer: the name of the node that answers.
    """

    detector: Detector
    policy: Policy = field(default_factory=Policy)
    limits: Limits = field(default_factory=Limits)
    review: bool = True
    answer: str = "answer"

    def __post_init__(self) -> None:
        if not isinstance(self.detector, CachedDetector):
            self.detector = CachedDetector(self.detector)
        watching = self.policy.model_copy(update={"monitor": True})
        self._watch = MessageScreen(self.detector, watching, self.limits)
        self._enforce = MessageScreen(self.detector, self.policy, self.limits)

    def add_to(self, graph: StateGraph[Any, Any, Any, Any]) -> None:
        """Add the nodes, with ``screen`` as the graph's beginning.

        Args:
            graph: has the keys of ``GuardedState`` and a node named `answer`, now or later.
        """
        graph.add_node("screen", self.screen)
        graph.add_node("refuse", self.refuse)
        graph.add_edge(START, "screen")
        graph.add_edge("refuse", END)
        routes: dict[Hashable, str] = {"pass": self.answer, "refuse": "refuse"}
        if self.review:
            graph.add_node("review", self.ask, destinations=(self.answer, "enforce", "refuse"))
            graph.add_node("enforce", self.enforce, destinations=(self.answer, END))
            routes["review"] = "review"
        graph.add_conditional_edges("screen", self.decide, routes)

    def screen(self, state: GuardedState) -> dict[str, Any]:
        """Look at every picture in the messages; record, and change no picture."""
        seen = self._watch(state["messages"])
        pending = self._pending(seen)
        return {
            "messages": list(seen.changed),
            "image_verdicts": [
                record
                for item in seen.seen
                if item.new
                for record in records_of(item.message, item.verdicts)
            ],
            "image_pending": [str(message.id) for message in pending],
            "image_decision": self._decision(pending, seen.refused),
        }

    def decide(self, state: GuardedState) -> Decision:
        """Where ``screen`` leads to; a state that was never screened is refused."""
        return state.get("image_decision", "refuse")

    def ask(self, state: GuardedState) -> Command[Any]:
        """Interrupt for a person's ruling and go where it leads."""
        pending = _pending_in(state)
        records = [r for m in pending for r in records_of(m, marked_verdicts([m]))]
        ruling = interrupt({"question": _QUESTION, "rulings": list(_RULINGS), "verdicts": records})
        ways = {"allow": self.answer, "enforce": "enforce"}
        return Command(goto=ways.get(ruling, "refuse") if isinstance(ruling, str) else "refuse")

    def enforce(self, state: GuardedState) -> Command[Any]:
        """Carry the policy out on the pending messages; refuse where it says so."""
        seen = self._carried_out(state)
        if not seen.refused:
            return Command(goto=self.answer, update={"messages": list(seen.changed)})
        ending = refusal(self.policy, seen.refusal_verdicts)
        return Command(goto=END, update={"messages": [*seen.changed, ending]})

    def refuse(self, state: GuardedState) -> dict[str, Any]:
        """Take out what the policy does not allow and answer with its refusal."""
        seen = self._carried_out(state)
        verdicts = marked_verdicts(seen.messages or unanswered(state["messages"]))
        return {"messages": [*seen.changed, refusal(self.policy, verdicts)]}

    def _carried_out(self, state: GuardedState) -> SeenMessages:
        seen = self._enforce(_pending_in(state))
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
            and any(verdict.action != "allow" for verdict in item.verdicts)
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
