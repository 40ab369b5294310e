"""What intake is willing to decode."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, PositiveInt


class Limits(BaseModel):
    """Bounds on one picture; beyond any of them it is NotInspected, and nothing is decoded.

    Attributes:
        max_bytes: size of the encoded picture.
        max_pixels: width x height x frames.
        max_frames: frames of an animation or pages of a TIFF; all of them are looked at.
        min_side: a picture thinner than this shows an encoder nothing that could be judged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: PositiveInt = 32 * 1024 * 1024
    max_pixels: PositiveInt = 64_000_000
    max_frames: PositiveInt = 64
    min_side: PositiveInt = 8
