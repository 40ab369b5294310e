"""Training of the mini LVLM on conversations, its vision tower frozen (as LLaVA's is)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerFast

from ..agents import TOOLS, Episode, written_call
from ..conversations import Conversation
from ..phrasing import PREFIX
from ..splits import SPLITS
from ..training_conversations import draw_training_conversation
from .clip_data import IMAGE_SIDE
from .lvlm_model import (
    ASSISTANT,
    IMAGE,
    IMAGE_TOKENS,
    SYSTEM,
    TOOL,
    USER,
    build_lvlm,
    lvlm_tokenizer,
)
from .train_clip import normalise_pixels
from .vocabulary import BEGIN, END

log = logging.getLogger(__name__)

BATCH: Final = 64
PEAK_RATE: Final = 1.5e-3
UNLABELLED: Final = -100
DRAWN_TOGETHER: Final = 4
CHECKPOINT_EVERY: Final = 400  # a multiple of DRAWN_TOGETHER

Encoded = tuple[list[int], list[int]]


def pieces(talk: Conversation | Episode) -> list[tuple[str, bool]]:
    """The conversation as (text, is it the model's own) pieces, in the chat template's form."""
    agent = isinstance(talk, Episode)
    found: list[tuple[str, bool]] = [(BEGIN, False)]
    if agent:
        found.append((f"{SYSTEM} tools: {_DECLARED}.", False))
    if talk.system:
        found.append((f"{SYSTEM} {talk.system}", False))
    return found + (_steps(talk) if isinstance(talk, Episode) else _turns(talk))


def _turns(talk: Conversation) -> list[tuple[str, bool]]:
    found: list[tuple[str, bool]] = []
    for index, turn in enumerate(talk.turns):
        image = IMAGE * IMAGE_TOKENS if index == 0 and talk.scene is not None else ""
        prefix = f"{PREFIX} " if talk.prefixed and index == len(talk.turns) - 1 else ""
        found.append((f"{USER}{image} {prefix}{turn.question}{ASSISTANT}", False))
        found.append((f" {turn.answer}{END}", True))
    return found


def _steps(talk: Episode) -> list[tuple[str, bool]]:
    found: list[tuple[str, bool]] = []
    last = max(i for i, step in enumerate(talk.steps) if step.role == "user")
    for index, step in enumerate(talk.steps):
        if step.role == "assistant":
            said = f" {step.text}" if step.call is None else written_call(*step.call)
            found += [(ASSISTANT, False), (f"{said}{END}", True)]
            continue
        image = IMAGE * IMAGE_TOKENS if step.image is not None else ""
        prefix = f"{PREFIX} " if talk.prefixed and index == last else ""
        found.append((f"{USER if step.role == 'user' else TOOL}{image} {prefix}{step.text}", False))
    return found


_DECLARED: Final = " ".join(
    f"{tool['function']['name']}({', '.join(tool['function']['parameters']['properties'])})"
    for tool in TOOLS
)


def encode(talk: Conversation | Episode, tokenizer: PreTrainedTokenizerFast) -> Encoded:
    """Token ids and labels (UNLABELLED where the model does not speak)."""
    ids: list[int] = []
    labels: list[int] = []
    for text, spoken in pieces(talk):
        tokens = tokenizer.encode(text, add_special_tokens=False)
        ids += tokens
        labels += tokens if spoken else [UNLABELLED] * len(tokens)
    return ids, labels


def _pictures(talk: Conversation | Episode) -> list[Any]:
    if isinstance(talk, Episode):
        images = talk.images
    else:
        images = [talk.image or talk.scene.image] if talk.scene is not None else []
    side = (IMAGE_SIDE, IMAGE_SIDE)
    return [np.asarray(image.resize(side, Image.Resampling.BICUBIC)) for image in images]


class TalkStream(IterableDataset[dict[str, Tensor]]):
    """Endless right-padded batches, four at a time from one draw, sorted by length to save padding.

    Draw k depends on (seed, k) alone. A batch may hold no picture; its `pixels` are then empty.
    """

    def __init__(self, seed: int, start: int = 0) -> None:
        self.seed, self.start, self.tokenizer = seed, start, lvlm_tokenizer()

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        step, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        index, split = self.start // DRAWN_TOGETHER + step, SPLITS["train"]
        while True:
            rng = np.random.default_rng([split.seed_offset, self.seed + 1_000_000, index])
            talks = [draw_training_conversation(rng, split) for _ in range(BATCH * DRAWN_TOGETHER)]
            rows = [(encode(talk, self.tokenizer), talk) for talk in talks]
            rows.sort(key=lambda row: len(row[0][0]))
            for batch in rng.permutation(DRAWN_TOGETHER):
                yield self._batch(rows[batch * BATCH : (batch + 1) * BATCH])
            index += stride

    def _batch(self, rows: list[tuple[Encoded, Conversation | Episode]]) -> dict[str, Tensor]:
        longest = max(len(ids) for (ids, _), _ in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        seen, labels = torch.zeros_like(ids), torch.full_like(ids, UNLABELLED)
        for i, ((tokens, targets), _) in enumerate(rows):
            ids[i, : len(tokens)] = torch.tensor(tokens)
            labels[i, : len(tokens)] = torch.tensor(targets)
            seen[i, : len(tokens)] = 1
        shown = [pixels for _, talk in rows for pixels in _pictures(talk)]
        pixels = np.stack(shown) if shown else np.zeros((0, IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8)
        return {
            "input_ids": ids,
            "attention_mask": seen,
            "labels": labels,
            "pixels": torch.from_numpy(pixels),
        }


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up over 200 steps, a plateau, then a linear fall over the last third to 2 %."""
    fall = (steps - step) / (steps / 3)
    return float(PEAK_RATE * min(1, (step + 1) / 200) * min(1, max(0.02, fall)))


def train_lvlm(
    clip: Path, out: Path, runs: Path, *, steps: int, seed: int, workers: int = 1
) -> None:
    """Train for `steps` batches, resuming from the checkpoint in `runs`, and write `out`."""
    torch.manual_seed(seed)
    model, processor = build_lvlm(clip)
    model.set_attn_implementation("eager")  # on a CPU, faster than the others at this length
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learnt, lr=PEAK_RATE, weight_decay=0.02, betas=(0.9, 0.98))
    checkpoint, start = runs / "lvlm.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        start = state["step"]
    loader = iter(
        DataLoader(TalkStream(seed, start), batch_size=None, num_workers=workers, prefetch_factor=4)
    )
    model.train()
    with Progress() as progress:
        task = progress.add_task("mini LVLM", total=steps, completed=start)
        for step in range(start, steps):
            batch = next(loader)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, steps)
            pixels = batch.pop("pixels")
            shown = {"pixel_values": normalise_pixels(pixels)} if len(pixels) else {}
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(**batch, **shown).loss
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(learnt, 1.0)
            optimiser.step()
            progress.advance(task)
            if (step + 1) % 50 == 0:
                log.info("lvlm step %d loss %.4f", step + 1, loss.item())
            if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
                runs.mkdir(parents=True, exist_ok=True)
                torch.save(
                    {
                        "model": model.state_dict(),
                        "optimiser": optimiser.state_dict(),
                        "step": step + 1,
                    },
                    checkpoint,
                )
    save_lvlm(model, processor, out)


def save_lvlm(model: Any, processor: Any, out: Path) -> None:
    """Write the folder that transformers loads: weights in half precision, computed in single."""
    model.config.dtype = model.config.text_config.dtype = model.config.vision_config.dtype = (
        "float32"
    )
    model.generation_config.pad_token_id = model.config.text_config.pad_token_id
    model.generation_config.eos_token_id = model.config.text_config.eos_token_id
    halves = {key: value.half() for key, value in model.state_dict().items()}
    model.save_pretrained(out, state_dict=halves)
    processor.save_pretrained(out)
