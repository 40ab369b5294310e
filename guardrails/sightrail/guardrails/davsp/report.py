"""What a border changes on requests that it was not trained on: projections and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..datasets import Example
from ..fitting import Report
from ..fitting.report import draw_histograms
from ..fitting.run import FitRun
from ..refusals import is_refusal, normalise
from .harmfulness import projections
from .requests import ANSWER_TOKENS, TOGETHER, PictureRequest, prepare_requests

if TYPE_CHECKING:
    from .fit import TrainedBorder

_LEAST: Final = 2  # a spread needs two
Sides: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]


def measure_held_out(trained: TrainedBorder, run: FitRun) -> Report:
    """Measure a border on ``run.data.held_out``, with the text prompt alone and bordered.

    Returns:
        Shares by name: ``refused_harmful``, ``refused_benign`` and ``benign_kept`` (the answer is
        the wished-for one), each ``_before`` and ``_after``; the d' of both; and a picture of the
        projections.

    Raises:
        ConfigurationError: too few examples with pictures.
    """
    text, border = trained.prompt.text, trained.prompt.apply_to_image
    clean = prepare_requests(run, run.data.held_out, text, least=_LEAST, what="held-out examples")
    bordered = [replace(request, change=border) for request in clean]
    before, after = _projected(trained, clean, run), _projected(trained, bordered, run)
    results = _shares(clean, "before", run) | _shares(bordered, "after", run)
    results["separation_before"] = _d_prime(*before)
    results["separation_after"] = _d_prime(*after)
    found = trained.loss.direction

    def draw(file: Path) -> None:
        draw_histograms(
            {"text prompt alone": before, "with border": after},
            file,
            marks={
                "mu plus": (found.mu_plus, "tab:red"),
                "mu minus": (found.mu_minus, "tab:blue"),
            },
            label=f"projection on the harmfulness vector of layer {found.layer}",
        )

    return Report(results, {"projections.png": draw})


def _projected(trained: TrainedBorder, requests: Sequence[PictureRequest], run: FitRun) -> Sides:
    """Projections of harmful requests [N] and of benign ones [M]."""
    from .fit import clean_states

    found = trained.loss.direction
    sides = []
    for harmful in (True, False):
        some = [request for request in requests if request.harmful == harmful]
        states = clean_states(trained.loss.reader, some, run)[:, found.layer - 1].float()
        sides.append(projections(states, found.vector.cpu()).double().numpy())
    return sides[0], sides[1]


def _d_prime(harmful: NDArray[np.float64], benign: NDArray[np.float64]) -> float:
    spread = np.sqrt((harmful.var(ddof=1) + benign.var(ddof=1)) / 2)
    return float((harmful.mean() - benign.mean()) / max(float(spread), 1e-12))


def _shares(requests: Sequence[PictureRequest], moment: str, run: FitRun) -> dict[str, float]:
    """How many harmful and benign requests are refused, and how many benign answered as wished."""
    numbers = {id(request.example): number for number, request in enumerate(requests)}

    def work(part: Sequence[Example]) -> list[str]:
        talks = [requests[numbers[id(example)]].conversation() for example in part]
        answers = run.lvlm.batch(talks, max_new_tokens=ANSWER_TOKENS)
        return [answer.text for answer in answers]

    said = run.each(
        f"answers {moment}",
        [request.example for request in requests],
        work,
        most=TOGETHER,
        more_tokens=2 * ANSWER_TOKENS,
    )
    pairs = list(zip(requests, said, strict=True))
    refused = {side: [is_refusal(a) for r, a in pairs if r.harmful == side] for side in (1, 0)}
    kept = [normalise(a) == normalise(r.answer) for r, a in pairs if not r.harmful]
    return {
        f"refused_harmful_{moment}": float(np.mean(refused[1])),
        f"refused_benign_{moment}": float(np.mean(refused[0])),
        f"benign_kept_{moment}": float(np.mean(kept)),
    }
