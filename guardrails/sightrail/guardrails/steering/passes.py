"""The two calls before the answer: the visual context, and the risk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import PromptError, UnsupportedModelError
from ..runtime.generation import Generation, generate
from ..runtime.host import Host
from ..runtime.interventions import Interventions
from ..runtime.messages import Conversation, pictures
from ..runtime.options import GenerationOptions
from ..runtime.prompt import Prompt
from ..runtime.shared_prefill import Prefilled, SharedPrefill, can_share
from .requests import asking, question
from .risk import opening, risk, similarity
from .settings import MorasSettings
from .states import LastStates


@dataclass(frozen=True)
class Assessment:
    """What the calls before the answer found.

    Attributes:
        text_only: there are no pictures, and so no visual context.
        contexts: the visual context of each row.
        similarities: S, [B].
        risks: r, [B].
        context_risks: r of the visual context without the question, [B]; None if not measured.
        shared: what the answer may begin from.
    """

    text_only: bool
    contexts: tuple[str, ...]
    similarities: torch.Tensor
    risks: torch.Tensor
    context_risks: torch.Tensor | None
    shared: SharedPrefill | None


def assess(
    conversations: Sequence[Conversation],
    host: Host,
    settings: MorasSettings,
    unsafe: torch.Tensor,
) -> Assessment:
    """Run both calls over a batch whose rows all have pictures, or none.

    Args:
        conversations: as the users wrote them.
        host: the model.
        settings: of the method.
        unsafe: W mu, [N, V].

    Raises:
        PromptError: with the instructions, or with the visual context, a prompt is longer than the
            model's context.
        UnsupportedModelError: the logits are not what the LM head makes of the hidden states.
    """
    seen = bool(pictures(conversations[0]))
    shared, contexts = (None, ("",) * len(conversations))
    if seen:
        shared, contexts = visual_context(conversations, host, settings)
    texts = [
        settings.risk_text(context, question(conversation))
        for context, conversation in zip(contexts, conversations, strict=True)
    ]
    alone = seen and settings.context_risk
    if alone:
        texts += [settings.risk_text(context, "") for context in contexts]
    asked = [asking(c, t) for c, t in zip([*conversations] * (1 + alone), texts, strict=True)]
    found = similarity(
        opening(risk_logits(asked, host, settings.steps, shared), settings.gamma),
        opening(unsafe, settings.gamma),
    )
    risks = risk(found, settings.base, settings.slope)
    rows = len(conversations)
    return Assessment(
        not seen, contexts, found[:rows], risks[:rows], risks[rows:] if alone else None, shared
    )


def visual_context(
    conversations: Sequence[Conversation], host: Host, settings: MorasSettings
) -> tuple[SharedPrefill | None, tuple[str, ...]]:
    """Call 1: what the pictures show, without the question; and what later calls begin from."""
    asked = [asking(c, settings.context_instruction) for c in conversations]
    prompt = _prompt(asked, host, "shorten context_instruction")
    share = settings.share and can_share(host.model)
    shared = SharedPrefill.of(host.model, prompt) if share else None
    options = GenerationOptions(max_new_tokens=settings.context_tokens)
    first = Interventions(prefilled=shared.first if shared else None)
    rows = _generate(prompt, host, options, first)
    return shared, tuple(host.decode(row.tokens).strip() for row in rows)


def risk_logits(
    asked: Sequence[Conversation], host: Host, steps: int, shared: SharedPrefill | None
) -> torch.Tensor:
    """Call 2: the logits W x^n of the first N tokens, [B, N, V].

    Raises:
        PromptError, UnsupportedModelError: see :func:`assess`.
    """
    prompt = _prompt(asked, host, "lower context_tokens, or shorten the question")
    prefilled = shared.begin(prompt, host.pad_token_id) if shared else None
    states = first_states(prompt, host, steps, prefilled)
    return states.logits


def first_states(
    prompt: Prompt, host: Host, steps: int, prefilled: Prefilled | None = None
) -> LastStates:
    """Generate N tokens, keeping the states after the final norm that predict them.

    Raises:
        UnsupportedModelError: see :func:`assess`.
    """
    states = LastStates(host.head)
    inner = Interventions(
        hidden_states={host.inside("MoRAS").depth: states.keep_state},
        logits=[states],
        prefilled=prefilled,
    )
    # No row may end early: every one has N states.
    options = GenerationOptions(max_new_tokens=steps, extra={"min_new_tokens": steps})
    _generate(prompt, host, options, inner)
    if states.steps != steps or not states.linear:
        raise UnsupportedModelError(
            f"The logits of {host.name} are not what its LM head makes of the hidden states after "
            "the final norm (they are scaled, soft-capped or made elsewhere), so MoRAS cannot "
            "steer it; use SafetyPrefix or a defence on pixels."
        )
    return states


def _prompt(asked: Sequence[Conversation], host: Host, remedy: str) -> Prompt:
    try:
        return host.prompt(asked, spans=False, prefix=None)
    except PromptError as error:
        raise PromptError(
            f"MoRAS' own call about this conversation: {error} Or {remedy}."
        ) from error


def _generate(
    prompt: Prompt, host: Host, options: GenerationOptions, inner: Interventions
) -> list[Generation]:
    return generate(
        host.model,
        prompt,
        options,
        decode=host.decode,
        pad_token_id=host.pad_token_id,
        interventions=[inner],
        tower=host.inside("MoRAS"),
    )
