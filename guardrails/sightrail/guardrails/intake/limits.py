"""What intake is willing to read."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, PositiveInt

from .remote import RemotePolicy


class Limits(BaseModel):
    """Bounds on pictures; beyond any of them a picture is NotInspected, and is not decoded.

    Attributes:
        max_bytes: size of the encoded picture.
        max_pixels: width x height x frames.
        max_frames: frames of an animation, pages of a TIFF or PDF; all of them are looked at.
        min_side: a picture thinner than this shows an encoder nothing that could be judged.
        max_images_per_message: pictures in one message, document or dict.
        max_images_per_request: pictures in everything that is looked at in one go: all messages of
            a request, and in agents all messages that a step brings in. What an agent has looked at
            at earlier steps is not read again and not counted; a thread that another process takes
            up is looked at whole.
        max_pixels_per_request: pixels of all of these together, frames and renderings included.
        remote: what may be fetched from other machines; nothing when None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: PositiveInt = 32 * 1024 * 1024
    max_pixels: PositiveInt = 64_000_000
    max_frames: PositiveInt = 64
    min_side: PositiveInt = 8
    max_images_per_message: PositiveInt = 64
    max_images_per_request: PositiveInt = 256
    max_pixels_per_request: PositiveInt = 512_000_000
    remote: RemotePolicy | None = None
