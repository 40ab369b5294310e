"""Verdicts without an answer: ``/v1/moderations`` in the API's shape, ``/v1/screen`` in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from sightrail.guardrails.carriers.loop import Screened, passed
from sightrail.guardrails.model.stopping import in_thread

from .errors import invalid
from .replies import extension
from .wire import Call

if TYPE_CHECKING:
    from sightrail.guardrails.carriers.loop import PictureLoop
    from sightrail.guardrails.verdict import Verdict

_MOST = 64


class TextJudge(Protocol):
    """An engine whose guardrails may judge texts."""

    async def judge_text(self, text: str) -> list[Verdict] | None:
        """Verdicts on a text; None where nothing judges texts."""


async def screen(call: Call, loop: PictureLoop) -> dict[str, Any]:
    """Every verdict on the pictures of ``images`` or ``messages``.

    Raises:
        ApiError: neither is there.
    """
    name = next((name for name in ("images", "messages", "input") if name in call.body), None)
    value = call.body.get(name or "")
    if name is None or not isinstance(value, list | str) or not value:
        raise invalid('Pass "images": [...] (data addresses or image parts), or "messages".')
    images = value if name == "images" and isinstance(value, list) else None
    for number, image in enumerate(images or []):
        if not isinstance(image, str | dict):
            raise invalid("An image is a data address or an image part.", f"images[{number}]")
    shown = {"role": "user", "content": [_as_part(i) for i in images]} if images else value
    seen = await _screened(loop, shown)
    maps = {"risk_map"} if not call.body.get("maps") else set()
    told = [verdict.model_dump(mode="json", exclude=maps) for verdict in seen.verdicts]
    call.told.update(refused=seen.refused, pictures=len(seen.verdicts))
    return {"object": "sightrail.screening", "refused": seen.refused, "verdicts": told}


async def moderate(call: Call, loop: PictureLoop, judge: TextJudge) -> dict[str, Any]:
    """Moderations: one result per text, or one for a list of parts.

    Raises:
        ApiError: an input of another kind, or texts where nothing judges texts.
    """
    given = call.body.get("input")
    inputs = [given] if isinstance(given, str) else given
    if not isinstance(inputs, list) or not inputs or len(inputs) > _MOST:
        raise invalid(f"input is a text, a list of texts or a list of parts, at most {_MOST}.")
    if all(isinstance(item, str) for item in inputs):
        results = [await _result([item], [], loop, judge) for item in inputs]
    elif all(isinstance(item, dict) for item in inputs):
        texts = [
            str(item["text"]) for item in inputs if item.get("type") == "text" and "text" in item
        ]
        parts = [item for item in inputs if item.get("type") != "text"]
        results = [await _result(texts, parts, loop, judge)]
    else:
        raise invalid("input is either texts or parts.", "input")
    call.told.update(flagged=any(result["flagged"] for result in results))
    return {"id": f"modr-{call.id}", "model": "sightrail", "results": results}


async def _result(
    texts: Sequence[str], parts: Sequence[Mapping[str, Any]], loop: PictureLoop, judge: TextJudge
) -> dict[str, Any]:
    verdicts: list[Verdict] = []
    types: dict[str, list[str]] = {}
    if parts:
        seen = await _screened(loop, {"role": "user", "content": [*parts]})
        verdicts += seen.verdicts
        _note(types, seen.verdicts, "image")
    for text in texts:
        found = await judge.judge_text(text)
        if found is None and not parts:
            raise invalid(
                "Nothing here judges texts: serve a model whose stack holds casa.", "input"
            )
        verdicts += found or []
        _note(types, found or [], "text")
    flagged = {name: True for verdict in verdicts for name in _categories(verdict)}
    scores = {name: score for v in verdicts for name, score in _scores(v).items()}
    return {
        "flagged": bool(flagged),
        "categories": {**dict.fromkeys(scores, False), **flagged},
        "category_scores": {**dict.fromkeys(flagged, 1.0), **scores},
        "category_applied_input_types": types,
        **extension(verdicts, refused=bool(flagged)),
    }


def _note(types: dict[str, list[str]], verdicts: Sequence[Verdict], kind: str) -> None:
    for verdict in verdicts:
        for name in {*_categories(verdict), *_scores(verdict)}:
            if kind not in types.setdefault(name, []):
                types[name].append(kind)


def _categories(verdict: Verdict) -> list[str]:
    """What is held against it; what could not be inspected is not innocent."""
    if verdict.status in ("failed", "not_inspected"):
        return [verdict.status]
    if verdict.status != "flagged":
        return ["not_inspected"] if verdict.not_inspected else []
    return [*verdict.flagged_categories] or [verdict.category or verdict.guardrail or "unsafe"]


def _scores(verdict: Verdict) -> dict[str, float]:
    if verdict.subject == "request" and verdict.score is not None:
        return {verdict.guardrail or "request": verdict.score}
    return dict(verdict.scores)


def _as_part(image: Any) -> Any:
    """A bare address or base64 text is a picture here, whatever else it could be."""
    if not isinstance(image, str):
        return image
    if image[:5].lower() in ("data:", "http:", "https"):
        return {"type": "image_url", "image_url": {"url": image}}
    return {"type": "image", "base64": image}


async def _screened(loop: PictureLoop, value: Any) -> Screened:
    (outcome,) = await in_thread(lambda: loop.screen([value]))
    return passed(outcome)
