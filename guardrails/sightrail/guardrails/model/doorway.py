"""The one way into the model: attention and hidden states, for the request that asks.

Attention goes through transformers' registry, with the mask function registered under the same
name (without it, causality is silently lost). Hidden states go through forward hooks. Both are
installed once per model and do nothing unless a ContextVar holds the state of a request, so
requests from other threads and tasks never meet it, and nothing has to be restored.

A model can be changed from outside after it was opened: another attention implementation, a hook
removed, a layer replaced. Every request therefore checks that each of its edits ran in each forward
pass, and is given up with an error where one did not.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple, get_args

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..errors import UnsupportedModelError
from .families import TextTower, token_states

#: The name under which our attention stands in transformers' registries.
ATTENTION: Final = "sightrail_sdpa"


@dataclass(frozen=True)
class AttentionCall:
    """One attention layer at work.

    Attributes:
        layer: index of the decoder layer.
        query: [B, H, Q, D].
        key: [B, G, T, D], with G key heads, each shared by H / G query heads.
        value: [B, G, T, D].
        mask: None (plain causal), or [B or 1, H or 1, Q, T]: bool (true = may attend) or additive.
        scaling: factor of the logits.
        past: positions before the first query, counted from the cache.
    """

    layer: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    scaling: float
    past: int

    @property
    def first_key(self) -> int:
        """Position of the first key; above 0 once a sliding window has dropped keys."""
        return max(0, self.past + self.query.shape[2] - self.key.shape[2])


# Any edit may have an attribute `until`: in forward passes with that many positions before them, or
# more, it has nothing to do. Once that is true of all edits of a kind, none of them is called.

#: Takes the call and the model's own output [B, Q, H, D]; gives the output to go on with.
AttentionEdit = Callable[[AttentionCall, torch.Tensor], torch.Tensor]
#: Takes the hidden states [B, Q, C] after a layer and the positions before them (``past``).
HiddenEdit = Callable[[torch.Tensor, int], torch.Tensor]
#: Takes input [B, Q, I] and output [B, Q, O] of a linear map; gives the output to go on with.
LinearEdit = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


Kind = Literal["attention", "hidden_states", "linear"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


class Done(NamedTuple):
    """Which kinds of edits have nothing to do."""

    attention: bool
    hidden_states: bool
    linear: bool


@dataclass
class RequestState:
    """What one request does inside the model.

    Attributes:
        config: the text config of the model it is meant for; other models are left alone.
        attention: layer index -> edits, in order.
        hidden_states: layer index -> edits, in order; the number of layers stands for the output
            of the final norm, which the LM head reads.
        linear: name of a linear map in the text tower -> edits, in order.
        past: positions in the cache before the running forward pass.
        done: which of the kinds have nothing to do in it.
    """

    config: Any
    attention: Mapping[int, tuple[AttentionEdit, ...]] = field(default_factory=dict)
    hidden_states: Mapping[int, tuple[HiddenEdit, ...]] = field(default_factory=dict)
    linear: Mapping[str, tuple[LinearEdit, ...]] = field(default_factory=dict)
    past: int = 0
    done: Done = field(init=False)

    def __post_init__(self) -> None:
        """Find out when each kind will be done."""
        self._kinds: tuple[Mapping[Any, tuple[Any, ...]], ...] = (
            self.attention,
            self.hidden_states,
            self.linear,
        )
        self._until = [_until(kind) for kind in self._kinds]
        self._passes = 0
        self._ran: set[tuple[Kind, int | str]] = set()
        self._set(self.past)

    def _set(self, past: int) -> None:
        self.past = past
        self.done = Done(*(past >= until for until in self._until))
        self._due = sum(len(k) for k, done in zip(self._kinds, self.done, strict=True) if not done)

    def begin(self, past: int) -> None:
        """A forward pass begins.

        Raises:
            UnsupportedModelError: see :meth:`require_ran`, about the pass before.
        """
        if self._passes:
            self.require_ran()
        self._passes += 1
        self._ran.clear()
        self._set(past)

    def first_run(self, kind: Kind, place: int | str) -> bool:
        """Note that the edits at a place run; false if they did already in this pass.

        A module that was wrapped later (an adapter of PEFT around a linear map) may have one hook
        inside and one outside.
        """
        before = len(self._ran)
        self._ran.add((kind, place))
        return len(self._ran) > before

    def require_ran(self) -> None:
        """Make sure that every edit that was due in the forward pass has run.

        Raises:
            UnsupportedModelError: one has not; the message names it.
        """
        if not any(self._kinds) or (self._passes and len(self._ran) >= self._due):
            return
        places = [
            f"{kind} of {place}" if kind == "linear" else f"{kind} of layer {place}"
            for kind, edits, done in zip(KINDS, self._kinds, self.done, strict=True)
            for place in edits
            if not done and (kind, place) not in self._ran
        ]
        raise UnsupportedModelError(
            f"A guardrail's work inside the model was left out ({', '.join(places[:3])}"
            f"{', ...' if len(places) > 3 else ''}): since the guardrail was put on it, the model "
            "has got another attention implementation "
            f"(it is {self.config._attn_implementation!r}), lost a hook, or had a layer replaced. "
            "Nothing was answered; undo that, or make the LocalLVLM anew."
        )


def _until(edits: Mapping[Any, tuple[Any, ...]]) -> float:
    """The number of positions after which none of the edits has anything to do."""
    each = (getattr(edit, "until", math.inf) for some in edits.values() for edit in some)
    return max(each, default=0)


_request: ContextVar[RequestState | None] = ContextVar("sightrail_request", default=None)
_install_lock = threading.Lock()


@contextlib.contextmanager
def request(state: RequestState | None) -> Iterator[None]:
    """Hold a request's state while the model runs; None is the bare model.

    Ends with the block however it is left, in this thread and task only.

    Raises:
        UnsupportedModelError: the model has run and an edit of the request has not.
    """
    token = _request.set(state)
    try:
        yield
    finally:
        _request.reset(token)
    if state is not None:
        state.require_ran()


@contextlib.contextmanager
def computed_again() -> Iterator[None]:
    """A part of the running pass is computed a second time, and its edits run a second time.

    That is what gradient checkpointing does with a layer on the way back.
    """
    state = _request.get()
    token = _request.set(None if state is None else replace(state))
    try:
        yield
    finally:
        _request.reset(token)


def past() -> int:
    """Positions in the cache before the forward pass at work; 0 outside of any request."""
    state = _request.get()
    return 0 if state is None else state.past


def install(
    tower: TextTower, model: Any, *, hidden_states: bool = False, linear: Iterable[str] = ()
) -> None:
    """Open the doorway into a model, where it is not open yet; also where it was shut again.

    A model without a request computes exactly what it computed before.

    Args:
        tower: the model's text tower.
        model: the model.
        hidden_states: open it for hidden states too; its hooks cost a little in every layer.
        linear: names of linear maps inside the text tower to open as well.

    Raises:
        UnsupportedModelError: the text tower does not run on transformers' sdpa attention,
            soft-caps its attention logits, or has no linear map of a given name.
    """
    with _install_lock:
        _install_attention(tower, model)
        if _count_past not in tower.module._forward_pre_hooks.values():
            tower.module.register_forward_pre_hook(_count_past, with_kwargs=True)
        if hidden_states:
            for index, layer in enumerate((*tower.blocks, tower.final_norm)):
                _hook(layer, HiddenHook(index, tower.config))
        for name in sorted(set(linear)):
            _hook(_linear_map(tower, name), LinearHook(name, tower.config))


def _hook(module: torch.nn.Module, hook: HiddenHook | LinearHook) -> None:
    """Put a hook on a module that does not have it."""
    if hook not in module._forward_hooks.values():
        module.register_forward_hook(hook)


def _install_attention(tower: TextTower, model: Any) -> None:
    _check_attention(tower.config)
    if tower.config._attn_implementation != ATTENTION:
        model.set_attn_implementation({tower.config_key: ATTENTION})
    if tower.config._attn_implementation != ATTENTION:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not take its attention from transformers' registry; "
            "use a defence on pixels or prompts."
        )


def _check_attention(config: Any) -> None:
    implementation = config._attn_implementation
    if implementation not in ("sdpa", ATTENTION):
        raise UnsupportedModelError(
            f"Attention-level defences need attn_implementation='sdpa' in the text tower, it has "
            f"{implementation!r}; load the model with attn_implementation='sdpa'."
        )
    if getattr(config, "attn_logit_softcapping", None) is not None:
        raise UnsupportedModelError(
            "Attention-level defences do not cover models that soft-cap attention logits "
            f"(attn_logit_softcapping={config.attn_logit_softcapping}); use a defence on pixels "
            "or prompts."
        )


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The sdpa attention of transformers itself, then the edits of the request, if any."""
    output, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **kwargs
    )
    state = _request.get()
    if state is None or state.done.attention or getattr(module, "config", None) is not state.config:
        return output, None
    layer = int(module.layer_idx)  # type: ignore[arg-type]  # an int, which torch cannot know
    if (edits := state.attention.get(layer)) and state.first_run("attention", layer):
        call = AttentionCall(
            layer=layer,
            query=query,
            key=key,
            value=value,
            mask=attention_mask,
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            past=state.past,
        )
        for edit in edits:
            output = edit(call, output)
    return output, None


def _count_past(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Note how many positions the cache holds; found by type, since argument names change."""
    state = _request.get()
    if state is None or getattr(module, "config", None) is not state.config:
        return
    caches = [value for value in (*args, *kwargs.values()) if isinstance(value, Cache)]
    state.begin(int(caches[0].get_seq_length()) if caches else 0)


@dataclass(frozen=True, eq=False)
class Hook:
    """A forward hook for the edits at one place; equal hooks need to stand there only once.

    Attributes:
        place: a layer's index, or the name of a linear map.
        config: the text config of the model it belongs to.
    """

    place: Any
    config: Any

    def __eq__(self, other: object) -> bool:
        """Whether the other one does the same."""
        return (
            type(other) is type(self)
            and isinstance(other, Hook)
            and other.place == self.place
            and other.config is self.config
        )

    def __hash__(self) -> int:
        return hash((type(self), self.place, id(self.config)))


class HiddenHook(Hook):
    """Reads only the first tensor out: layer outputs vary by release."""

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Edit the hidden states after a layer; None leaves them."""
        state = _request.get()
        if state is None or state.done.hidden_states or state.config is not self.config:
            return None
        edits = state.hidden_states.get(self.place)
        if not edits or not state.first_run("hidden_states", self.place):
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        before = states = token_states(self.config, hidden)
        for edit in edits:
            states = edit(states, state.past)
        if states is before:
            return None
        if states.dim() < hidden.dim():  # one of several predictions of each token
            hidden = hidden.clone()
            token_states(self.config, hidden).copy_(states)
        else:
            hidden = states
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


class LinearHook(Hook):
    """Reads the input and the output of a linear map."""

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> Any:
        """Edit the output; None leaves it."""
        state = _request.get()
        if state is None or state.done.linear or state.config is not self.config:
            return None
        edits = state.linear.get(self.place)
        if not edits or not state.first_run("linear", self.place):
            return None
        for edit in edits:
            output = edit(args[0], output)
        return output


def _linear_map(tower: TextTower, name: str) -> torch.nn.Module:
    try:
        return tower.module.get_submodule(name)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"The text tower has no module {name!r}; the adapter belongs to another model."
        ) from error


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
