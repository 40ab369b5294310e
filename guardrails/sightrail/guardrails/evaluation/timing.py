"""Speed, always as a ratio to the bare model in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from PIL import Image

from ..model import LocalLVLM
from ..screening import RiskDetector
from .items import Item
from .report import Row
from .statistics import ratio_of_medians

_ANSWER_TOKENS: Final = 24


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _encode_once(detector: RiskDetector, image: Image.Image) -> None:
    encoder = detector.encoder
    encoder.embed_pixels(encoder.pixels(image, [(0, 0, *image.size)]))


def _row(stack: str, metric: str, group: str, ours: Sequence[float], bare: Sequence[float]) -> Row:
    value, low, high = ratio_of_medians(ours, bare)
    return Row(
        stack=stack, metric=metric, group=group, value=value, low=low, high=high, n=len(ours)
    )


def timing_rows(
    stacks: Mapping[str, LocalLVLM],
    detector: RiskDetector,
    items: Sequence[Item],
    tick: Callable[[int], None],
) -> list[Row]:
    """`time_ratio` and `first_token_ratio` of every stack, and what screening alone costs.

    The stacks take turns on every request, so that whatever else the machine does falls on all
    alike. Masked or refused requests count as they are: that is what a user would wait.

    Args:
        stacks: by name; "bare" must be among them.
        detector: timed alone, against encoding the same picture once and against a bare answer.
        items: benign requests with a picture; the first one only warms up.
        tick: called with 1 after each request.
    """
    whole: dict[str, list[float]] = {name: [] for name in stacks}
    first: dict[str, list[float]] = {name: [] for name in stacks}
    screened: list[float] = []
    encoded: list[float] = []
    for item in items:
        messages, image = item.messages(), item.pictures()[0].image
        for name, lvlm in stacks.items():
            whole[name].append(
                _seconds(partial(lvlm.chat, messages, max_new_tokens=_ANSWER_TOKENS))
            )
            first[name].append(_seconds(partial(lvlm.chat, messages, max_new_tokens=1)))
        screened.append(_seconds(partial(detector.screen, [image])))
        encoded.append(_seconds(partial(_encode_once, detector, image)))
        tick(1)
    rows = []
    for name in stacks:
        rows.append(_row(name, "time_ratio", "answer", whole[name][1:], whole["bare"][1:]))
        rows.append(_row(name, "first_token_ratio", "answer", first[name][1:], first["bare"][1:]))
    rows.append(_row("screening", "time_ratio", "one_encoding", screened[1:], encoded[1:]))
    rows.append(_row("screening", "time_ratio", "one_answer", screened[1:], whole["bare"][1:]))
    return rows
