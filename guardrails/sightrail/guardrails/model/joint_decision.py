"""A guarded model whose guardrails give evidence and do not decide: one decision from all."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ..encoding import Encoding
from ..errors import Abandoned, RequestRefused
from ..evidence import FINISHED, Evidence
from ..policy import Policy
from ..verdict import Taken, Verdict
from .answers import Answer, AnswerChunk
from .gathering import Place
from .messages import Conversation, GenerationOptions, ImagePart
from .pipeline import Pipeline
from .screening_step import ScreenedConversation
from .stack import GuardrailStack

if TYPE_CHECKING:
    from ..screening.asking import Detector

_DECIDING: Final = ("decision", "decoding")


class JointDecision:
    """The way of a request through a model with ``evidence``, in the place of ``Pipeline``.

    Every guardrail looks at a request as it does in a stack. Where the merged risk stays below the
    threshold, the model answers as without those that decide or steer: a benign answer is the bare
    model's, token for token. Where it does not, what can be covered is covered, and the whole is
    judged again:

    - masked and steered: a detector that flags a picture says where, the policy masks, and what is
      left of the request is below the threshold. The model answers about the masked picture, and a
      guardrail that steers (``Moras``) steers the answer by the risk that it still reads;
    - refused: everything else, with the policy's text. A model that declines in its own words may
      begin with an apology and go on to comply, so nobody relies on that here.

    A picture that nobody could look at is refused, or taken out where the policy says ``drop`` and
    the rest of the request is below the threshold.

    The decision comes before the answer: nothing of an answer that is streamed leaves before it,
    and its tokens leave as they come.

    Args:
        pipeline: the model and its guardrails, each of which would decide by itself.
        evidence: fitted to the verdicts of this model.

    Raises:
        ArtifactError: the evidence was fitted on another model.
    """

    def __init__(self, pipeline: Pipeline, evidence: Evidence) -> None:
        host, guards = pipeline.host, pipeline.guards
        if evidence.base is not None:
            evidence.artifact.require_model(host.model, host.name)
        self.guards: Final = guards
        self._evidence = evidence
        self._policy: Policy = host.policy
        self._pipeline = pipeline
        watching = host.policy.model_copy(update={"monitor": True})
        self._watching = replace(pipeline, host=replace(host, policy=watching))
        # The model sees the pixels that were looked at: they are not fitted once more.
        answering = replace(
            pipeline,
            host=replace(host, policy=self._policy.model_copy(update={"encoding": Encoding()})),
            readers=guards.detectors,
        )
        steering = [guard for guard in guards.inner if guard.stage != "decision"]
        silent = [guard for guard in guards.inner if guard.stage not in _DECIDING]
        self._answering: dict[Taken | None, Pipeline] = {
            "allow": replace(answering, guards=GuardrailStack((), tuple(silent))),
            "mask": replace(answering, guards=GuardrailStack((), tuple(steering))),
        }

    def answer_all(
        self,
        conversations: Sequence[Conversation],
        options: GenerationOptions,
        cancel: threading.Event | None = None,
        place: Place | None = None,
    ) -> list[Answer]:
        """Answer conversations; as ``Pipeline.answer_all``.

        Raises:
            RequestRefused: the policy asks for an exception.
        """
        looks, place = self._look(conversations, cancel, place)
        answers: dict[int, Answer] = {}
        for action, pipeline in self._answering.items():
            asked = {
                row: _asked(look.conversation, action)
                for row, look in enumerate(looks)
                if look.verdicts[-1].action == action and look.conversation is not None
            }
            if asked:
                made = pipeline.answer_all(list(asked.values()), options, cancel, place)
                answers |= zip(asked, made, strict=True)
        return [
            self._answer(look, answers.get(row), conversations[row])
            for row, look in enumerate(looks)
        ]

    def stream(
        self,
        conversation: Conversation,
        options: GenerationOptions,
        cancel: threading.Event,
        place: Place | None = None,
    ) -> Generator[AnswerChunk, None, None]:
        """Answer one conversation piece by piece, once it is decided that it is answered.

        Raises:
            RequestRefused: the policy asks for an exception.
        """
        try:
            (look,), place = self._look([conversation], cancel, place)
        except Abandoned:
            return  # cancelled before the answer began
        pipeline = self._answering.get(look.verdicts[-1].action)
        if pipeline is None or look.conversation is None:
            answer = self._answer(look, None, conversation)
            yield AnswerChunk(answer.text, answer)
            return
        asked = _asked(look.conversation, look.verdicts[-1].action)
        made = pipeline.stream(asked, options, cancel, place)
        with contextlib.closing(made) as pieces:
            for piece in pieces:
                if piece.answer is not None:
                    piece = replace(piece, answer=self._answer(look, piece.answer, conversation))
                yield piece

    def assess_all(self, conversations: Sequence[Conversation]) -> list[tuple[Verdict, ...]]:
        """The verdicts of all parts on each request, then the one decision, with its action."""
        return [look.verdicts for look in self._judged(conversations)]

    # Looking

    def _look(
        self,
        conversations: Sequence[Conversation],
        cancel: threading.Event | None,
        place: Place | None,
    ) -> tuple[list[ScreenedConversation], Place | None]:
        """What the model may see of each and what was found, the decision last; and the place of
        what is still to be done.

        Raises:
            RequestRefused: the policy asks for an exception.
        """
        since = time.monotonic()
        looks = self._judged(conversations, cancel, place)
        covered = {
            row: left
            for row, look in enumerate(looks)
            if (left := self._covered(look, conversations[row])) is not None
        }
        again = self._judged(list(covered.values()), cancel, place)
        for row, look in zip(covered, again, strict=True):
            if look.verdicts[-1].action == "allow":
                decision = look.verdicts[-1].taken("mask")
                looks[row] = replace(look, verdicts=(*looks[row].verdicts[:-1], decision))
        for look in looks:
            if look.verdicts[-1].action == "raise":
                told = look.verdicts[-1].summary()
                raise RequestRefused(
                    f"The policy refuses this request: {told}", verdicts=look.verdicts
                )
        return looks, place and place.later(time.monotonic() - since)

    def _judged(
        self,
        conversations: Sequence[Conversation],
        cancel: threading.Event | None = None,
        place: Place | None = None,
    ) -> list[ScreenedConversation]:
        """Each conversation with its pictures decoded, every part's verdicts, and the decision."""
        looks = self._watching.look_at(conversations, cancel, place)
        return [
            replace(look, verdicts=(*_told(look.verdicts), self._decision(look, asked)))
            for look, asked in zip(looks, conversations, strict=True)
        ]

    def _decision(self, look: ScreenedConversation, asked: Conversation) -> Verdict:
        verdict = self._evidence.judge(look.verdicts, pictures=bool(asked.image_parts))
        if self._policy.monitor:
            return verdict.taken("allow")
        if verdict.status == "flagged":
            wanted = self._policy.request_action
            return verdict.taken("refuse" if wanted == "decline" else wanted)
        action = self._policy.decide(verdict)
        return verdict.taken("refuse" if action == "drop" else action)

    def _covered(self, look: ScreenedConversation, asked: Conversation) -> Conversation | None:
        """What the policy leaves of a refused request: pictures masked, or taken out.

        None where it leaves nothing, or all that there was.
        """
        if look.verdicts[-1].action != "refuse" or look.conversation is None:
            return None
        pictures = [verdict for verdict in look.verdicts if verdict.subject == "picture"]
        if any(verdict.status not in FINISHED for verdict in pictures):
            detectors, shown = self.guards.detectors, asked
        else:
            detectors, shown = self._pointing(pictures), look.conversation
            if not detectors:
                return None
        deciding = replace(self._pipeline, guards=GuardrailStack(detectors, ()))
        left = deciding.screen(shown).conversation
        if left is None:
            return None
        parts = [
            part if part.screened is None else ImagePart(part.screened, part.surface)
            for part in left.image_parts
        ]
        return left.with_images(parts)

    def _pointing(self, pictures: Sequence[Verdict]) -> tuple[Detector, ...]:
        """The detectors that flag a picture and say where."""
        detectors = self.guards.detectors  # of each picture every one has told, in their order
        return tuple(
            detector
            for number, detector in enumerate(detectors)
            if any(v.status == "flagged" and v.regions for v in pictures[number :: len(detectors)])
        )

    # Answering

    def _answer(
        self, look: ScreenedConversation, made: Answer | None, asked: Conversation
    ) -> Answer:
        if made is None:
            return self._pipeline.refusal(look.verdicts, asked)
        later = [v for v in made.verdicts if v.action == "refuse" or v.subject == "calls"]
        return replace(made, verdicts=(*look.verdicts, *later))


def _asked(conversation: Conversation, action: Taken | None) -> Conversation:
    """What is answered; where the decision was to mask, it tells that something unsafe came in."""
    return replace(conversation, unsafe=conversation.unsafe or action == "mask")


def _told(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """Verdicts that gave evidence and decided nothing."""
    return tuple(verdict.taken("allow") for verdict in verdicts)
