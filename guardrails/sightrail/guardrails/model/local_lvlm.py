"""The local vision-language model, guardrails inside.

One object serves guarded and unguarded requests from threads and tasks at once: whatever belongs to
a request travels with it, and nothing is switched on the model.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch

from ..call_rules import check_reader
from . import doorway
from .answers import Answer, AnswerChunk
from .chat_form import shaped, style_of
from .families import Host, context_length, image_token_ids, is_known, text_tower, unwrapped
from .gathering import Gathering, Place
from .loading import load_model
from .messages import Conversation, GenerationOptions, Messages, read_messages, read_options
from .pipeline import Pipeline
from .preprocessing import shown_by
from .prompt import PromptBuilder, tokenizer_lock
from .screening_step import decode_conversation
from .stack import build_stack
from .stopping import StreamCancel, in_thread, stream_in_thread
from .tools import (
    ResponseFormat,
    ToolChoice,
    ToolSource,
    read_response_format,
    read_tool_choice,
    read_tools,
)

if TYPE_CHECKING:
    from transformers.utils.quantization_config import QuantizationConfigMixin

    from ..evidence import Evidence
    from ..intake import Limits
    from ..policy import Policy
    from ..verdict import Verdict
    from .joint_decision import JointDecision
    from .loading import Device, DeviceMap
    from .stack import Guardrail

T = TypeVar("T")


class LocalLVLM:
    """An image-text-to-text model of transformers that answers chats, with guardrails.

    Args:
        model: any loaded ``AutoModelForImageTextToText``, on one device or several, quantised or
            with an adapter of PEFT inside. It is used as it is.
        processor: its processor, with a chat template.
        guardrails: detectors (they have ``screen``, and get ``Picture`` objects) and in-model
            guardrails such as ``SafetyPrefix``, in any order: each names the stage at which it
            acts, and ``lvlm.guardrails`` holds them in the order of the stages.
        policy: what a detector's verdict leads to; default ``Policy()``.
        limits: what intake is willing to decode; default ``Limits()``.
        name: what to call the model in messages.
        gather: calls that come from other threads or tasks while the model is at work are answered
            together, in one run; each gets what it would get alone. A :class:`Gathering` says how,
            ``False`` gives every call a run of its own.
        evidence: fitted to the verdicts of these guardrails. They do not decide each by itself
            then: there is one decision from all of them, see ``model.joint_decision``.

    Raises:
        ConfigurationError: something among the guardrails is not one, two of them cannot work
            together, or the settings of one do not fit this model.
        UnsupportedModelError: a guardrail needs something this model cannot give.
        ArtifactError: the evidence was fitted on another model.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        guardrails: Sequence[Guardrail] = (),
        policy: Policy | None = None,
        limits: Limits | None = None,
        name: str | None = None,
        gather: Gathering | bool = True,
        evidence: Evidence | None = None,
    ) -> None:
        from ..intake import Limits
        from ..policy import Policy
        from ..screening.asking import check_categories

        self.model = model
        self.processor = processor
        self.name = name or getattr(model, "name_or_path", "") or type(model).__name__
        self.policy = policy or Policy()
        self.limits = limits or Limits()
        guards = build_stack(guardrails)
        check_categories(guards.detectors, self.policy)
        check_reader(self.policy, guards.detectors)
        self.guardrails: tuple[Guardrail, ...] = (*guards.detectors, *guards.inner)
        model = unwrapped(model)
        tower = None
        if guards.inside:
            tower = text_tower(model, wanted_by=", ".join(guards.inside))
        prompts = PromptBuilder(
            processor, context_length=context_length(model), image_token_ids=image_token_ids(model)
        )
        self._host = Host(model, processor, self.name, prompts, self.policy, tower)
        for guard in guards.inner:
            guard.check(self._host)
        if tower is not None:
            doorway.install(
                tower,
                model,
                hidden_states="hidden_states" in guards.needs,
                linear=guards.linear_names,
            )
        self.gather = gather
        gathering = Gathering() if gather is True else gather or None
        scaling = partial(shown_by, processor)
        pipeline = Pipeline(self._host, guards, self.limits, scaling, gathering)
        self.evidence = evidence
        self._pipeline: Pipeline | JointDecision = pipeline
        if evidence is not None:
            from .joint_decision import JointDecision

            self._pipeline = JointDecision(pipeline, evidence)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        guardrails: Sequence[Guardrail] = (),
        policy: Policy | None = None,
        limits: Limits | None = None,
        device: Device = None,
        dtype: torch.dtype | str | None = None,
        device_map: DeviceMap = None,
        quantization: QuantizationConfigMixin | str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        local_files_only: bool | None = None,
        gather: Gathering | bool = True,
        evidence: Evidence | None = None,
        **model_kwargs: Any,
    ) -> LocalLVLM:
        """Load a model by Hub id, by folder, or ``"testbed"``; see :func:`loading.load_model`.

        Raises:
            ModelLoadError: it cannot be loaded.
            ConfigurationError, UnsupportedModelError, ArtifactError: see the class.
        """
        model, processor = load_model(
            name,
            device=device,
            dtype=dtype,
            device_map=device_map,
            quantization=quantization,
            revision=revision,
            trust_remote_code=trust_remote_code,
            local_files_only=local_files_only,
            **model_kwargs,
        )
        return cls(
            model,
            processor,
            guardrails=guardrails,
            policy=policy,
            limits=limits,
            name=str(name),
            gather=gather,
            evidence=evidence,
        )

    def with_guardrails(
        self,
        guardrails: Sequence[Guardrail],
        *,
        policy: Policy | None = None,
        limits: Limits | None = None,
        evidence: Evidence | None = None,
    ) -> LocalLVLM:
        """The same model, the same weights in memory, with other guardrails.

        What is not given stays; with evidence that stays, a guardrail that it misses has failed.
        Without any guardrail there is none.
        """
        return type(self)(
            self.model,
            self.processor,
            guardrails=guardrails,
            policy=policy or self.policy,
            limits=limits or self.limits,
            name=self.name,
            gather=self.gather,
            evidence=(evidence or self.evidence) if guardrails else None,
        )

    def chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[ToolSource] = (),
        tool_choice: ToolChoice | str | bool | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool = True,
        response_format: ResponseFormat | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        stop: Sequence[str] = (),
        seed: int | None = None,
        cancel: threading.Event | None = None,
        place: Place | None = None,
        **generation: Any,
    ) -> Answer:
        """Answer one conversation.

        Args:
            messages: see :func:`messages.read_messages`.
            tools: what the model may call; see :func:`tools.read_tools`. Its calls come back in
                ``Answer.tool_calls`` and nothing is carried out. ``policy.calls`` rules them anew
                at every step: refused, the answer is; held back for a person, they are in
                ``Answer.held_calls``.
            tool_choice: whether it may, must or must not; see :func:`tools.read_tool_choice`.
            parallel_tool_calls: whether several calls may be made at once where one has to be.
            response_format: the answer is JSON of this schema, a JSON schema or a pydantic model.
                With tools beside it, the answer is calls or such JSON.
            max_new_tokens: at most this many tokens.
            temperature: 0 is greedy.
            top_p: nucleus sampling.
            top_k: sample among this many tokens.
            stop: end before the first of these texts.
            seed: makes sampling repeatable, whatever runs beside.
            cancel: once set, from any thread, the answer is given up after the token at work.
            place: priority, client and deadline among the calls that wait for the model.
            generation: further ``GenerationConfig`` fields, such as ``num_beams``.

        Raises:
            PromptError: the conversation cannot be turned into a prompt.
            ConfigurationError: a generation setting is not possible, a tool is none, or a schema
                cannot be satisfied.
            UnsupportedModelError: the model's chat template knows no tools.
            MissingDependencyError: a schema or a forced call needs llguidance.
            ImageError: a picture cannot be read, and no detector is there to judge that.
            ImageRefused, RequestRefused: the policy asks for an exception.
            Abandoned: ``cancel`` was set before the answer was there.
            DeadlineExceeded: the answer was not there by the deadline of ``place``.
        """
        asked, options = self._asked(
            [messages],
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            response_format=response_format,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            stop=stop,
            seed=seed,
            **generation,
        )
        return self._pipeline.answer_all(asked, options, cancel, place)[0]

    def batch(
        self,
        messages: Sequence[Messages],
        *,
        cancel: threading.Event | None = None,
        place: Place | None = None,
        **options: Any,
    ) -> list[Answer]:
        """Answer several conversations, padded into as few runs as the model allows.

        Each answer is what the conversation would get alone. Conversations with and without
        pictures may be mixed.

        Args:
            messages: one conversation each.
            cancel: as for :meth:`chat`.
            place: as for :meth:`chat`.
            options: as for :meth:`chat`.

        Raises:
            As :meth:`chat`; nothing is answered if one conversation is not readable.
        """
        conversations, settings = self._asked(messages, **options)
        return self._pipeline.answer_all(conversations, settings, cancel, place)

    def stream(
        self,
        messages: Messages,
        *,
        cancel: threading.Event | None = None,
        place: Place | None = None,
        **options: Any,
    ) -> Generator[AnswerChunk, None, None]:
        """Answer one conversation piece by piece.

        The model runs in another thread; closing the iterator early ends this answer there.
        Everything up to the first piece (reading, screening) happens at the first ``next``.

        Args:
            messages: as for :meth:`chat`.
            cancel: once set, from any thread, the stream ends after the token at work, even if that
                is a guardrail's own, from before the answer. It may serve many streams.
            place: as for :meth:`chat`.
            options: as for :meth:`chat`; one beam only.

        Raises:
            As :meth:`chat`.
        """
        (conversation,), settings = self._asked([messages], **options)
        yield from self._pipeline.stream(conversation, settings, StreamCancel(cancel), place)

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
        return self._pipeline.assess_all(self._asked(messages)[0])

    async def aassess(self, messages: Messages) -> tuple[Verdict, ...]:
        """:meth:`assess` in a thread of its own."""
        return await in_thread(partial(self.assess, messages))

    async def achat(
        self, messages: Messages, *, cancel: threading.Event | None = None, **options: Any
    ) -> Answer:
        """:meth:`chat` in a thread; cancelling the task ends it after the token at work."""
        return await _abandonable(partial(self.chat, messages, **options), cancel)

    async def abatch(
        self,
        messages: Sequence[Messages],
        *,
        cancel: threading.Event | None = None,
        **options: Any,
    ) -> list[Answer]:
        """:meth:`batch` in a thread; cancelling the task ends it after the token at work."""
        return await _abandonable(partial(self.batch, messages, **options), cancel)

    async def astream(
        self, messages: Messages, *, cancel: threading.Event | None = None, **options: Any
    ) -> AsyncGenerator[AnswerChunk, None]:
        """:meth:`stream` in a thread; leaving it ends the generation after the token at work."""
        ended = StreamCancel(cancel)
        pieces = stream_in_thread(partial(self.stream, messages, cancel=ended, **options), ended)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                yield piece

    def __reduce__(self) -> NoReturn:
        """Refuse: a copy in another process would be another model, loaded behind one's back."""
        raise TypeError(
            "A LocalLVLM cannot be pickled: it holds a loaded model. Send its settings to the "
            "other process and build it there with LocalLVLM.from_pretrained."
        )

    def _asked(
        self,
        messages: Sequence[Messages],
        *,
        tools: Sequence[ToolSource] = (),
        tool_choice: ToolChoice | str | bool | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool = True,
        response_format: ResponseFormat | None = None,
        **options: Any,
    ) -> tuple[list[Conversation], GenerationOptions]:
        """The conversations as the model's chat template takes them, and how to answer them.

        Raises:
            As :meth:`chat`, before anything is looked at or generated.
        """
        known = read_tools(tools)
        choice = read_tool_choice(tool_choice, known, parallel=parallel_tool_calls)
        schema = read_response_format(response_format)
        offered = () if choice.kind == "none" else known
        ordered = choice.name is not None
        read = [self._read(talk) for talk in messages]
        # A conversation that was read already may bring its own tools.
        own = not tools and tool_choice is None
        talks = [replace(t, tools=t.tools if own else offered, ordered=ordered) for t in read]
        talks = [shaped(self.processor, talk) for talk in talks]
        grammar = self._host.grammar(offered, choice, schema)
        return talks, read_options(**options, grammar=grammar)

    def _read(self, messages: Messages) -> Conversation:
        """The conversation; where no detector judges what cannot be read, that is an error.

        Raises:
            PromptError, ImageError: see :meth:`chat`.
        """
        conversation = read_messages(messages)
        if self._pipeline.guards.detectors or isinstance(messages, Conversation):
            return conversation
        return decode_conversation(conversation, self.limits)

    @property
    def calls_tools(self) -> bool:
        """Whether the model's chat template knows tools."""
        return style_of(self.processor).declares

    def token_ids(self, text: str) -> list[int]:
        """The tokens of a text alone, without a chat template around it."""
        tokenizer = self.processor.tokenizer
        with tokenizer_lock(tokenizer):
            return list(tokenizer.encode(text, add_special_tokens=False))

    def __deepcopy__(self, memo: Any) -> LocalLVLM:
        """Itself: nothing about it changes, and the weights are shared by all who use them."""
        return self

    def __repr__(self) -> str:
        guards = ", ".join(type(guard).__name__ for guard in self.guardrails)
        known = "" if is_known(self.model) else ", family not known"
        return f"LocalLVLM({self.name!r}, guardrails=[{guards}]{known})"


async def _abandonable(answer: Callable[..., T], caller: threading.Event | None) -> T:
    """Run ``answer(cancel=...)`` in a thread, which cannot be cancelled; its work can."""
    cancel = StreamCancel(caller)
    try:
        return await in_thread(partial(answer, cancel=cancel))
    except asyncio.CancelledError:
        cancel.set()
        raise
