"""Before the prompt: the pictures of a conversation go through the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from ..call_rules import came_in_unsafe
from ..carriers.carrier import Carrier, Payload
from ..carriers.loop import Found, PictureLoop, Scaling
from ..carriers.words import words_in
from ..errors import ImageError
from ..intake import Picture, RequestReader
from ..verdict import NotInspected, Verdict
from .messages import Conversation, ImagePart, Part, TextPart, Turn

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
        unsafe: what is to be answered has brought an unsafe picture; see ``policy.CallRules``.
    """

    conversation: Conversation | None
    verdicts: tuple[Verdict, ...] = ()
    unsafe: bool = False

    @property
    def surfaces(self) -> tuple[tuple[ImagePart, Surface], ...]:
        """The pictures that may travel on, and where each came from."""
        turns = () if self.conversation is None else self.conversation.turns
        return tuple((part, surface_of(part, turn)) for turn in turns for part in turn.image_parts)


def surface_of(part: ImagePart, turn: Turn) -> Surface:
    """Where a picture of a turn came from."""
    return part.surface or _SURFACES[turn.role]


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
            surface=surface_of(part, turn),
            holder=number,
            words=words,
        )
        for number, turn in enumerate(conversation.turns)
        for part in turn.image_parts
    ]
    if not carriers:
        return ScreenedConversation(conversation, unsafe=conversation.unsafe)
    loop = PictureLoop(detectors, policy, limits, component="LocalLVLM", scaling=scaling)
    said = [words_in(conversation.turns)] if loop.wants_request else ()
    (look,) = loop.look([carriers], words=said)
    if look.error is not None:
        raise look.error
    if look.refused:
        return ScreenedConversation(None, look.verdicts)
    pairs = zip(conversation.image_parts, look.found, strict=True)
    parts = [_passed_on(part, found, policy) for part, found in pairs]
    earlier = conversation.turns[: conversation.turns.index(conversation.request[0])]
    now = look.found[sum(len(turn.image_parts) for turn in earlier) :]
    unsafe = any(came_in_unsafe(verdict) for found in now for verdict in found.verdicts)
    unsafe = unsafe or conversation.unsafe
    return ScreenedConversation(conversation.with_images(parts), look.verdicts, unsafe)


def _passed_on(part: ImagePart, found: Found, policy: Policy) -> Part:
    """What stands in the place of a picture after the decision."""
    if found.image is None or not isinstance(found.decoded, Picture):
        return TextPart(policy.note)
    return replace(part, decoded=found.decoded, screened=found.image)
