"""The two calls before the answer, visual context and risk, and the answer begun beside them.

The extra calls ask the user's conversation with another text in its last turn. What the risk is
read from are the hidden states that predict the first tokens, and their logits.

A model reads all its weights for every token it decodes, so a second row costs next to nothing: the
answer is begun beside the visual context, as it would be without steering. What the steering leaves
as it is need not be decoded again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import LogitsProcessor, SuppressTokensLogitsProcessor

from ..errors import Abandoned, PromptError, UnsupportedModelError
from ..model import doorway
from ..model.families import Host
from ..model.generation import Generation, generate, request_state
from ..model.interventions import Interventions
from ..model.messages import Conversation, GenerationOptions, TextPart, end_tokens
from ..model.processing import RequireEdits, processors
from ..model.prompt import Prompt
from ..model.shared_prefill import Prefilled, SharedPrefill, can_share, plainly_greedy
from .risk import mix_logits, opening, risk, similarity
from .settings import MorasSettings


class ContextAndDraft(LogitsProcessor):
    """Watches a run of two rows, the visual context and the draft, which ends with the context.

    Args:
        end_tokens: what ends a row.
        steps: of how many of the draft's tokens the scores are kept.
    """

    def __init__(self, end_tokens: Collection[int], steps: int) -> None:
        self._end_tokens = set(end_tokens)
        self._steps = steps
        self.scores: list[torch.Tensor] = []
        self.ended = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Look at the rows input_ids [2, t] and the scores [2, V], which go on as they are."""
        if len(self.scores) < self._steps:
            self.scores.append(scores[1:].detach().clone())
        if input_ids.shape[1] and int(input_ids[0, -1]) in self._end_tokens:
            self.ended.set()
        return scores


@dataclass(frozen=True)
class Draft:
    """The unsteered beginning of an answer.

    Attributes:
        run: what the run of two rows began from; its cache now holds what was decoded.
        tokens: of the draft, no end token.
        scores: [1, V] of its first N tokens.
    """

    run: Prefilled
    tokens: tuple[int, ...]
    scores: tuple[torch.Tensor, ...]

    def kept(self, steering: RiskSteering) -> tuple[int, ...]:
        """What of the draft the steered model says as well."""
        said = torch.tensor([self.tokens], device=self.scores[0].device)
        for step, scores in enumerate(self.scores[: len(self.tokens)]):
            chosen = int(steering(said[:, :step], scores).argmax())
            if chosen != self.tokens[step]:
                return self.tokens[:step]
        return self.tokens

    def begun(self, steering: RiskSteering, silent: Prefilled) -> Prefilled:
        """The answer gone on with what is kept of the draft."""
        kept = self.kept(steering)
        return self.run.continued(1, kept, silent) if kept else silent


class RiskSteering(LogitsProcessor):
    """Mix the first logits of an answer with the prototypes', in proportion to the risk.

    Beam search hands over log-probabilities, W x minus a constant per row; mixing leaves another
    constant, which normalising takes out. So the outcome is the mixed state's distribution under
    any search.

    Args:
        unsafe: W mu^n, [N, V].
        risks: r by request, [B].
    """

    def __init__(self, unsafe: torch.Tensor, risks: torch.Tensor) -> None:
        self._unsafe = unsafe
        self._risks = risks
        #: When there is nothing left to do; see ``runtime.processing``.
        self.until = len(unsafe)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Steer scores [B x beams, V]; input_ids [B x beams, t] is the answer so far."""
        step = input_ids.shape[1]
        if step >= len(self._unsafe):
            return scores
        beams = len(scores) // len(self._risks)
        risks = self._risks.repeat_interleave(beams).to(scores.device)
        mixed = mix_logits(scores, self._unsafe[step].to(scores.device), risks)
        return mixed.log_softmax(-1) if beams > 1 else mixed


# Half precision rounds logits to three digits; scaling and soft-capping change the first.
_CLOSE = 0.02


class LastStates(LogitsProcessor):
    """Keeps the state at the last position of every forward pass, and checks the logits made of it.

    Args:
        head: the LM head.
    """

    def __init__(self, head: torch.nn.Module) -> None:
        self._head = head
        self._states: list[torch.Tensor] = []
        self._logits: list[torch.Tensor] = []
        self.linear = True

    @property
    def steps(self) -> int:
        """How many tokens were predicted."""
        return len(self._logits)

    @property
    def states(self) -> torch.Tensor:
        """x^n, [B, N, C]."""
        return torch.stack(self._states, 1)

    @property
    def logits(self) -> torch.Tensor:
        """W x^n, [B, N, V]."""
        return torch.stack(self._logits, 1)

    def keep_state(self, hidden: torch.Tensor, past: int) -> torch.Tensor:
        """Take the states [B, Q, C] after the final norm; they go on as they are."""
        self._states.append(hidden[:, -1].detach())
        return hidden

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Compare the scores [B, V] with W x; they go on as they are."""
        with torch.no_grad():
            logits = self._head(self._states[-1]).to(scores.device)
        self._logits.append(logits)
        if not bool(torch.isfinite(logits).any()):
            return scores  # no numbers say nothing about the head; their risk will be a failure
        known = torch.isfinite(scores) & torch.isfinite(logits)  # an end that may not come is -inf
        apart = (scores.float() - logits.float()).abs()[known]
        size = logits.float().abs().amax()
        self.linear &= bool(known.any()) and bool((apart <= _CLOSE * size).all())
        return scores


def asking(conversation: Conversation, text: str) -> Conversation:
    """The conversation up to what the user asked last, the text there replaced.

    Earlier turns stay as they are. In the last user turn the pictures stay, in front of the text,
    and the pictures that tools have given back since join them, so that they are looked at at every
    step; what else follows (calls, an answer that was begun) is left out. No tools are at hand.
    """
    request = conversation.request
    before = Conversation(conversation.turns[: conversation.turns.index(request[0])])
    pictures = (part for turn in request for part in turn.image_parts)
    asked = replace(request[0], parts=(*pictures, TextPart(text)))
    return Conversation((*before.told().turns, asked))


def acting(conversation: Conversation, settings: MorasSettings) -> Conversation:
    """The step that the model is to take, the instruction beside what the user asked last.

    For a request without pictures: tools, calls and results stay, since without them an order to
    act is one that nobody could follow. An answer that was begun is left out.
    """
    asked = conversation.request[0]
    at = conversation.turns.index(asked)
    words = settings.risk_text("", " ".join(text.strip() for text in asked.texts).strip())
    later = (turn for turn in conversation.turns[at + 1 :] if turn.calls or turn.name is not None)
    turns = (*conversation.turns[:at], replace(asked, parts=(TextPart(words),)), *later)
    return replace(conversation, turns=turns)


def question(conversation: Conversation) -> str:
    """What the user asked last, and the texts that tools have given back since."""
    texts = [text for turn in conversation.request for text in turn.texts]
    return " ".join(text.strip() for text in texts if text.strip())


@dataclass(frozen=True)
class Assessment:
    """What the calls before the answer found.

    Attributes:
        text_only: there are no pictures, and so no visual context.
        similarities: S, [B].
        risks: r, [B].
        context_risks: r of the visual context without the question, [B]; None if not measured.
        context: what call 1 gave.
    """

    text_only: bool
    context: VisualContext
    similarities: torch.Tensor
    risks: torch.Tensor
    context_risks: torch.Tensor | None


def assess(
    conversations: Sequence[Conversation],
    host: Host,
    settings: MorasSettings,
    unsafe: torch.Tensor,
    answer: Prompt,
) -> Assessment:
    """Run both calls over a batch whose rows all have pictures, or none.

    Args:
        conversations: as the users wrote them.
        host: the model.
        settings: of the method.
        unsafe: W mu, [N, V].
        answer: what call 3 will be asked.

    Raises:
        PromptError: with the instructions, or with the visual context, a prompt is longer than the
            model's context.
        UnsupportedModelError: the logits are not what the LM head makes of the hidden states.
    """
    context = visual_context(conversations, host, settings, answer)
    seen = bool(conversations[0].image_parts)
    alone = seen and settings.context_risk
    asked = [
        asking(conversation, settings.risk_text(text, question(conversation)))
        if seen
        else acting(conversation, settings)
        for text, conversation in zip(context.texts, conversations, strict=True)
    ]
    if alone:
        asked += [
            asking(conversation, settings.risk_text(text, ""))
            for text, conversation in zip(context.texts, conversations, strict=True)
        ]
    logits = risk_logits(asked, host, settings.steps, context.shared)
    # The LM head may be on another device than the one to which a model gives its logits.
    found = similarity(
        opening(logits, settings.gamma), opening(unsafe.to(logits.device), settings.gamma)
    )
    risks = risk(found, settings.base, settings.slope)
    rows = len(conversations)
    return Assessment(
        not seen, context, found[:rows], risks[:rows], risks[rows:] if alone else None
    )


@dataclass(frozen=True)
class VisualContext:
    """What call 1 gave.

    Attributes:
        texts: what the pictures show, by row.
        shared: what later calls begin from; None where every call begins from its start.
        draft: the answer begun beside it.
    """

    texts: tuple[str, ...]
    shared: SharedPrefill | None = None
    draft: Draft | None = None


def visual_context(
    conversations: Sequence[Conversation], host: Host, settings: MorasSettings, answer: Prompt
) -> VisualContext:
    """Call 1: what the pictures show, without the question."""
    if not conversations[0].image_parts:
        return VisualContext(("",) * len(conversations))
    asked = [asking(c, settings.context_instruction) for c in conversations]
    prompt = _prompt(asked, host, "shorten context_instruction")
    options = GenerationOptions(max_new_tokens=settings.context_tokens)
    if not (settings.share and can_share(host.model)):
        return VisualContext(_texts(_generate(prompt, host, options), host))
    shared = SharedPrefill.of(host.model, prompt)
    # The draft is for one row: another would have to wait for the longest context.
    both = shared.beside(answer, host.pad_token_id) if settings.draft and prompt.rows == 1 else None
    if both is not None and (drafted := _drafted(shared, both, host, settings)):
        return drafted
    if plainly_greedy(host.model):
        ends = end_tokens(host.model.generation_config)
        said = shared.begun.greedy(
            host.model, settings.context_tokens, end_tokens=ends, going_on=_going_on(host)
        )
        texts = (host.decode(_until_end(row, ends)).strip() for row in said.tolist())
        return VisualContext(tuple(texts), shared)
    rows = _generate(prompt, host, options, Interventions(prefilled=shared.first))
    return VisualContext(_texts(rows, host), shared)


def _drafted(
    shared: SharedPrefill, both: Prompt, host: Host, settings: MorasSettings
) -> VisualContext | None:
    """Call 1 with the unsteered answer as a second row; None where the model keeps no cache."""
    one = GenerationOptions(max_new_tokens=1)
    _generate(shared.prompt, host, one, Interventions(prefilled=shared.first))
    run = shared.begin(both, host.pad_token_id)
    if run is None:
        return None
    watch = ContextAndDraft(end_tokens(host.model.generation_config), settings.steps)
    options = GenerationOptions(max_new_tokens=settings.context_tokens)
    inner = Interventions(prefilled=run, answer_logits=[watch])
    context, answer = _generate(both, host, options, inner, watch.ended)
    draft = Draft(run, tuple(answer.tokens), tuple(watch.scores))
    return VisualContext(_texts([context], host), shared, draft)


def _until_end(row: list[int], ends: Collection[int]) -> list[int]:
    """The tokens before the first that ends a row."""
    return row[: next((at for at, token in enumerate(row) if token in ends), len(row))]


def _texts(rows: Sequence[Generation], host: Host) -> tuple[str, ...]:
    return tuple(host.decode(row.tokens).strip() for row in rows)


def risk_logits(
    asked: Sequence[Conversation], host: Host, steps: int, shared: SharedPrefill | None
) -> torch.Tensor:
    """Call 2: the logits W x^n of the first N tokens, [B, N, V].

    Raises:
        PromptError, UnsupportedModelError: see :func:`assess`.
    """
    prompt = _prompt(asked, host, "lower context_tokens, or shorten the question")
    prefilled = shared.begin(prompt, host.pad_token_id) if shared else None
    states = first_states(prompt, host, steps, prefilled)
    return states.logits


def first_states(
    prompt: Prompt, host: Host, steps: int, prefilled: Prefilled | None = None
) -> LastStates:
    """Generate N tokens, keeping the states after the final norm that predict them.

    Raises:
        UnsupportedModelError: see :func:`assess`.
    """
    states = LastStates(host.head)
    inner = Interventions(
        hidden_states={host.inside("MoRAS").depth: states.keep_state},
        logits=[states],
        prefilled=prefilled,
    )
    # No row may end early: every one has N states.
    if prefilled is not None and plainly_greedy(host.model):
        _greedy_states(prefilled, host, steps, inner)
    else:
        extra = {"min_new_tokens": steps, "repetition_penalty": 1.0}
        _generate(prompt, host, GenerationOptions(max_new_tokens=steps, extra=extra), inner)
    if states.steps != steps or not states.linear:
        raise UnsupportedModelError(
            f"The logits of {host.name} are not what its LM head makes of the hidden states after "
            "the final norm (they are scaled, soft-capped or made elsewhere), so MoRAS cannot "
            "steer it; use SafetyPrefix or a defence on pixels."
        )
    return states


def _greedy_states(prefilled: Prefilled, host: Host, steps: int, inner: Interventions) -> None:
    """Run N tokens; what looks at them is among the interventions."""
    state = request_state([inner], host.tower)
    assert state is not None  # there are edits, and `inside` has found the tower
    ends = list(end_tokens(host.model.generation_config))
    endless = [SuppressTokensLogitsProcessor(ends, str(host.device))] if ends else []
    checked = processors([inner], [], 0, checks=[RequireEdits(state, prefilled.length)])
    with doorway.request(state):
        prefilled.greedy(
            host.model, steps, processors=[*endless, *checked], going_on=_going_on(host)
        )


def _going_on(host: Host) -> Callable[[], None]:
    """Raises ``Abandoned`` once nobody waits for the answer any more."""

    def check() -> None:
        if host.cancel is not None and host.cancel.is_set():
            raise Abandoned

    return check


def _prompt(asked: Sequence[Conversation], host: Host, remedy: str) -> Prompt:
    try:
        return host.prompt(asked, spans=False, prefix=None)
    except PromptError as error:
        raise PromptError(
            f"MoRAS' own call about this conversation: {error} Or {remedy}."
        ) from error


def _generate(
    prompt: Prompt,
    host: Host,
    options: GenerationOptions,
    inner: Interventions | None = None,
    ended: threading.Event | None = None,
) -> list[Generation]:
    """One of our own calls; ``ended`` ends it early.

    Raises:
        Abandoned: nobody waits for the answer any more.
    """
    # Some checkpoints search with beams or penalise repetition unless told otherwise.
    made = generate(
        host.model,
        prompt,
        replace(options, extra={**options.extra, "num_beams": 1}),
        decode=host.decode,
        pad_token_id=host.pad_token_id,
        interventions=[] if inner is None else [inner],
        tower=host.inside("MoRAS"),
        cancel=[event for event in (ended, host.cancel) if event is not None],
    )
    if host.cancel is not None and host.cancel.is_set():
        raise Abandoned
    return made
