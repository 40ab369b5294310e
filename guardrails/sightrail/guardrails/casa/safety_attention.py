"""Safety attention, and the rule that joins it with the safety token into one decision.

Two learned queries look over the prompt and say how unsafe it is.
"""

from __future__ import annotations

from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn


def attend(
    states: torch.Tensor,
    seen: torch.Tensor,
    queries: torch.Tensor,
    to_key: torch.Tensor,
    to_value: torch.Tensor,
) -> torch.Tensor:
    """What each query finds in the prompt.

    Per head, with h_t the normalised hidden state at position t:

        a_t = softmax_t(q . W_k h_t / sqrt(D)) over the positions seen,   r = sum_t a_t W_v h_t.

    Args:
        states: hidden states of the prompt [B, T, C].
        seen: [B, T] bool, false at padding; every row needs one position.
        queries: [2, H, D], the safe one and the unsafe one.
        to_key: W_k [H D, C].
        to_value: W_v [H D, C].

    Returns:
        [B, 2, H D].
    """
    heads, width = queries.shape[1:]
    normal = nn.functional.layer_norm(states, states.shape[-1:])
    key = nn.functional.linear(normal, to_key).unflatten(-1, (heads, width))  # [B, T, H, D]
    value = nn.functional.linear(normal, to_value).unflatten(-1, (heads, width))
    scores = torch.einsum("nhd,bthd->bnht", queries, key) / width**0.5
    weights = scores.masked_fill(~seen[:, None, None, :], -torch.inf).softmax(dim=-1)
    return torch.einsum("bnht,bthd->bnhd", weights, value).flatten(2)


class SafetyAttention(nn.Module):
    """The learned part: queries, key and value maps, and a score for each query.

    Args:
        channels: width C of the hidden states.
        heads: H.
        width: D.
    """

    def __init__(self, channels: int, heads: int, width: int) -> None:
        super().__init__()
        inner = heads * width
        self.queries = nn.Parameter(torch.randn(2, heads, width))
        self.to_key = nn.Parameter(torch.randn(inner, channels) / channels**0.5)
        self.to_value = nn.Parameter(torch.randn(inner, channels) / channels**0.5)
        self.score = nn.Parameter(torch.zeros(2, inner))
        self.bias = nn.Parameter(torch.zeros(2))

    def forward(self, states: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """The logit of v for each prompt: s_unsafe - s_safe, with s_i = w_i . r_i + b_i.

        Args:
            states: [B, T, C]; no gradient flows back into the model.
            seen: [B, T] bool.

        Returns:
            [B], so that v = sigmoid(logit).
        """
        states = states.detach().float()
        found = attend(states, seen, self.queries, self.to_key, self.to_value)
        scores = (found * self.score).sum(dim=-1) + self.bias
        return scores[:, 1] - scores[:, 0]


Rule = Literal["probabilities", "logits"]
_SURE: Final = 12.0  # logit beyond which half precision knows no difference


def unsafe_logit(
    logits: Float[Tensor, "B 2"],
    attended: Float[Tensor, " B"] | None,
    rule: Rule = "probabilities",
) -> Float[Tensor, " B"]:
    """The logit of P(unsafe), from what the token and the attention say.

    With p_u, p_s the model's probabilities of the two safety tokens, all other vocabulary masked,
    and v in (0, 1) what the safety attention says,

        P(unsafe) = v p_u / (v p_u + (1 - v) p_s),   logit = (z_u - z_s) + log v - log(1 - v)

    for ``"probabilities"``, and for ``"logits"`` (CASA, arXiv 2604.00310, as printed)

        logit = v z_u - (1 - v) z_s.

    Args:
        logits: the model's logits (z_s, z_u) of C_safe and C_unsafe.
        attended: log v - log(1 - v); None stands for the token alone.
        rule: what v weighs.

    Returns:
        In float32.
    """
    if rule == "logits" and attended is not None:
        v = attended.float().sigmoid()
        return v * logits[:, 1].float() - (1 - v) * logits[:, 0].float()
    pair = logits.float().log_softmax(dim=-1)
    apart = pair[:, 1] - pair[:, 0]
    if attended is None:
        return apart
    return apart + attended.float().clamp(-_SURE, _SURE)
