"""One fit at work: its data, its place on disk, where it goes on after an end, memory and steps."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import torch

from ..datasets import Example
from ..errors import CheckpointError, ConfigurationError, ImageError, UnsupportedModelError
from ..intake import Limits
from ..model.families import context_length, image_token_ids
from ..model.messages import Conversation, read_messages
from ..model.prompt import PromptBuilder
from ..model.screening_step import decode_conversation
from ..model.tools import read_tools
from ..progress import Progress
from .artifacts import Artifact, Manifest, identify
from .contract import FitData
from .memory import Budget, Resources, in_pieces, require_numbers

if TYPE_CHECKING:
    from ..model import LocalLVLM
    from ..verdict import Verdict


_KEY_FILE: Final = "run.json"
R = TypeVar("R")
T = TypeVar("T")


class Checkpoint:
    """The folder of one fit.

    Args:
        folder: None keeps nothing.
        key: what has to be the same for the fit to go on: settings, model and data.

    Raises:
        ConfigurationError: the folder belongs to another fit.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self._folder, self._key = folder, key
        if folder is None or not (file := folder / _KEY_FILE).exists():
            return
        if self._read(file, Path.read_text) != key:
            raise ConfigurationError(
                f"{folder} belongs to a run with other settings, data or another model; remove it, "
                "or give another folder."
            )

    def load(self, name: str) -> dict[str, Any] | None:
        """A state that was kept, on the CPU; None where there is none."""
        if self._folder is None or not (file := self._folder / f"{name}.pt").exists():
            return None
        state: dict[str, Any] = self._read(
            file, partial(torch.load, weights_only=True, map_location="cpu")
        )
        return state

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Keep a state; an interrupted write leaves the last one as it was."""
        with self._written() as folder:
            if folder is not None:
                unfinished = folder / f"{name}.partial"
                torch.save(state, unfinished)
                unfinished.replace(folder / f"{name}.pt")

    def results(self, name: str) -> dict[int, Any]:
        """The results of single requests that were noted, by their numbers."""
        if self._folder is None or not (file := self._folder / f"{name}.jsonl").exists():
            return {}
        found: dict[int, Any] = {}
        for line in self._read(file, Path.read_text).splitlines():
            try:
                number, result = json.loads(line)
            except ValueError:  # the end of the process cut this line off
                continue
            found[number] = result
        return found

    def note(self, name: str, results: dict[int, Any]) -> None:
        """Note the results of single requests; they have to be JSON values."""
        with self._written() as folder:
            if folder is not None:
                lines = "".join(f"\n{json.dumps(item)}" for item in results.items())
                with (folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
                    file.write(lines)

    @contextmanager
    def _written(self) -> Iterator[Path | None]:
        """The folder, which says from its first file on what it belongs to.

        Raises:
            CheckpointError: it cannot be written; what it held before is as it was.
        """
        folder = self._folder
        try:
            if folder is not None and not (file := folder / _KEY_FILE).exists():
                folder.mkdir(parents=True, exist_ok=True)
                unfinished = file.with_suffix(".partial")
                unfinished.write_text(self._key, encoding="utf-8")
                unfinished.replace(file)
            yield folder
        except (OSError, RuntimeError) as error:  # torch tells a full disk as a RuntimeError
            raise CheckpointError(
                f"The state of the fit cannot be written to {folder}: {_first_line(error)}. Make "
                "room there, or give a folder that can be written; the same call goes on from "
                "what was kept before."
            ) from error

    def _read(self, file: Path, reader: Callable[[Path], T]) -> T:
        """What a file of the folder holds.

        Raises:
            CheckpointError: it cannot be read.
        """
        try:
            return reader(file)
        except (OSError, ValueError, RuntimeError, EOFError, UnpicklingError) as error:
            raise CheckpointError(
                f"{file} cannot be read again: {_first_line(error)}. Remove it, and the fit does "
                "that part anew."
            ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")


_KEPT_EVERY: Final = 50  # steps
_KEPT_AFTER: Final = 60.0  # seconds, whichever comes first: a step at 7B may take as long


class Learner(Protocol):
    """What is trained step by step."""

    def gradient(self, step: int) -> float:
        """Compute the gradient of a step and keep it; the loss. May be called again."""

    def update(self, step: int) -> None:
        """Move by the gradient."""

    def state(self) -> dict[str, Any]:
        """What has to be kept to go on."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what was kept."""


def conversation_of(example: Example) -> Conversation:
    """The example as the model is asked it, pictures decoded.

    Raises:
        ImageError: a picture cannot be read.
    """
    talk = replace(read_messages(example.messages()), tools=read_tools(example.tools))
    return decode_conversation(talk, Limits())


def measured(verdict: Verdict, name: str) -> float:
    """What a guardrail measured on a request.

    Raises:
        torch.OutOfMemoryError: memory ran out inside the guardrail, where it became its failure.
        UnsupportedModelError: the guardrail failed for another reason.
    """
    if name in verdict.measures:
        return verdict.measures[name]
    why = verdict.summary()
    if torch.OutOfMemoryError.__name__ in why:
        raise torch.OutOfMemoryError(why)
    raise UnsupportedModelError(
        f"{verdict.guardrail} measures no {name} on this model: {why}. See what `sightrail doctor` "
        "says of it."
    )


@dataclass
class FitRun:
    """One fit of one method for one model.

    Attributes:
        kind: the method.
        lvlm: the model, without guardrails.
        data: what it is fitted on.
        settings: of the method.
        progress: told about progress.
        checkpoint: what was done so far.
        resources: how much may be used.
        budget: tokens that may run together now.
        left_out: examples that were not used: reason -> how many.
    """

    kind: str
    lvlm: LocalLVLM
    data: FitData
    settings: Any
    progress: Progress
    checkpoint: Checkpoint
    resources: Resources
    budget: Budget
    left_out: Counter[str] = field(default_factory=Counter)

    @classmethod
    def begin(
        cls,
        kind: str,
        lvlm: LocalLVLM,
        data: FitData,
        settings: Any,
        *,
        progress: Progress,
        checkpoint: Path | None,
        resources: Resources | None,
    ) -> FitRun:
        """Set out, or go on where a run with the same settings, model and data was ended.

        Raises:
            ConfigurationError: the checkpoint belongs to another run.
        """
        bare = lvlm.with_guardrails([])
        allowed = resources or Resources()
        key = "\n".join(
            [kind, repr(asdict(settings)), str(identify(bare.model, bare.name)), _digest(data)]
        )
        return cls(
            kind=kind,
            lvlm=bare,
            data=data,
            settings=settings,
            progress=progress,
            checkpoint=Checkpoint(checkpoint, key),
            resources=allowed,
            budget=Budget(allowed.tokens_at_once),
            left_out=Counter(data.left_out),
        )

    def readable(self, examples: Sequence[Example], what: str = "pictures") -> list[Example]:
        """The examples whose pictures can all be read; the others are counted as left out."""
        kept = []
        for done, example in enumerate(examples, 1):
            try:
                conversation_of(example)
                kept.append(example)
            except ImageError as error:
                self.left_out[f"picture cannot be read: {error.reason}"] += 1
            self.progress(what, done, len(examples))
        return kept

    def each(
        self,
        what: str,
        examples: Sequence[Example],
        work: Callable[[Sequence[Example]], Sequence[R]],
        *,
        most: int,
        more_tokens: int = 0,
    ) -> list[R]:
        """One result for every example, in batches that memory allows; noted as they come.

        Args:
            what: of what; names the notes as well.
            examples: they run together where they have as many pictures.
            work: from a batch to its results, which are JSON values.
            most: rows of a batch.
            more_tokens: what is put before, or generated, beyond the examples' own prompts.

        Raises:
            FitMemoryError: not even one example at a time fits.
        """
        name = what.replace(" ", "-").replace("'", "")
        found: dict[int, R] = self.checkpoint.results(name)
        left = [number for number in range(len(examples)) if number not in found]

        def piece(numbers: Sequence[int]) -> None:
            results = work([examples[number] for number in numbers])
            made = dict(zip(numbers, results, strict=True))
            found.update(made)
            self.checkpoint.note(name, made)
            self.progress(what, len(found), len(examples))

        for batch in _batches(left, [example.image_count for example in examples], most):
            length = self._length([examples[number] for number in batch]) + more_tokens
            in_pieces(batch, length, piece, self.budget)
        return [found[number] for number in range(len(examples))]

    def _length(self, examples: Sequence[Example]) -> int:
        """The padded length of their prompts."""
        model = self.lvlm.model
        prompts = PromptBuilder(
            self.lvlm.processor,
            context_length=context_length(model),
            image_token_ids=image_token_ids(model),
        )
        talks = [conversation_of(example) for example in examples]
        return prompts.build(talks, prefix=None).length

    def train(self, what: str, learner: Learner, steps: int) -> None:
        """Take all steps that are left, and keep the state now and then and at any end.

        Raises:
            FitMemoryError: not even one request at a time fits.
            UnsupportedModelError: the gradients are no numbers.
            CheckpointError: the state cannot be written, or read again.
        """
        kept = self.checkpoint.load(what)
        done = 0
        if kept is not None:
            learner.restore(kept["state"])
            done = int(kept["step"])
        whole, kept_at = True, monotonic()
        try:
            while done < steps:
                loss = learner.gradient(done)
                whole = False
                learner.update(done)
                done, whole = done + 1, True
                if done % _KEPT_EVERY == 0 or monotonic() - kept_at > _KEPT_AFTER:
                    self.checkpoint.save(what, {"state": learner.state(), "step": done})
                    kept_at = monotonic()
                self.progress(f"{what}, loss {loss:.3f}", done, steps)
        finally:
            if whole:  # else an update was interrupted, and the last state on disk is the good one
                self.checkpoint.save(what, {"state": learner.state(), "step": done})

    def artifact(
        self,
        settings: Mapping[str, Any],
        tensors: Mapping[str, torch.Tensor],
        results: Mapping[str, float],
        used: Sequence[Example],
        **counts: int | str,
    ) -> Artifact:
        """The artifact, with a count of what it was fitted on and of what was left out.

        Raises:
            UnsupportedModelError: what was fitted holds values that are no numbers.
        """
        for name, tensor in tensors.items():
            require_numbers(tensor, name)
        harmful = sum(example.harmful for example in used)
        data: dict[str, int | str] = {
            "harmful": harmful,
            "benign": len(used) - harmful,
            "with_pictures": sum(example.image_count > 0 for example in used),
            "held_out": len(self.data.held_out),
            "source": self.data.source,
            **counts,
            **{f"left out: {reason}": n for reason, n in self.left_out.items() if n},
        }
        manifest = Manifest(
            kind=self.kind,
            base=identify(self.lvlm.model, self.lvlm.name),
            settings=dict(settings),
            data=data,
            results=dict(results),
        )
        return Artifact(manifest, dict(tensors))


def _batches(numbers: Sequence[int], counts: Sequence[int], most: int) -> list[list[int]]:
    """Numbers of rows with as many pictures, in order, at most so many together."""
    batches: list[list[int]] = []
    for number in sorted(numbers, key=lambda n: counts[n]):
        last = batches[-1] if batches else []
        if not last or len(last) == most or counts[last[0]] != counts[number]:
            batches.append([number])
        else:
            last.append(number)
    return batches


def _digest(data: FitData) -> str:
    """What tells one set of data from another, without looking into pictures."""
    told = hashlib.sha256()
    for part in (data.examples, data.held_out, data.prototypes):
        for example in part:
            row = (example.text, example.harmful, example.answer, example.image_count)
            told.update(repr((row, len(example.history))).encode())
        told.update(b"--")
    return told.hexdigest()
