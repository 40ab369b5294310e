"""The trained parts of CASA, between a file and a model, and the two tokens they decide with.

No token is added and nothing is resized: safe and unsafe are said by tokens that the model has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from ..errors import ArtifactError, ConfigurationError
from ..model.prompt import tokenizer_lock
from .adapter import Adapter, Pair
from .safety_attention import SafetyAttention
from .settings import CasaSettings

if TYPE_CHECKING:
    from ..model.families import Host


_RESERVED: Final = re.compile(
    r"reserved_special_token|reserved_token|<\|?unused_?\d+\|?>|\[unused_?\d+\]"
    r"|<\|?extra(_id)?_\d+\|?>|<SPECIAL_\d+>|<\|?dummy_?\d+\|?>",
    re.IGNORECASE,
)


def safety_tokens(host: Host, chosen: tuple[str, str] | None = None) -> tuple[int, int]:
    """The ids of C_safe and C_unsafe.

    Args:
        host: the model.
        chosen: two tokens by their texts; None takes reserved tokens of the vocabulary, or else
            rows of the embedding matrix that no token uses.

    Raises:
        ConfigurationError: a chosen text is not one token, both are the same, one ends the answer,
            or the model has no two tokens to spare.
    """
    if chosen is not None:
        pair = (_id(host, chosen[0]), _id(host, chosen[1]))
        check_tokens(host, pair)
        return pair
    for pair in _spare_pairs(host):
        if _differ(host, pair):
            return pair
    raise ConfigurationError(
        f"{host.name} has no two reserved tokens to spare; name two tokens of its vocabulary that "
        "never begin an answer: --tokens SAFE UNSAFE."
    )


def check_tokens(host: Host, pair: tuple[int, int]) -> None:
    """Make sure that two ids can serve.

    Raises:
        ConfigurationError: they are the same, out of range, or end or pad an answer.
    """
    ends = host.model.generation_config.eos_token_id
    taken = {host.pad_token_id, *(ends if isinstance(ends, list) else [ends])}
    size = _vocabulary(host)
    if pair[0] == pair[1] or not all(0 <= one < size and one not in taken for one in pair):
        raise ConfigurationError(
            f"The safety tokens {pair} must be two different ids below {size} that neither end nor "
            "pad an answer."
        )


def _id(host: Host, text: str) -> int:
    tokenizer = host.processor.tokenizer
    with tokenizer_lock(tokenizer):
        known = tokenizer.get_vocab().get(text)
        ids = [known] if known is not None else tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise ConfigurationError(
            f"{text!r} is {len(ids)} tokens of {host.name}; name a single one."
        )
    return int(ids[0])


def _vocabulary(host: Host) -> int:
    """Number of ids that can be both read and predicted."""
    return min(len(_weight(host.head)), len(_weight(host.model.get_input_embeddings())))


def _weight(module: Any) -> Any:
    return module.weight


def _spare_pairs(host: Host) -> list[tuple[int, int]]:
    tokenizer, size = host.processor.tokenizer, _vocabulary(host)
    with tokenizer_lock(tokenizer):
        vocabulary = tokenizer.get_vocab()
    reserved = sorted(i for text, i in vocabulary.items() if i < size and _RESERVED.search(text))
    unused = sorted(set(range(size)) - set(vocabulary.values()))
    return [(ids[0], ids[1]) for ids in (reserved, unused) if len(ids) > 1]


def _differ(host: Host, pair: tuple[int, int]) -> bool:
    """Whether the model can tell them apart: rows nobody trained may all be the same."""
    rows = [
        _weight(part)[list(pair)].float() for part in (host.head, host.model.get_input_embeddings())
    ]
    return all(bool((row[0] - row[1]).norm() > 1e-3 * row.norm()) and _finite(row) for row in rows)


def _finite(row: torch.Tensor) -> bool:
    return bool(row.isfinite().all())


_ATTENTION: Final = "attention."
_DOWN, _UP = ".lora_A", ".lora_B"


@dataclass(frozen=True)
class CasaWeights:
    """What a decision is made with.

    Attributes:
        attention: the safety attention.
        adapter: None where the attention decides alone.
    """

    attention: SafetyAttention
    adapter: Adapter | None


def pack(weights: CasaWeights, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """As named tensors in half precision."""
    named = {f"{_ATTENTION}{key}": value for key, value in weights.attention.state_dict().items()}
    if weights.adapter is not None:
        for name, (down, up) in weights.adapter.pairs.items():
            named |= {f"{name}{_DOWN}": down, f"{name}{_UP}": up}
    return {name: value.detach().to(dtype) for name, value in named.items()}


def unpack(
    tensors: Mapping[str, torch.Tensor],
    settings: CasaSettings,
    device: torch.device,
    dtype: torch.dtype,
) -> CasaWeights:
    """From named tensors, onto a device: the adapter in the model's precision, the attention in 32.

    Raises:
        ArtifactError: tensors are missing or do not fit the settings.
    """
    try:
        attention = _attention(tensors, settings).to(device)
        pairs = {
            name.removesuffix(_DOWN): _pair(tensors, name.removesuffix(_DOWN), settings.rank)
            for name in tensors
            if name.endswith(_DOWN)
        }
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise ArtifactError(f"The casa artifact does not hold what it says: {error}") from error
    if settings.attention_only != (not pairs):
        raise ArtifactError(
            "The casa artifact has an adapter and settings without one, or vice versa."
        )
    moved = {
        name: (down.to(device, dtype), up.to(device, dtype)) for name, (down, up) in pairs.items()
    }
    adapter = Adapter(moved, settings.alpha / settings.rank) if moved else None
    return CasaWeights(attention.eval().requires_grad_(False), adapter)


def _attention(tensors: Mapping[str, torch.Tensor], settings: CasaSettings) -> SafetyAttention:
    channels = tensors[f"{_ATTENTION}to_key"].shape[1]
    module = SafetyAttention(channels, settings.heads, settings.width)
    own = {
        name.removeprefix(_ATTENTION): value.float()
        for name, value in tensors.items()
        if name.startswith(_ATTENTION)
    }
    module.load_state_dict(own)
    return module


def _pair(tensors: Mapping[str, torch.Tensor], name: str, rank: int) -> Pair:
    down, up = tensors[f"{name}{_DOWN}"], tensors[f"{name}{_UP}"]
    if down.shape[0] != rank or up.shape[1] != rank:
        raise ValueError(f"{name} has rank {down.shape[0]} and {up.shape[1]}, not {rank}")
    return down, up
