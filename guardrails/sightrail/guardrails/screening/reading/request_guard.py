"""One policy for requests with pictures and without: a reader for words, detectors for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ...carriers.words import words_in
from ...errors import ConfigurationError
from ...intake import Limits
from ...policy import Policy
from ...verdict import Action, NotInspected, Verdict
from ..asking import Detector, checked_detector
from .judged import worst_of
from .readers import TextReader, TextRisk
from .spelling import spellings

if TYPE_CHECKING:
    from ...model.messages import Conversation

__all__ = ["RequestGuard"]

NAME: Final = "request text"
_NOTHING_SAID: Final = TextRisk({})


@dataclass(frozen=True)
class RequestGuard:
    """Judges what a request says by a reader, and what it shows by detectors.

    Stands where a guarded local model stands in `RefusalGate`, so that a chain in front of a hosted
    model is guarded by one policy whatever arrives:

        ``RefusalGate(model=RequestGuard(Lexicon.default())).guard(prompt | model)``

    Attributes:
        reader: judges the words of the request (system messages are the app's own and left out):
            Lexicon, ConceptReader, ModelReader, JudgeReader or GuardReader.
        detectors: judge the pictures, if any come.
        policy: what a finding leads to: `on_unsafe_request` for words, where `decline` refuses too,
            `on_error` for words that nobody could judge.
        limits: what intake is willing to decode.
        name: what to call it in answers.

    Raises:
        ConfigurationError: the reader is none, or one of the detectors.
    """

    reader: TextReader
    detectors: tuple[Detector, ...] = ()
    policy: Policy = field(default_factory=Policy)
    limits: Limits = field(default_factory=Limits)
    name: str = NAME

    def __post_init__(self) -> None:
        if not callable(getattr(self.reader, "read", None)):
            raise ConfigurationError(f"{type(self.reader).__name__} is no reader of texts")
        for detector in self.detectors:
            checked_detector(detector)

    @property
    def guardrails(self) -> tuple[Any, ...]:
        """What decides."""
        return (self.reader, *self.detectors)

    def with_guardrails(self, guardrails: Sequence[Any], *, limits: Limits) -> RequestGuard:
        """The same within other limits."""
        return RequestGuard(self.reader, self.detectors, self.policy, limits, self.name)

    def assess_batch(self, conversations: Sequence[Conversation]) -> list[tuple[Verdict, ...]]:
        """The verdicts on conversations, each with its action: on its pictures, then on its words.

        Raises:
            ImageRefused: the policy asks for an exception.
        """
        texts = [words_in(conversation.turns) for conversation in conversations]
        said = self.judge(texts)
        return [
            (*self._seen(conversation), verdict)
            for conversation, verdict in zip(conversations, said, strict=True)
        ]

    def judge(self, texts: Sequence[str]) -> list[Verdict]:
        """One verdict a text, with its action."""
        told = {row: text for row, text in enumerate(texts) if text.strip()}
        asked = [(row, form) for row, text in told.items() for form in spellings(text)]
        answers = self.reader.read([form for _, form in asked]) if asked else []
        found: dict[int, TextRisk | NotInspected] = {}
        for (row, _), answer in zip(asked, answers, strict=True):
            found[row] = worst_of(found.get(row), answer)
        return [self._verdict(found.get(row, _NOTHING_SAID)) for row in range(len(texts))]

    def _seen(self, conversation: Conversation) -> tuple[Verdict, ...]:
        from ...model.screening_step import screen_conversation

        return screen_conversation(conversation, self.detectors, self.policy, self.limits).verdicts

    def _verdict(self, risk: TextRisk | NotInspected) -> Verdict:
        if isinstance(risk, NotInspected):
            verdict = Verdict(
                status="failed", subject="request", guardrail=NAME, not_inspected=(risk,)
            )
            return verdict.taken(self.policy.on_error)
        if not risk.scores:
            verdict = Verdict(status="clean", subject="request", guardrail=NAME)
            return verdict.taken("allow")
        verdict = Verdict.on_request(NAME, risk.score, self.reader.threshold)
        verdict = verdict.model_copy(update={"scores": dict(risk.scores)})
        return verdict.taken(self._action() if verdict.status == "flagged" else "allow")

    def _action(self) -> Action:
        wanted = self.policy.request_action
        return "refuse" if wanted == "decline" else wanted
