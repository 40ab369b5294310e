"""The visual safety prompt: a trained border around every picture, and a sentence with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
from PIL import Image

from ..errors import ArtifactError, ConfigurationError, PromptError, UnsupportedModelError
from ..model.messages import Conversation
from ..prefix.safety_prefix import DEFAULT_PREFIX, SafetyPrefix
from .border import Frame, Sizing, framed, has_frame, scaled_frame

if TYPE_CHECKING:
    from ..fitting import Artifact, Manifest, ModelIdentity
    from ..model.families import Host
    from ..model.interventions import Interventions, Stage
    from ..model.prompt import Prompt

_log = getLogger(__name__)

PIXELS: Final = "border"
BOX: Final = "box"


@dataclass(frozen=True, eq=False)
class VisualSafetyPrompt:
    """Put a trained border around every picture and a safety sentence before the question.

    It needs nothing of a model but that it takes pictures and text: it stands in front of local
    and hosted models alike, without an extra pass, and without extra visual tokens on models of
    one input resolution. How the border comes about is told in :class:`DavspSettings`.

    A border works best on the model it was trained on (``trained_on``); on others it is a border.

    Attributes:
        frame: the border on its canvas, and the picture's place in it.
        sizing: ``"fixed"`` puts every picture on the border's own canvas; ``"relative"`` scales the
            border to the picture's own size.
        text: the sentence before the last user text, None for none.
        manifest: where the border comes from, None if nobody knows.

    Raises:
        ConfigurationError: the pixels are no picture, the box leaves no border or no room, or the
            text is empty.
    """

    frame: Frame = field(repr=False)
    sizing: Sizing = "fixed"
    text: str | None = DEFAULT_PREFIX
    manifest: Manifest | None = field(default=None, repr=False)

    stage: ClassVar[Stage] = "picture"

    def __post_init__(self) -> None:
        """Check the frame and the text; keep the pixels from being written to."""
        _check_frame(self.frame)
        if self.sizing not in ("fixed", "relative"):
            raise ConfigurationError(f"sizing is fixed or relative, got {self.sizing!r}.")
        if self.text is not None:
            SafetyPrefix(self.text)
        pixels = self.frame.pixels.copy()
        pixels.flags.writeable = False
        object.__setattr__(self, "frame", Frame(pixels, self.frame.box))

    @property
    def needs(self) -> frozenset[str]:
        """The pixels; with a text the prompt as well."""
        return frozenset({"pixels"} if self.text is None else {"pixels", "prompt"})

    @property
    def trained_on(self) -> ModelIdentity | None:
        """The model that the border was trained on, None if nobody knows."""
        return None if self.manifest is None else self.manifest.base

    def apply_to_image(self, image: Image.Image) -> Image.Image:
        """The picture, shrunk, in the border; one that stands in it already stays as it is.

        Args:
            image: any picture; transparency is not looked at (intake flattens it).

        Returns:
            RGB; of the border's size, or of the picture's own where the sizing is relative.

        Raises:
            ConfigurationError: the picture is too small for a relative border.
        """
        frame = self._frame_for(image)
        return image if has_frame(image, frame) else framed(image, frame)

    def _frame_for(self, image: Image.Image) -> Frame:
        return self.frame if self.sizing == "fixed" else scaled_frame(self.frame, image.size)

    def apply(self, messages: Any) -> Any:
        """The messages with every picture bordered and the text before the last user text.

        Applying it twice changes nothing more.

        Args:
            messages: a string, a list of ``{"role", "content"}`` mappings whose pictures are
                parts ``{"type": "image", "image": ...}`` with whatever intake can read, or a
                conversation whose pictures are decoded.

        Returns:
            The same kind; what was passed in is not changed.

        Raises:
            PromptError: there is no user message to put the text into.
            ImageError: a picture cannot be read.
        """
        if isinstance(messages, Conversation):
            messages = self._in_conversation(messages)
        elif not isinstance(messages, str):
            messages = [self._bordered(message) for message in messages]
        return messages if self.text is None else SafetyPrefix(self.text).apply(messages)

    def check(self, host: Host) -> None:
        """Make sure that the model's processor leaves the border in the picture.

        A border of another model, or of another revision, is told once in the log.

        Raises:
            UnsupportedModelError: it crops pictures that are no squares, and the border is one
                that keeps every shape, or no square itself.
        """
        from ..model.preprocessing import cuts_out

        width, height = self.frame.size
        square = self.sizing == "fixed" and width == height
        if not square and cuts_out(getattr(host.processor, "image_processor", None)):
            raise UnsupportedModelError(
                f"{host.name} cuts the middle out of a picture, and with it a part of a border "
                "that is no square; use a border with a fixed, square canvas, or a processor that "
                "pads (model.preprocessing.padded_to_square)."
            )
        if self.trained_on is not None:
            from ..fitting import identify

            here = identify(host.model, host.name)
            if not self.trained_on.same_as(here):
                _of_another_model(str(self.trained_on), str(here))

    def interventions(self, prompt: Prompt, host: Host) -> Interventions:
        """Nothing inside the model; but every picture that goes into it has to wear the border.

        Raises:
            PromptError: one does not.
        """
        from ..model.interventions import Interventions

        for image in (image for talk in prompt.conversations for image in talk.images):
            if not has_frame(image, self._frame_for(image)):
                raise PromptError(
                    "A picture came to the model without its border: another guardrail has changed "
                    "it afterwards. Let that one name the stage 'picture' and a name that sorts "
                    "before VisualSafetyPrompt, or leave one of them out."
                )
        return Interventions()

    def to_png(self, path: str | Path) -> Path:
        """Write the border as a PNG, transparent where the picture goes.

        Anybody can use it: shrink a picture to the transparent box, and put the PNG over it.
        """
        rgba = np.dstack([self.frame.pixels, np.full(self.frame.pixels.shape[:2], 255, np.uint8)])
        left, top, right, bottom = self.frame.box
        rgba[top:bottom, left:right, 3] = 0
        where = Path(path)
        Image.fromarray(rgba).save(where, format="PNG")
        return where

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the border, what it was trained on and what was measured.

        Raises:
            ConfigurationError: nobody knows where this border comes from.
        """
        from ..fitting import save_artifact

        return save_artifact(folder, self.artifact)

    @property
    def artifact(self) -> Artifact:
        """The border as it is kept.

        Raises:
            ConfigurationError: nobody knows where this border comes from.
        """
        import torch

        from ..fitting import Artifact

        if self.manifest is None:
            raise ConfigurationError(
                "This border has no manifest, so there is nothing to say about its origin; keep "
                "its pixels with to_png, or fit one with `sightrail fit davsp`."
            )
        use = {"sizing": self.sizing, "text": self.text}
        manifest = self.manifest.model_copy(update={"settings": {**self.manifest.settings, **use}})
        tensors = {
            PIXELS: torch.from_numpy(self.frame.pixels.copy()),
            BOX: torch.tensor(self.frame.box),
        }
        return Artifact(manifest, tensors)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> VisualSafetyPrompt:
        """Read a border from a folder, ``"testbed"`` or the Hugging Face Hub.

        No model is asked for: a border may be put around the pictures of any.

        Raises:
            ArtifactError: there is none, or it is unreadable.
        """
        from ..fitting import load_artifact

        artifact = load_artifact(name, "davsp")
        try:
            left, top, right, bottom = artifact.tensors[BOX].tolist()
            frame = Frame(artifact.tensors[PIXELS].numpy(), (left, top, right, bottom))
            settings = artifact.manifest.settings
            return cls(frame, settings["sizing"], settings["text"], artifact.manifest)
        except (KeyError, ValueError, TypeError) as error:
            raise ArtifactError(f"The border in {name} is unreadable: {error!r}") from error

    def _in_conversation(self, conversation: Conversation) -> Conversation:
        pairs = zip(conversation.image_parts, conversation.images, strict=True)
        return conversation.with_images(
            [replace(part, screened=self.apply_to_image(image)) for part, image in pairs]
        )

    def _bordered(self, message: Any) -> Any:
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(content, list | tuple):
            return message
        return {**message, "content": [self._part(part) for part in content]}

    def _part(self, part: Any) -> Any:
        if not isinstance(part, Mapping) or part.get("type") != "image":
            return part
        return {**part, "image": self.apply_to_image(_decoded(part.get("image")))}


@cache
def _of_another_model(trained_on: str, here: str) -> None:
    _log.warning(
        "This border was trained on %s, and is put around the pictures of %s: what was measured "
        "there says nothing of it here. Train one with `sightrail fit davsp`.",
        trained_on,
        here,
    )


def _decoded(source: Any) -> Image.Image:
    if isinstance(source, Image.Image) and source.mode == "RGB":
        return source  # decoded already: the very pixels that screening has looked at
    from ..intake import Limits, read_picture

    return read_picture(source, Limits()).image


def _check_frame(frame: Frame) -> None:
    pixels, (left, top, right, bottom) = frame.pixels, frame.box
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ConfigurationError(
            f"A border is uint8 pixels [H, W, 3], got {pixels.dtype} {list(pixels.shape)}."
        )
    width, height = frame.size
    if not (0 < left < right < width and 0 < top < bottom < height):
        raise ConfigurationError(
            f"The box {frame.box} leaves no border or no picture on {width} x {height} pixels."
        )
