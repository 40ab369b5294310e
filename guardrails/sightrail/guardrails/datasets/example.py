"""One request to fit on or to ask: a conversation, its pictures, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from PIL import Image

    from ..intake import Limits

    PictureFile: TypeAlias = Image.Image | Path | bytes
else:
    PictureFile = object
Message: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """One request.

    Attributes:
        text: the user's last words; empty where the history ends with what a tool gave back, as
            inside an agent.
        harmful: whether it ought to be refused.
        images: the pictures of the last user message: PIL, a path, or an encoded file. They stand
            before the text.
        answer: what the model ought to say, where that is known.
        history: the messages before, a system prompt among them, as ``LocalLVLM.chat`` takes them;
            their pictures as above.
        tools: what the model may call, in OpenAI's form.
        group: category or kind, as the data set calls it.
        id: where it stands in its file.
    """

    text: str
    harmful: bool
    images: tuple[PictureFile, ...] = ()
    answer: str | None = None
    history: tuple[Message, ...] = ()
    group: str = ""
    id: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def image_count(self) -> int:
        """How many pictures the whole conversation has."""
        return len(self.images) + sum(
            _is_image(part) for message in self.history for part in _parts(message)
        )

    def pictures(self, limits: Limits | None = None) -> list[Image.Image]:
        """The pictures of the last user message, decoded as intake does it.

        Raises:
            ImageError: one cannot be read.
        """
        return [_decoded(image, limits) for image in self.images]

    def messages(self) -> list[dict[str, Any]]:
        """The conversation up to what is to be answered, as ``LocalLVLM.chat`` takes it."""
        if not self.text and not self.images and self.history:
            return [*map(dict, self.history)]
        parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in self.images]
        last = {"role": "user", "content": [*parts, {"type": "text", "text": self.text}]}
        return [*map(dict, self.history), last]


def _parts(message: Message) -> list[Any]:
    content = message["content"]
    return [] if isinstance(content, str) else list(content)


def _is_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "image"


def _decoded(source: Any, limits: Limits | None) -> Image.Image:
    from PIL import Image

    if isinstance(source, Image.Image):
        return source
    from ..intake import Limits, read_picture

    return read_picture(source, limits or Limits()).image
