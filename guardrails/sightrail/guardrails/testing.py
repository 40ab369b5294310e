"""Doubles for tests of code that uses sightrail: they need no encoder and no fitted artifact.

>>> from PIL import Image
>>> detector = StubDetector(flag=lambda picture: picture.image.width > 100)
>>> [verdict.status for verdict in detector.screen([Image.new("RGB", (200, 50))])]
['flagged']

A detector goes wherever a ``RiskDetector`` goes. A guardrail goes into
``LocalLVLM(guardrails=[...])`` and into the chat models over it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .verdict import Box, Region, Threshold, Verdict

if TYPE_CHECKING:
    from .intake import Picture
    from .model.families import Host
    from .model.interventions import Interventions, Stage
    from .model.messages import Conversation
    from .model.prompt import Prompt

__all__ = ["StubDetector", "StubGuardrail", "StubReader"]

_SOURCE = "a stub in a test"


@dataclass
class StubDetector:
    """A detector that finds what a test tells it to find.

    A flagged picture has one region, the whole of it, so that every action of a policy can be
    carried out. Once covered it is clean.

    Attributes:
        flag: whether a picture is flagged, for all pictures or picture by picture (an
            ``intake.Picture``; its ``image`` is the PIL picture).
        fail: raised in place of an answer, as by a detector that broke.
        category: of what is flagged.
        seen: every picture that was looked at, in order.
    """

    flag: bool | Callable[[Picture], bool] = False
    fail: Exception | None = None
    category: str = "stub"
    seen: list[Picture] = field(default_factory=list, repr=False)

    def screen(self, images: Sequence[Any]) -> list[Verdict]:
        """One verdict per picture.

        Args:
            images: ``Picture`` objects, or anything that intake reads.

        Raises:
            Exception: ``fail``.
        """
        pictures = [_picture(image) for image in images]
        self.seen += pictures
        if self.fail is not None:
            raise self.fail
        return [
            self._verdict(p, self.flag(p) if callable(self.flag) else self.flag) for p in pictures
        ]

    def screen_again(
        self, pictures: Sequence[Picture], covered: Sequence[Sequence[Box]]
    ) -> list[Verdict]:
        """Clean: what a stub flags is the whole picture, and a mask covers all of it.

        Args:
            pictures: as they are now; not kept in ``seen``.
            covered: where they were covered.

        Raises:
            Exception: ``fail``.
        """
        if self.fail is not None:
            raise self.fail
        return [self._verdict(picture, flagged=False) for picture in pictures]

    def _verdict(self, picture: Picture, flagged: bool) -> Verdict:
        size = picture.image.size
        score = float(flagged)
        return Verdict(
            status="flagged" if flagged else "clean",
            category=self.category,
            score=score,
            scores={self.category: score},
            threshold=Threshold(value=0.5, source=_SOURCE),
            regions=(Region(box=(0, 0, *size), category=self.category, score=score),)
            if flagged
            else (),
            image_size=size,
        )


@dataclass
class StubReader(StubDetector):
    """The same, and it says what is written in pictures, for policies with rules about calls.

    Attributes:
        text: of every picture, or picture by picture; None could not be read.
    """

    text: str | Callable[[Picture], str | None] | None = ""

    def words(self, pictures: Sequence[Picture]) -> list[str | None]:
        """The text of each picture.

        Args:
            pictures: in order.

        Raises:
            Exception: ``fail``.
        """
        if self.fail is not None:
            raise self.fail
        return [self.text(p) if callable(self.text) else self.text for p in pictures]


@dataclass(frozen=True)
class StubGuardrail:
    """A guardrail of the model that decides as a test tells it to, before the answer.

    Attributes:
        flag: whether a request is flagged, for all requests or by the text of the last user turn.
            What follows is the policy's ``on_unsafe_request``; there is nothing that would make the
            model decline in its own words, so ``decline`` is carried out as ``refuse``.
        fail: raised in the middle of a request, as by a guardrail that broke.
        stage: where it stands among the others.
        needs: what it asks of the model.
        prefix: a sentence that it puts before the user's words, None for none.
        seen: the prompts that it was shown, in order.
    """

    flag: bool | Callable[[str], bool] = False
    fail: Exception | None = None
    stage: Stage = "decision"
    needs: frozenset[str] = frozenset()
    prefix: str | None = None
    seen: list[Prompt] = field(default_factory=list, repr=False, compare=False)

    def apply(self, messages: Conversation) -> Conversation:
        """The conversation, the prefix before the user's words."""
        if self.prefix is None:
            return messages
        from .prefix import SafetyPrefix

        changed: Conversation = SafetyPrefix(self.prefix).apply(messages)
        return changed

    def check(self, host: Host) -> None:
        """Any model will do."""

    def interventions(self, prompt: Prompt, host: Host) -> Interventions:
        """The decisions on a batch.

        Raises:
            Exception: ``fail``.
        """
        from .model.interventions import Decision, Interventions, Settled

        self.seen.append(prompt)
        if self.fail is not None:
            raise self.fail
        threshold = Threshold(value=0.5, source=_SOURCE)
        flagged = [self._flagged(" ".join(talk.turns[-1].texts)) for talk in prompt.originals]
        verdicts = [Verdict.on_request("stub", float(found), threshold) for found in flagged]
        found = [Decision.following(verdict, host.policy, own_words=False) for verdict in verdicts]
        return Interventions(decisions=Settled(found))

    def _flagged(self, text: str) -> bool:
        return self.flag(text) if callable(self.flag) else self.flag


def _picture(image: Any) -> Picture:
    """A picture as detectors get it, from what intake reads."""
    from .intake import Limits, Picture, read_picture

    return image if isinstance(image, Picture) else read_picture(image, Limits())
