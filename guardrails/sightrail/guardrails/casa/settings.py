"""What CASA is trained with, and what its parts are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, get_args

from ..errors import ArtifactError, ConfigurationError
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
