"""Fitting MoRAS: prototypes from unsafe questions in text, S_base from requests with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch

from ..datasets import Example
from ..errors import ConfigurationError
from ..fitting import Artifact, FitData, FitMethod, Fitted, Manifest, Report, Resources, identify
from ..fitting.examples import split_by_label
from ..fitting.report import draw_roc
from ..fitting.run import FitRun, conversation_of, measured
from ..model.families import Host
from ..model.interventions import Interventions, Stage
from ..model.messages import Conversation
from ..model.prompt import Prompt
from ..policy import Policy
from ..progress import Progress, silent
from ..roc import auroc
from .moras import NOT_FITTED, PROTOTYPES, Moras, fitted_settings
from .passes import LastStates
from .risk import separating_base
from .settings import MorasSettings

if TYPE_CHECKING:
    from ..model import LocalLVLM

_BATCH: Final = 8
_LEAST: Final = 4
_ASKED_AROUND: Final = 256  # tokens of instructions and of the visual context


def fit_moras(
    lvlm: LocalLVLM,
    data: FitData,
    settings: MorasSettings | None = None,
    *,
    progress: Progress = silent,
    checkpoint: Path | None = None,
    resources: Resources | None = None,
) -> Fitted:
    """Find the prototypes and the base of the risk (MoRAS): no training, some hundred requests.

    See ``fitting.Fit``. mu^n is the mean of x^n over ``data.prototypes``, asked as they are: unsafe
    questions without pictures, about 50. S_base is the mean of S over ``data.examples``, harmful
    and benign ones weighing the same, or what ``settings.base_rule`` says; they had best have
    pictures: calibrated on text alone, a model is known to refuse too much. ``data.held_out`` tells
    how well S separates the labels.

    Raises:
        ConfigurationError: too few examples of a label, no prototypes, or prototypes that are
            benign or have a picture.
        UnsupportedModelError: MoRAS does not work in this model.
        FitMemoryError: not even one request at a time fits into memory.
    """
    chosen = settings or MorasSettings()
    split_by_label(data.examples, _LEAST)
    _check_prototypes(data.prototypes)
    run = FitRun.begin(
        "moras",
        lvlm,
        data,
        chosen,
        progress=progress,
        checkpoint=checkpoint,
        resources=resources,
    )
    mu = prototype_states(run, data.prototypes, chosen.steps)
    used = run.readable(data.examples)
    found = _similarities(run, mu, "similarities", used, chosen)
    harmful, benign = _sides(used, found)
    if min(len(harmful), len(benign)) < 1:
        raise ConfigurationError("No picture of one of the labels can be read.")
    kept = run.readable(data.held_out, "held-out pictures")
    held = _sides(kept, _similarities(run, mu, "held-out similarities", kept, chosen))
    results = {"similarity_harmful": _mean(harmful), "similarity_benign": _mean(benign)}
    if all(held):
        results["auroc"] = auroc(*held)
    artifact = run.artifact(
        fitted_settings(replace(chosen, base=_base(chosen, harmful, benign))),
        {PROTOTYPES: mu},
        results,
        used,
        prototypes=len(data.prototypes),
    )

    def draw(file: Path) -> None:
        draw_roc({"S": held}, file)

    return Fitted(
        artifact, Moras(artifact), Report(results, {"roc.png": draw} if all(held) else {})
    )


def _base(settings: MorasSettings, harmful: Sequence[float], benign: Sequence[float]) -> float:
    if settings.base_rule == "separating":
        return separating_base(harmful, benign)
    return (_mean(harmful) + _mean(benign)) / 2


def prototype_states(run: FitRun, prototypes: Sequence[Example], steps: int) -> torch.Tensor:
    """mu, [N, C]: the mean states that predict the first tokens of the prototypes' answers."""
    probe = _Probe()
    probed = run.lvlm.with_guardrails([probe])
    plain: dict[str, Any] = {"num_beams": 1, "repetition_penalty": 1.0}

    def work(part: Sequence[Example]) -> list[list[list[float]]]:
        probe.kept.clear()
        messages = [conversation_of(example) for example in part]
        probed.batch(messages, max_new_tokens=steps, min_new_tokens=steps, **plain)
        (kept,) = probe.kept
        states: list[list[list[float]]] = kept.states.float().tolist()
        return states

    return torch.tensor(run.each("prototypes", prototypes, work, most=_BATCH)).mean(0)


@dataclass
class _Probe:
    """A guardrail that changes nothing and keeps the states of every run."""

    kept: list[LastStates] = field(default_factory=list)
    needs: frozenset[str] = frozenset({"hidden_states", "logits"})
    stage: ClassVar[Stage] = "decoding"

    def apply(self, messages: Conversation) -> Conversation:
        return messages

    def check(self, host: Host) -> None:
        pass

    def interventions(self, prompt: Prompt, host: Host) -> Interventions:
        states = LastStates(host.head)
        self.kept.append(states)
        depth = host.inside("MoRAS").depth
        return Interventions(hidden_states={depth: states.keep_state}, logits=[states])


def _similarities(
    run: FitRun,
    mu: torch.Tensor,
    what: str,
    examples: Sequence[Example],
    settings: MorasSettings,
) -> list[float]:
    """S of every example; the policy refuses all of them, so nothing is answered."""
    base = identify(run.lvlm.model, run.lvlm.name)
    fresh = Artifact(Manifest(kind="moras", base=base, settings=asdict(settings)), {PROTOTYPES: mu})
    told = replace(settings, refuse_above=0.0, context_risk=False)
    refusing = Policy(on_unsafe_request="refuse")
    guarded = run.lvlm.with_guardrails([Moras(fresh, told)], policy=refusing)

    def work(part: Sequence[Example]) -> list[float]:
        answers = guarded.batch([conversation_of(example) for example in part])
        return [measured(answer.verdicts[-1], "similarity") for answer in answers]

    return run.each(what, examples, work, most=_BATCH, more_tokens=_ASKED_AROUND)


def _check_prototypes(prototypes: Sequence[Example]) -> None:
    if not prototypes:
        raise ConfigurationError(
            "There are no prototypes; give about 50 unsafe questions in text alone."
        )
    if any(not example.harmful or example.image_count for example in prototypes):
        raise ConfigurationError(
            "Prototypes must be harmful and have no picture: they show how the model opens its "
            "answers to unsafe questions in text."
        )


def _sides(examples: Sequence[Example], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """The values of the harmful and of the benign examples."""
    pairs = list(zip(examples, values, strict=True))
    return [v for e, v in pairs if e.harmful], [v for e, v in pairs if not e.harmful]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


METHOD: Final = FitMethod(
    kind="moras",
    settings=MorasSettings,
    fit=fit_moras,
    load=Moras.from_pretrained,
    prototypes=True,
    not_fitted=NOT_FITTED | {"base"},
)
