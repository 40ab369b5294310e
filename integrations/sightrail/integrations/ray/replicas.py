"""The server as a Ray Serve application: replicas, autoscaling, one memory of verdicts for all."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError

from sightrail.guardrails import Picture, Verdict
from sightrail.guardrails.errors import ConfigurationError
from sightrail.guardrails.screening.asking import (
    Detector,
    LooksAgain,
    categories_of,
    wants_request,
)
from sightrail.guardrails.screening.cache import content_key

from ..server import ServerSettings
from ..server.app import create_app

if TYPE_CHECKING:
    from ray.serve import Application

    from sightrail.guardrails.verdict import Box

LOGGER: Final = logging.getLogger("sightrail.ray")
_FINISHED: Final = ("clean", "flagged")
_MEMORY_S: Final = 2.0


def serve_application(settings: ServerSettings, **deployment: Any) -> Application:
    """An application for ``serve.run``, or for ``serve run module:app``.

    Every replica loads what the settings name. What one of them has screened, none looks at again:
    they share a memory, an actor that lives as long as the cluster. A replica that cannot reach it
    looks for itself.

    Args:
        settings: of the server. Where it listens is Ray Serve's business (``http_options``), so
            ``api_keys`` or ``anonymous`` have to be set.
        deployment: options of ``serve.deployment``, such as ``num_replicas``,
            ``autoscaling_config={"min_replicas": 1, "max_replicas": 8}`` and
            ``ray_actor_options={"num_gpus": 0.5}``.

    Raises:
        ConfigurationError: anybody could get in, and nobody said so.

    Example:
        ``serve.run(serve_application(ServerSettings.from_file(path), num_replicas=2))``
    """
    if not settings.api_keys and not settings.anonymous:
        raise ConfigurationError(
            "Ray Serve may listen where others can reach it: set api_keys, or anonymous = true to "
            "let everybody in."
        )

    def replica() -> FastAPI:  # built where it runs: a loaded model does not travel
        return create_app(settings, around_detector=partial(shared, settings))

    @serve.deployment(name="sightrail", **deployment)
    @serve.ingress(replica)
    class Sightrail:
        pass

    application: Application = Sightrail.bind()  # type: ignore[attr-defined]
    return application


def shared(settings: ServerSettings, detector: Detector) -> SharedVerdicts:
    """The detector with the memory of all replicas that screen alike."""
    alike = settings.model_dump_json(include={"encoder", "limits", "device"}).encode()
    own = settings.screening.read_bytes() if settings.screening else b""
    name = f"sightrail-verdicts-{blake2b(alike + own, digest_size=8).hexdigest()}"
    actor: Any = ray.remote(VerdictMemory)
    memory = actor.options(
        name=name, namespace="sightrail", get_if_exists=True, num_cpus=0, lifetime="detached"
    ).remote(max(1, settings.remembered))
    return SharedVerdicts(detector, memory)


class VerdictMemory:
    """Verdicts by content, as JSON; the least recently used one is forgotten first.

    Args:
        most: how many.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: OrderedDict[bytes, str] = OrderedDict()

    def count(self) -> int:
        """How many are known."""
        return len(self._known)

    def recall(self, keys: Sequence[bytes]) -> list[str | None]:
        """What is known."""
        for key in keys:
            if key in self._known:
                self._known.move_to_end(key)
        return [self._known.get(key) for key in keys]

    def remember(self, verdicts: Mapping[bytes, str]) -> None:
        """Keep some more."""
        self._known.update(verdicts)
        while len(self._known) > self._most:
            self._known.popitem(last=False)


class SharedVerdicts:
    """A detector that asks a memory first, and tells it what it found.

    Args:
        detector: looks at what nobody has seen yet. All that share a memory have the same one.
        memory: a handle on a :class:`VerdictMemory`.
    """

    def __init__(self, detector: Detector, memory: Any) -> None:
        self.detector = detector
        self._memory = memory

    @property
    def wants_request(self) -> bool:
        """Whether the detector does."""
        return wants_request(self.detector)

    @property
    def categories(self) -> frozenset[str] | None:
        """Those of the detector, where it says them."""
        return categories_of((self.detector,))

    def screen(self, images: Sequence[Picture]) -> list[Verdict]:
        """One verdict a picture, in order."""
        keys = [content_key(picture) for picture in images]
        return self._verdicts(keys, lambda rows: self.detector.screen([images[r] for r in rows]))

    def screen_again(
        self, pictures: Sequence[Picture], covered: Sequence[Sequence[Box]]
    ) -> list[Verdict]:
        """One verdict a masked picture, in order; see ``RiskDetector.screen_again``."""
        looker = self.detector
        if not isinstance(looker, LooksAgain):
            return self.screen(pictures)
        both = zip(pictures, covered, strict=True)
        keys = [content_key(picture, tuple(boxes)) for picture, boxes in both]
        return self._verdicts(
            keys,
            lambda rows: looker.screen_again(
                [pictures[r] for r in rows], [covered[r] for r in rows]
            ),
        )

    def _verdicts(
        self, keys: Sequence[bytes], look: Callable[[list[int]], Sequence[Verdict]]
    ) -> list[Verdict]:
        known = self._recalled(keys)
        unseen = [row for row, text in enumerate(known) if text is None]
        found = dict(zip(unseen, look(unseen), strict=True)) if unseen else {}
        fresh = {
            keys[row]: verdict.model_dump_json()
            for row, verdict in found.items()
            if verdict.status in _FINISHED
        }
        if fresh:
            self._memory.remember.remote(fresh)
        return [
            found[row] if text is None else Verdict.model_validate_json(text)
            for row, text in enumerate(known)
        ]

    def _recalled(self, keys: Sequence[bytes]) -> list[str | None]:
        """What the memory knows; nothing where it cannot be reached."""
        try:
            told: list[str | None] = ray.get(
                self._memory.recall.remote(list(keys)), timeout=_MEMORY_S
            )
        except RayError:
            LOGGER.warning("the memory of verdicts cannot be reached", exc_info=True)
            return [None] * len(keys)
        return told
