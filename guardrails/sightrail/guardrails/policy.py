"""What is done about a verdict: a policy decides, `apply_policy` carries it out on a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from .errors import ImageRefused
from .verdict import Action, Verdict

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Applied", "Policy", "apply_policy"]

UnseenAction = Literal["allow", "drop", "refuse", "raise"]
"""There is nothing to mask in a picture that was not inspected."""

_STRICTNESS: Final[tuple[Action, ...]] = ("allow", "mask", "drop", "refuse", "raise")


class Policy(BaseModel):
    """What each finding leads to. The defaults fail closed.

    Attributes:
        on_flagged: for categories that `categories` does not name. `mask` covers the regions and
            lets the rest of the picture through.
        categories: unsafe category -> action; where several are flagged, the strictest wins.
        on_not_inspected: for a picture nobody could look at (broken, too large, unknown kind).
        on_error: for a screening that broke.
        monitor: decide and record, but change nothing and let everything through.
        mask: how regions are covered: a flat `fill`, or a `blur` that keeps the coarse colours.
        refusal: the answer that a user gets in place of the model's.
        note: what stands in place of a dropped picture in a message.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    on_flagged: Action = "mask"
    categories: dict[str, Action] = Field(default_factory=dict)
    on_not_inspected: UnseenAction = "refuse"
    on_error: UnseenAction = "refuse"
    monitor: bool = False
    mask: Literal["fill", "blur"] = "fill"
    refusal: str = "I am sorry, I cannot help with that image."
    note: str = "[image removed by the safety policy]"

    def decide(self, verdict: Verdict) -> Action:
        """The action for one verdict, the strictest that anything in it leads to.

        Does not look at `monitor`.
        """
        if verdict.status == "failed":
            return self.on_error
        if verdict.status == "not_inspected":
            return self.on_not_inspected
        actions: list[Action] = ["allow"] if verdict.status == "clean" else [self._flagged(verdict)]
        if verdict.not_inspected:
            actions.append(self.on_not_inspected)
        return max(actions, key=_STRICTNESS.index)

    def _flagged(self, verdict: Verdict) -> Action:
        found = {*verdict.flagged_categories, verdict.category or ""}
        actions = (self.categories.get(category, self.on_flagged) for category in found)
        action = max(actions, key=_STRICTNESS.index)
        if action == "mask" and not verdict.regions:
            return "refuse"  # nothing to cover, so nothing may pass
        return action


@dataclass(frozen=True)
class Applied:
    """The outcome of a policy on one picture.

    Attributes:
        action: what was decided; under `monitor` the picture passes whatever it says.
        image: the picture that travels on; None where none does.
        verdict: the verdict with the action on it.
    """

    action: Action
    image: Image | None
    verdict: Verdict


def apply_policy(image: Image | None, verdict: Verdict, policy: Policy) -> Applied:
    """Carry a policy out on a picture (None for one that could not be decoded).

    Raises:
        ImageRefused: the action is `raise` and the policy does not only monitor.
    """
    action = policy.decide(verdict)
    if action == "mask" and image is None:
        action = "refuse"
    verdict = verdict.taken(action)
    if policy.monitor or (action == "allow" and image is not None):
        return Applied(action, image, verdict)
    if action == "raise":
        raise ImageRefused(
            f"The policy refuses this picture: {verdict.summary()}", verdicts=[verdict]
        )
    if action == "mask" and image is not None:
        from .screening.masking import cover_regions

        return Applied(action, cover_regions(image, verdict.regions, policy.mask), verdict)
    return Applied(action, None, verdict)
