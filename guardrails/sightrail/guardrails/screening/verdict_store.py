"""A memory of verdicts that outlives the process: shared by workers, there again after a restart.

It may lie in a SQLite file (the default), in any database that SQLAlchemy knows, or in a key-value
store that an app has already: LangChain's ``BaseStore[str, bytes]``, LlamaIndex's ``BaseKVStore``.
None of them is imported for that; what they are is seen by their methods.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from hashlib import blake2b
from hmac import compare_digest
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, runtime_checkable

from ..errors import ConfigurationError
from ..telemetry import LOGGER
from ..verdict import Verdict

if TYPE_CHECKING:
    from sqlalchemy import Engine, Table

_FINISHED: Final = ("clean", "flagged")
_MOST: Final = 8 * 2**20
"""Bytes of a verdict, unpacked: an entry that says it has more is none of ours."""
_SIGNATURE: Final = 32
_DEEPEST: Final = 6
_COLLECTION: Final = "sightrail_verdicts"
_BUSY_S: Final = 2.0


def is_finished(verdict: Verdict) -> bool:
    """Whether the inspection came to its end; whatever broke may work the next time."""
    broken = any(gap.reason == "failed" for gap in verdict.not_inspected)
    return verdict.status in _FINISHED and not broken


class Shelf(Protocol):
    """Where entries lie."""

    def read(self, keys: Sequence[str]) -> Mapping[str, bytes]:
        """The entries that are there."""

    def write(self, entries: Mapping[str, bytes]) -> None:
        """Keep these, in place of what is there."""


@runtime_checkable
class ByteStore(Protocol):
    """What ``langchain_core.stores.BaseStore[str, bytes]`` is."""

    def mget(self, keys: Sequence[str], /) -> list[Any]:
        """The values, None for what is not there."""

    def mset(self, key_value_pairs: Sequence[tuple[str, Any]], /) -> None:
        """Keep these."""


@runtime_checkable
class KeyValueStore(Protocol):
    """What LlamaIndex's ``BaseKVStore`` is."""

    def get(self, key: str, collection: str = ..., /) -> dict[str, Any] | None:
        """The value, None where there is none."""

    def put_all(self, kv_pairs: list[tuple[str, dict[str, Any]]], collection: str = ..., /) -> None:
        """Keep these."""


class VerdictStore:
    """Verdicts by content, for ``CachedDetector(detector, store=...)``.

    A key is a digest of every pixel that was looked at, the words that were read with them, the
    detector with all its settings and weights, and this library's version; nothing of the picture
    can be found in it. Only finished inspections are kept: what failed, or ran out of time, is
    looked at again. An entry that is damaged, or was made for another key, is looked at anew and
    replaced. A store that does not answer costs no verdict: that is logged, and pictures are looked
    at as without it.

    Threads, forked and spawned processes may share one; connections to a database are opened for
    each call. Pickled, it takes its place along, not its content.

    Args:
        where: a file for SQLite, the URL of a database (``postgresql+psycopg://...``), a
            ``BaseStore[str, bytes]`` of LangChain's, or a ``BaseKVStore`` of LlamaIndex's.
        trust: which entries are believed. ``all``; or ``flagged``: what is said to be clean is
            looked at anew, so whoever can write to the store cannot let a picture pass.
        secret: entries are signed with it, and those of others are not believed; without one they
            have a checksum, which anybody can make.

    Raises:
        ConfigurationError: ``where`` is none of these.

    Example:
        ``CachedDetector(detector, store=VerdictStore("verdicts.sqlite"))``
    """

    def __init__(
        self,
        where: str | os.PathLike[str] | ByteStore | KeyValueStore,
        *,
        trust: Literal["all", "flagged"] = "all",
        secret: str | bytes | None = None,
    ) -> None:
        if trust not in ("all", "flagged"):
            raise ConfigurationError(f"trust is {trust!r}; it is 'all' or 'flagged'.")
        self._where = where
        self._trust = trust
        secret = secret.encode() if isinstance(secret, str) else secret or b""
        self._secret = blake2b(secret, digest_size=32).digest() if secret else b""
        self._shelf = _shelf(where)
        self._told = False

    def __repr__(self) -> str:
        place = self._where if isinstance(self._where, str | os.PathLike) else type(self._where)
        return f"VerdictStore({place!r}, trust={self._trust!r})"

    def load(self, keys: Sequence[str]) -> dict[str, Verdict]:
        """The verdicts that are there and may be believed."""
        try:
            entries = dict(self._shelf.read(keys)) if keys else {}
        except Exception as error:
            self._tell("read", error)
            return {}
        read = {key: self._verdict(key, entries[key]) for key in keys if key in entries}
        return {key: verdict for key, verdict in read.items() if verdict is not None}

    def save(self, verdicts: Mapping[str, Verdict]) -> None:
        """Keep those that are finished."""
        entries = {key: self._entry(key, v) for key, v in verdicts.items() if is_finished(v)}
        try:
            if entries:
                self._shelf.write(entries)
        except Exception as error:
            self._tell("written", error)

    def _tell(self, done: str, error: Exception) -> None:
        """Once as a warning: a store that is away is away for every picture."""
        level = "debug" if self._told else "warning"
        getattr(LOGGER, level)("%r cannot be %s; going on without it", self, done, exc_info=error)
        self._told = True

    def _entry(self, key: str, verdict: Verdict) -> bytes:
        packed = zlib.compress(verdict.model_dump_json().encode(), 6)
        return self._signature(key, packed) + packed

    def _verdict(self, key: str, entry: object) -> Verdict | None:
        if not isinstance(entry, bytes):
            return None
        signature, packed = entry[:_SIGNATURE], entry[_SIGNATURE:]
        if not compare_digest(signature, self._signature(key, packed)):
            LOGGER.warning("%r: an entry is damaged or not ours; looking anew", self)
            return None
        try:
            unpacking = zlib.decompressobj()
            text = unpacking.decompress(packed, _MOST)
            verdict = Verdict.model_validate_json(text) if unpacking.eof else None
        except (zlib.error, ValueError):
            return None
        if verdict is None or not is_finished(verdict) or verdict.action is not None:
            return None
        return verdict if self._trust == "all" or verdict.status == "flagged" else None

    def _signature(self, key: str, packed: bytes) -> bytes:
        return blake2b(key.encode() + packed, digest_size=_SIGNATURE, key=self._secret).digest()

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self._where, self._trust, self._secret)


def _restored(where: Any, trust: Any, secret: bytes) -> VerdictStore:
    store = VerdictStore(where, trust=trust)
    store._secret = secret
    return store


def store_key(identity: str, content: bytes) -> str:
    """The key of a verdict: of fixed length, so that no key is the beginning of another."""
    told = f"{len(content)}:{_release()}:{identity}".encode()
    return blake2b(content + told, digest_size=32).hexdigest()


def identity_of(detector: object) -> str:
    """Tells detectors, their settings and their weights apart, the same in every process.

    It is the attribute ``identity`` of a detector that has one, else made of its repr and of the
    weights of the models in it.

    Raises:
        ConfigurationError: the repr says nothing that another process could know it by.
    """
    said = getattr(detector, "identity", None)
    told = said if isinstance(said, str) and said else repr(detector)
    if " at 0x" in told:
        raise ConfigurationError(
            f"{type(detector).__name__} cannot be told from others of its kind in another process, "
            "so its verdicts cannot be kept; give it a __repr__ that says its settings, or an "
            "attribute identity, a text of your own."
        )
    digest = blake2b(f"{type(detector).__qualname__}:{told}".encode(), digest_size=16)
    for model in _models(detector, 0):
        for name, tensor in model.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
            digest.update(repr(float(tensor.double().sum())).encode())
            digest.update(repr(tensor.flatten()[:: max(1, tensor.numel() // 16)].tolist()).encode())
    return digest.hexdigest()


def _models(value: object, depth: int) -> Iterable[Any]:
    """The models with weights in a detector that is made of dataclasses."""
    if callable(getattr(value, "state_dict", None)) and not isinstance(value, type):
        yield value
    elif depth < _DEEPEST:
        inside: Iterable[object] = ()
        if is_dataclass(value) and not isinstance(value, type):
            inside = [getattr(value, item.name, None) for item in fields(value)]
        elif isinstance(value, list | tuple):
            inside = value
        elif hasattr(value, "detector"):
            inside = [value.detector]
        for item in inside:
            yield from _models(item, depth + 1)


def _release() -> str:
    try:
        return version("sightrail")
    except PackageNotFoundError:
        return "0"


def _shelf(where: Any) -> Shelf:
    if isinstance(where, str | os.PathLike):
        place = os.fspath(where)
        return _Database(place if "://" in place else f"sqlite:///{os.path.abspath(place)}")
    if isinstance(where, ByteStore):
        return _Bytes(where)
    if isinstance(where, KeyValueStore):
        return _Values(where)
    raise ConfigurationError(
        f"a {type(where).__name__} is no place for verdicts; pass a path, the URL of a database, "
        "LangChain's BaseStore or LlamaIndex's BaseKVStore."
    )


class _Bytes:
    def __init__(self, store: ByteStore) -> None:
        self._store = store

    def read(self, keys: Sequence[str]) -> Mapping[str, bytes]:
        pairs = zip(keys, self._store.mget(list(keys)), strict=True)
        return {key: value for key, value in pairs if value is not None}

    def write(self, entries: Mapping[str, bytes]) -> None:
        self._store.mset(list(entries.items()))


class _Values:
    def __init__(self, store: KeyValueStore) -> None:
        self._store = store

    def read(self, keys: Sequence[str]) -> Mapping[str, bytes]:
        found = {key: self._store.get(key, _COLLECTION) for key in keys}
        return {key: bytes.fromhex(value["entry"]) for key, value in found.items() if value}

    def write(self, entries: Mapping[str, bytes]) -> None:
        pairs = [(key, {"entry": entry.hex()}) for key, entry in entries.items()]
        self._store.put_all(pairs, _COLLECTION)


class _Database:
    """One table, a connection a call: nothing is open that a fork or a thread could share."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._made: tuple[int, Engine, Table] | None = None

    def read(self, keys: Sequence[str]) -> Mapping[str, bytes]:
        from sqlalchemy import select

        engine, table = self._opened()
        with engine.connect() as connection:
            rows = connection.execute(
                select(table.c.key, table.c.entry).where(table.c.key.in_(keys))
            )
            return {row.key: bytes(row.entry) for row in rows}

    def write(self, entries: Mapping[str, bytes]) -> None:
        from sqlalchemy import delete, insert
        from sqlalchemy.exc import IntegrityError

        engine, table = self._opened()
        try:
            with engine.begin() as connection:
                connection.execute(delete(table).where(table.c.key.in_(list(entries))))
                rows = [{"key": key, "entry": entry} for key, entry in entries.items()]
                connection.execute(insert(table), rows)
        except IntegrityError:  # another worker has looked at the same pictures meanwhile
            return

    def _opened(self) -> tuple[Engine, Table]:
        from sqlalchemy import Column, LargeBinary, MetaData, String, Table, create_engine
        from sqlalchemy.exc import OperationalError
        from sqlalchemy.pool import NullPool

        if self._made is None or self._made[0] != os.getpid():
            wait = {"timeout": _BUSY_S} if self._url.startswith("sqlite") else {}
            engine = create_engine(self._url, poolclass=NullPool, connect_args=wait)
            table = Table(
                _COLLECTION,
                MetaData(),
                Column("key", String(64), primary_key=True),
                Column("entry", LargeBinary, nullable=False),
            )
            try:
                table.create(engine, checkfirst=True)
            except OperationalError:  # two workers began at once: it is there now, or never will be
                table.create(engine, checkfirst=True)
            self._made = (os.getpid(), engine, table)
        return self._made[1:]
