"""One request: watch the prompt pass, decide where the answer begins, choose the first token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessor

from ..errors import PromptError, UnsupportedModelError
from ..model.interventions import Decision
from ..model.messages import Conversation

if TYPE_CHECKING:
    from ..model.families import Host
    from ..model.prompt import Prompt


def decision_positions(prompt: Prompt, host: Host) -> torch.Tensor:
    """The position that predicts the first token of the answer, for each row.

    It is the last one, unless the conversation ends with the assistant's words, which the model is
    to continue: then it lies before these, and what happens there does not depend on them.

    Returns:
        [B] on the device of the prompt.

    Raises:
        PromptError: the place before the given words cannot be found.
    """
    mask = prompt.inputs["attention_mask"]
    last = torch.full((prompt.rows,), prompt.length - 1, device=mask.device)
    for row, conversation in enumerate(prompt.conversations):
        if conversation.turns[-1].role == "assistant":
            shown = prompt.inputs["input_ids"][row][mask[row].bool()].tolist()
            padding = prompt.length - len(shown)
            last[row] = padding + _opened(shown, conversation, host) - 1
    return last


def seen_positions(prompt: Prompt, decided_at: torch.Tensor) -> torch.Tensor:
    """The positions [B, T] that a decision may look at: no padding, and none after it."""
    mask = prompt.inputs["attention_mask"].bool()
    at = torch.arange(prompt.length, device=mask.device)
    return mask & (at[None] <= decided_at[:, None])


def _opened(shown: list[int], conversation: Conversation, host: Host) -> int:
    """How many tokens of a row belong to the prompt without the begun answer."""
    before = replace(conversation, turns=conversation.turns[:-1])
    alone = host.prompts.build([before], spans=False, prefix=None)
    expected = alone.inputs["input_ids"][0].tolist()
    same = 0
    while same < min(len(shown), len(expected)) and shown[same] == expected[same]:
        same += 1
    # A tokenizer may join the last token of the prompt with the first of the answer.
    if same < len(expected) - 1:
        raise PromptError(
            "The chat template opens an answer in one way and continues one in another, so nobody "
            "can tell where the given words begin; leave out the last assistant message."
        )
    return same


#: From P(unsafe) of every row to the decisions.
Settle = Callable[[Sequence[float], Sequence[float]], tuple[Decision, ...]]
#: From the last hidden states at the deciding positions [B, C] and v's logit [B] to P(unsafe) [B].
Weigh = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Pieces:
    """The hidden states of a prompt, which may come in several pieces."""

    def __init__(self, length: int, rows: int) -> None:
        self._length, self._rows = length, rows
        self._pieces: list[torch.Tensor] = []
        self._come = 0

    def take(self, hidden: torch.Tensor, past: int) -> None:
        """Keep what belongs to the prompt; of the beams of a row, the first."""
        if past == self._come < self._length:
            beams = len(hidden) // self._rows
            self._pieces.append(hidden[::beams, : self._length - past].detach())
            self._come += self._pieces[-1].shape[1]

    @property
    def complete(self) -> bool:
        """Whether the whole prompt has passed."""
        return self._come == self._length

    def joined(self) -> torch.Tensor:
        """The states [B, T, C].

        Raises:
            UnsupportedModelError: they have not all come.
        """
        if not self.complete:
            raise UnsupportedModelError(
                "Casa has not seen the whole prompt at the layer it reads; the model skips it."
            )
        return torch.cat(self._pieces, dim=1)


@dataclass
class PromptWatch:
    """Collects what a decision needs while a prompt passes, and decides at its end.

    Attributes:
        attended: the states that the safety attention reads.
        final: the output of the final norm.
        look: the safety attention: states [B, T, C] to v's logit [B].
        weigh: what decides.
        settle: what follows.
        decided_at: [B], where the answer begins.
    """

    attended: Pieces
    final: Pieces
    look: Callable[[torch.Tensor], torch.Tensor]
    weigh: Weigh
    settle: Settle
    decided_at: torch.Tensor
    _decisions: tuple[Decision, ...] | None = field(default=None, init=False)

    def decided(self) -> Sequence[Decision] | None:
        """One per row; None until the prompt has passed."""
        return self._decisions

    def see_attended(self, hidden: torch.Tensor, past: int) -> None:
        """Takes the states that the attention reads."""
        self.attended.take(hidden, past)

    def see_final(self, hidden: torch.Tensor, past: int) -> None:
        """Takes those of the final norm; with the last of them the decision falls."""
        self.final.take(hidden, past)
        if self._decisions is None and self.final.complete:
            self._decide()

    def _decide(self) -> None:
        logit = self.look(self.attended.joined())
        final = self.final.joined()
        rows = torch.arange(len(final), device=final.device)
        here = final[rows, self.decided_at.to(final.device)]
        unsafe = self.weigh(here, logit).sigmoid()
        self._decisions = self.settle(unsafe.tolist(), logit.sigmoid().tolist())


@dataclass(frozen=True)
class WatchEdit:
    """Shows hidden states to some watchers and leaves them as they are.

    Attributes:
        watchers: get the states [B, Q, C] and the positions before them.
        until: length of the prompt; what follows is not watched.
    """

    watchers: Sequence[Callable[[torch.Tensor, int], None]]
    until: int

    def __call__(self, hidden: torch.Tensor, past: int) -> torch.Tensor:
        """The hidden states themselves."""
        for watch in self.watchers:
            watch(hidden, past)
        return hidden


class ChooseToken(LogitsProcessor):
    """Mask everything but the chosen safety token, at the first step only.

    Args:
        watch: where the decisions come from.
        length: padded length of the prompt.
        tokens: ids of C_safe and C_unsafe.
        unsafe: whether a decision is against the request.
    """

    def __init__(
        self,
        watch: PromptWatch,
        length: int,
        tokens: tuple[int, int],
        unsafe: Callable[[Decision], bool],
    ) -> None:
        self._watch, self._length = watch, length
        self._tokens, self._unsafe = tokens, unsafe
        #: When there is nothing left to do; see ``runtime.processing``.
        self.until = length + 1

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V], with the chosen token of each row alone possible."""
        if input_ids.shape[1] != self._length:
            return scores
        decisions = self._watch.decided()
        if decisions is None:
            raise UnsupportedModelError(
                "The first token is due and Casa has not seen the whole prompt; the model does not "
                "read its prompt through the text tower's layers."
            )
        chosen = torch.tensor(
            [self._tokens[self._unsafe(decision)] for decision in decisions], device=scores.device
        )
        chosen = chosen.repeat_interleave(len(scores) // len(decisions))
        only = torch.full_like(scores, -torch.inf)
        return only.scatter(1, chosen[:, None], 0.0)
