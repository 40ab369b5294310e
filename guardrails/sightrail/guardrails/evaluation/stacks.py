"""Stacks of defences by name: what stands in front of and inside the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from ..embedded import TESTBED, embedded_module
from ..errors import ConfigurationError
from ..prefix import AttentiveCalibration, SafetyPrefix
from ..screening.asking import Detector
from ..screening.cache import CachedDetector

if TYPE_CHECKING:
    from ..evidence import Evidence
    from ..model import LocalLVLM

BARE: Final = "bare"
ALL: Final = "all"
"""One decision from all evidence; every other stack is made of parts that decide by themselves."""
SEEN_PICTURES: Final = 8192
"""Verdicts that stacks share, so that each picture is looked at once."""

Fitted = Literal["moras", "casa", "davsp", "evidence"]
FITTED: Final[tuple[Fitted, ...]] = get_args(Fitted)


Artifacts = Mapping[str, str | Path]
"""Where fitted defences lie: folders, Hub repositories or "testbed"."""


def artifacts_for(model: str, named: Artifacts | None = None) -> Artifacts:
    """The artifacts named; for the testbed model, its own where none is named."""
    embedded: Artifacts = dict.fromkeys(FITTED, TESTBED)
    return {**(embedded if model == TESTBED else {}), **(named or {})}


def calibration_for(model: str) -> AttentiveCalibration:
    """The testbed's own calibration for the testbed model, the published one for any other."""
    if model != TESTBED:
        return AttentiveCalibration.published()
    chosen: AttentiveCalibration = embedded_module("prefix").CALIBRATION
    return chosen


class Blind:
    """A detector for stacks that do not screen."""

    def screen(self, images: Sequence[Any], /) -> list[Any]:
        """Look at nothing.

        Raises:
            AssertionError: always.
        """
        raise AssertionError("this detector looks at nothing")


def screens(stack: str) -> bool:
    """Whether a stack needs the detector that screens, which takes seconds to load."""
    return bool({"screen", "guardalign", "cascade", ALL} & {*stack.split("+")})


@dataclass(frozen=True)
class Supplies:
    """What stacks are made from: the detector that screens, artifacts, the calibration, and what
    the detector's encoder was asked for by.
    """

    detector: Detector
    artifacts: Artifacts = field(default_factory=dict)
    calibration: AttentiveCalibration = field(default_factory=AttentiveCalibration)
    encoder: str | None = None

    def artifact(self, kind: Fitted) -> str | Path:
        """Where a fitted defence lies.

        Raises:
            ConfigurationError: nobody said.
        """
        if kind not in self.artifacts:
            raise ConfigurationError(
                f"{kind} is fitted to one model: make an artifact with `{_MADE_BY[kind]} "
                f"--model ...` and name its folder (--{kind} FOLDER)."
            )
        return self.artifacts[kind]

    @cached_property
    def reader(self) -> Detector:
        """The reader of text; on the testbed's encoder it judges by the mini world's own words."""
        from ..screening import RiskDetector
        from ..screening.reading import Lexicon, TextInPicture

        if self.encoder != TESTBED:
            return self._shared(TextInPicture(Lexicon.default()))
        screening: Any = _behind(self.detector)
        if not hasattr(screening, "encoder"):  # no other part of the stack looks through it
            screening = RiskDetector.from_pretrained(TESTBED)
        made = embedded_module("reading").concept_reader(screening.encoder, screening.concepts)
        return self._shared(TextInPicture(made))

    @cached_property
    def judge(self) -> Detector:
        """The testbed's own judge.

        Raises:
            ConfigurationError: the encoder is another: nobody has named a judge for it.
        """
        from ..judging import LocalJudge
        from ..screening import JudgeDetector

        if self.encoder != TESTBED:
            raise ConfigurationError(
                "The stacks judge and cascade are the testbed's own; put a JudgeDetector of yours "
                "among the guardrails of a LocalLVLM, and see sightrail.guardrails.judging."
            )
        profile = embedded_module("picture_judge").judge_profile("object")
        return self._shared(JudgeDetector(LocalJudge.from_pretrained(TESTBED, profile)))

    def _shared(self, detector: Detector) -> Detector:
        """Each picture is seen once by all stacks, where the screening is shared as well."""
        if not isinstance(self.detector, CachedDetector):
            return detector
        return CachedDetector(detector, max_items=SEEN_PICTURES)


_MADE_BY: Final[Mapping[Fitted, str]] = {
    **{kind: f"sightrail fit {kind}" for kind in FITTED},
    "evidence": "sightrail calibrate --stack",
}


def _behind(detector: Any) -> Any:
    """The detector behind a cache."""
    return detector.detector if isinstance(detector, CachedDetector) else detector


def _davsp(supplies: Supplies) -> list[Any]:
    from ..davsp import VisualSafetyPrompt

    return [VisualSafetyPrompt.from_pretrained(supplies.artifact("davsp"))]


def _casa(supplies: Supplies) -> list[Any]:
    from ..casa import Casa

    return [Casa.from_pretrained(supplies.artifact("casa"))]


def _moras(supplies: Supplies) -> list[Any]:
    from ..moras import Moras

    return [Moras.from_pretrained(supplies.artifact("moras"))]


def _screen(supplies: Supplies) -> list[Any]:
    return [supplies.detector]


def _read(supplies: Supplies) -> list[Any]:
    return [supplies.reader]


def _judge(supplies: Supplies) -> list[Any]:
    return [supplies.judge]


def _cascade(supplies: Supplies) -> list[Any]:
    from ..screening import Cascade

    return [Cascade(supplies.detector, supplies.judge, embedded_module("picture_judge").BAND)]


def _calibrated(supplies: Supplies) -> list[Any]:
    return [SafetyPrefix(calibration=supplies.calibration)]


# In the order of the data: picture, border, prompt, decision, decoding.
_PARTS: Final[dict[str, tuple[Callable[[Supplies], list[Any]], ...]]] = {
    BARE: (),
    "prefix": (lambda supplies: [SafetyPrefix()],),
    "calibration": (_calibrated,),
    "screen": (_screen,),
    "read": (_read,),
    "judge": (_judge,),
    "cascade": (_cascade,),
    "guardalign": (_screen, _calibrated),
    "moras": (_moras,),
    "casa": (_casa,),
    "davsp": (_davsp,),
}
_EVIDENCE: Final[dict[str, Callable[[Supplies], list[Any]]]] = {
    "screening": _screen,
    "reading": _read,
    "judge": _judge,
    "casa": _casa,
    "moras": _moras,
}
"""Parts that give evidence, by the names in their verdicts."""

_ORDER: Final = ("VisualSafetyPrompt", "SafetyPrefix", "Casa", "Moras")

DEFAULT_STACKS: Final = (
    *(BARE, "prefix", "prefix+calibration", "screen", "guardalign"),
    *("moras", "casa", "davsp", "screen+moras", "guardalign+moras", "guardalign+davsp"),
    *("casa+prefix", "guardalign+davsp+casa+moras", "read", "judge", "cascade", ALL),
)
_TESTBED_ONLY: Final = {"judge", "cascade"}


def default_stacks(artifacts: Artifacts, encoder: str = TESTBED) -> list[str]:
    """The stacks that can be made: those without a fitted defence whose artifact nobody named, and
    without a judge where the encoder is not the testbed's.
    """
    lacking = {*FITTED} - {*artifacts} | (set() if encoder == TESTBED else _TESTBED_ONLY)
    return [
        name
        for name in DEFAULT_STACKS
        if not lacking & ({"evidence"} if name == ALL else set(name.split("+")))
    ]


def guarded(name: str, bare: LocalLVLM, supplies: Supplies) -> LocalLVLM:
    """The model behind a stack: `a+b`, or `all`: one decision from all evidence.

    Args:
        name: of the stack.
        bare: the model without guardrails.
        supplies: what stacks are made from.

    Raises:
        ConfigurationError, ArtifactError: see `build_stack`.
    """
    if name != ALL:
        return bare.with_guardrails(build_stack(name, supplies))
    evidence = joint_evidence(supplies)
    return bare.with_guardrails(parts_of(evidence, supplies), evidence=evidence)


def parts_of(evidence: Evidence, supplies: Supplies) -> list[Any]:
    """The guardrails that give an evidence its scores."""
    return [guard for part in evidence.weights for guard in _EVIDENCE[part](supplies)]


def joint_evidence(supplies: Supplies) -> Evidence:
    """What `all` decides by.

    Raises:
        ConfigurationError: nobody named the artifact, or a part of it is none that is known.
        ArtifactError: it cannot be read.
    """
    from ..evidence import Evidence

    evidence = Evidence.from_pretrained(supplies.artifact("evidence"))
    if strange := sorted(set(evidence.weights) - set(_EVIDENCE)):
        raise ConfigurationError(
            f"The evidence has parts {strange} that no stack has; give the guardrails and the "
            "evidence to a LocalLVLM yourself."
        )
    return evidence


def build_stack(name: str, supplies: Supplies) -> list[Any]:
    """The guardrails of `a+b`, in the order of the data: screening, border, prompt, then model.

    Args:
        name: parts joined by +; not `all`, whose parts do not decide by themselves: see `guarded`.
        supplies: what they are made from.

    Raises:
        ConfigurationError: a part that does not exist (the message lists those that do), or a
            fitted defence whose artifact nobody named.
        ArtifactError: an artifact cannot be read.
    """
    guards: list[Any] = []
    for part in name.split("+"):
        if part not in _PARTS:
            raise ConfigurationError(
                f"There is no defence {part!r} (in stack {name!r}); there are "
                f"{', '.join(_PARTS)}. The stack {ALL} is one decision from all evidence, and "
                "stands alone."
            )
        guards += [guard for make in _PARTS[part] for guard in make(supplies)]
    return _merged(guards)


def _merged(guards: Sequence[Any]) -> list[Any]:
    """One of each kind: `prefix+calibration` is the calibrated prefix, not two prefixes."""
    kept: dict[type[Any], Any] = {}
    for guard in guards:
        kind = type(_behind(guard))
        calibrated = isinstance(guard, SafetyPrefix) and guard.calibration is not None
        if kind not in kept or calibrated:
            kept[kind] = guard
    return sorted(kept.values(), key=_place)


def _place(guard: Any) -> int:
    name = type(guard).__name__
    return _ORDER.index(name) + 1 if name in _ORDER else 0
