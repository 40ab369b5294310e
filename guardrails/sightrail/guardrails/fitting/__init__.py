"""What every trained or fitted defence shares: examples to fit on, artifacts to keep."""

from .artifacts import Artifact, Manifest, ModelIdentity, identify, load_artifact, save_artifact
from .examples import Example, load_examples

__all__ = [
    "Artifact",
    "Example",
    "Manifest",
    "ModelIdentity",
    "identify",
    "load_artifact",
    "load_examples",
    "save_artifact",
]
