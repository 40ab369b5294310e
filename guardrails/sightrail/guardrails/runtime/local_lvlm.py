"""The local vision-language model, guardrails inside.

One object serves guarded and unguarded requests from threads and tasks at once: whatever belongs to
a request travels with it, and nothing is switched on the model.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Generator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import RequestRefused
from ..prompting.safety_prefix import SafetyPrefix
from . import doorway
from .answers import Answer, AnswerChunk, Usage
from .families import (
    context_length,
    image_token_ids,
    is_known,
    mixes_picture_counts,
    text_tower,
)
from .generation import Generation, generate
from .host import Host
from .interventions import INSIDE, sort_guardrails
from .loading import load_model
from .messages import Conversation, Messages, as_messages, pictures, read_messages
from .options import GenerationOptions, read_options
from .pixel_parity import seen_by
from .prompt import Prompt, PromptBuilder
from .screening_step import Screened, decode_pictures, screen_pictures
from .stopping import Abandoned, finished_text, showable_text
from .streaming import StreamEnd, TokenQueue, stream_tokens

if TYPE_CHECKING:
    from ..intake import Limits
    from ..policy import Policy
    from ..verdict import Verdict


class LocalLVLM:
    """An image-text-to-text model of transformers that answers chats, with guardrails.

    Args:
        model: any loaded ``AutoModelForImageTextToText``. It is used as it is.
        processor: its processor, with a chat template.
        guardrails: detectors (they have ``screen``, and get ``Picture`` objects) and in-model
            guardrails such as ``SafetyPrefix``.
        policy: what a detector's verdict leads to; default ``Policy()``.
        limits: what intake is willing to decode; default ``Limits()``.
        name: what to call the model in messages.

    Raises:
        ConfigurationError: something among the guardrails is not one, or its settings do not fit
            this model.
        UnsupportedModelError: a guardrail needs something this model cannot give.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        guardrails: Sequence[Any] = (),
        policy: Policy | None = None,
        limits: Limits | None = None,
        name: str | None = None,
    ) -> None:
        from ..intake import Limits
        from ..policy import Policy

        self.model = model
        self.processor = processor
        self.name = name or getattr(model, "name_or_path", "") or type(model).__name__
        self.policy = policy or Policy()
        self.limits = limits or Limits()
        self._guards = sort_guardrails(guardrails)
        self.guardrails = tuple(guardrails)
        self._scaling = partial(seen_by, processor)
        tower = None
        if self._guards.inside:
            tower = text_tower(model, wanted_by=", ".join(self._guards.inside))
        prompts = PromptBuilder(
            processor, context_length=context_length(model), image_token_ids=image_token_ids(model)
        )
        self._host = Host(model, processor, self.name, prompts, self.policy, tower)
        for guard in self._guards.inner:
            guard.check(self._host)
        if tower is not None:
            doorway.install(
                tower,
                model,
                hidden_states="hidden_states" in self._guards.needs,
                linear=self._guards.linear_names,
            )

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        guardrails: Sequence[Any] = (),
        policy: Policy | None = None,
        limits: Limits | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        revision: str | None = None,
        local_files_only: bool | None = None,
        **model_kwargs: Any,
    ) -> LocalLVLM:
        """Load a model by Hub id, by folder, or ``"testbed"``; see :func:`loading.load_model`.

        Raises:
            ModelLoadError: it cannot be loaded.
            ConfigurationError, UnsupportedModelError: see the class.
        """
        model, processor = load_model(
            name,
            device=device,
            dtype=dtype,
            revision=revision,
            local_files_only=local_files_only,
            **model_kwargs,
        )
        return cls(
            model, processor, guardrails=guardrails, policy=policy, limits=limits, name=str(name)
        )

    def with_guardrails(
        self,
        guardrails: Sequence[Any],
        *,
        policy: Policy | None = None,
        limits: Limits | None = None,
    ) -> LocalLVLM:
        """The same model, the same weights in memory, with other guardrails."""
        return type(self)(
            self.model,
            self.processor,
            guardrails=guardrails,
            policy=policy or self.policy,
            limits=limits or self.limits,
            name=self.name,
        )

    def chat(
        self,
        messages: Messages,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        stop: Sequence[str] = (),
        seed: int | None = None,
        **generation: Any,
    ) -> Answer:
        """Answer one conversation.

        Args:
            messages: see :func:`messages.read_messages`.
            max_new_tokens: at most this many tokens.
            temperature: 0 is greedy.
            top_p: nucleus sampling.
            top_k: sample among this many tokens.
            stop: end before the first of these texts.
            seed: makes sampling repeatable, whatever runs beside.
            generation: further ``GenerationConfig`` fields, such as ``num_beams``.

        Raises:
            PromptError: the conversation cannot be turned into a prompt.
            ConfigurationError: a generation setting is not possible.
            ImageError: a picture cannot be read, and no detector is there to judge that.
            ImageRefused, RequestRefused: the policy asks for an exception.
        """
        options = read_options(
            stop,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            **generation,
        )
        return self._answer_all([read_messages(messages)], options)[0]

    def batch(self, messages: Sequence[Messages], **options: Any) -> list[Answer]:
        """Answer several conversations, padded into as few runs as the model allows.

        Each answer is what the conversation would get alone. Conversations with and without
        pictures may be mixed.

        Args:
            messages: one conversation each.
            options: as for :meth:`chat`.

        Raises:
            As :meth:`chat`; nothing is answered if one conversation is not readable.
        """
        settings = read_options(**options)
        return self._answer_all([read_messages(one) for one in messages], settings)

    def stream(
        self, messages: Messages, *, cancel: threading.Event | None = None, **options: Any
    ) -> Generator[AnswerChunk, None, None]:
        """Answer one conversation piece by piece.

        Generation runs in a thread that ends when the iterator is closed early. Everything up to
        the first piece (reading, screening) happens at the first ``next``.

        Args:
            messages: as for :meth:`chat`.
            cancel: once set, from any thread, the stream ends after the token at work, even if that
                is a guardrail's own, from before the answer.
            options: as for :meth:`chat`; one beam only.

        Raises:
            As :meth:`chat`.
        """
        settings = read_options(**options)
        screened = self._screen(read_messages(messages))
        if screened.conversation is None:
            answer = self._refusal(screened.verdicts)
            yield AnswerChunk(answer.text, answer)
            return
        prompt = self._prompt([screened.conversation])
        yield from self._stream(prompt, screened.verdicts, settings, cancel or threading.Event())

    def assess(self, messages: Messages) -> tuple[Verdict, ...]:
        """What the guardrails say about a conversation, without an answer.

        Args:
            messages: as for :meth:`chat`.

        Returns:
            One verdict per picture and detector; unless screening refuses already, then one per
            guardrail that decides on requests.

        Raises:
            As :meth:`chat`, except that a decision against the request is only told.
        """
        return self.assess_batch([messages])[0]

    def assess_batch(self, messages: Sequence[Messages]) -> list[tuple[Verdict, ...]]:
        """:meth:`assess` for several conversations, in as few runs as the model allows."""
        screened = [self._screen(read_messages(one)) for one in messages]
        found = [item.verdicts for item in screened]
        options = read_options(max_new_tokens=1)
        for rows in _runs(screened, mixed=mixes_picture_counts(self.model)):
            prompt = self._prompt([c for row in rows if (c := screened[row].conversation)])
            made = self._generate(prompt, options, decide_only=True)
            for row, one in zip(rows, made, strict=True):
                found[row] += one.verdicts
        return found

    async def aassess(self, messages: Messages) -> tuple[Verdict, ...]:
        """:meth:`assess` in a worker thread."""
        return await asyncio.to_thread(self.assess, messages)

    async def achat(self, messages: Messages, **options: Any) -> Answer:
        """:meth:`chat` in a worker thread."""
        return await asyncio.to_thread(self.chat, messages, **options)

    async def abatch(self, messages: Sequence[Messages], **options: Any) -> list[Answer]:
        """:meth:`batch` in a worker thread."""
        return await asyncio.to_thread(self.batch, messages, **options)

    async def astream(
        self, messages: Messages, **options: Any
    ) -> AsyncGenerator[AnswerChunk, None]:
        """:meth:`stream`, each step in a worker thread."""
        cancel = threading.Event()
        chunks = _Steps(self.stream(messages, cancel=cancel, **options), cancel)
        try:
            while (chunk := await asyncio.to_thread(chunks.next)) is not None:
                yield chunk
        finally:
            # Closing waits for the generating thread, which must not block the event loop; shielded
            # so that a cancelled task still ends the generation.
            await asyncio.shield(asyncio.to_thread(chunks.close))

    # One request, step by step

    def _screen(self, conversation: Conversation) -> Screened:
        if self._guards.detectors:
            return screen_pictures(
                conversation, self._guards.detectors, self.policy, self.limits, self._scaling
            )
        return Screened(decode_pictures(conversation, self.limits))

    def _prompt(self, conversations: Sequence[Conversation]) -> Prompt:
        """Apply the prompt guardrails and build the batch on the model's device."""
        guarded = []
        for conversation in conversations:
            messages: Any = as_messages(conversation)
            for guard in self._guards.inner:
                messages = guard.apply(messages)
            guarded.append(read_messages(messages))
        prefix = next((g.text for g in self._guards.inner if isinstance(g, SafetyPrefix)), None)
        prompt = self._host.prompt(guarded, spans=bool(self._guards.needs & INSIDE), prefix=prefix)
        return replace(prompt, originals=tuple(conversations))

    def _answer_all(
        self, conversations: Sequence[Conversation], options: GenerationOptions
    ) -> list[Answer]:
        screened = [self._screen(conversation) for conversation in conversations]
        answers: dict[int, Answer] = {
            row: self._refusal(item.verdicts)
            for row, item in enumerate(screened)
            if item.conversation is None
        }
        for rows in _runs(screened, mixed=mixes_picture_counts(self.model)):
            prompt = self._prompt([c for row in rows if (c := screened[row].conversation)])
            generated = self._generate(prompt, options)
            for row, one in zip(rows, generated, strict=True):
                answers[row] = self._answer(one, screened[row].verdicts, options)
        return [answers[row] for row in range(len(conversations))]

    def _generate(
        self,
        prompt: Prompt,
        options: GenerationOptions,
        streamer: TokenQueue | None = None,
        cancel: threading.Event | None = None,
        *,
        decide_only: bool = False,
    ) -> list[Generation]:
        host = replace(self._host, cancel=cancel)
        return generate(
            self.model,
            prompt,
            options,
            decode=self._host.decode,
            pad_token_id=self._host.pad_token_id,
            interventions=[guard.interventions(prompt, host) for guard in self._guards.inner],
            tower=self._host.tower,
            streamer=streamer,
            cancel=[] if cancel is None else [cancel],
            decide_only=decide_only,
        )

    def _stream(
        self,
        prompt: Prompt,
        verdicts: tuple[Verdict, ...],
        options: GenerationOptions,
        cancel: threading.Event,
    ) -> Generator[AnswerChunk, None, None]:
        tokens: list[int] = []
        shown = ""
        items = stream_tokens(lambda queue: self._generate(prompt, options, queue, cancel), cancel)
        try:
            for item in items:
                if isinstance(item, StreamEnd):
                    answer = self._answer(item.result[0], verdicts, options)
                    yield AnswerChunk(answer.text[len(shown) :], answer)
                    return
                tokens += item
                text = showable_text(self._host.decode(tokens), options.stop)
                if len(text) > len(shown) and text.startswith(shown):
                    new, shown = text[len(shown) :], text
                    yield AnswerChunk(new)
        except Abandoned:
            return  # cancelled before the answer began
        finally:
            items.close()

    def _answer(
        self, generation: Generation, verdicts: tuple[Verdict, ...], options: GenerationOptions
    ) -> Answer:
        verdicts += generation.verdicts
        if any(verdict.action == "raise" for verdict in generation.verdicts):
            raise RequestRefused(
                f"The policy refuses this request: {generation.verdicts[-1].summary()}",
                verdicts=generation.verdicts,
            )
        refused = any(verdict.action == "refuse" for verdict in generation.verdicts)
        words = finished_text(self._host.decode(generation.tokens), options.stop)
        return Answer(
            text=words if generation.answered else self.policy.refusal_for(generation.verdicts),
            refused=refused,
            verdicts=verdicts,
            usage=Usage(generation.input_tokens, generation.output_tokens),
            finish_reason="refused" if refused else generation.finish_reason,
        )

    def _refusal(self, verdicts: tuple[Verdict, ...]) -> Answer:
        text = self.policy.refusal_for(verdicts)
        return Answer(text, True, verdicts, Usage(0, 0), "refused")

    def __repr__(self) -> str:
        guards = ", ".join(type(guard).__name__ for guard in self.guardrails)
        known = "" if is_known(self.model) else ", family not known"
        return f"LocalLVLM({self.name!r}, guardrails=[{guards}]{known})"


def _runs(screened: Sequence[Screened], *, mixed: bool) -> list[list[int]]:
    """Row numbers that may run together.

    Processors do not take rows with and without pictures at once; some models cannot mix
    different numbers of pictures either.
    """
    runs: dict[int, list[int]] = {}
    for row, item in enumerate(screened):
        if item.conversation is not None:
            count = len(pictures(item.conversation))
            runs.setdefault(min(count, 1) if mixed else count, []).append(row)
    return list(runs.values())


class _Steps:
    """A stream taken step by step from changing threads.

    A cancelled task leaves its step running in a worker thread; ``cancel`` makes that one short,
    and the lock lets it finish before the stream is closed.
    """

    def __init__(self, chunks: Generator[AnswerChunk, None, None], cancel: threading.Event) -> None:
        self._chunks = chunks
        self._cancel = cancel
        self._lock = threading.Lock()

    def next(self) -> AnswerChunk | None:
        with self._lock:
            return next(self._chunks, None)

    def close(self) -> None:
        self._cancel.set()
        with self._lock:
            self._chunks.close()
