"""A benchmark in a folder as a source of items: streamed, checked, and drawn from if asked."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Final

from ...errors import ConfigurationError
from ..items import Item, LabelledPicture, Source
from .attacks import (
    figstep,
    hades,
    harmbench,
    jailbreakv,
    mm_safetybench,
    siuo,
    spa_vl,
    vlsafe,
    vlsbench,
)
from .examples import jsonl
from .folder import Folder
from .over_refusal import mossbench, mssbench, vlguard, xstest
from .usefulness import mm_vet, mme, scienceqa

Reader = Callable[[Folder], Iterator[Item]]

BENCHMARKS: Final[Mapping[str, Reader]] = {
    "figstep": figstep,
    "mm-safetybench": mm_safetybench,
    "xstest": xstest,
    "mossbench": mossbench,
    "vlguard": vlguard,
    "spa-vl": spa_vl,
    "jailbreakv": jailbreakv,
    "harmbench": harmbench,
    "siuo": siuo,
    "vlsbench": vlsbench,
    "mssbench": mssbench,
    "hades": hades,
    "vlsafe": vlsafe,
    "mme": mme,
    "mm-vet": mm_vet,
    "scienceqa": scienceqa,
    "jsonl": jsonl,
}


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: of its format, one of BENCHMARKS.
        folder: where it lies.
        n: at most so many items, drawn at random by their ids; None for all.
        seed: of that draw.

    Raises:
        ConfigurationError: there is no such format or folder, or n < 1.
    """

    name: str
    folder: Path
    n: int | None = None
    seed: int = 0

    judge = None
    labelled = 0

    def __post_init__(self) -> None:
        if self.name not in BENCHMARKS:
            raise ConfigurationError(
                f"There is no reader for a benchmark {self.name!r}; there are: "
                f"{', '.join(BENCHMARKS)}"
            )
        if not self.folder.is_dir():
            raise ConfigurationError(f"{self.name}: there is no folder {self.folder}.")
        if self.n is not None and self.n < 1:
            raise ConfigurationError(f"{self.name}: n is {self.n}; it is at least 1.")

    def items(self) -> Iterator[Item]:
        """The items one after the other.

        Raises:
            ConfigurationError: a record is broken, a picture is not there, or an id stands twice;
                the message names file and field.
        """
        chosen = self._chosen
        for item in self._all():
            if chosen is None or item.id in chosen:
                yield item

    def pictures(self) -> Iterator[LabelledPicture]:
        """None: a benchmark's labels are on requests."""
        return iter(())

    def __len__(self) -> int:
        return self._count if self.n is None else min(self.n, self._count)

    def _all(self) -> Iterator[Item]:
        seen: set[bytes] = set()
        for item in BENCHMARKS[self.name](Folder(self.folder)):
            key = _digest(item.id)
            if key in seen:
                raise ConfigurationError(f"{self.folder}: the id {item.id!r} stands there twice.")
            seen.add(key)
            yield replace(item, id=f"{self.name}/{item.id}")

    @cached_property
    def _count(self) -> int:
        count = sum(1 for _ in self._all())
        if not count:
            raise ConfigurationError(f"{self.folder} holds no items of {self.name}.")
        return count

    @cached_property
    def _chosen(self) -> frozenset[str] | None:
        if self.n is None:
            return None
        ids = (item.id for item in self._all())
        return frozenset(heapq.nsmallest(self.n, ids, key=lambda id: _digest(id, self.seed)))


@dataclass(frozen=True)
class Together:
    """Several sources one after the other.

    Attributes:
        sources: at least one.
    """

    sources: Sequence[Source] = field(default_factory=tuple)

    judge = None

    @property
    def name(self) -> str:
        """All their names."""
        return ", ".join(source.name for source in self.sources)

    @property
    def labelled(self) -> int:
        """How many labelled pictures they have in all."""
        return sum(source.labelled for source in self.sources)

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def items(self) -> Iterator[Item]:
        """Their items."""
        return chain.from_iterable(source.items() for source in self.sources)

    def pictures(self) -> Iterator[LabelledPicture]:
        """Their labelled pictures."""
        return chain.from_iterable(source.pictures() for source in self.sources)


def _digest(id: str, seed: int = 0) -> bytes:
    return blake2b(id.encode(), digest_size=12, salt=seed.to_bytes(8, "big")).digest()
