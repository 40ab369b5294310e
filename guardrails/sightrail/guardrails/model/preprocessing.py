"""How a model's own processor prepares pictures: what it makes of one, and what it leaves out.

Screening looks at what the processor makes of a picture too. Presets keep what some processors cut
off.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, Final

from ..carriers.loop import Shown
from ..errors import UnsupportedModelError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..screening.seen_by import Scaler, SeenAt
    from ..verdict import Box


_KEPT: Final = (
    *("size", "crop_size", "resample", "image_mean", "image_std", "rescale_factor"),
    *("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"),
)


def padded_to_square(processor: Any) -> Any:
    """The processor of LLaVA-1.5, padding a picture to a square in place of cutting one out of it.

    transformers' checkpoints of LLaVA-1.5 cut the middle out of a picture; the model was trained on
    padded ones, and the authors of MoRAS and DAVSP pad as well. Nothing of a picture is lost so.

    Args:
        processor: stays as it is.

    Returns:
        A copy for ``LocalLVLM(model, padded_to_square(processor))``.

    Raises:
        UnsupportedModelError: the processor cuts nothing out, or prepares pictures in another way.
    """
    from transformers import CLIPImageProcessor, LlavaImageProcessor

    images = processor.image_processor
    if not isinstance(images, CLIPImageProcessor | LlavaImageProcessor) or not cuts_out(images):
        raise UnsupportedModelError(
            f"{type(images).__name__} cuts nothing out of a picture that padding would keep; use "
            "the processor as it is."
        )
    settings = {name: getattr(images, name) for name in _KEPT}
    padded = copy.copy(processor)
    padded.image_processor = LlavaImageProcessor(**settings, do_pad=True)
    return padded


def cuts_out(images: Any) -> bool:
    """Whether an image processor shows the model only the middle of a picture.

    LLaVA-NeXT's is told to as well, and does so to tiles alone, of which each is a square already.
    """
    crops = bool(getattr(images, "do_center_crop", False))
    tiles = getattr(images, "image_grid_pinpoints", None)
    return crops and not tiles and not pads_to_square(images)


def shown_by(processor: Any, image: Image) -> Shown:
    """What a model's processor makes of a picture, for screening."""
    images = getattr(processor, "image_processor", None)
    return Shown(seen_by(processor, image), kept_part(images, image.size))


def kept_part(images: Any, size: tuple[int, int]) -> Box | None:
    """The part of a picture that a processor leaves of it, in its pixels, rounded outwards.

    Args:
        images: an image processor.
        size: (width, height) of the picture.

    Returns:
        None where it leaves all of it.
    """
    from ..screening.seen_by import target_size

    if not cuts_out(images):
        return None
    asked = getattr(images, "size", None) if getattr(images, "do_resize", False) else None
    scaled = size if not asked else target_size(size, _fixed_size(asked, size) or size)
    crop = images.crop_size
    left, right = _middle(size[0], scaled[0], crop["width"])
    top, bottom = _middle(size[1], scaled[1], crop["height"])
    return None if (left, top, right, bottom) == (0, 0, *size) else (left, top, right, bottom)


def _middle(own: int, scaled: int, kept: int) -> tuple[int, int]:
    """What the middle of a side is before it is scaled: from and to."""
    if kept >= scaled:
        return 0, own
    before, share = (scaled - kept) // 2, own / scaled
    return math.floor(before * share), min(own, math.ceil((before + kept + 1) * share))


def pads_to_square(images: Any) -> bool:
    """Whether it pads a whole picture to a square; others mean something else by ``do_pad``."""
    from transformers import LlavaImageProcessor

    return isinstance(images, LlavaImageProcessor) and bool(images.do_pad)


_SCALERS: Final[dict[int, Scaler]] = {
    0: "nearest",
    1: "lanczos",
    2: "smooth_bilinear",
    3: "smooth_bicubic",
}
"""By Pillow's number, as transformers stores it; all but the first weigh the whole cell there."""


_PLAINLY_MORE: Final = 1.25  # times the pixels: less is rounding to whole patches


def seen_by(processor: Any, image: Image) -> tuple[Image, ...]:
    """The picture at the sizes at which the processor shows it; nothing where that is no smaller.

    A size that all pictures get stands in the processor's settings: for LLaVA-1.5 (the shorter
    side, before its centre crop), for SigLIP towers (the whole picture squashed) and for Idefics3,
    SmolVLM and Pixtral (the longer side). Some show more: Qwen-VL chooses a size for each picture,
    and LLaVA-NeXT, LLaVA-OneVision, InternVL, Mllama and Gemma 3's pan and scan add tiles of it at
    a higher resolution. So the processor is asked what it makes of this picture, and where that
    has plainly more pixels, the picture is there with as many as well, which may be all of them.

    Args:
        processor: the model's processor.
        image: RGB.
    """
    from ..screening.seen_by import scaled_views

    images = getattr(processor, "image_processor", None)
    if images is None:
        return ()
    views: tuple[Image, ...] = ()
    if getattr(images, "do_resize", False):
        size = _fixed_size(getattr(images, "size", None), image.size)
        if pads_to_square(images):
            size = _in_a_square(images.size, image) or size
        views = () if size is None else scaled_views(image, [size], [_scaler(images)])
        if (size is not None and not views) or pads_to_square(images):
            return views  # it is made larger, or nothing but padding is added
    known = max((view.width * view.height for view in views), default=0)
    shown, own = _pixels_shown(images, image), image.width * image.height
    if shown <= _PLAINLY_MORE * known:
        return views
    if shown >= own:
        return (*views, image)
    share = (shown / own) ** 0.5
    larger = (max(1, int(image.width * share)), max(1, int(image.height * share)))
    return (*views, *scaled_views(image, [larger], [_scaler(images)]))


def _pixels_shown(images: Any, image: Image) -> float:
    """How many pixels of a picture a processor hands to the model, padding among them.

    What it cannot prepare counts in full: whoever makes the model see it all the same should find
    that it was looked at as closely as can be.
    """
    try:
        pixels = images(image, return_tensors="pt")["pixel_values"]
        return int(pixels.numel()) / 3 / int(getattr(images, "temporal_patch_size", None) or 1)
    except Exception:  # every family's processor raises its own kinds of error
        return image.width * image.height


def _scaler(images: Any) -> Scaler:
    """How the processor resizes; transformers takes bicubic where torchvision has no Lanczos."""
    from transformers.utils.import_utils import is_torchvision_greater_or_equal

    scaler = _SCALERS.get(int(getattr(images, "resample", None) or 0), "smooth_bilinear")
    with_torchvision = getattr(images, "backend", None) == "torchvision"
    if scaler == "lanczos" and with_torchvision and not is_torchvision_greater_or_equal("0.27"):
        return "smooth_bicubic"
    return scaler


def _in_a_square(size: Any, image: Image) -> SeenAt | None:
    """The picture's part of a square that it was padded to (LLaVA-1.5, as its authors do)."""
    if not (edge := size.get("shortest_edge")):
        return None
    share = int(edge) / max(image.size)
    return max(1, round(image.width * share)), max(1, round(image.height * share))


def _fixed_size(size: Any, shape: tuple[int, int]) -> SeenAt | None:
    """The size that a processor's `size` stands for; None where it depends on more than that."""
    if size is None:
        return None
    edges = {name: size.get(name) for name in ("height", "width", "shortest_edge", "longest_edge")}
    height, width, shortest, longest = edges.values()
    if height and width:
        return int(width), int(height)
    if shortest and longest:  # numbers of pixels that a picture may have, not sides
        return None
    if shortest:
        return int(shortest)
    if not longest:
        return None
    share = min(1.0, int(longest) / max(shape))
    return max(1, int(shape[0] * share)), max(1, int(shape[1] * share))
