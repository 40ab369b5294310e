"""What is evaluated: requests, and pictures of known content, whatever they were read from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..datasets.example import Example, Message, PictureFile
from ..verdict import Box
from .archive import ArchivedPicture

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..intake import Limits, Picture
    from .agents import Called, Toolbox
    from .judge import Judge

Match = Literal["exact", "option", "contained"]
"""How an answer is compared with the right one; see :func:`judge.is_right`."""


@dataclass(frozen=True, eq=False)
class Item:
    """One request that every stack is asked.

    Attributes:
        id: unique within its source; a run is resumed and compared by it.
        groups: what it is counted under: its own group first, then wider ones.
        text: the user's words.
        harmful: whether it ought to be refused.
        images: pictures before the text: decoded, a file, its bytes, or a member of a tar file.
        answer: the right answer, where one is known.
        match: how an answer is compared with the right one.
        goal: what the request is after in plain words, for a judge, where the text does not say
            it by itself (typographic attacks, jailbreak prompts).
        history: the messages before it, a system prompt among them, as ``LocalLVLM.chat`` takes
            them.
        toolbox: the tools of a task.
        calls: the calls that a task needs, as (name, arguments); the answer is what has to be said
            when they are done.
        picture: what the items of one picture share, where they also count together: of MME, both
            questions about a picture have to be answered right (``accuracy_plus``).
    """

    id: str
    groups: tuple[str, ...]
    text: str
    harmful: bool
    images: tuple[PictureFile | ArchivedPicture, ...] = ()
    answer: str | None = None
    match: Match = "contained"
    goal: str | None = None
    history: tuple[Message, ...] = ()
    picture: str | None = None
    toolbox: Toolbox | None = None
    calls: tuple[Called, ...] = ()

    def pictures(self, limits: Limits | None = None) -> list[Picture]:
        """The pictures, decoded as intake does it.

        Raises:
            ImageError: one cannot be read.
        """
        from ..intake import Limits, read_picture

        return [
            read_picture(
                image.read() if isinstance(image, ArchivedPicture) else image, limits or Limits()
            )
            for image in self.images
        ]

    def messages(self) -> list[dict[str, Any]]:
        """The request as chat messages, pictures before the text.

        Raises:
            ImageError: a picture cannot be read.
        """
        images = tuple(picture.image for picture in self.pictures())
        return Example(self.text, self.harmful, images, history=self.history).messages()


@dataclass(frozen=True, eq=False)
class LabelledPicture:
    """A picture of known content, to measure detection on.

    Attributes:
        group: what it is counted under.
        image: decoded.
        unsafe: whether it ought to be flagged.
        boxes: where the unsafe content lies, in pixels; empty where nobody knows.
    """

    group: str
    image: Image
    unsafe: bool
    boxes: tuple[Box, ...] = ()


class Source(Protocol):
    """Where items come from: the testbed, or a benchmark in a folder."""

    @property
    def name(self) -> str:
        """For reports."""

    @property
    def judge(self) -> Judge | None:
        """The judge that is exact for the testbed model's answers; None for a benchmark."""

    def __len__(self) -> int:
        """How many items there are."""

    def items(self) -> Iterator[Item]:
        """The items one after the other, always the same in the same order."""

    @property
    def labelled(self) -> int:
        """How many pictures there are to measure detection on."""

    def pictures(self) -> Iterator[LabelledPicture]:
        """Pictures to measure detection on, by group; none where the source labels none."""
