"""A fit that is stopped by memory, disk or numbers says why, and the same call goes on."""

from __future__ import annotations

import functools
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from fit_helpers import CASA, DAVSP, EXAMPLES, PROTOTYPES, lvlm_of
from sightrail.guardrails import FitData, LocalLVLM, fit
from sightrail.guardrails.davsp import requests
from sightrail.guardrails.errors import (
    ArtifactError,
    CheckpointError,
    FitMemoryError,
    UnsupportedModelError,
)
from sightrail.guardrails.fitting import Artifact, Resources, load_artifact, save_artifact
from sightrail.guardrails.fitting.artifacts import MANIFEST_FILE, TENSORS_FILE
from sightrail.guardrails.fitting.memory import added
from sightrail.guardrails.moras import Moras, MorasSettings
from tiny_models import tiny

UNANSWERED = [replace(example, answer=None) for example in EXAMPLES]
AGAIN = [replace(example, text=f"{example.text} now") for example in UNANSWERED]
JOBS: dict[str, tuple[FitData, Any]] = {
    "casa": (FitData(UNANSWERED, held_out=EXAMPLES), CASA),
    "moras": (
        FitData(EXAMPLES, prototypes=PROTOTYPES, held_out=EXAMPLES[::2]),
        MorasSettings(context_tokens=3),
    ),
    "davsp": (FitData([*EXAMPLES, *AGAIN]), DAVSP),
}


@pytest.fixture(autouse=True)
def refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model refuses nothing, which a border cannot be trained on; and talks for long."""
    monkeypatch.setattr(requests, "is_refusal", lambda text: True)
    monkeypatch.setattr(requests, "ANSWER_TOKENS", 3)


def fitted(kind: str, lvlm: LocalLVLM, checkpoint: Path | None = None, **more: Any) -> Artifact:
    data, settings = JOBS[kind]
    return fit(kind, lvlm, data, settings, checkpoint=checkpoint, **more).artifact


@functools.cache
def undisturbed(kind: str) -> Artifact:
    return fitted(kind, lvlm_of())


class Crowded:
    """From a forward pass on there is no memory, as another process may have taken it."""

    def __init__(self, model: Any, since: int) -> None:
        self.since: int | None = since
        self.passes = 0
        model.register_forward_pre_hook(self._look)

    def _look(self, module: Any, args: Any) -> None:
        self.passes += 1
        if self.since is not None and self.passes >= self.since:
            raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize(
    ("kind", "since"),  # what the fit is at then
    [
        *(("casa", 1), ("casa", 5), ("casa", 7)),  # own answers, training, held-out examples
        *(("moras", 1), ("moras", 7), ("moras", 20)),  # prototypes, similarities, held-out ones
        *(("davsp", 1), ("davsp", 8), ("davsp", 10)),  # refusals, states, training
    ],
)
def test_memory_that_runs_out_anywhere_is_told_and_the_fit_goes_on(
    kind: str, since: int, tmp_path: Path
) -> None:
    lvlm = lvlm_of()
    crowded = Crowded(lvlm.model, since)
    with pytest.raises(FitMemoryError, match="goes on from its checkpoint"):
        fitted(kind, lvlm, tmp_path)
    assert crowded.passes < 40
    crowded.since = None
    found = fitted(kind, lvlm, tmp_path)
    for name, value in undisturbed(kind).tensors.items():
        assert torch.equal(found.tensors[name], value), name


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond a kilobyte, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", ["casa", "davsp"])
def test_a_full_disk_is_told_and_the_fit_goes_on(kind: str, tmp_path: Path) -> None:
    said = r"Make room there.*the same call goes on"
    with pytest.raises(CheckpointError, match=said), full_disk():
        fitted(kind, lvlm_of(), tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.pt")), "nothing that was half written"
    found = fitted(kind, lvlm_of(), tmp_path / "run")
    for name, value in undisturbed(kind).tensors.items():
        assert torch.equal(found.tensors[name], value), name


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="give a folder that can be written"):
        fitted("casa", lvlm_of(), tmp_path / "file" / "run")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02nothing"])
def test_a_state_that_cannot_be_read_again_is_told(content: bytes, tmp_path: Path) -> None:
    fitted("casa", lvlm_of(), tmp_path)
    (tmp_path / "training.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"training\.pt cannot be read again.*Remove it"):
        fitted("casa", lvlm_of(), tmp_path)


def test_an_artifact_stays_whole_where_its_successor_does_not_fit(tmp_path: Path) -> None:
    artifact = fitted("moras", lvlm_of())
    save_artifact(tmp_path, artifact)
    with pytest.raises(OSError, match="large"), full_disk():
        save_artifact(tmp_path, artifact.with_manifest(data={"note": "x" * 4096}))
    assert load_artifact(tmp_path, "moras").manifest == artifact.manifest


@pytest.mark.parametrize("kind", ["casa", "moras"])
def test_a_model_whose_numbers_are_none_gives_no_artifact(kind: str) -> None:
    lvlm = lvlm_of()
    with torch.no_grad():
        lvlm.model.model.language_model.layers[3].mlp.down_proj.weight.fill_(torch.nan)
    with pytest.raises(UnsupportedModelError, match="doctor"):
        fitted(kind, lvlm, resources=Resources())


def test_a_gradient_that_is_no_number_moves_nothing() -> None:
    weight = torch.ones(2, requires_grad=True)
    (slope,) = torch.autograd.grad(functional.relu(weight * torch.inf).sum(), [weight])
    with pytest.raises(UnsupportedModelError, match="A gradient is no number"):
        added([[slope]])


# Artifacts


def spoilt(folder: Path, **changes: Any) -> Path:
    artifact = fitted("moras", lvlm_of())
    tensors = {**artifact.tensors, **changes.pop("tensors", {})}
    return save_artifact(folder, Artifact(artifact.manifest.model_copy(update=changes), tensors))


def test_what_holds_no_numbers_or_another_format_is_no_artifact(tmp_path: Path) -> None:
    spoilt(tmp_path / "nan", tensors={"prototypes": torch.full((3, 64), torch.nan)})
    with pytest.raises(ArtifactError, match="no numbers; make it anew with `sightrail fit moras`"):
        Moras.from_pretrained(tmp_path / "nan")
    spoilt(tmp_path / "new", version=7)
    with pytest.raises(ArtifactError, match="format 7"):
        Moras.from_pretrained(tmp_path / "new")


def test_prototypes_of_another_width_are_refused_at_construction(tmp_path: Path) -> None:
    spoilt(tmp_path, tensors={"prototypes": torch.ones(3, 63)})
    with pytest.raises(ArtifactError, match="63 wide"):
        LocalLVLM(*tiny("llava"), guardrails=[Moras.from_pretrained(tmp_path)], name="llava")


def test_the_two_files_of_an_artifact_are_all_that_is_left(tmp_path: Path) -> None:
    spoilt(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {MANIFEST_FILE, TENSORS_FILE}
