"""What CASA is trained with, and what its parts are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final, get_args

from ..errors import ArtifactError, ConfigurationError
from ..prefix.safety_prefix import AttentiveCalibration
from ..published import Source
from .safety_attention import Rule


@dataclass(frozen=True)
class CasaSettings:
    """CASA: the model first decides, in one token that nobody sees, and then answers.

    The first token y_0 of every response is one of two, C_safe and C_unsafe; at that step all
    other vocabulary is masked, and the rest of the response is conditioned on it:

        P(y | x) = P(y_0 | x) prod_t P(y_t | x, y_0, y_<t).

    Safety attention looks over the prompt's hidden states h_t (no gradient flows into them) and
    gives v in (0, 1), 1 for malicious. With p_s, p_u the model's probabilities of the two tokens,

        P(unsafe) = v p_u / (v p_u + (1 - v) p_s),

    and C_unsafe is chosen where that reaches a threshold. Low-rank adapters and the attention are
    trained together; m are the malicious examples, b the benign ones:

        loss = beta (D_m + V_m + T_m) + (1 - beta) (D_b + V_b + T_b),
        D = -log p(the right token),  T = mean -log P(y_t | x, y_0, y_<t),  t >= 1,

    and V is the same as D for v.

    What differs, and why:

    - The paper multiplies the two logits by v and 1 - v. Raw logits have no sign to rely on: where
      they are negative a larger v lowers z_unsafe. Here v weighs the probabilities instead.
    - Each of the two is trained to decide by itself. Trained through their product, one of them
      may leave the work to the other.
    - Softmax weights over time sum to one, so their sum says nothing. Here each of two learned
      queries (safe, unsafe) pools values by its own attention, in several heads, and is scored;
      v is the sigmoid of the difference.
    - The paper reports no threshold. Here it is chosen on examples kept apart, as the lowest one
      that refuses no more than a share of the benign ones.
    - The adapter acts on the prompt and on the safety token, not on the answer. What it has to
      tell the answer stands in their keys and values, and answer tokens cost what they cost bare.
    - Some malicious examples are trained with the opening of a benign answer before or after
      C_unsafe, and some benign ones with C_safe in the middle of the answer, so that an answer
      that others have begun is still decided on and, where unsafe, broken off.
    - The labels of the decision may be smoothed. Without, both grow certain about what they
      were trained on, and say little about unsafe things that they have not seen.
    - Some examples are trained behind the safety prefix, and some behind a calibrated one: the
      adapter moves the queries and keys that an ``AttentiveCalibration`` multiplies, and trained
      apart the two garble each other's answers. The same goes for a border around the pictures.
    - The decision on such an answer is read where it would have begun, before the given words.

    Reference: CASA, arXiv 2604.00310 (ACL 2026).

    Attributes:
        safe_token: id of C_safe.
        unsafe_token: id of C_unsafe.
        layer: whose hidden states the attention reads: i is the output of decoder layer i, the
            number of layers that of the final norm.
        heads: of the attention, for each query.
        width: of a head.
        targets: last parts of the names of the adapted linear maps; none leaves the model as it is
            and v decides alone.
        rank: of the adapter.
        alpha: the adapter adds alpha / rank times its output.
        rule: whether v weighs the two tokens' ``"probabilities"`` or, as the paper prints it, their
            raw ``"logits"``.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    safe_token: int
    unsafe_token: int
    layer: int
    heads: int = 4
    width: int = 32
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    rank: int = 8
    alpha: float = 16.0
    rule: Rule = "probabilities"

    SOURCES: ClassVar[Mapping[str, Source]] = {
        "safe_token": "caller",
        "unsafe_token": "caller",
        "layer": "our reading",
        "heads": "our reading",
        "width": "our reading",
        "targets": "our reading",
        "rank": "our reading",
        "alpha": "our reading",
        "rule": "paper",
    }

    @classmethod
    def published(cls, safe_token: int, unsafe_token: int, *, depth: int) -> CasaSettings:
        """The rule that the paper prints, v z_unsafe against (1 - v) z_safe, over the final states.

        The paper says that a low-rank adapter and the attention are trained together, and no more
        about either; sizes are ours. No code of the authors is public.

        Args:
            safe_token: id of C_safe.
            unsafe_token: id of C_unsafe.
            depth: number of decoder layers of the model.
        """
        return cls(safe_token, unsafe_token, layer=depth, rule="logits")

    def __post_init__(self) -> None:
        """Check every range."""
        sizes = {"heads": self.heads, "width": self.width, "rank": self.rank}
        for name, value in sizes.items():
            if value < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {value}.")
        if self.rule not in get_args(Rule):
            raise ConfigurationError(f"rule is probabilities or logits, got {self.rule!r}.")
        if self.layer < 0 or self.alpha <= 0:
            raise ConfigurationError(
                f"layer must be 0 or more and alpha above 0, got {self.layer} and {self.alpha}."
            )

    @property
    def attention_only(self) -> bool:
        """Whether the attention decides alone and the model stays as it is."""
        return not self.targets

    def to_json(self) -> dict[str, Any]:
        """As the artifact keeps it."""
        return {**asdict(self), "targets": list(self.targets)}

    @classmethod
    def from_json(cls, settings: dict[str, Any]) -> CasaSettings:
        """From what an artifact holds.

        Raises:
            ArtifactError: it is not what this version writes.
        """
        try:
            return cls(**{**settings, "targets": tuple(settings["targets"])})
        except (TypeError, KeyError, ConfigurationError) as error:
            raise ArtifactError(f"The casa artifact has unknown settings: {error}") from error


TARGETS: Final = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class FitSettings:
    """Settings of one training run; see :class:`CasaSettings` for the loss.

    The paper states the losses, beta and the counts of its data. Not stated, and ours: the layer,
    the size of the attention and how it begins (queries, keys and values drawn at random from the
    seed, the scores at zero, so that v begins at 1/2 for every request), rank and targets of the
    adapter, the schedule, and everything about answers that others have begun.

    Attributes:
        steps: updates.
        batch: requests a step, half of them harmful.
        learning_rate: at its peak; it warms up over a twentieth and falls to a twentieth.
        beta: weight of the harmful terms against the benign ones.
        smoothing: certainty taken from the labels of the decision, so that it stays moderate about
            what it has not seen.
        begun: share of the examples whose answer begins before the safety token.
        forced: share of the harmful ones with a benign opening right after C_unsafe.
        prefixed: share of the examples that stand behind ``SafetyPrefix``.
        calibrated: share of the batches in which all stand behind it and ``calibration`` is on.
        calibration: of the prefix, where it is to stand beside Casa.
        refusal: what the model is to say after C_unsafe, where an example holds nothing.
        over_refusal: share of benign requests that the threshold may refuse.
        text_only: leave out the examples that have a picture.
        attention_only: train no adapter: the model stays as it is, and v decides alone.
        layer: that the attention reads, counted as ``CasaSettings.layer``; None is two thirds up.
            The paper does not say which. In the last layers the states turn towards the next word;
            two thirds up they still tell what the request is about.
        heads: of the attention.
        width: of a head.
        targets: of the adapter: last parts of the names of linear maps, such as ``q_proj``.
        rank: of the adapter.
        alpha: of the adapter.
        tokens: C_safe and C_unsafe by their texts; None takes what the vocabulary has to spare.
        answer_tokens: at most this many of an answer are trained on.
        seed: of the draws.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    steps: int = 800
    batch: int = 16
    learning_rate: float = 2e-4
    beta: float = 0.5
    smoothing: float = 0.0
    begun: float = 0.2
    forced: float = 0.3
    prefixed: float = 0.2
    calibrated: float = 0.0
    calibration: AttentiveCalibration | None = None
    refusal: str = "I am sorry, I cannot help with that."
    over_refusal: float = 0.02
    text_only: bool = False
    attention_only: bool = False
    layer: int | None = None
    heads: int = 4
    width: int = 32
    targets: tuple[str, ...] = TARGETS
    rank: int = 8
    alpha: float = 16.0
    tokens: tuple[str, str] | None = None
    answer_tokens: int = 64
    seed: int = 0

    @property
    def adapted(self) -> tuple[str, ...]:
        """What the adapter goes on; empty for none."""
        return () if self.attention_only else self.targets

    def __post_init__(self) -> None:
        """Check every range."""
        shares = {
            "beta": self.beta,
            "smoothing": self.smoothing,
            "begun": self.begun,
            "forced": self.forced,
            "prefixed": self.prefixed,
            "calibrated": self.calibrated,
            "over_refusal": self.over_refusal,
        }
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise ConfigurationError(f"{name} must be in [0, 1], got {value}.")
        if self.begun + self.forced > 1:
            raise ConfigurationError("begun and forced together must not exceed 1.")
        if (self.calibrated > 0) != (self.calibration is not None):
            raise ConfigurationError(
                "calibrated and calibration belong together: a share of the batches, and what is "
                f"on in them; got {self.calibrated} and {self.calibration}."
            )
        if self.steps < 1 or self.batch < 2 or self.answer_tokens < 2 or self.learning_rate <= 0:
            raise ConfigurationError(
                "steps must be at least 1, batch and answer_tokens at least 2, learning_rate above "
                f"0; got {self.steps}, {self.batch}, {self.answer_tokens}, {self.learning_rate}."
            )
