"""What is done about a verdict: a policy decides, `apply_policy` carries it out on a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat

from .encoding import Encoding
from .errors import ImageRefused, RequestRefused
from .verdict import Action, Box, FrozenDict, FrozenMap, Verdict

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["REASONS", "Applied", "CallRules", "Policy", "Surface", "SurfaceRules", "apply_policy"]

UnseenAction = Literal["allow", "drop", "refuse", "raise"]
"""There is nothing to mask in a picture that was not inspected."""

RequestAction = Literal["decline", "refuse", "raise", "allow"]
"""`decline`: the model refuses in its own words, as the guardrail inside it makes it."""

CallAction = Literal["allow", "ask", "refuse"]
"""What follows for tool calls: `ask` puts them before a person."""

Surface = Literal["user", "system", "ai", "tool", "retrieval"]
"""Where a picture came from: who said the message, a tool's result, or a retrieved document."""

REASONS: Final = frozenset(
    {"audio", "video", "file", "file_id", "pdf", "svg", "unknown_block", "unknown_object"}
    | {"remote_url", "remote_failed", "remote_private", "remote_forbidden", "remote_timeout"}
    | {"local_address", "malformed_block", "not_resolved"}
    | {"missing_file", "not_a_file", "unreadable_file", "unsupported_source", "unsupported_mode"}
    | {"empty", "not_an_image", "truncated", "too_small", "too_large", "too_deep", "too_fine"}
    | {"too_many_images", "too_many_frames", "too_many_views", "too_much_text", "unparsable"}
)
"""Why something was not inspected, as it stands in ``NotInspected.reason``."""

_PICTURE_REFUSAL: Final = "I am sorry, I cannot help with that image."
_REQUEST_REFUSAL: Final = "I am sorry, I cannot help with that request."
_THINGS: Final = {
    **{"audio": "recording", "video": "video", "pdf": "document", "svg": "drawing"},
    **dict.fromkeys(("file", "file_id", "unreadable_file"), "file"),
    **dict.fromkeys(("unknown_block", "unknown_object", "too_deep"), "content"),
}
_REMEDIES: Final = {
    "remote_url": "I am sorry, I do not open images by their address. Please attach the image.",
    "local_address": "I am sorry, I do not open files by their path. Please attach the image.",
    "failed": "I am sorry, I could not check that image. Please try again later.",
    **dict.fromkeys(
        ("empty", "not_an_image", "truncated", "malformed_block"),
        "I am sorry, I cannot read that image. Please attach it as PNG or JPEG.",
    ),
    **dict.fromkeys(
        ("too_large", "too_many_images", "too_many_frames", "too_many_views"),
        "I am sorry, that is more than I can check at once. Please attach less.",
    ),
}

_STRICTNESS: Final[tuple[Action, ...]] = ("allow", "mask", "drop", "refuse", "raise")


def _known_reasons(rules: dict[str, UnseenAction]) -> dict[str, UnseenAction]:
    if unknown := sorted(rules.keys() - REASONS):
        raise ValueError(
            f"unknown reasons {', '.join(unknown)}; known are {', '.join(sorted(REASONS))}"
        )
    return rules


ReasonRules = Annotated[dict[str, UnseenAction], AfterValidator(_known_reasons)]


def _fillable(text: str | None) -> str | None:
    if text is not None:
        try:
            text.format(category="", reason="")
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise ValueError(
                "in a refusal only {category} and {reason} may stand in braces; write {{ for a "
                "brace of its own"
            ) from error
    return text


Refusal = Annotated[str, AfterValidator(_fillable)]


class SurfaceRules(BaseModel):
    """What differs on one surface; a field that is None (or a category not named) is the policy's.

    Attributes:
        on_flagged: in place of the policy's.
        categories: laid over the policy's.
        on_not_inspected: in place of the policy's.
        on_error: in place of the policy's.
        reasons: laid over the policy's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    on_flagged: Action | None = None
    reasons: ReasonRules = Field(default_factory=dict)
    categories: FrozenMap[str, Action] = Field(default_factory=FrozenDict)
    on_not_inspected: UnseenAction | None = None
    on_error: UnseenAction | None = None


class CallRules(BaseModel):
    """What follows for the tool calls that a model proposes; the defaults let all of them pass.

    Every step of an agent is ruled anew. `refuse` ends the step with `refusal` and no calls: what
    earlier steps brought stays, and the conversation can go on. `ask` holds the calls back until a
    person has approved them; where nobody asks one, they are never carried out. A call that the
    app itself forces by a tool's name, as structured output does, is the app's and not ruled.

    Attributes:
        after_unsafe: where an unsafe picture has come in since the user last spoke, that message
            included: one that was flagged, whatever was done about it, or one that passed although
            nobody could look at it.
        read_words: where a call's arguments repeat what is written in an untrusted picture of the
            conversation and was not said by the user or the system prompt. Needs a detector that
            reads, such as TextInPicture. A picture that nobody can read counts as repeated.
            What is rephrased, translated or encoded is not found.
        untrusted: the surfaces whose pictures are not trusted.
        letters: so many letters and digits in a row that stand in both, case and space aside, are
            no accident. Shorter arguments of several words count if they stand there whole, and
            words with a digit (codes, numbers, addresses) from four characters on.
        refusal: the answer in place of calls that are refused.
        review: what is said for calls that wait for a person.

    Example:
        >>> Policy(calls=CallRules(after_unsafe="refuse", read_words="ask")).calls.untrusted
        ('tool', 'retrieval')
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    after_unsafe: CallAction = "allow"
    read_words: CallAction = "allow"
    untrusted: tuple[Surface, ...] = ("tool", "retrieval")
    letters: int = Field(default=12, ge=3)
    refusal: str = "I am sorry, I stopped before the next step: it may not be safe."
    review: str = "I need the approval of a person before the next step."

    @property
    def active(self) -> bool:
        """Whether there is a rule at all."""
        return (self.after_unsafe, self.read_words) != ("allow", "allow")


class Policy(BaseModel):
    """What each finding leads to. The defaults fail closed.

    Attributes:
        on_flagged: for categories that `categories` does not name. `mask` covers the regions,
            looks again until nothing is left, and lets the rest of the picture through.
        categories: unsafe category -> action; where several are flagged, the strictest wins.
        on_not_inspected: for a picture nobody could look at (broken, too large, unknown kind).
        on_error: for a screening that broke or took longer than `timeout_s`.
        reasons: why something was not inspected (see ``REASONS``) -> action, in place of
            `on_not_inspected`: ``{"audio": "allow"}`` lets sound pass that nobody listened to.
        on_unsafe_request: for a request that a guardrail inside the model (such as CASA) decides
            against: the model declines in its own words, or its answer is not even begun and the
            user gets `request_refusal`, or an exception.
        calls: what follows for tool calls after an unsafe picture, and for those whose arguments
            repeat what is written in one; see ``CallRules``.
        surfaces: what differs for pictures from a user, a system prompt, the model itself, a tool
            or a retriever. A rule for `on_flagged` does not undo `categories`.
        timeout_s: how long fetching, decoding and looking at the pictures of one call may take, in
            seconds; what is not done by then has failed. None waits for as long as it takes.
        monitor: decide and record, but change nothing and let everything through.
        mask: how regions are covered: a flat `fill`, or one whose edge is a `blur`. Neither leaves
            anything of a region.
        refusal: the answer that a user gets in place of the model's where a picture was refused;
            ``{category}`` and ``{reason}`` in it are filled in. The default says what was refused
            (an image, a recording, a file) and what can be done.
        request_refusal: the same where a guardrail refused the request as a whole, with or without
            a picture; None is `refusal` if that was changed, else a text that names no image.
        note: what stands in place of a dropped picture in a message.
        encoding: how pictures that may pass are written.

    Example:
        >>> strict_tools = {"tool": SurfaceRules(on_flagged="drop", on_not_inspected="drop")}
        >>> policy = Policy(categories={"weapons": "refuse"}, surfaces=strict_tools)
        >>> policy.on("tool").on_not_inspected, policy.on("user").on_not_inspected
        ('drop', 'refuse')
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    on_flagged: Action = "mask"
    categories: FrozenMap[str, Action] = Field(default_factory=FrozenDict)
    on_not_inspected: UnseenAction = "refuse"
    on_error: UnseenAction = "refuse"
    reasons: ReasonRules = Field(default_factory=dict)
    on_unsafe_request: RequestAction = "decline"
    calls: CallRules = CallRules()
    surfaces: FrozenMap[Surface, SurfaceRules] = Field(default_factory=FrozenDict)
    timeout_s: PositiveFloat | None = 60.0
    monitor: bool = False
    mask: Literal["fill", "blur"] = "fill"
    refusal: Refusal = _PICTURE_REFUSAL
    request_refusal: Refusal | None = None
    note: str = "[image removed by the safety policy]"
    encoding: Encoding = Encoding()

    def on(self, surface: Surface | None) -> Self:
        """The policy for one surface; None, and a surface without rules, is the policy itself."""
        rules = self.surfaces.get(surface) if surface is not None else None
        if rules is None:
            return self
        own = rules.model_dump(exclude_none=True)
        own["categories"] = FrozenDict({**self.categories, **rules.categories})
        own["reasons"] = {**self.reasons, **rules.reasons}
        return self.model_copy(update={**own, "surfaces": FrozenDict()})

    @property
    def request_action(self) -> RequestAction:
        """What is done about an unsafe request; `monitor` lets it through."""
        return "allow" if self.monitor else self.on_unsafe_request

    def refusal_for(self, verdicts: Iterable[Verdict]) -> str:
        """The text that a user gets, right for what these verdicts refused.

        It is about the pictures unless nothing but requests as a whole were refused.
        """
        refused = [v for v in verdicts if v.action in ("refuse", "raise")]
        if refused and all(verdict.subject == "calls" for verdict in refused):
            return self.calls.refusal
        asked = bool(refused) and all(verdict.subject == "request" for verdict in refused)
        text = self.refusal
        if asked and self.request_refusal is not None:
            text = self.request_refusal
        elif text == _PICTURE_REFUSAL:
            return _REQUEST_REFUSAL if asked else _plain_refusal(refused)
        first = refused[0] if refused else None
        category = (first.category or first.guardrail) if first else None
        return text.format(category=category or "unsafe content", reason=_reason(refused) or "risk")

    def decide(self, verdict: Verdict, surface: Surface | None = None) -> Action:
        """The action for one verdict, the strictest that anything in it leads to.

        Does not look at `monitor`.
        """
        rules = self.on(surface)
        if verdict.status == "failed":
            return rules.on_error
        if verdict.status == "not_inspected":
            return rules._unseen(verdict)
        actions: list[Action] = (
            ["allow"] if verdict.status == "clean" else [rules._flagged(verdict)]
        )
        if verdict.not_inspected:
            actions.append(rules._unseen(verdict))
        return max(actions, key=_STRICTNESS.index)

    def _unseen(self, verdict: Verdict) -> Action:
        actions: list[Action] = [
            self.on_error
            if gap.reason == "failed"
            else self.reasons.get(gap.reason, self.on_not_inspected)
            for gap in verdict.not_inspected
        ]
        return max(actions or [self.on_not_inspected], key=_STRICTNESS.index)

    def _flagged(self, verdict: Verdict) -> Action:
        found = {*verdict.flagged_categories, verdict.category or ""}
        actions = (self.categories.get(category, self.on_flagged) for category in found)
        action = max(actions, key=_STRICTNESS.index)
        if action == "mask" and not verdict.regions:
            return "refuse"  # nothing to cover, so nothing may pass
        return action


def refusal_error(text: str, verdicts: Sequence[Verdict]) -> ImageRefused | RequestRefused:
    """A refusal where a message would not be of the type that was asked for."""
    told = {verdict.subject for verdict in verdicts if verdict.action in ("refuse", "raise")}
    kind = ImageRefused if "picture" in told or not told else RequestRefused
    return kind(text, verdicts=verdicts)


def _reason(refused: Sequence[Verdict]) -> str | None:
    """Why the first of these was not inspected; None where it was."""
    missing = refused[0].not_inspected if refused else ()
    return missing[0].reason if missing else None


def _plain_refusal(refused: Sequence[Verdict]) -> str:
    """What fits what was refused, in words that help its sender."""
    reason = _reason(refused) or ""
    if refused and refused[0].status == "flagged":
        return _PICTURE_REFUSAL
    thing = _THINGS.get(reason, "image")
    return _REMEDIES.get(reason, f"I am sorry, I cannot help with that {thing}.")


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


LookAgain = Callable[["Image", "tuple[Box, ...]"], Verdict]
"""A picture and the boxes that were covered in it -> what can still be seen of the risk."""


def apply_policy(
    image: Image | None,
    verdict: Verdict,
    policy: Policy,
    surface: Surface | None = None,
    look_again: LookAgain | None = None,
) -> Applied:
    """Carry a policy out on a picture (None for one that could not be decoded).

    Args:
        image: the picture that was looked at.
        verdict: what was found.
        policy: what that leads to.
        surface: where the picture came from.
        look_again: checks a masked picture. What it still finds is covered as well, and a picture
            that does not get clean is refused. Without it a mask is not checked.

    Raises:
        ImageRefused: the action is `raise` and the policy does not only monitor.
    """
    action = policy.decide(verdict, surface)
    if action == "mask" and image is None:
        action = "refuse"
    if action == "mask" and image is not None and not policy.monitor:
        from .screening.regions import cover_until_clean

        rules = policy.on(surface)
        covered, verdict = cover_until_clean(image, verdict, rules.mask, rules.decide, look_again)
        action = "refuse" if covered is None else "mask"
        return Applied(action, covered, verdict.taken(action))
    verdict = verdict.taken(action)
    if policy.monitor or (action == "allow" and image is not None):
        return Applied(action, image, verdict)
    if action == "raise":
        raise ImageRefused(
            f"The policy refuses this picture: {verdict.summary()}", verdicts=[verdict]
        )
    return Applied(action, None, verdict)
