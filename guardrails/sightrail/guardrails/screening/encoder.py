"""The screening encoder: any open_clip model, asked for embeddings of crops, patches and texts.

Where it looks: overlapping crops of several scales, the whole picture among them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from PIL import Image
from torch import Tensor

from ..embedded import TESTBED, embedded_folder
from ..errors import ConfigurationError, ModelLoadError, UnsupportedModelError
from ..verdict import Box

Scales = tuple[tuple[float, int], ...]
"""((share of the side, windows along a side), ...): (0.5, 3) is 3 x 3 windows of half the side."""


def crop_levels(size: tuple[int, int], scales: Scales) -> list[list[Box]]:
    """The whole picture, then the windows of every scale, in pixels.

    Windows keep the picture's shape, overlap evenly and reach every edge, so that no pixel is
    left out. On a picture too small for a scale, windows that coincide are given once.

    Args:
        size: (width, height).
        scales: see Scales; a share of 1 is the whole picture, which is always there.
    """
    width, height = size
    known: set[Box] = {(0, 0, width, height)}
    levels: list[list[Box]] = [[(0, 0, width, height)]]
    for share, count in scales:
        w, h = max(1, round(width * share)), max(1, round(height * share))
        windows = [
            (left, top, left + w, top + h)
            for top in _starts(height, h, count)
            for left in _starts(width, w, count)
        ]
        levels.append([box for box in dict.fromkeys(windows) if box not in known])
        known.update(windows)
    return levels


def crop_boxes(size: tuple[int, int], scales: Scales) -> list[Box]:
    """The crops of all levels, the whole picture first; see ``crop_levels``."""
    return [box for level in crop_levels(size, scales) for box in level]


def _starts(length: int, window: int, count: int) -> list[int]:
    return [round((length - window) * step / max(1, count - 1)) for step in range(count)]


def tile_boxes(size: tuple[int, int], tile: tuple[float, float], most: int) -> list[Box] | None:
    """Windows of one size that cover a picture, each half over the next; None if more than `most`.

    Args:
        size: (width, height) of the picture.
        tile: (width, height) of a window, at least half a pixel.
        most: windows.
    """
    counts = [1 + max(0, ceil(2 * (side / one - 1))) for side, one in zip(size, tile, strict=True)]
    if counts[0] * counts[1] > most:
        return None
    w, h = (min(side, max(1, ceil(one))) for side, one in zip(size, tile, strict=True))
    return [
        (left, top, left + w, top + h)
        for top in _starts(size[1], h, counts[1])
        for left in _starts(size[0], w, counts[0])
    ]


def token_boxes(box: Box, grid: tuple[int, int]) -> list[Box]:
    """The part of the picture behind each patch token of an encoded box, row by row.

    Args:
        box: what was resized to the encoder's input.
        grid: (rows, columns) of tokens.
    """
    left, top, right, bottom = box
    rows, columns = grid
    xs = [left + round((right - left) * i / columns) for i in range(columns + 1)]
    ys = [top + round((bottom - top) * i / rows) for i in range(rows + 1)]
    return [
        (xs[c], ys[r], max(xs[c] + 1, xs[c + 1]), max(ys[r] + 1, ys[r + 1]))
        for r in range(rows)
        for c in range(columns)
    ]


DEFAULT_ENCODER: Final = "ViT-L-14-336/openai"
ENCODER_VARIABLE: Final = "SIGHTRAIL_ENCODER"
_MOST_CROPS: Final = 512
_PIXELS_A_PASS: Final = 8_000_000  # 96 MB as the encoder takes them
TokenPath = Literal["tokens", "values"]


@dataclass(frozen=True, eq=False)
class Encoder:
    """An open_clip model with what screening needs to know about it.

    Attributes:
        name: what it was asked for by.
        folder: where its files lie, for a local one.
        model: the open_clip model, in evaluation mode.
        side: the height and width of its input, in pixels.
        batch_size: crops in one pass; fewer where they are large, to bound the memory it takes.
    """

    name: str
    folder: Path | None
    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    side: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    batch_size: int = _MOST_CROPS

    @property
    def is_testbed(self) -> bool:
        """Whether this is the embedded mini encoder, which knows its own world only."""
        return self.folder is not None and self.folder == embedded_folder("clip")

    @property
    def logit_scale(self) -> float:
        """The factor that turns cosines into logits (about 100 for CLIP)."""
        return float(self.model.logit_scale.detach().exp())

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type that the weights are computed in."""
        return cast(torch.dtype, next(self.model.parameters()).dtype)

    def pixels(
        self, image: Image.Image, boxes: Sequence[tuple[float, float, float, float]]
    ) -> Tensor:
        """The boxes of an RGB picture, each resized to the input: float32 [B, 3, H, W].

        A box is squashed, not centre-cropped: a crop would leave the margins unseen.
        """
        height, width = self.side
        stack = np.stack(
            [
                np.asarray(
                    image.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=3)
                )
                for box in boxes
            ]
        )
        scaled = torch.from_numpy(stack).permute(0, 3, 1, 2).float().div_(255)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (scaled - mean) / std

    @torch.inference_mode()
    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Unit embeddings of prepared crops: [B, 3, H, W] -> float32 [B, D] on the CPU."""
        parts = [
            F.normalize(self.model.encode_image(part.to(self.device, self.dtype)).float(), dim=-1)
            for part in pixels.split(self.batch_size)
        ]
        return torch.cat(parts).cpu()

    @torch.inference_mode()
    def embed_tokens(self, pixels: Tensor, path: TokenPath) -> Tensor:
        """Unit embeddings of every patch token: [B, 3, H, W] -> float32 [B, h*w, D] on the CPU.

        `tokens` projects the last layer's tokens; `values` takes the last layer's value path
        (MaskCLIP, arXiv 2112.01071), which keeps large CLIPs' tokens close to their place.

        Raises:
            UnsupportedModelError: the vision tower is not open_clip's own transformer.
        """
        parts = [
            F.normalize(self._tokens(part.to(self.device, self.dtype), path).float(), dim=-1)
            for part in pixels.split(self.batch_size)
        ]
        return torch.cat(parts).cpu()

    def _tokens(self, pixels: Tensor, path: TokenPath) -> Tensor:
        visual = self.model.visual
        if getattr(visual, "proj", None) is None or not hasattr(visual, "forward_intermediates"):
            raise UnsupportedModelError(
                f"{self.name} has no patch tokens in its text space; use patches='crops'"
            )
        if path == "tokens":
            found = visual.forward_intermediates(
                pixels,
                indices=1,
                normalize_intermediates=True,
                intermediates_only=True,
                output_fmt="NLC",
            )
            return cast(Tensor, found["image_intermediates"][-1] @ visual.proj)
        found = visual.forward_intermediates(
            pixels, indices=2, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
        )
        before = found["image_intermediates"][0]
        block = visual.transformer.resblocks[-1]
        normed = block.ln_1(before)
        width = normed.shape[-1]
        weight, bias = block.attn.in_proj_weight[2 * width :], block.attn.in_proj_bias[2 * width :]
        values = block.attn.out_proj(F.linear(normed, weight, bias))
        return cast(Tensor, visual.ln_post(values) @ visual.proj)

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of the patch tokens."""
        patch = self.model.visual.patch_size
        rows, columns = patch if isinstance(patch, tuple) else (patch, patch)
        return self.side[0] // rows, self.side[1] // columns

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings of texts: float32 [N, D] on the CPU."""
        tokens = self.tokenizer(list(texts)).to(self.device)
        return F.normalize(self.model.encode_text(tokens).float(), dim=-1).cpu()


def load_encoder(
    name: str | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Encoder:
    """Load an encoder through open_clip's own loaders.

    Args:
        name: "ViT-L-14-336/openai" (architecture/weights), "hf-hub:org/model", "local-dir:folder",
            a folder, or "testbed". None takes SIGHTRAIL_ENCODER, else ViT-L-14-336/openai; it is
            never the testbed unless that is what was named.
        device: a torch device; a GPU where there is one when None.
        dtype: of the weights; float32 when None.

    Raises:
        ConfigurationError: the name has no form that open_clip knows.
        ModelLoadError: the weights cannot be had; the message says what can be done.
    """
    import open_clip

    asked = name or os.environ.get(ENCODER_VARIABLE) or DEFAULT_ENCODER
    target, pretrained, folder = _resolve(asked)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        model = open_clip.create_model(
            target, pretrained=pretrained, device=place, require_pretrained=True
        )
        tokenizer = open_clip.get_tokenizer(target)
    except Exception as error:
        raise ModelLoadError(
            f"The encoder {asked!r} could not be loaded "
            f"({type(error).__name__}: {str(error)[:200]}). "
            f"Give a name that open_clip knows ({DEFAULT_ENCODER}), a folder with its files "
            f"(local-dir:FOLDER), or set {ENCODER_VARIABLE}; offline, the files must be cached."
        ) from error
    if dtype is not None:
        model = model.to(dtype)
    settings = model.visual.preprocess_cfg
    size = settings["size"]
    side = (size, size) if isinstance(size, int) else (size[0], size[1])
    return Encoder(
        name=asked,
        folder=folder,
        model=model.eval(),
        tokenizer=tokenizer,
        side=side,
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        device=place,
        batch_size=max(1, min(_MOST_CROPS, _PIXELS_A_PASS // (side[0] * side[1]))),
    )


def _resolve(asked: str) -> tuple[str, str | None, Path | None]:
    """open_clip's name, its weights' tag, and the folder if it is a local one."""
    if asked == TESTBED:
        folder = embedded_folder("clip")
        return f"local-dir:{folder}", None, folder
    if asked.startswith("local-dir:"):
        return asked, None, Path(asked.removeprefix("local-dir:"))
    if asked.startswith("hf-hub:"):
        return asked, None, None
    if Path(asked, "open_clip_config.json").is_file():
        return f"local-dir:{asked}", None, Path(asked)
    architecture, slash, tag = asked.partition("/")
    if not architecture or not slash or not tag:
        raise ConfigurationError(
            f"{asked!r} names no encoder; write architecture/weights such as {DEFAULT_ENCODER}, "
            f"hf-hub:ORG/MODEL, local-dir:FOLDER, or 'testbed'"
        )
    return architecture, tag, None


def _single_threaded() -> None:
    """A forked process has none of the threads that torch believes to be there, and would wait for
    them without end.
    """
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_single_threaded)
