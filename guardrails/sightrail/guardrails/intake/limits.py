"""What intake is willing to read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, PlainSerializer, PositiveInt

from .remote import RemotePolicy


def _as_texts(folders: tuple[Path, ...]) -> tuple[str, ...]:
    """Paths as every serialised form of a guard can hold them."""
    return tuple(map(str, folders))


class Limits(BaseModel):
    """Bounds on pictures; beyond any of them a picture is NotInspected, and is not decoded.

    The defaults are what a server with two cores and a gigabyte to spare survives, whatever a
    request holds. Where screening runs on an accelerator, `max_views_per_request` may be ten times
    as high.

    Attributes:
        max_bytes: size of the encoded picture.
        max_pixels: width x height x renderings. Every frame is a rendering, and has a second one
            where it may be transparent.
        max_frames: frames of an animation, pages of a TIFF or PDF; all of them are looked at.
        min_side: a picture thinner than this shows an encoder nothing that could be judged.
        max_images_per_message: pictures in one message, document or dict.
        max_images_per_request: pictures in everything that is looked at in one go: all messages of
            a request, and in agents all messages that a step brings in. What an agent has looked at
            at earlier steps is not read again and not counted; a thread that another process takes
            up is looked at whole.
        max_views_per_request: renderings of all of these together; each of them costs the detector
            one look, so this is what bounds its time.
        max_pixels_per_request: pixels of all renderings together, which take four bytes each.
        max_bytes_per_request: encoded bytes of all pictures together, fetched ones included.
        folders: the folders of which a message may name files, as paths or `file:` addresses; none
            by default. A link inside that leads out of them is not followed. Paths that the
            caller's own code hands over, as `pathlib.Path` or to `RiskDetector.screen`, need no
            folder.
        remote: what may be fetched from other machines; nothing when None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: PositiveInt = 32 * 1024 * 1024
    max_pixels: PositiveInt = 50_000_000
    max_frames: PositiveInt = 64
    min_side: PositiveInt = 8
    max_images_per_message: PositiveInt = 64
    max_images_per_request: PositiveInt = 256
    max_views_per_request: PositiveInt = 24
    max_pixels_per_request: PositiveInt = 100_000_000
    max_bytes_per_request: PositiveInt = 64 * 1024 * 1024
    folders: Annotated[tuple[Path, ...], PlainSerializer(_as_texts)] = ()
    remote: RemotePolicy | None = None
