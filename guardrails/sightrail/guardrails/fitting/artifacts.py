"""A fitted defence on disk: safetensors and JSON in a folder, bound to the model it was fitted on.

Loading it for another model is an error that names both. A model is told from another by its shape
and by a sample of its weights, so that a copy under another name is the same model, and a
fine-tuned one is not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ..embedded import TESTBED, embedded_folder
from ..errors import ArtifactError
from ..guarantees import conformal_p_value
from ..model.families import unwrapped, weights_of
from ..verdict import Threshold

MANIFEST_FILE: Final = "sightrail.json"
TENSORS_FILE: Final = "sightrail.safetensors"
Kind = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
"""The name of a defence, which is also the name of its folder in the library."""

_VERSION: Final = 1
_SAMPLED_ROWS: Final = 16
# Half precision moves a row's norm by less than a thousandth; another training run by far more.
_SAME: Final = 5e-3


class ModelIdentity(BaseModel):
    """Which model an artifact belongs to.

    Attributes:
        name: as it was loaded.
        revision: the Hub commit, None for a local folder.
        shape: class, hidden size, layers and vocabulary of the text tower.
        weights: norms of a few rows spread over the input embeddings and the LM head.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    revision: str | None = None
    shape: str
    weights: tuple[float, ...]

    def same_as(self, other: ModelIdentity) -> bool:
        """Whether both are the same model, whatever they are called and in whatever dtype."""
        return (
            self.shape == other.shape
            and len(self.weights) == len(other.weights)
            and all(
                abs(a - b) <= _SAME * max(abs(a), abs(b), 1e-6)
                for a, b in zip(self.weights, other.weights, strict=True)
            )
        )

    def __str__(self) -> str:
        revision = f"@{self.revision[:12]}" if self.revision else ""
        digest = hashlib.sha256(repr([round(w, 2) for w in self.weights]).encode()).hexdigest()
        return f"{self.name}{revision} ({self.shape}, weights {digest[:8]})"


class Manifest(BaseModel):
    """What the JSON file says.

    Attributes:
        kind: which defence.
        base: the model it was fitted on.
        settings: of the method, as its own class reads them.
        data: what it was fitted on: counts and where they came from.
        results: what was measured on held-out data, by name.
        threshold: on the score of a request, with its promise; None where nothing was calibrated.
        benign: scores of benign requests kept apart, ascending: for p-values and checks of drift.
        version: of this format.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    base: ModelIdentity
    settings: dict[str, Any] = Field(default_factory=dict)
    data: dict[str, int | str] = Field(default_factory=dict)
    results: dict[str, float] = Field(default_factory=dict)
    threshold: Threshold | None = None
    benign: tuple[float, ...] = ()
    version: int = _VERSION


@dataclass(frozen=True)
class Artifact:
    """A manifest and its tensors."""

    manifest: Manifest
    tensors: Mapping[str, torch.Tensor]

    def p_value(self, score: float) -> float | None:
        """How often a benign request scores this high; None where nothing was calibrated."""
        return conformal_p_value(score, self.manifest.benign)

    def with_manifest(self, **changes: Any) -> Artifact:
        """The same with other fields of the manifest."""
        return replace(self, manifest=self.manifest.model_copy(update=changes))

    def require_model(self, model: Any, name: str) -> None:
        """Make sure that this is the model it was fitted on.

        Raises:
            ArtifactError: it is another one; the message names both.
        """
        here = identify(model, name)
        if not self.manifest.base.same_as(here):
            raise ArtifactError(
                f"This {self.manifest.kind} artifact was fitted on {self.manifest.base}, not on "
                f"{here}; fit one for this model with `sightrail fit {self.manifest.kind}`."
            )


def identify(model: Any, name: str) -> ModelIdentity:
    """The identity of a loaded transformers model.

    One that carries adapters of PEFT, wrapped or not, is another model than its base: it answers
    otherwise.
    """
    config = model.config.get_text_config()
    adapted = _adapters(model)
    return ModelIdentity(
        name=name,
        revision=getattr(model.config, "_commit_hash", None),
        shape=(
            f"{type(unwrapped(model)).__name__}, {config.hidden_size} wide, "
            f"{config.num_hidden_layers} layers, {config.vocab_size} tokens"
            + (f", with the adapter {', '.join(adapted)}" if adapted else "")
        ),
        weights=(*_row_norms(model.get_input_embeddings()), *_row_norms(_head(model))),
    )


def _adapters(model: Any) -> list[str]:
    """The names of the adapters that are at work in its layers."""
    inside = (part for part in model.modules() if hasattr(part, "base_layer"))
    return sorted({name for part in inside for name in getattr(part, "active_adapters", ())})


def _head(model: Any) -> Any:
    return model.get_output_embeddings() or model.get_input_embeddings()


def _row_norms(module: Any) -> list[float]:
    with weights_of(module):
        rows = torch.linspace(0, len(module.weight) - 1, _SAMPLED_ROWS).long()
        sample = module.weight.detach()[rows.to(module.weight.device)].float()
    return [round(float(norm), 5) for norm in sample.norm(dim=-1)]


def save_artifact(folder: str | Path, artifact: Artifact) -> Path:
    """Write an artifact; what the folder held under the same names is replaced, once all is there.

    Raises:
        OSError: it cannot be written; what the folder held is as it was.
    """
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in artifact.tensors.items()}
    manifest = artifact.manifest.model_dump_json(indent=2) + "\n"
    # Not save_file: it makes files that nobody but their owner may read.
    contents = {TENSORS_FILE: save(tensors), MANIFEST_FILE: manifest.encode()}
    for name, content in contents.items():
        (where / f"{name}.partial").write_bytes(content)
    for name in contents:
        (where / f"{name}.partial").replace(where / name)
    return where


def load_artifact(name: str | Path, kind: Kind) -> Artifact:
    """Read an artifact from a folder, ``"testbed"`` or the Hugging Face Hub.

    Raises:
        ArtifactError: there is none, it is unreadable, or it belongs to another defence.
    """
    folder = artifact_folder(name, kind)
    try:
        text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
        manifest = Manifest.model_validate_json(text)
        tensors = load_file(folder / TENSORS_FILE)
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{folder} holds no {kind} artifact ({MANIFEST_FILE} and {TENSORS_FILE}); make one "
            f"with `sightrail fit {kind} --model ... --out {folder}`."
        ) from error
    except (OSError, ValidationError, SafetensorError, ValueError) as error:
        raise ArtifactError(f"The {kind} artifact in {folder} is unreadable: {error}") from error
    if manifest.kind != kind:
        raise ArtifactError(f"{folder} holds a {manifest.kind} artifact, not a {kind} one.")
    if manifest.version != _VERSION:
        raise ArtifactError(
            f"{folder} holds a {kind} artifact of format {manifest.version}, and this is a version "
            f"of sightrail that reads format {_VERSION}; take another version of sightrail."
        )
    if broken := [name for name, value in tensors.items() if not bool(value.isfinite().all())]:
        raise ArtifactError(
            f"The {kind} artifact in {folder} is unreadable: {broken[0]} holds values that are no "
            f"numbers; make it anew with `sightrail fit {kind}`."
        )
    return Artifact(manifest, tensors)


def artifact_folder(name: str | Path, kind: Kind) -> Path:
    """Where an artifact lies: a folder, the embedded one of the testbed, or a Hub snapshot.

    Raises:
        ArtifactError: neither a folder nor a repository that can be had.
    """
    if str(name) == TESTBED:
        return embedded_folder(kind)
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name), allow_patterns=[MANIFEST_FILE, TENSORS_FILE]))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ArtifactError(
            f"{str(name)!r} is neither a folder nor a repository on the Hub that can be reached; "
            f"make an artifact with `sightrail fit {kind} --model ... --out FOLDER`."
        ) from error
