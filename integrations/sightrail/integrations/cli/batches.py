"""Files through a detector, in batches that fit into memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from PIL import Image

from sightrail.guardrails import ImageError, Limits, Picture, Verdict, read_picture

if TYPE_CHECKING:
    from sightrail.guardrails import RiskDetector

_MAX_FILES: Final = 16
_MAX_PIXELS: Final = 48_000_000  # about 150 MB decoded


@dataclass(frozen=True)
class Screened:
    """One file's outcome.

    Attributes:
        path: as it was named, or below the folder that was named.
        image: the picture that would travel on; None where it cannot be decoded.
        verdict: what the detector said.
    """

    path: Path
    image: Image.Image | None
    verdict: Verdict


def screen_files(
    detector: RiskDetector, files: Iterable[Path], limits: Limits | None = None
) -> Iterator[Screened]:
    """Screen every file; one that is broken, or breaks the detector, does not stop the rest."""
    for batch in _batches(files, limits or Limits()):
        verdicts = _verdicts(detector, [source for _, source in batch])
        for (path, source), verdict in zip(batch, verdicts, strict=True):
            image = source.image if isinstance(source, Picture) else None
            yield Screened(path, image, verdict)


def _verdicts(detector: RiskDetector, sources: list[Picture | Path]) -> list[Verdict]:
    try:
        return detector.screen(sources)
    except Exception as error:
        failed = Verdict.failed(f"the detector raised {type(error).__name__}")
        return [failed] * len(sources)


def _batches(files: Iterable[Path], limits: Limits) -> Iterator[list[tuple[Path, Picture | Path]]]:
    batch: list[tuple[Path, Picture | Path]] = []
    pixels = 0
    for path in files:
        source = _read(path, limits)
        if isinstance(source, Picture):
            pixels += sum(view.width * view.height for view in source.views)
        batch.append((path, source))
        if len(batch) == _MAX_FILES or pixels > _MAX_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def _read(path: Path, limits: Limits) -> Picture | Path:
    """The picture, or its path again: the detector words the verdict on what cannot be read."""
    try:
        return read_picture(path, limits)
    except ImageError:
        return path
