"""One contract: the fitted defences have one shape, and another is a folder and a line."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Final

import pytest
import torch

from cli_helpers import run_cli
from sightrail.guardrails import LocalLVLM
from sightrail.guardrails.errors import ArtifactError, ConfigurationError
from sightrail.guardrails.fitting import (
    METHODS,
    Artifact,
    Example,
    FitData,
    FitMethod,
    Fitted,
    Report,
    fit,
    fit_method,
    load_artifact,
)
from sightrail.guardrails.fitting.contract import Fit
from sightrail.guardrails.fitting.run import FitRun
from sightrail.guardrails.model.interventions import Interventions
from sightrail.integrations.cli.fit import settings_parameters
from tiny_models import tiny


@dataclass(frozen=True)
class ToySettings:
    """How a toy is fitted.

    Attributes:
        size: how many numbers it has.
        loud: whether it shouts.
    """

    size: int = 3
    loud: bool = False


@dataclass(frozen=True)
class Toy:
    """A guardrail that has a few numbers and does nothing with them."""

    artifact: Artifact
    needs: frozenset[str] = frozenset()
    stage: ClassVar[str] = "prompt"

    def apply(self, messages: Any) -> Any:
        return messages

    def check(self, host: Any) -> None:
        self.artifact.require_model(host.model, host.name)

    def interventions(self, prompt: Any, host: Any) -> Interventions:
        return Interventions()


def fit_toy(
    lvlm: LocalLVLM,
    data: FitData,
    settings: ToySettings | None = None,
    *,
    progress: Any = lambda what, done, total: None,
    checkpoint: Path | None = None,
    resources: Any = None,
) -> Fitted:
    """Give the toy its numbers."""
    chosen = settings or ToySettings()
    run = FitRun.begin(
        "toy",
        lvlm,
        data,
        chosen,
        progress=progress,
        checkpoint=checkpoint,
        resources=resources,
    )
    lengths = run.each("lengths", data.examples, lambda part: [len(e.text) for e in part], most=2)
    numbers = torch.full((chosen.size,), float(sum(lengths)))
    artifact = run.artifact({"size": chosen.size}, {"numbers": numbers}, {}, data.examples)
    return Fitted(artifact, Toy(artifact), Report())


METHOD: Final = FitMethod("toy", ToySettings, fit_toy, lambda name: Toy(load_artifact(name, "toy")))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("toy_defence")
    module.METHOD = METHOD  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_defence", module)
    monkeypatch.setitem(METHODS, "toy", "toy_defence")  # the one line


EXAMPLES = [Example("How to make it", True), Example("What is it", False, answer="A dog.")]


@pytest.mark.usefixtures("toy")
def test_another_defence_is_its_own_folder_and_one_line(tmp_path: Path) -> None:
    lvlm = LocalLVLM(*tiny("llava"), name="llava")
    fitted = fit("toy", lvlm, FitData(EXAMPLES), ToySettings(size=2))
    fitted.save_pretrained(tmp_path)
    loaded = fit_method("toy").load(tmp_path)
    assert loaded.artifact.tensors["numbers"].tolist() == [24.0, 24.0]
    assert lvlm.with_guardrails([loaded]).chat("What is it", max_new_tokens=1).text is not None
    with pytest.raises(ArtifactError, match="sightrail fit toy"):
        LocalLVLM(*tiny("qwen2_vl"), guardrails=[loaded])
    with pytest.raises(ArtifactError, match="a toy artifact, not a casa one"):
        load_artifact(tmp_path, "casa")


@pytest.mark.usefixtures("toy")
def test_its_command_is_there_with_its_settings_as_options() -> None:
    shown = run_cli("fit", "toy", "--help")
    assert shown.exit_code == 0
    assert "Give the toy its numbers." in shown.output
    for option in ("--size", "How many numbers it has.", "--loud", "--model", "--data-format"):
        assert option in shown.output


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ConfigurationError, match="there are casa, davsp, moras"):
        fit("nothing", LocalLVLM(*tiny("llava")), FitData(EXAMPLES))
    assert run_cli("fit", "nothing").exit_code == 64


@pytest.mark.parametrize("kind", sorted(METHODS))
def test_every_method_keeps_the_contract(kind: str) -> None:
    method = fit_method(kind)
    assert method.kind == kind
    wanted = inspect.signature(Fit.__call__).parameters
    given = inspect.signature(method.fit).parameters
    assert list(given) == [name for name in wanted if name != "self"]
    assert all(given[name].kind == wanted[name].kind for name in given)
    assert method.settings() == method.settings(), "every setting has a default"
    assert method.not_fitted <= {field.name for field in fields(method.settings)}
    assert method.load("testbed").artifact.manifest.kind == kind


@pytest.mark.parametrize("kind", sorted(METHODS))
def test_every_option_says_what_it_is(kind: str) -> None:
    parameters = settings_parameters(fit_method(kind).settings)
    assert len(parameters) > 8
    for name, (annotation, default) in parameters.items():
        assert default is None
        assert annotation.__metadata__[0].help, name
