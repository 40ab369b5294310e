"""Conversations, of which every request sends the whole: what is new refuses, the rest is history.

A picture that was refused in an earlier turn is taken out of every later request and does not
refuse it: otherwise one refusal would end a conversation for good.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ..errors import ImageRefused
from ..policy import Policy
from .loop import Framework, PictureLoop, Screened, passed, tell_nobody
from .words import words_in

AT_A_TIME: Final = 16
"""Earlier messages whose pictures are in memory at once."""


@dataclass(frozen=True)
class Turns:
    """A conversation in front of a model.

    Attributes:
        past: the messages of turns that have an answer.
        newest: what is to be answered now, in any form the framework's walk can look into.
        said: all messages, for detectors that want the words of the request; a value that is no
            conversation stands for itself.
    """

    past: Sequence[Any]
    newest: Any
    said: Sequence[Any]


def answered(messages: Sequence[Any], framework: Framework) -> int:
    """How many messages belong to turns that a model has answered; what follows is the request.

    An answer that is only begun, at the very end, is part of the request.
    """
    ours = [framework.surface_of(message) == "ai" for message in messages]
    end = len(ours)
    while end and ours[end - 1]:
        end -= 1
    return next((i for i in range(end, 0, -1) if ours[i - 1]), 0)


def asked_in(messages: Sequence[Any], framework: Framework) -> str:
    """What the user says in a conversation, the newest last: it holds for a tool's picture too.

    What a model or a tool wrote is not what is asked for, and grows while an agent works. Where no
    message is a user's (nodes, blocks), whatever is said there.
    """
    users = [message for message in messages if framework.surface_of(message) == "user"]
    return words_in(users or list(messages))


def screen_turns(
    loop: PictureLoop, conversations: Sequence[Turns]
) -> list[tuple[list[Any], Screened | ImageRefused]]:
    """Look at conversations, the newest turns of all in one call of each detector.

    The limits on one request hold for a newest turn, and for every earlier message by itself.
    Callbacks and the framework's own tracing hear of newest turns alone: what came before was told
    when it was new.

    Returns:
        Of each, the past as it may be told again (nothing of it where the newest turn is refused),
        and the outcome of the newest turn.
    """
    framework = loop.framework
    words = [
        asked_in(turns.said, framework) if loop.wants_request else "" for turns in conversations
    ]
    outcomes = loop.screen([turns.newest for turns in conversations], requests=words)
    quiet = replace(
        loop,
        policy=without_raise(loop.policy),
        framework=replace(framework, report=tell_nobody),
        on_verdict=None,
    )
    return [
        _joined(quiet, turns, outcome, asked)
        for turns, outcome, asked in zip(conversations, outcomes, words, strict=True)
    ]


def _joined(
    quiet: PictureLoop, turns: Turns, outcome: Screened | ImageRefused, asked: str
) -> tuple[list[Any], Screened | ImageRefused]:
    if isinstance(outcome, ImageRefused) or not turns.past:
        return [], outcome
    refused = outcome.refused or refused_for_good(turns.past, quiet.framework)
    outcome = replace(outcome, refused=refused)
    return [] if refused else list(_looked_over(quiet, turns.past, asked)), outcome


def _looked_over(quiet: PictureLoop, past: Sequence[Any], asked: str) -> Iterator[Any]:
    """Earlier messages without what the policy refuses in them."""
    for start in range(0, len(past), AT_A_TIME):
        some = past[start : start + AT_A_TIME]
        for outcome in quiet.screen(some, requests=[asked] * len(some)):
            yield passed(outcome).value


def refused_for_good(past: Sequence[Any], framework: Framework) -> bool:
    """Whether a marker in turns that have an answer refuses later ones too.

    A refused picture was taken out, and that was that. A request that was refused as a whole is
    still there, and a marker that does not say what was refused may be about one.
    """
    for message in past:
        if framework.was_refused([message]):
            marker = framework.read(message)
            subjects = {verdict.subject for verdict in marker.verdicts} if marker else set()
            if subjects != {"picture"}:
                return True
    return False


def without_raise(policy: Policy) -> Policy:
    """The same policy, with refusals in place of exceptions."""

    def quiet(rule: Any) -> Any:
        if isinstance(rule, dict):
            return {key: quiet(item) for key, item in rule.items()}
        return "refuse" if rule == "raise" else rule

    return Policy.model_validate(quiet(policy.model_dump()))
