"""Artifacts: a round trip, bound to one model under any name, errors that say what to do."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import torch

from sightrail.guardrails import LocalLVLM
from sightrail.guardrails.errors import ArtifactError
from sightrail.guardrails.fitting import (
    Artifact,
    Manifest,
    identify,
    load_artifact,
    save_artifact,
)
from sightrail.guardrails.fitting.artifacts import MANIFEST_FILE, TENSORS_FILE
from tiny_models import fresh, tiny


def made(family: str = "llava") -> Artifact:
    model, _ = tiny(family)
    manifest = Manifest(
        kind="moras",
        base=identify(model, "mine"),
        settings={"gamma": 0.3},
        data={"harmful": 5, "source": "a file"},
        results={"auroc": 0.9},
    )
    return Artifact(manifest, {"prototypes": torch.arange(6.0).reshape(2, 3)})


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    artifact = made()
    loaded = load_artifact(save_artifact(tmp_path / "new" / "folder", artifact), "moras")
    assert loaded.manifest == artifact.manifest
    assert torch.equal(loaded.tensors["prototypes"], artifact.tensors["prototypes"])


def test_others_may_read_what_was_saved(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    folder = save_artifact(tmp_path / "artifact", made())
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {stat.S_IMODE(plain.stat().st_mode)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_is_itself_under_any_name_and_dtype(dtype: torch.dtype) -> None:
    model, _ = fresh("llava")
    made().require_model(model.to(dtype), "a copy")


def test_another_model_is_refused_and_both_are_named() -> None:
    with pytest.raises(ArtifactError, match=r"fitted on mine .*, not on other .*sightrail fit"):
        made().require_model(tiny("qwen2_vl")[0], "other")


def test_the_same_shape_with_other_weights_is_another_model() -> None:
    model, _ = fresh("llava")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.05)
    with pytest.raises(ArtifactError, match="not on"):
        made().require_model(model, "tuned")


@pytest.mark.parametrize("kind", ["moras", "casa"])
def test_the_embedded_artifacts_belong_to_the_embedded_model(kind: str) -> None:
    lvlm = LocalLVLM.from_pretrained("testbed")
    load_artifact("testbed", kind).require_model(lvlm.model, lvlm.name)  # type: ignore[arg-type]


def test_no_artifact_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="sightrail fit casa"):
        load_artifact(tmp_path, "casa")


def test_a_name_that_is_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ArtifactError, match="neither a folder nor a repository"):
        load_artifact("no-such/repository", "casa")


def test_an_artifact_of_another_defence(tmp_path: Path) -> None:
    folder = save_artifact(tmp_path, made())
    with pytest.raises(ArtifactError, match="a moras artifact, not a casa one"):
        load_artifact(folder, "casa")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"kind": "moras"}'])
@pytest.mark.parametrize("name", [MANIFEST_FILE, TENSORS_FILE])
def test_a_broken_artifact(tmp_path: Path, name: str, content: bytes) -> None:
    folder = save_artifact(tmp_path, made())
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match="unreadable"):
        load_artifact(folder, "moras")


def test_the_manifest_holds_no_data(tmp_path: Path) -> None:
    folder = save_artifact(tmp_path, made())
    keys = json.loads((folder / MANIFEST_FILE).read_text()).keys()
    assert keys == {"kind", "base", "settings", "data", "results", "threshold", "benign", "version"}
