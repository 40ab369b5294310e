"""Structured output behind screening: a refusal keeps the type, and is never a parsing error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.runnables import Runnable

from sightrail.guardrails.carriers.loop import Screened, passed
from sightrail.guardrails.carriers.walk import settled
from sightrail.guardrails.errors import ImageRefused
from sightrail.guardrails.policy import refusal_error
from sightrail.guardrails.strict import StrictModel
from sightrail.guardrails.verdict import Verdict

from .checked import CheckedRunnable, Instead, Onward, Passing
from .screen_images import ScreenImages, told_verdicts
from .turns import message, refusal_fields, with_verdicts
from .walk import LANGCHAIN


class GuardedOutput(StrictModel, CheckedRunnable[LanguageModelInput, Any], extra="forbid"):
    """``screen`` and a model with structured output; made by ``with_structured_output``.

    A picture in the answer that the policy does not let pass as it is refuses the answer: a part of
    a structure cannot be masked and still be what the model said.

    Args:
        screen: what looks at the pictures.
        model: the model with structured output.
        include_raw: whether that gives the raw message beside the parsed value.

    Raises:
        ImageRefused: a picture was refused, and without ``include_raw`` nothing else fits.
        RequestRefused: an earlier step refused the request as a whole; likewise.
    """

    screen: ScreenImages
    model: Runnable[LanguageModelInput, Any]
    include_raw: bool = False

    @property
    def _behind(self) -> Runnable[LanguageModelInput, Any]:
        return self.model

    def _check(self, requests: list[Any]) -> list[Screened | ImageRefused]:
        return self.screen.screen_requests(requests)

    def _rule(self, request: Any, outcome: Screened | ImageRefused) -> Onward | Instead:
        screened = passed(outcome)
        if not screened.refused:
            return Onward(screened.value, screened.verdicts)
        refusal = self._refusal(told_verdicts(request, screened))
        if isinstance(refusal, Exception):
            raise refusal from screened.cause
        return Instead(refusal, refusal)

    def _refusal(self, verdicts: Sequence[Verdict]) -> Any:
        text = self.screen.policy.refusal_for(verdicts)
        if self.include_raw:
            refusal = message(text, refusal_fields(verdicts))
            return {"raw": refusal, "parsed": None, "parsing_error": None}
        return refusal_error(text, verdicts)

    def _traced(self, request: Any) -> Any:
        return self.screen.hidden(request)

    def _look_at(self, answers: list[Any], asked: list[Onward]) -> list[Any]:
        outcomes = self.screen.screen([self._shown(answer) for answer in answers])
        seen = [self._seen(*pair) for pair in zip(answers, outcomes, strict=True)]
        if not self.include_raw:
            return seen
        return [
            {**answer, "raw": with_verdicts(answer["raw"], request.verdicts)}
            if isinstance(answer, dict)
            else answer
            for answer, request in zip(seen, asked, strict=True)
        ]

    def _shown(self, answer: Any) -> Any:
        """What of an answer can hold a picture."""
        if isinstance(answer, Exception):
            return None
        return answer["raw"] if self.include_raw else _data(answer)

    def _seen(self, answer: Any, outcome: Screened | ImageRefused) -> Any:
        if isinstance(outcome, ImageRefused):
            return outcome
        changed = any(verdict.action != "allow" for verdict in outcome.verdicts)
        if changed and not self.screen.policy.monitor:
            return self._refusal(outcome.verdicts)
        return {**answer, "raw": outcome.value} if self.include_raw and outcome.verdicts else answer

    def _way_out(self, asked: Onward) -> Passing:
        return _Whole(asked) if self.include_raw else _Partial(asked)


class _Whole(Passing):
    """Everything waits for the end."""

    def take(self, chunk: Any) -> Any:
        self.value = chunk if self.value is None else self.value + chunk


class _Partial(Passing):
    """Parsers give all they have, again and again; one with a picture in it, or half of one, waits.

    The next one takes its place, and the last one is looked at.
    """

    def take(self, chunk: Any) -> Any:
        data = _data(chunk)
        passes = not LANGCHAIN.carriers(data) and all(settled(t) == len(t) for t in _texts(data))
        self.value = None if passes else chunk
        return chunk if passes else None


def _data(value: Any) -> Any:
    """A parsed value as JSON; a model of pydantic's first version says `dict`."""
    dump = getattr(value, "model_dump", None) or getattr(value, "dict", None)
    return dump() if callable(dump) else value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
