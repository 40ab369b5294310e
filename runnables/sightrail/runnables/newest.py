"""What a request is in a conversation: the messages behind the last answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from langchain_core.messages import BaseMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue

from sightrail.guardrails.carriers.loop import Screened
from sightrail.guardrails.errors import ImageRefused
from sightrail.guardrails.policy import Policy

from .screen_images import ScreenImages
from .walk import answered, marked_verdicts, messages_of, refused_for_good


def check_newest(screen: ScreenImages, requests: list[Any]) -> list[Screened | ImageRefused]:
    """Screen conversations, all of them in one call; only what is new in each can refuse it.

    A picture that was refused in an earlier turn is taken out in every later one, but does not
    refuse them. The limits on one request hold for the earlier turns and for the new one, each.
    """
    parts = [_parts(request) for request in requests]
    earlier = [past for past, _ in parts if past]
    outcomes = screen.screen([newest for _, newest in parts] + earlier)
    pasts = iter(outcomes[len(parts) :])
    return [
        _together(screen, past, next(pasts) if past else None, newest, outcome)
        for (past, newest), outcome in zip(parts, outcomes, strict=False)
    ]


def _parts(request: Any) -> tuple[list[BaseMessage], Any]:
    """The turns that have an answer, and the rest; a request that is no conversation is the rest.

    What cannot be read as messages is the rest as well, so that everything in it can refuse.
    """
    if isinstance(request, PromptValue):
        messages = request.to_messages()
    elif isinstance(request, list | tuple):
        try:
            messages = list(convert_to_messages(request))
        except (ValueError, TypeError, KeyError, NotImplementedError):
            return [], request
    else:
        return [], request
    count = answered(messages)
    return (messages[:count], messages[count:]) if count else ([], request)


def _together(
    screen: ScreenImages,
    past: list[BaseMessage],
    seen: Screened | ImageRefused | None,
    newest: Any,
    outcome: Screened | ImageRefused,
) -> Screened | ImageRefused:
    if isinstance(outcome, ImageRefused):
        return outcome
    # The verdicts of this screening, or else those of the earlier step that refused.
    verdicts = outcome.verdicts or marked_verdicts([*past, *messages_of(newest)])
    if seen is None:
        return replace(outcome, verdicts=verdicts)
    if isinstance(seen, ImageRefused):
        quiet = screen.model_copy(update={"policy": _without_raise(screen.policy)})
        (seen,) = quiet.screen([past])
        if isinstance(seen, ImageRefused):  # nothing asks for it any more: refuse whatever it was
            return seen
    refused = outcome.refused or refused_for_good(past)
    value = [*seen.value, *outcome.value]
    return replace(outcome, value=value, refused=refused, verdicts=verdicts)


def _without_raise(policy: Policy) -> Policy:
    """The same policy, with refusals in place of exceptions."""

    def quiet(rule: Any) -> Any:
        if isinstance(rule, dict):
            return {key: quiet(item) for key, item in rule.items()}
        return "refuse" if rule == "raise" else rule

    return Policy.model_validate(quiet(policy.model_dump()))
