"""The training of adapter and attention together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from ..errors import ConfigurationError, UnsupportedModelError
from ..fitting.memory import (
    ScaledGradients,
    added,
    frozen,
    in_pieces,
    layers_computed_twice,
    training_dtype,
)
from ..model import doorway
from ..model.families import device_of
from .adapter import Adapter, adapted_maps, nn_linear
from .fit_rows import Batches, Drawn, TrainingBatch
from .safety_attention import SafetyAttention, unsafe_logit
from .settings import CasaSettings, FitSettings
from .weights import CasaWeights

if TYPE_CHECKING:
    from ..fitting.run import FitRun
    from ..model.families import Host

_WHAT: Final = "training"
Pairs = dict[str, tuple[nn.Parameter, nn.Parameter]]


def row_weights(harmful: Tensor, beta: float) -> Tensor:
    """What each row of a batch weighs: beta over the harmful ones, 1 - beta over the benign ones.

    Args:
        harmful: [B] bool.
        beta: 0 to 1.

    Returns:
        [B], of sum 1 where both labels occur.
    """
    weight = torch.where(harmful, beta / harmful.sum().clamp(min=1), 0.0)
    return weight + torch.where(harmful, 0.0, (1 - beta) / (~harmful).sum().clamp(min=1))


def batch_loss(
    logits: Tensor,
    attended: Tensor,
    batch: TrainingBatch,
    harmful: Tensor,
    weight: Tensor,
    settings: CasaSettings,
    smoothing: float,
) -> Tensor:
    """The loss of :class:`CasaSettings` on a batch or a piece of one.

    Args:
        logits: [B, K + 1, V], at the last prompt position and the tail.
        attended: [B], the logit of v.
        batch: where tokens are learnt.
        harmful: [B] bool.
        weight: [B], of each row.
        settings: which tokens.
        smoothing: certainty taken from the labels.
    """
    target = harmful.float() * (1 - smoothing) + smoothing / 2
    alone = nn.functional.binary_cross_entropy_with_logits(attended, target, reduction="none")
    if settings.attention_only:
        return (alone * weight).sum()
    pair = logits[:, 0, [settings.safe_token, settings.unsafe_token]]
    decided = nn.functional.binary_cross_entropy_with_logits(
        unsafe_logit(pair, None), target, reduction="none"
    )
    said = nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), batch.labels, reduction="none"
    )
    count = (batch.labels != -100).sum(dim=1).clamp(min=1)
    return ((decided + alone + said.sum(dim=1) / count) * weight).sum()


@dataclass(frozen=True)
class MaskedAdapter:
    """Adds low-rank maps under training, where a mask says so.

    Attributes:
        pair: A [R, I] and B [O, R].
        scale: alpha / R.
        mask: [B, Q], where it acts.
    """

    pair: tuple[Tensor, Tensor]
    scale: float
    mask: Tensor

    def __call__(self, x: Tensor, output: Tensor) -> Tensor:
        """The output [B, Q, O] for input x [B, Q, I]."""
        down, up = self.pair
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(down.dtype)
        inner = nn_linear(x, down)
        inner = inner * self.mask[..., None].to(inner)
        return (output + nn_linear(inner, up) * self.scale).to(output.dtype)


class CasaLearner:
    """Trains on a model whose weights stay as they are.

    The low-rank maps act through the doorway, as they will when they are in use, so nothing is put
    on the model: it may be quantised, or carry adapters of its own.

    Args:
        host: the model, its text tower open for hidden states.
        batches: what it is trained on.
        settings: of the method.
        fit: of the run.
        run: memory and checkpoint.

    Raises:
        ConfigurationError: the text tower has no linear maps of the names in ``targets``.
    """

    def __init__(
        self, host: Host, batches: Batches, settings: CasaSettings, fit: FitSettings, run: FitRun
    ) -> None:
        self._host, self._batches, self._settings = host, batches, settings
        self._fit, self._run = fit, run
        self._dtype = training_dtype(host.model)
        self._gradients = ScaledGradients(self._dtype)
        tower = host.inside("Casa")
        channels = int(tower.config.hidden_size)
        maps = adapted_maps(tower, settings.targets)
        if settings.targets and not maps:
            raise ConfigurationError(
                f"The text tower has no linear maps called {', '.join(settings.targets)}."
            )
        doorway.install(tower, host.model, hidden_states=True, linear=maps)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(fit.seed)
            self.attention = SafetyAttention(channels, settings.heads, settings.width)
            self._pairs: Pairs = {
                name: _new_pair(tower.module.get_submodule(name), settings.rank) for name in maps
            }
        self.attention.to(host.model.device)
        self._learnt: list[nn.Parameter] = [
            *self.attention.parameters(),
            *(matrix for pair in self._pairs.values() for matrix in pair),
        ]
        self._optimiser = torch.optim.AdamW(self._learnt, lr=fit.learning_rate, weight_decay=0.01)

    @classmethod
    def trained(
        cls,
        host: Host,
        batches: Batches,
        settings: CasaSettings,
        fit: FitSettings,
        run: FitRun,
    ) -> CasaWeights:
        """All steps of a run."""
        learner = cls(host, batches, settings, fit, run)
        twice = run.resources.checkpoints(host.model)
        try:
            with frozen(host.model), layers_computed_twice(host.model, twice):
                run.train(_WHAT, learner, fit.steps)
        finally:
            learner._set_attention(edited=True)
        return learner.weights()

    def gradient(self, step: int) -> float:
        """The gradient of a step, over pieces of its batch that memory allows."""
        drawn = self._batches[step]
        whole = self._batches.prompt(drawn)
        weight = row_weights(torch.tensor(drawn.harmful), self._fit.beta)
        losses: list[float] = []

        def piece(rows: Sequence[int]) -> list[Tensor | None]:
            part = drawn if len(rows) == len(drawn.talks) else drawn.part(rows)
            batch = self._batches.tensors(part, whole if part is drawn else None)
            loss = self._loss(batch, part, weight[list(rows)])
            found = self._gradients(loss, self._learnt)
            losses.append(float(loss.detach()))
            return found

        length = whole.length + max(len(tail.tokens) for tail in drawn.tails)
        pieces = in_pieces(range(len(drawn.talks)), length, piece, self._run.budget)
        for parameter, gradient in zip(self._learnt, added(pieces), strict=True):
            parameter.grad = gradient
        return sum(losses)

    def update(self, step: int) -> None:
        """One step of AdamW."""
        for group in self._optimiser.param_groups:
            group["lr"] = self._fit.learning_rate * _schedule(step, self._fit.steps)
        nn.utils.clip_grad_norm_(self._learnt, 1.0)
        self._optimiser.step()

    def state(self) -> dict[str, Any]:
        """Attention, adapter and optimiser."""
        return {
            "attention": self.attention.state_dict(),
            "adapter": {name: [m.detach() for m in pair] for name, pair in self._pairs.items()},
            "optimiser": self._optimiser.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.attention.load_state_dict(state["attention"])
        with torch.no_grad():
            for name, pair in self._pairs.items():
                for matrix, kept in zip(pair, state["adapter"][name], strict=True):
                    matrix.copy_(kept)
        self._optimiser.load_state_dict(state["optimiser"])

    def weights(self) -> CasaWeights:
        """What was learnt."""
        pairs = {
            name: (down.detach().clone(), up.detach().clone())
            for name, (down, up) in self._pairs.items()
        }
        scale = self._settings.alpha / self._settings.rank
        return CasaWeights(self.attention, Adapter(pairs, scale) if pairs else None)

    def _loss(self, batch: TrainingBatch, drawn: Drawn, weight: Tensor) -> Tensor:
        states: list[Tensor] = []

        def capture(hidden: Tensor, past: int) -> Tensor:
            if not states:  # a layer that is computed twice comes by twice
                states.append(hidden[:, : batch.length].detach())
            return hidden

        tower, model = self._host.inside("Casa"), self._host.model
        state = doorway.RequestState(
            tower.config,
            {layer: (edit,) for layer, edit in batch.attention.items()},
            hidden_states={self._settings.layer: (capture,)},
            linear=self._edits(batch.adapted),
        )
        self._set_attention(edited=bool(batch.attention))
        with doorway.request(state), torch.autocast(model.device.type, self._dtype):
            kept = batch.labels.shape[1] + 1
            logits = model(**batch.inputs, use_cache=False, logits_to_keep=kept).logits
        device = logits.device
        home = self.attention.bias.device
        attended = self.attention(states[0].to(home), batch.seen.to(home)).to(device)
        flags = torch.tensor(drawn.harmful, device=device)
        return batch_loss(
            logits,
            attended,
            batch,
            flags,
            weight.to(device),
            self._settings,
            self._fit.smoothing,
        )

    def _edits(self, mask: Tensor) -> dict[str, tuple[MaskedAdapter]]:
        scale = self._settings.alpha / self._settings.rank
        masks = {pair[0].device: mask.to(pair[0].device) for pair in self._pairs.values()}
        return {
            name: (MaskedAdapter(pair, scale, masks[pair[0].device]),)
            for name, pair in self._pairs.items()
        }

    def _set_attention(self, *, edited: bool) -> None:
        """The doorway's attention where it is edited, else what is fastest in training."""
        model, tower = self._host.model, self._host.inside("Casa")
        plain = model.device.type == "cpu" and not edited  # eager takes half the time there
        wanted = "eager" if plain else doorway.ATTENTION
        if tower.config._attn_implementation != wanted:
            model.set_attn_implementation({tower.config_key: wanted})


def _new_pair(linear: Any, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A and B of a linear map: A as LoRA draws it, B zero, so that they begin by adding nothing.

    Raises:
        UnsupportedModelError: its weights are not in memory.
    """
    device = device_of(linear)
    if linear.weight.device.type == "meta":
        raise UnsupportedModelError(
            "Some weights are offloaded to the CPU's memory or to disk, where no gradient can be "
            "taken through them; load the base in 4 bits, or over more devices."
        )
    down = nn.Linear(linear.in_features, rank, bias=False)
    up = nn.Linear(rank, linear.out_features, bias=False)
    nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
    nn.init.zeros_(up.weight)
    first, second = (nn.Parameter(each.weight.detach().to(device)) for each in (down, up))
    return first, second


def _schedule(step: int, steps: int) -> float:
    """Warm up over a twentieth, then fall linearly to a twentieth."""
    warm = max(1, steps // 20)
    return min((step + 1) / warm, 1.0) * max(0.05, 1 - step / steps)
