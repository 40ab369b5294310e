"""One run of ``generate`` over a batch of prompts, with the interventions of each request.

The prompts may be those of several callers; each gets what it would get alone.
"""

from __future__ import annotations

import bisect
import pickle
import threading
import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import torch
from transformers import LogitsProcessor, StoppingCriteria, StoppingCriteriaList

from ..errors import ConfigurationError
from . import doorway
from .families import TextTower
from .gathering import Ticket
from .grammar import AllowedTokens, Grammars
from .interventions import Decision, Interventions
from .messages import Conversation, GenerationOptions, end_tokens
from .processing import RequireEdits, processors, sampling_processors
from .prompt import Prompt
from .stopping import Cancelled, Decided, Decode, Row, RowByRow, StopAtText, find_stop

if TYPE_CHECKING:
    from ..verdict import Verdict
    from .shared_prefill import Prefilled


K = TypeVar("K")
E = TypeVar("E")


@dataclass(frozen=True)
class Generation:
    """What one row produced.

    Attributes:
        tokens: the new tokens; end token, padding and what belongs to a guardrail left out.
        input_tokens: prompt tokens without padding.
        output_tokens: produced tokens, end token included.
        finish_reason: ``"stop"`` at an end token or a stop text, else ``"length"``.
        decisions: what the guardrails decided about the row.
    """

    tokens: list[int]
    input_tokens: int
    output_tokens: int
    finish_reason: Literal["stop", "length"]
    decisions: tuple[Decision, ...] = ()

    @property
    def answered(self) -> bool:
        """Whether every guardrail let the model speak."""
        return all(decision.answered for decision in self.decisions)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """What the guardrails found."""
        return tuple(decision.verdict for decision in self.decisions)


def generate(
    model: Any,
    prompt: Prompt,
    options: GenerationOptions,
    *,
    decode: Decode,
    pad_token_id: int | None,
    interventions: Sequence[Interventions] = (),
    tower: TextTower | None = None,
    rows: Sequence[Row] = (),
    cancel: Collection[threading.Event] = (),
    decide_only: bool = False,
    grammars: Callable[[], Grammars] | None = None,
) -> list[Generation]:
    """Generate for every row of a prompt.

    Args:
        model: the transformers model.
        prompt: on the model's device.
        options: how to generate.
        decode: token ids to text, for stop texts.
        pad_token_id: fills the rows that end early.
        interventions: what the request's guardrails do inside the model.
        tower: the model's text tower, where they need it.
        rows: what is each row's own; without them ``options`` go for every row.
        cancel: any of these, once set, ends the run after the token at work.
        decide_only: end as soon as every guardrail has decided.
        grammars: of the model's tokenizer, for rows that follow one.

    Raises:
        ConfigurationError: an unknown setting, streaming with beams, or a grammar that nothing
            satisfies.
        UnsupportedModelError: a guardrail came to no decision, or an edit did not run.
    """
    rows = rows or [Row(options)] * prompt.rows
    options = _joint(options, rows)
    stream = any(row.take for row in rows)
    config = options.config(model, pad_token_id, more=_hidden(interventions))
    beams = config.num_beams or 1  # a checkpoint may have habits of its own
    if stream and beams > 1:
        raise ConfigurationError(
            f"Streaming needs one beam, got num_beams={beams}; use chat instead."
        )
    if options.grammar is not None and beams > 1:
        raise ConfigurationError(
            f"A structured answer needs one beam, and the checkpoint asks for {beams}; pass "
            "num_beams=1."
        )
    waiting = [one.decisions for one in interventions if one.decisions is not None]
    ends = Decided(waiting, prompt.rows, decide_only=decide_only)
    if ends.all_ended():
        return [_unbegun(prompt, row, ends.row(row)) for row in range(prompt.rows)]
    inputs, begin = _start(prompt, options, config, interventions, stream=stream)
    sent = prompt.inputs["attention_mask"].sum(dim=1).tolist()
    followed = grammars() if grammars and any(row.options.grammar for row in rows) else None
    ending = end_tokens(config) | (followed.end if followed else frozenset())

    def made(row: int, tokens: list[int]) -> Generation:
        own = rows[row].options
        cut = _generation(tokens[: own.max_new_tokens], int(sent[row]), ending, own, decode)
        return _with_decisions(cut, ends.row(row))

    if beams > 1:
        # A search with beams has one setting for all rows.
        criteria = _stop_texts(options, begin, decode)
    else:
        criteria = [RowByRow(rows, begin, ending, decode, ends, made)]
    sampling = sampling_processors(options, [row.options.seed for row in rows])
    state = request_state(interventions, tower)
    checks = [] if state is None else [RequireEdits(state, inputs["input_ids"].shape[1])]
    with doorway.request(state):
        output = model.generate(
            **inputs,
            generation_config=config,
            logits_processor=processors(
                interventions,
                sampling,
                begin,
                checks=checks,
                allowed=_allowed(rows, followed, ends),
            ),
            stopping_criteria=StoppingCriteriaList(
                [*criteria, *([Cancelled(cancel)] if cancel else []), *([ends] if waiting else [])]
            ),
        )
    ends.require_all()
    return [made(row, tokens) for row, tokens in enumerate(output[:, begin:].tolist())]


def _allowed(
    rows: Sequence[Row], grammars: Grammars | None, ends: Decided
) -> list[LogitsProcessor]:
    """The mask of the rows that follow a grammar; one that is refused is free to say so."""
    if grammars is None:
        return []
    asked = [row.options.grammar for row in rows]
    matchers = [None if grammar is None else grammars.matcher(grammar) for grammar in asked]

    def refused(row: int) -> bool:
        return any(decision.verdict.action in ("refuse", "raise") for decision in ends.row(row))

    return [AllowedTokens(matchers, grammars.end, refused)]


def _joint(options: GenerationOptions, rows: Sequence[Row]) -> GenerationOptions:
    """The settings of the run that serves every row's own."""
    return replace(
        options,
        max_new_tokens=max(row.options.max_new_tokens for row in rows),
        stop=tuple(dict.fromkeys(text for row in rows for text in row.options.stop)),
        grammar=next((row.options.grammar for row in rows if row.options.grammar), None),
    )


def _hidden(interventions: Sequence[Interventions]) -> int:
    """How many tokens are made before the user's answer."""
    return sum(one.hidden_tokens for one in interventions)


def _start(
    prompt: Prompt,
    options: GenerationOptions,
    config: Any,
    interventions: Sequence[Interventions],
    *,
    stream: bool,
) -> tuple[dict[str, Any], int]:
    """What the model is given, and the length of the sequence where the user's answer begins."""
    hidden = _hidden(interventions)
    begun = _begun(options, config, interventions, stream)
    if begun is None:
        return dict(prompt.inputs), prompt.length + hidden
    _count_spoken(config, begun.spoken)
    inputs = {**begun.inputs, "past_key_values": begun.cache}
    return inputs, begun.length + hidden - begun.spoken


def _begun(
    options: GenerationOptions, config: Any, interventions: Sequence[Interventions], stream: bool
) -> Prefilled | None:
    """The prompt with its beginning computed already, where this run can use that.

    That part is the bare model's and of one row each: nobody else may edit the model's inside,
    there may be one beam only, and the model must not be told to make a cache of its own.
    """
    one_cache = config.use_cache and not config.cache_implementation
    if config.num_beams not in (None, 1) or not one_cache or config.prefill_chunk_size:
        return None
    for one in interventions:
        others = [other for other in interventions if other is not one]
        if one.prefilled is None or any(other.edits for other in others):
            continue
        alone = not any((*o.logits, *o.answer_logits, o.hidden_tokens, o.decisions) for o in others)
        plain = not (stream or options.sampled or options.stop or set(options.extra) - _COUNTED)
        plain = plain and options.grammar is None
        may_speak = alone and plain and one.prefilled.spoken < options.max_new_tokens
        return one.prefilled if may_speak or not one.prefilled.spoken else one.prefilled.silent
    return None


#: Settings that are right for an answer begun already, once what is said has been counted.
_COUNTED = frozenset({"min_new_tokens"})


def _count_spoken(config: Any, spoken: int) -> None:
    config.max_new_tokens -= spoken
    if config.min_new_tokens:
        config.min_new_tokens = max(0, config.min_new_tokens - spoken)


def _with_decisions(generation: Generation, decisions: tuple[Decision, ...]) -> Generation:
    """A row that is not answered keeps nothing of what the model said meanwhile."""
    found = replace(generation, decisions=decisions)
    return found if found.answered else replace(found, tokens=[], output_tokens=0)


def _unbegun(prompt: Prompt, row: int, decisions: tuple[Decision, ...]) -> Generation:
    length = int(prompt.inputs["attention_mask"][row].sum())
    return Generation([], length, 0, "stop", decisions)


def request_state(
    interventions: Sequence[Interventions], tower: TextTower | None
) -> doorway.RequestState | None:
    """The doorway's state for these interventions; None when the model runs bare."""
    attention = _joined([one.attention for one in interventions])
    hidden = _joined([one.hidden_states for one in interventions])
    linear = _joined([one.linear for one in interventions])
    if tower is None or not (attention or hidden or linear):
        return None
    return doorway.RequestState(tower.config, attention, hidden, linear)


def _joined(edits: Sequence[Mapping[K, E]]) -> dict[K, tuple[E, ...]]:
    """The edits of all guardrails at each place, in the order of the guardrails."""
    joined: dict[K, tuple[E, ...]] = {}
    for one in edits:
        for place, edit in one.items():
            joined[place] = (*joined.get(place, ()), edit)
    return joined


def _stop_texts(options: GenerationOptions, begin: int, decode: Decode) -> list[StoppingCriteria]:
    return [StopAtText(options.stop, begin, decode)] if options.stop else []


def _generation(
    row: list[int],
    input_tokens: int,
    end_tokens: set[int],
    options: GenerationOptions,
    decode: Decode,
) -> Generation:
    """Cut a row [new tokens, padding] where it ended."""
    ended = next((index for index, token in enumerate(row) if token in end_tokens), len(row))
    tokens = row[:ended]
    if find_stop(decode(tokens), options.stop) is not None:
        # A row that ended at a stop text is filled with padding; the text tells where.
        needed = bisect.bisect_left(
            range(ended),
            True,
            key=lambda count: find_stop(decode(tokens[:count]), options.stop) is not None,
        )
        return Generation(tokens[:needed], input_tokens, needed, "stop")
    if ended < len(row):
        return Generation(tokens, input_tokens, ended + 1, "stop")
    return Generation(tokens, input_tokens, len(row), "length")


Take = Callable[[list[int]], None]


@dataclass(frozen=True)
class Asked:
    """One row that waits for a run.

    Attributes:
        conversation: screened, pictures decoded.
        options: its own; seeded where it samples, so that it draws the same in any company.
        take: is handed its tokens as they come.
    """

    conversation: Conversation
    options: GenerationOptions
    take: Take | None = None


RowTicket = Ticket[Asked, Generation]


class Runs(Protocol):
    """One run of a guarded model."""

    def run(
        self,
        conversations: Sequence[Conversation],
        rows: Sequence[Row],
        cancel: threading.Event,
        *,
        decide_only: bool,
    ) -> list[Generation]:
        """The rows' generations; those that end before the others are told to ``Row.ended``."""


class AllGivenUp(threading.Event):
    """Set once nobody waits for any row of a run any more; nobody sets it by hand."""

    def __init__(self, tickets: Sequence[RowTicket]) -> None:
        super().__init__()
        self._tickets = tickets

    def is_set(self) -> bool:
        """Whether every ticket has ended or was given up."""
        return all(_over(ticket) for ticket in self._tickets)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until then, or for ``timeout`` seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        while not (over := self.is_set()) and (until is None or time.monotonic() < until):
            time.sleep(0.01)
        return over


def seeded(options: GenerationOptions, rows: int) -> list[GenerationOptions]:
    """The options of each row. Rows that sample without a seed get theirs from torch's state."""
    if not options.sampled or options.seed is not None:
        return [options] * rows
    return [replace(options, seed=int(seed)) for seed in torch.randint(2**62, (rows,)).tolist()]


def together_key(
    pipeline: object,
    options: GenerationOptions,
    conversation: Conversation,
    *,
    mixed: bool,
    decide_only: bool,
) -> Hashable:
    """What rows must have in common to run together: guardrails, settings, kind of prompt.

    Limits, stop texts and seeds are each row's own. Processors do not take rows with and without
    pictures at once, and some models (not ``mixed``) no different numbers of them either.
    """
    alone = object()
    if options.beams > 1:
        return alone
    try:
        extra = pickle.dumps(sorted(options.extra.items())) if options.extra else b""
    except Exception:  # something that cannot be compared
        return alone
    limit = options.max_new_tokens if extra else None  # settings such as the shortest answer
    count = len(conversation.image_parts)
    drawn = (options.temperature, options.top_p, options.top_k)
    kind = min(count, 1) if mixed else count
    return (id(pipeline), drawn, extra, limit, kind, decide_only)


def run_together(runs: Runs, tickets: Sequence[RowTicket], *, decide_only: bool) -> None:
    """One run for all rows of some tickets; each hears of its own rows as soon as they end."""
    places = [(ticket, number) for ticket in tickets for number in range(len(ticket.items))]
    rows = [_row(ticket, number) for ticket, number in places]
    made = runs.run(
        [ticket.items[number].conversation for ticket, number in places],
        rows,
        AllGivenUp(tickets),
        decide_only=decide_only,
    )
    for (ticket, number), generation in zip(places, made, strict=True):
        _deliver(ticket, number, generation)


def _row(ticket: RowTicket, number: int) -> Row:
    asked = ticket.items[number]
    return Row(
        asked.options,
        given_up=lambda: _over(ticket),
        take=asked.take,
        ended=lambda generation: _deliver(ticket, number, generation),
    )


def _over(ticket: RowTicket) -> bool:
    return ticket.done.is_set() or ticket.given_up() is not None


def _deliver(ticket: RowTicket, number: int, generation: Generation) -> None:
    """A stream that was cancelled ends with what it has; other calls have no use for a part."""
    reason = ticket.given_up()
    streams = ticket.items[number].take is not None
    if reason is not None and not (streams and ticket.cancelled):
        ticket.fail(reason)
    else:
        ticket.deliver(number, generation)
