"""Before the prompt: every picture is decoded once, screened, and handled as the policy says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ImageError
from .messages import Conversation, ImagePart, Part, TextPart, pictures, replace_pictures

if TYPE_CHECKING:
    from ..policy import Policy
    from ..verdict import Verdict


@dataclass(frozen=True)
class Screened:
    """A conversation after screening.

    Attributes:
        conversation: what the model may see, pictures decoded; None when it is refused.
        verdicts: one per picture and detector, with the action taken; one for a picture that
            could not be decoded.
    """

    conversation: Conversation | None
    verdicts: tuple[Verdict, ...] = ()


def decode_pictures(conversation: Conversation) -> Conversation:
    """Decode every picture to PIL RGB.

    Raises:
        ImageError: a picture cannot be read.
    """
    parts = [ImagePart(_decode(picture)) for picture in pictures(conversation)]
    return replace_pictures(conversation, parts)


def screen_pictures(
    conversation: Conversation, detectors: Sequence[Any], policy: Policy
) -> Screened:
    """Decode every picture and let each detector look at it, one detector after the other.

    A detector sees what the ones before it left over, so the model sees pixels that every
    detector has seen or masked itself. Something that cannot be decoded was not inspected; what
    that leads to is the policy's decision.

    Raises:
        ImageRefused: the policy asks for an exception.
    """
    found = pictures(conversation)
    if not found:
        return Screened(conversation)
    screened = _settle(conversation, *_decode_or_explain(found), policy)
    for detector in detectors:
        if screened.conversation is None:
            break
        images = pictures(screened.conversation)
        step = _settle(screened.conversation, images, _screen(detector, images), policy)
        screened = Screened(step.conversation, screened.verdicts + step.verdicts)
    return screened


def _decode(picture: Any) -> Any:
    from ..intake import read_picture

    return read_picture(picture).image


def _decode_or_explain(found: Sequence[Any]) -> tuple[list[Any], list[Verdict | None]]:
    """Pictures, and a verdict for each one that cannot be decoded (its picture is None)."""
    from ..verdict import Verdict

    images: list[Any] = []
    verdicts: list[Verdict | None] = []
    for picture in found:
        try:
            images.append(_decode(picture))
            verdicts.append(None)
        except ImageError as error:
            images.append(None)
            verdicts.append(Verdict.uninspected(error.reason))
    return images, verdicts


def _screen(detector: Any, images: list[Any]) -> list[Verdict | None]:
    """Verdicts of one detector; one that raises or miscounts has failed, which is never "safe"."""
    from ..verdict import Verdict

    if not images:
        return []
    try:
        found = list(detector.screen(images))
    except Exception as error:  # whatever went wrong, the pictures were not screened
        return [Verdict.failed(f"{type(detector).__name__} raised {type(error).__name__}")] * len(
            images
        )
    if len(found) != len(images):
        reason = f"{type(detector).__name__} gave {len(found)} verdicts for {len(images)} pictures"
        return [Verdict.failed(reason)] * len(images)
    return found


def _settle(
    conversation: Conversation,
    images: Sequence[Any],
    verdicts: Sequence[Verdict | None],
    policy: Policy,
) -> Screened:
    """Carry the policy out on every picture that has a verdict."""
    from ..policy import apply_policy

    parts: list[Part] = []
    taken: list[Verdict] = []
    refused = False
    for image, verdict in zip(images, verdicts, strict=True):
        if verdict is None:
            parts.append(ImagePart(image))
            continue
        applied = apply_policy(image, verdict, policy)
        taken.append(applied.verdict)
        refused |= applied.action == "refuse" and not policy.monitor
        parts.append(TextPart(policy.note) if applied.image is None else ImagePart(applied.image))
    return Screened(None if refused else replace_pictures(conversation, parts), tuple(taken))
