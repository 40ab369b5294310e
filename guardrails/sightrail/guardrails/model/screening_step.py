"""Before the prompt: the pictures of a conversation go through the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from ..carriers.carrier import Carrier, Payload
from ..carriers.loop import Found, PictureLoop, Scaling
from ..carriers.words import words_in
from ..errors import ImageError
from ..intake import Picture, RequestReader
from ..verdict import NotInspected, Verdict
from .messages import Conversation, ImagePart, Part, TextPart

if TYPE_CHECKING:
    from ..intake import Limits
    from ..policy import Policy, Surface
    from ..screening.asking import Detector
    from ..verdict import Verdict


_SURFACES: Final[dict[str, Surface]] = {
    "user": "user",
    "system": "system",
    "assistant": "ai",
    "tool": "tool",
}


@dataclass(frozen=True)
class ScreenedConversation:
    """A conversation after screening.

    Attributes:
        conversation: what the model may see, pictures decoded; None when it is refused.
        verdicts: one per picture and detector, with the action taken; one for a picture that
            could not be decoded.
    """

    conversation: Conversation | None
    verdicts: tuple[Verdict, ...] = ()


def decode_conversation(conversation: Conversation, limits: Limits) -> Conversation:
    """Decode every picture; the model sees it as it was decoded, since nobody screens it.

    What is known to be nothing that intake could read stays as it is: the policy decides about it.

    Raises:
        ImageError: a picture cannot be read.
    """
    reader = RequestReader(limits)
    parts: list[Part] = []
    for number, turn in enumerate(conversation.turns):
        for part in turn.image_parts:
            picture = _read(part.source, number, reader)
            parts.append(replace(part, decoded=picture, screened=picture.image))
    return conversation.with_images(parts)


def _read(source: Payload, number: int, reader: RequestReader) -> Picture:
    if isinstance(source, NotInspected):
        raise ImageError(f"{source.reason}: {source.detail}", reason=source.reason)
    return source if isinstance(source, Picture) else reader.read(source, number)


def screen_conversation(
    conversation: Conversation,
    detectors: Sequence[Detector],
    policy: Policy,
    limits: Limits,
    scaling: Scaling | None = None,
) -> ScreenedConversation:
    """Decode every picture, let each detector look at it, and do what the policy says.

    What cannot be decoded was not inspected; what that leads to is the policy's decision, with or
    without detectors.

    Args:
        conversation: pictures as the caller gave them, or decoded.
        detectors: asked one after the other.
        policy: what a verdict leads to, by surface.
        limits: what intake is willing to decode.
        scaling: adds what the model will see to what is screened; None where that is not known.

    Raises:
        ImageRefused: the policy asks for an exception.
    """
    words = "\n".join(conversation.request[0].texts)
    carriers = [
        Carrier(
            source=part.decoded or part.source,
            surface=part.surface or _SURFACES[turn.role],
            holder=number,
            words=words,
        )
        for number, turn in enumerate(conversation.turns)
        for part in turn.image_parts
    ]
    if not carriers:
        return ScreenedConversation(conversation)
    loop = PictureLoop(detectors, policy, limits, component="LocalLVLM", scaling=scaling)
    said = [words_in(conversation.turns)] if loop.wants_request else ()
    (look,) = loop.look([carriers], words=said)
    if look.error is not None:
        raise look.error
    if look.refused:
        return ScreenedConversation(None, look.verdicts)
    pairs = zip(conversation.image_parts, look.found, strict=True)
    parts = [_passed_on(part, found, policy) for part, found in pairs]
    return ScreenedConversation(conversation.with_images(parts), look.verdicts)


def _passed_on(part: ImagePart, found: Found, policy: Policy) -> Part:
    """What stands in the place of a picture after the decision."""
    if found.image is None or not isinstance(found.decoded, Picture):
        return TextPart(policy.note)
    return replace(part, decoded=found.decoded, screened=found.image)
