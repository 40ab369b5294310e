"""Training CASA for a model, from examples to an artifact that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..datasets import Example
from ..errors import ConfigurationError
from ..fitting import FitData, FitMethod, Fitted, Report, Resources
from ..fitting.report import draw_roc
from ..fitting.run import FitRun, conversation_of, measured
from ..guarantees import CONFIDENCE, guaranteed_threshold, needed
from ..model import doorway
from ..model.families import Host, context_length, image_token_ids, text_tower
from ..model.prompt import PromptBuilder
from ..policy import Policy
from ..progress import Progress, silent
from ..roc import auroc, share_reaching, threshold_for
from ..verdict import Threshold
from .casa import THRESHOLD, Casa
from .fit_rows import Batches, make_rows, trainable
from .settings import CasaSettings, FitSettings
from .training import CasaLearner
from .weights import CasaWeights, pack, safety_tokens

if TYPE_CHECKING:
    from ..fitting import Artifact
    from ..model import LocalLVLM

_TOGETHER: Final = 32
_STEPS: Final = "training"


def fit_casa(
    lvlm: LocalLVLM,
    data: FitData,
    settings: FitSettings | None = None,
    *,
    progress: Progress = silent,
    checkpoint: Path | None = None,
    resources: Resources | None = None,
) -> Fitted:
    """Train the safety token and the safety attention (CASA), and choose a threshold.

    See ``fitting.Fit``. Benign examples without an answer are answered by the model as it is. The
    threshold is chosen on ``data.held_out``; without any it is 1/2.

    Raises:
        UnsupportedModelError: the inside of the model is not known.
        ConfigurationError: too few examples, a setting does not fit the model, or no picture would
            be seen though some were given.
        FitMemoryError: not even one request at a time fits into memory.
    """
    chosen = settings or FitSettings()
    run = FitRun.begin(
        "casa",
        lvlm,
        data,
        chosen,
        progress=progress,
        checkpoint=checkpoint,
        resources=resources,
    )
    host = fitting_host(run.lvlm)
    method = method_settings(host, chosen)
    rows = make_rows(host, trainable(run, chosen), chosen, run)
    batches = Batches(host, rows, (method.safe_token, method.unsafe_token), chosen)
    weights = CasaLearner.trained(host, batches, method, chosen, run)
    artifact = _artifact(run, method, weights, [row.example for row in rows], chosen.steps)
    if not data.held_out:
        return Fitted(artifact, Casa(artifact), Report())
    return _measured(Casa(artifact), run, chosen.over_refusal)


def fitting_host(lvlm: LocalLVLM) -> Host:
    """The model with its inside open."""
    model, processor = lvlm.model, lvlm.processor
    tower = text_tower(model, wanted_by="Casa")
    prompts = PromptBuilder(
        processor, context_length=context_length(model), image_token_ids=image_token_ids(model)
    )
    doorway.install(tower, model, hidden_states=True)
    return Host(model, processor, lvlm.name, prompts, Policy(), tower)


def method_settings(host: Host, fit: FitSettings) -> CasaSettings:
    """The method's settings for this model.

    Raises:
        ConfigurationError: the model has no such layer or token.
    """
    tower = host.inside("Casa")
    # Mllama leaves its cross-attention layers out where there is no picture.
    possible = [*tower.self_attention, tower.depth]
    wished = round(tower.depth * 2 / 3) if fit.layer is None else fit.layer
    layer = min(possible, key=lambda index: abs(index - wished)) if fit.layer is None else wished
    if layer not in possible:
        raise ConfigurationError(
            f"layer is {layer}, but the model has {tower.depth} decoder layers, "
            f"of which {', '.join(map(str, tower.self_attention))} see every request."
        )
    safe, unsafe = safety_tokens(host, fit.tokens)
    return CasaSettings(
        safe_token=safe,
        unsafe_token=unsafe,
        layer=layer,
        heads=fit.heads,
        width=fit.width,
        targets=fit.adapted,
        rank=fit.rank,
        alpha=fit.alpha,
    )


@dataclass(frozen=True)
class Scores:
    """P(unsafe) of requests by label, and v beside it.

    Attributes:
        harmful: of the harmful ones.
        benign: of the benign ones.
        harmful_attention: v of the harmful ones.
        benign_attention: v of the benign ones.
    """

    harmful: tuple[float, ...]
    benign: tuple[float, ...]
    harmful_attention: tuple[float, ...]
    benign_attention: tuple[float, ...]


def results_at(scores: Scores, threshold: float) -> dict[str, float]:
    """AUROC, and the shares beyond a threshold."""
    return {
        THRESHOLD: threshold,
        "auroc": auroc(scores.harmful, scores.benign),
        "auroc_attention": auroc(scores.harmful_attention, scores.benign_attention),
        "harmful_refused": share_reaching(scores.harmful, threshold),
        "benign_refused": share_reaching(scores.benign, threshold),
        "held_out": float(len(scores.harmful) + len(scores.benign)),
    }


def chosen_threshold(scores: Scores, over_refusal: float, source: str) -> Threshold:
    """The lowest threshold that promises at most this share of refused benign requests.

    Where there are too few of them for a promise (149 for 2 %), the lowest one that at most this
    share of them reaches, and its provenance says so.
    """
    n = len(scores.benign)
    if not 0 < over_refusal < 1 or n < needed(over_refusal, CONFIDENCE):
        told = f"{source or 'held-out examples'}; n={n}, too few to promise {over_refusal:.3g}"
        return Threshold(value=threshold_for(scores.benign, over_refusal), source=told)
    return guaranteed_threshold(
        scores.benign,
        false_alarms=over_refusal,
        source=source or "held-out examples",
        attacks=scores.harmful,
    )


def _measured(casa: Casa, run: FitRun, over_refusal: float) -> Fitted:
    """The threshold chosen on the examples kept apart, and what it gives there.

    Raises:
        ConfigurationError: not both labels are among them.
    """
    scores = _scores(casa, run)
    if not scores.harmful or not scores.benign:
        raise ConfigurationError("The examples kept apart need harmful and benign ones.")
    limit = chosen_threshold(scores, over_refusal, run.data.source)
    results = results_at(scores, limit.value)
    artifact = casa.artifact.with_manifest(
        results=results, threshold=limit, benign=tuple(sorted(scores.benign))
    )

    def draw(file: Path) -> None:
        curves = {
            "P(unsafe)": (scores.harmful, scores.benign),
            "v alone": (scores.harmful_attention, scores.benign_attention),
        }
        at = (results["benign_refused"], results["harmful_refused"])
        draw_roc(curves, file, at=(*at, f"threshold {results[THRESHOLD]:.3g}"))

    return Fitted(artifact, Casa(artifact), Report(results, {"roc.png": draw}))


def _scores(casa: Casa, run: FitRun) -> Scores:
    """P(unsafe) and v of every example kept apart, one reading of the prompt each."""
    watching = run.lvlm.with_guardrails(
        [replace(casa, threshold=Threshold(value=0.5, source="none"))]
    )

    def work(part: Sequence[Example]) -> list[tuple[float, float]]:
        verdicts = watching.assess_batch([conversation_of(example) for example in part])
        return [(verdict.score or 0.0, measured(verdict, "attention")) for (verdict,) in verdicts]

    kept = run.readable(run.data.held_out, "held-out pictures")
    found = run.each("held-out examples", kept, work, most=_TOGETHER)
    pairs = list(zip(kept, found, strict=True))
    return Scores(
        harmful=tuple(score for example, (score, _) in pairs if example.harmful),
        benign=tuple(score for example, (score, _) in pairs if not example.harmful),
        harmful_attention=tuple(v for example, (_, v) in pairs if example.harmful),
        benign_attention=tuple(v for example, (_, v) in pairs if not example.harmful),
    )


def _artifact(
    run: FitRun,
    settings: CasaSettings,
    weights: CasaWeights,
    used: Sequence[Example],
    steps: int,
) -> Artifact:
    kept: dict[str, Any] = settings.to_json()
    return run.artifact(kept, pack(weights), {}, used, steps=steps)


METHOD: Final = FitMethod("casa", FitSettings, fit_casa, Casa.from_pretrained)
