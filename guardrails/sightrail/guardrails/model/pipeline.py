"""The way of a request through one guarded model: screening, prompt, generation, answer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from ..call_rules import CallContext, CallGuard
from ..carriers.loop import Scaling
from ..errors import Abandoned, RequestRefused
from ..verdict import Verdict
from .answers import Answer, AnswerChunk, FinishReason, Usage
from .families import Host, mixes_picture_counts
from .gathering import POLL_S, Gathering, Place, gatherer_of
from .generation import Asked, Generation, RowTicket, generate, run_together, seeded, together_key
from .interventions import INSIDE, Decision, GuardrailBroke, interventions_of
from .messages import Conversation, GenerationOptions, ImagePart, read_options
from .prompt import Prompt
from .screening_step import ScreenedConversation, screen_conversation
from .stack import GuardrailStack
from .stopping import Row, TokenStream, begun_anew, finished_text, showable_text
from .tool_calls import AnswerReader, AnyCall, Said

if TYPE_CHECKING:
    from ..intake import Limits, Picture
    from ..verdict import Verdict


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pipeline:
    """What one guarded model does with requests.

    Attributes:
        host: the model.
        guards: its guardrails.
        limits: what intake is willing to decode.
        scaling: the sizes at which the model will see a picture.
        gathering: how requests that come at once are answered together; None for each by itself.
        readers: detectors that look elsewhere, and may be asked what pictures say.
    """

    host: Host
    guards: GuardrailStack
    limits: Limits
    scaling: Scaling
    gathering: Gathering | None = None
    readers: tuple[object, ...] = ()

    def screen(self, conversation: Conversation) -> ScreenedConversation:
        """Look at the pictures, and decide what travels on."""
        return screen_conversation(
            conversation, self.guards.detectors, self.host.policy, self.limits, self.scaling
        )

    def prompt(self, conversations: Sequence[Conversation]) -> Prompt:
        """Apply the prompt guardrails and build the batch on the model's device."""
        guarded = [self.guards.prompted(conversation) for conversation in conversations]
        spans = bool(self.guards.needs & INSIDE)
        prompt = self.host.prompt(guarded, spans=spans, prefix=self.guards.prefix)
        return replace(prompt, originals=tuple(conversations))

    def answer_all(
        self,
        conversations: Sequence[Conversation],
        options: GenerationOptions,
        cancel: threading.Event | None = None,
        place: Place | None = None,
    ) -> list[Answer]:
        """Answer conversations in as few runs as the model allows.

        Raises:
            Abandoned: ``cancel`` was set meanwhile; what was answered is no answer.
            DeadlineExceeded: the answers were not there in time.
        """
        screened = [self.screen(conversation) for conversation in conversations]
        answers: dict[int, Answer] = {
            row: self.refusal(item.verdicts, conversations[row])
            for row, item in enumerate(screened)
            if item.conversation is None
        }
        for rows in _runs(screened, mixed=mixes_picture_counts(self.host.model)):
            asked = [c for row in rows if (c := screened[row].conversation)]
            for row, made in zip(rows, self._made(asked, options, cancel, place), strict=True):
                talk = conversations[row]
                reader = self.host.reader(talk, options.grammar)
                answers[row] = self.answer(made, screened[row], options, talk, reader)
        return [answers[row] for row in range(len(conversations))]

    def _made(
        self,
        conversations: Sequence[Conversation],
        options: GenerationOptions,
        cancel: threading.Event | None = None,
        place: Place | None = None,
        *,
        decide_only: bool = False,
    ) -> list[Generation]:
        """The rows of a call, in a run with the rows of others where the model is busy."""
        rows = zip(conversations, seeded(options, len(conversations)), strict=True)
        asked = [Asked(conversation, own) for conversation, own in rows]
        ticket = self._ticket(asked, cancel, place, decide_only=decide_only)
        # What torch keeps for each thread must hold in the run.
        own = torch.is_autocast_enabled(self.host.device.type)
        return gatherer_of(self.host.model).answer(ticket, None if own else self.gathering)

    def _ticket(
        self,
        asked: Sequence[Asked],
        cancel: threading.Event | None,
        place: Place | None,
        *,
        decide_only: bool = False,
        on_end: Callable[[], None] | None = None,
    ) -> RowTicket:
        key = together_key(
            self,
            asked[0].options,
            asked[0].conversation,
            mixed=mixes_picture_counts(self.host.model),
            decide_only=decide_only,
        )
        work = partial(run_together, self, decide_only=decide_only)
        return RowTicket(asked, work, key=key, cancel=cancel, place=place, on_end=on_end)

    def run(
        self,
        conversations: Sequence[Conversation],
        rows: Sequence[Row],
        cancel: threading.Event,
        *,
        decide_only: bool = False,
    ) -> list[Generation]:
        """One run of the model; where a guardrail breaks, one for each conversation by itself."""
        rows = [begun_anew(row) for row in rows]
        try:
            return self._run_once(conversations, rows, cancel, decide_only)
        except GuardrailBroke as broke:
            if len(conversations) == 1:
                return [self._broken(broke, conversations, rows, cancel, decide_only)]
        return [
            made
            for talk, row in zip(conversations, rows, strict=True)
            for made in self.run([talk], [row], cancel, decide_only=decide_only)
        ]

    def _broken(
        self,
        broke: GuardrailBroke,
        conversations: Sequence[Conversation],
        rows: Sequence[Row],
        cancel: threading.Event,
        decide_only: bool,
    ) -> Generation:
        """What comes of a request in which a guardrail broke: no answer, unless we only monitor."""
        _log.error("%s: the request is not answered", broke, exc_info=broke)
        decision = Decision.following(broke.verdict, self.host.policy, own_words=False)
        if not decision.answered:
            return Generation([], 0, 0, "stop", (decision,))
        others = replace(self, guards=self.guards.without(broke.guard))
        row = replace(rows[0], ended=None)  # not before the failure is told with it
        (made,) = others.run(conversations, [row], cancel, decide_only=decide_only)
        return replace(made, decisions=(*made.decisions, decision))

    def _run_once(
        self,
        conversations: Sequence[Conversation],
        rows: Sequence[Row],
        cancel: threading.Event,
        decide_only: bool,
    ) -> list[Generation]:
        prompt = self.prompt(conversations)
        host = replace(self.host, cancel=cancel)
        return generate(
            self.host.model,
            prompt,
            rows[0].options,
            decode=self.host.decode,
            pad_token_id=self.host.pad_token_id,
            interventions=[
                interventions_of(guard, prompt, host, self.host.policy.timeout_s)
                for guard in self.guards.inner
            ],
            tower=self.host.tower,
            rows=rows,
            cancel=[cancel],
            decide_only=decide_only,
            grammars=lambda: self.host.grammars,
        )

    def look_at(
        self,
        conversations: Sequence[Conversation],
        cancel: threading.Event | None = None,
        place: Place | None = None,
    ) -> list[ScreenedConversation]:
        """Conversations after screening, with what every guardrail says, in as few runs as the
        model allows.
        """
        found = [self.screen(conversation) for conversation in conversations]
        if not self.guards.inner:
            return found
        options = read_options(max_new_tokens=1)
        for rows in _runs(found, mixed=mixes_picture_counts(self.host.model)):
            asked = [c for row in rows if (c := found[row].conversation)]
            made = self._made(asked, options, cancel, place, decide_only=True)
            for row, generation in zip(rows, made, strict=True):
                told = (*found[row].verdicts, *generation.verdicts)
                found[row] = replace(found[row], verdicts=told)
        return found

    def assess_all(self, conversations: Sequence[Conversation]) -> list[tuple[Verdict, ...]]:
        """What the guardrails say."""
        return [look.verdicts for look in self.look_at(conversations)]

    def stream(
        self,
        conversation: Conversation,
        options: GenerationOptions,
        cancel: threading.Event,
        place: Place | None = None,
    ) -> Generator[AnswerChunk, None, None]:
        """Answer one conversation piece by piece."""
        screened = self.screen(conversation)
        if screened.conversation is None:
            answer = self.refusal(screened.verdicts, conversation)
            yield AnswerChunk(answer.text, answer)
            return
        reader = self.host.reader(conversation, options.grammar)
        tokens = TokenStream()
        asked = Asked(screened.conversation, seeded(options, 1)[0], tokens.put)
        ticket = self._ticket([asked], cancel, place, on_end=tokens.end)
        gatherer = gatherer_of(self.host.model)
        gatherer.start(ticket, self.gathering)
        try:
            shown = yield from self._pieces(ticket, tokens, options, reader, conversation)
            made = ticket.results()[0]
            answer = self.answer(made, screened, options, conversation, reader)
            yield from _last_chunks(answer, shown)
        except Abandoned:
            return  # cancelled before the answer began
        finally:
            cancel.set()
            gatherer.wait(ticket, self.gathering)

    def _pieces(
        self,
        ticket: RowTicket,
        stream: TokenStream,
        options: GenerationOptions,
        reader: AnswerReader | None,
        conversation: Conversation,
    ) -> Generator[AnswerChunk, None, Said]:
        """What is certain of the answer as it comes; at the end, what of it was shown."""
        tokens: list[int] = []
        shown = Said()
        look_after = partial(gatherer_of(self.host.model).look_after, ticket, self.gathering)
        for new in stream.read(look_after, POLL_S):
            tokens += new
            text = showable_text(self.host.decode(tokens, reader), options.stop)
            said = Said(text) if reader is None else reader.read(text)
            if conversation.written is not None and self.host.policy.calls.active:
                said = replace(said, text=conversation.written.before(said.text))
            if said.follows(shown):
                yield AnswerChunk(
                    said.text[len(shown.text) :], reasoning=said.reasoning[len(shown.reasoning) :]
                )
                shown = said
        return shown

    def answer(
        self,
        generation: Generation,
        screened: ScreenedConversation,
        options: GenerationOptions,
        conversation: Conversation,
        reader: AnswerReader | None = None,
    ) -> Answer:
        """What the user gets for one row of a run.

        What is refused holds no calls, whatever the model has written. What the policy has a rule
        for is refused, or held back for a person.

        Raises:
            RequestRefused: the policy asks for an exception.
        """
        verdicts = screened.verdicts + generation.verdicts
        if any(verdict.action == "raise" for verdict in generation.verdicts):
            raise RequestRefused(
                f"The policy refuses this request: {generation.verdicts[-1].summary()}",
                verdicts=generation.verdicts,
            )
        refused = any(verdict.action == "refuse" for verdict in generation.verdicts)
        words = finished_text(self.host.decode(generation.tokens, reader), options.stop)
        said = Said(words) if reader is None else reader.end(words)
        said = replace(said, calls=()) if refused else said
        finish: FinishReason = generation.finish_reason
        if said.valid and finish == "stop":
            finish = "tool_calls"
        answer = Answer(
            text=said.text
            if generation.answered
            else self.host.policy.refusal_for(generation.verdicts),
            refused=refused,
            verdicts=verdicts,
            usage=Usage(generation.input_tokens, generation.output_tokens),
            finish_reason="refused" if refused else finish,
            tool_calls=said.valid,
            invalid_tool_calls=said.invalid,
            reasoning=said.reasoning if generation.answered else "",
            step=conversation.step,
        )
        return answer if conversation.ordered else self._ruled(answer, screened)

    def _ruled(self, answer: Answer, screened: ScreenedConversation) -> Answer:
        """The answer with its calls as the policy has them: as they are, held back, or refused."""
        rules, talk = self.host.policy.calls, screened.conversation
        if talk is None or not rules.active:
            return answer
        written = () if talk.written is None else tuple(talk.written.find(answer.text))
        calls = answer.tool_calls or written
        if answer.refused or not calls:
            return answer
        flagged = any(v.subject == "request" and v.status != "clean" for v in answer.verdicts)
        context = CallContext(
            screened.unsafe or flagged,
            lambda: [_shown(p) for p, from_ in screened.surfaces if from_ in rules.untrusted],
            talk.ordered_words,
        )
        guard = CallGuard(self.host.policy, (*self.guards.detectors, *self.readers))
        ruling = guard.rule([call.arguments for call in calls], context)
        told = replace(answer, verdicts=answer.verdicts + ruling.verdicts)
        if ruling.action == "allow":
            return told
        told = replace(told, tool_calls=())
        if ruling.action == "ask":
            text = answer.text if answer.tool_calls else ""
            held = replace(told, held_calls=calls, text=text or rules.review)
            return replace(held, finish_reason="stop")
        return replace(
            told, text=rules.refusal, refused=True, invalid_tool_calls=(), finish_reason="refused"
        )

    def refusal(self, verdicts: tuple[Verdict, ...], conversation: Conversation) -> Answer:
        """What the user gets where screening refuses."""
        text = self.host.policy.refusal_for(verdicts)
        return Answer(text, True, verdicts, Usage(0, 0), "refused", step=conversation.step)


def _shown(part: ImagePart) -> Picture | None:
    """A picture as the model saw it."""
    if part.decoded is None or part.screened is None:
        return None
    if part.screened is part.decoded.image:
        return replace(part.decoded, scaled=())
    return replace(part.decoded, image=part.screened, views=(part.screened,), scaled=())


def _last_chunks(answer: Answer, shown: Said) -> Iterator[AnswerChunk]:
    """What is left to show; a refusal comes after whatever was shown before a guardrail broke."""
    calls: tuple[AnyCall, ...] = (*answer.tool_calls, *answer.invalid_tool_calls)
    for call in calls:
        yield AnswerChunk("", tool_calls=(call,))
    if not answer.text.startswith(shown.text):
        answer = replace(answer, text=f"{shown.text} {answer.text}")
    thought = answer.reasoning[len(shown.reasoning) :]
    yield AnswerChunk(answer.text[len(shown.text) :], answer, reasoning=thought)


def _runs(screened: Sequence[ScreenedConversation], *, mixed: bool) -> list[list[int]]:
    """Row numbers that may run together.

    Processors do not take rows with and without pictures at once; some models cannot mix
    different numbers of pictures either.
    """
    runs: dict[int, list[int]] = {}
    for row, item in enumerate(screened):
        if item.conversation is not None:
            count = len(item.conversation.image_parts)
            runs.setdefault(min(count, 1) if mixed else count, []).append(row)
    return list(runs.values())
