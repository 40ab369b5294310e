"""A conversation and how it shall be answered, checked before anything runs.

What callers write is read into a conversation once, and everything up to the chat template works on
it. Nothing in it is ever mutated.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, get_args

from ..errors import ConfigurationError, PromptError
from ..policy import Surface
from .tools import Tool, ToolCall, new_call_id

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..carriers.carrier import Payload
    from ..intake import Picture
    from .grammar import Grammar


ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class TextPart:
    """A piece of text in a turn."""

    text: str


@dataclass(frozen=True)
class ImagePart:
    """A picture in a turn, at every stage of its way.

    Attributes:
        source: as the caller gave it, or why nobody can look at it.
        surface: where it came from, if that is not who speaks: a tool's result told as the user's
            words is still the tool's.
        decoded: what intake made of it: every view that has to be screened; None before that.
        screened: RGB, the very pixels that the model sees; None before screening.
    """

    source: Payload
    surface: Surface | None = None
    decoded: Picture | None = None
    screened: Image | None = None


Part: TypeAlias = TextPart | ImagePart


@dataclass(frozen=True)
class Turn:
    """One message.

    Attributes:
        role: who speaks, one of ROLES.
        parts: texts and pictures in their order.
        calls: what the model called, in an assistant's turn.
        call_id: the call to which a tool's turn is the result.
        name: the tool whose result this is, whoever tells it; None where it is no result.
    """

    role: str
    parts: tuple[Part, ...]
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None
    name: str | None = None

    @property
    def texts(self) -> list[str]:
        """The texts of this turn, in order."""
        return [part.text for part in self.parts if isinstance(part, TextPart)]

    @property
    def image_parts(self) -> list[ImagePart]:
        """The pictures of this turn, in order."""
        return [part for part in self.parts if isinstance(part, ImagePart)]


class WrittenCalls(Protocol):
    """Calls that an agent reads out of an answer's text, as ReAct agents do."""

    def before(self, text: str, /) -> str:
        """The beginning of a text, up to where a call may begin; it may be shown at once."""

    def find(self, text: str, /) -> Sequence[ToolCall]:
        """What the agent will carry out."""


@dataclass(frozen=True)
class Conversation:
    """Turns, from a framework's messages to the chat template, and the tools that may be called.

    Attributes:
        turns: what was said.
        tools: those that may be called.
        unsafe: an earlier step of the chain has found an unsafe picture in what is to be answered.
        ordered: the app forces a call by a tool's name, so it is not the model's proposal.
        written: finds calls in the answer's text, where somebody may read them out of it.
    """

    turns: tuple[Turn, ...]
    tools: tuple[Tool, ...] = ()
    unsafe: bool = False
    ordered: bool = False
    written: WrittenCalls | None = None

    @classmethod
    def of(cls, said: Iterable[Turn], tools: Sequence[Tool] = ()) -> Conversation:
        """What was said; neighbours of one role become one turn, calls and results stay apart."""
        turns: list[Turn] = []
        for turn in said:
            parts = turn.parts if turn.parts or turn.calls else (TextPart(""),)
            new = replace(turn, parts=parts)
            if turns and _joins(turns[-1], new):
                turns[-1] = _joined_turn(turns[-1], new)
            else:
                turns.append(new)
        return cls(tuple(turns), tuple(tools))

    @property
    def has_tool_turns(self) -> bool:
        """Whether a tool was called, or gave something back."""
        return any(turn.calls or turn.role == "tool" for turn in self.turns)

    def told(self) -> Conversation:
        """The same in words, for a model that knows no tools.

        Calls become the model's words and results the user's.
        """
        told = Conversation.of(_told(turn) for turn in self.turns)
        return replace(self, turns=told.turns)

    @property
    def request(self) -> tuple[Turn, ...]:
        """What the model is to act on: the user's last words, and the results that followed."""
        own = [i for i, turn in enumerate(self.turns) if turn.role == "user" and turn.name is None]
        asked = own[-1] if own else self.last_user_turn
        later = (turn for turn in self.turns[asked + 1 :] if turn.name is not None)
        return (self.turns[asked], *later)

    @property
    def ordered_words(self) -> str:
        """What the user and the system prompt say: the words of those whose orders count."""
        said = (t for t in self.turns if t.role in ("user", "system") and t.name is None)
        return "\n".join(text for turn in said for text in turn.texts)

    @property
    def step(self) -> int:
        """How many times tools have given something back since the user spoke; 0 before any."""
        last = self.turns.index(self.request[0])
        return sum(bool(turn.calls) for turn in self.turns[last:]) or len(self.request) - 1

    @property
    def image_parts(self) -> list[ImagePart]:
        """The pictures of all turns, in order."""
        return [part for turn in self.turns for part in turn.image_parts]

    @property
    def images(self) -> list[Image]:
        """The pixels that the model sees, in order.

        Raises:
            PromptError: a picture has not been through screening.
        """
        images = [part.screened for part in self.image_parts]
        if any(image is None for image in images):
            raise PromptError(
                "A picture of this conversation was not decoded; pass it through LocalLVLM, or "
                "through screening_step.decode_conversation."
            )
        return [image for image in images if image is not None]

    @property
    def last_user_turn(self) -> int:
        """Index of the last user turn.

        Raises:
            PromptError: there is none.
        """
        for index in range(len(self.turns) - 1, -1, -1):
            if self.turns[index].role == "user":
                return index
        raise PromptError('There is no user message; add {"role": "user", "content": ...}.')

    def with_images(self, parts: Sequence[Part]) -> Conversation:
        """Other parts in the places of the pictures, one for each of ``image_parts``."""
        supply = iter(parts)
        return replace(self, turns=tuple(_with_images(turn, supply) for turn in self.turns))

    def with_turn(self, index: int, turn: Turn) -> Conversation:
        """Another turn in the place of one."""
        return replace(self, turns=(*self.turns[:index], turn, *self.turns[index + 1 :]))


Messages: TypeAlias = str | Sequence[Mapping[str, Any]] | Conversation
"""A question on its own, a sequence of ``{"role": ..., "content": ...}``, or what was read."""


def read_messages(messages: Messages) -> Conversation:
    """Read what the caller passed; a conversation that was read already stays as it is.

    Args:
        messages: a string (one user turn) or a sequence of
            ``{"role": "system" | "user" | "assistant", "content": str | list of parts}`` with parts
            ``{"type": "text", "text": ...}`` and ``{"type": "image", "image": ...}``; a picture may
            say its ``"surface"`` (see ``policy.Surface``) where it is not the role's own. An
            assistant's message may have ``"tool_calls"``, and what they gave back is ``{"role":
            "tool", "tool_call_id": ..., "name": ..., "content": ...}``, both as OpenAI has them.

    Raises:
        PromptError: no message, an unknown role or part type, a part without its payload, or no
            user turn.
    """
    conversation = messages if isinstance(messages, Conversation) else _read(messages)
    if not conversation.turns:
        raise PromptError("The message list is empty; pass at least one user message.")
    _ = conversation.last_user_turn  # raises where there is none
    return conversation


def _read(messages: str | Sequence[Mapping[str, Any]]) -> Conversation:
    if isinstance(messages, str):
        return Conversation((Turn("user", (TextPart(messages),)),))
    if isinstance(messages, Mapping) or not isinstance(messages, Sequence):
        raise PromptError(
            f"messages must be a string or a list of messages, got {type(messages).__name__}; "
            'wrap a single message in a list: [{"role": "user", "content": ...}].'
        )
    return Conversation(tuple(_turn(message) for message in messages))


def called(name: str, arguments: Any) -> TextPart:
    """A model's call of a tool, in words."""
    told = arguments if isinstance(arguments, str) else json.dumps(arguments, default=str)
    return TextPart(f"Called the tool {name} with {told}.")


def _told(turn: Turn) -> Turn:
    if turn.role == "tool":
        result = TextPart(f"Result of the tool {turn.name or ''}:".replace(" :", ":"))
        return Turn("user", _from_tool((result, *turn.parts)), name=turn.name or "")
    words = tuple(called(call.name, dict(call.arguments)) for call in turn.calls)
    said = tuple(part for part in turn.parts if not words or part != TextPart(""))
    return replace(turn, parts=(*said, *words), calls=())


def _from_tool(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """The parts of a result; its pictures stay the tool's, whoever tells them."""
    return tuple(
        replace(part, surface=part.surface or "tool") if isinstance(part, ImagePart) else part
        for part in parts
    )


def _joins(last: Turn, new: Turn) -> bool:
    return last.role == new.role != "tool" and not last.calls


def _joined_turn(last: Turn, new: Turn) -> Turn:
    if not (last.parts and new.parts):
        return replace(new, parts=last.parts + new.parts)
    name = last.name if new.name is not None else None
    return replace(new, parts=_joined(last.parts, new.parts), name=name)


def _joined(first: tuple[Part, ...], second: tuple[Part, ...]) -> tuple[Part, ...]:
    last, begin = first[-1], second[0]
    if isinstance(last, TextPart) and isinstance(begin, TextPart):
        return (*first[:-1], TextPart(f"{last.text}\n{begin.text}"), *second[1:])
    return first + second


def _with_images(turn: Turn, supply: Iterator[Part]) -> Turn:
    if not turn.image_parts:
        return turn
    parts = (next(supply) if isinstance(part, ImagePart) else part for part in turn.parts)
    return replace(turn, parts=tuple(parts))


_NEEDED: Final = {"role", "content"}


def _turn(message: Any) -> Turn:
    needed = {"role"} if isinstance(message, Mapping) and message.get("tool_calls") else _NEEDED
    if not isinstance(message, Mapping) or not needed <= message.keys():
        raise PromptError(
            f"A message must be a mapping with 'role' and 'content', got {_describe(message)}."
        )
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise PromptError(f"Unknown role {role!r}; use one of {', '.join(ROLES)}.")
    calls = tuple(_read_call(call) for call in message.get("tool_calls") or ())
    parts = _content(role, content, optional=bool(calls))
    if role != "tool":
        return Turn(role, parts, calls=calls)
    return Turn(role, parts, call_id=message.get("tool_call_id"), name=message.get("name") or "")


def _content(role: str, content: Any, *, optional: bool) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (TextPart(content),) if content or not optional else ()
    if content is None and optional:
        return ()
    if isinstance(content, Mapping) or not isinstance(content, Sequence):
        raise PromptError(
            f"The content of a {role} message must be a string or a list of parts, "
            f"got {type(content).__name__}."
        )
    return tuple(_part(part) for part in content)


def _read_call(call: Any) -> ToolCall:
    if isinstance(call, ToolCall):
        return call
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise PromptError(
            f"Cannot read the tool call {_describe(call)}; use "
            '{"id": ..., "function": {"name": ..., "arguments": JSON text or object}}.'
        )
    given = function.get("arguments") or {}
    try:
        arguments = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, Mapping):
        raise PromptError("The arguments of a tool call are no JSON object.")
    return ToolCall(function["name"], dict(arguments), str(call.get("id") or new_call_id()))


def _part(part: Any) -> Part:
    if isinstance(part, str):
        return TextPart(part)
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return TextPart(part["text"])
    if kind == "image" and part.get("image") is not None:
        if (surface := part.get("surface")) not in (None, *get_args(Surface)):
            raise PromptError(f"Unknown surface; use one of {', '.join(get_args(Surface))}.")
        return ImagePart(part["image"], surface)
    raise PromptError(
        f"Cannot read the message part {_describe(part)}; use "
        '{"type": "text", "text": ...} or {"type": "image", "image": picture, path or bytes}.'
    )


def _describe(value: Any) -> str:
    """Name a value by type and keys only: messages may hold private text."""
    if isinstance(value, Mapping):
        return f"a mapping with keys {sorted(map(str, value))} and type {value.get('type')!r}"
    return f"a {type(value).__name__}"


#: Settings that this library sets itself; passing them beside is a contradiction.
_OWN = frozenset(
    {"generation_config", "streamer", "stopping_criteria", "logits_processor", "do_sample"}
    | {"input_ids", "inputs", "attention_mask", "stop_strings", "num_return_sequences"}
    | {"return_dict_in_generate", "max_length"}
)


@dataclass(frozen=True)
class GenerationOptions:
    """Settings of one request.

    Attributes:
        max_new_tokens: at most this many tokens are produced.
        temperature: 0 is greedy; above 0 samples, reproducibly under ``seed``.
        top_p: keep the smallest set of tokens whose probability reaches this; needs temperature.
        top_k: keep this many likeliest tokens; needs temperature.
        stop: the answer ends before the first of these texts.
        seed: makes sampling repeatable, whatever else runs at the same time.
        grammar: what the answer has to follow; None for any text.
        extra: further fields of transformers' ``GenerationConfig`` (``num_beams``,
            ``repetition_penalty``, ...).

    Raises:
        ConfigurationError: a value is out of range or contradicts another.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    grammar: Grammar | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every value."""
        if self.max_new_tokens < 1:
            raise ConfigurationError(
                f"max_new_tokens must be at least 1, got {self.max_new_tokens}."
            )
        if not math.isfinite(self.temperature) or self.temperature < 0:
            raise ConfigurationError(f"temperature must be 0 or more, got {self.temperature}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigurationError(f"top_p must be in (0, 1], got {self.top_p}.")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigurationError(f"top_k must be at least 1, got {self.top_k}.")
        if "" in self.stop:
            raise ConfigurationError("A stop text is empty; leave it out.")
        if clash := sorted(_OWN & set(self.extra)):
            raise ConfigurationError(
                f"{', '.join(clash)} cannot be passed through; use max_new_tokens, temperature, "
                "stop and guardrails instead."
            )
        if self.sampled and self.beams > 1:
            raise ConfigurationError(
                f"num_beams={self.beams} needs temperature=0; sampling uses one beam."
            )
        if self.grammar is not None and self.beams > 1:
            raise ConfigurationError(
                f"num_beams={self.beams}: a structured answer or a forced call needs one beam."
            )

    @property
    def sampled(self) -> bool:
        """Whether tokens are drawn instead of chosen."""
        return self.temperature > 0

    @property
    def beams(self) -> int:
        """Number of beams searched."""
        return int(self.extra.get("num_beams") or 1)

    def config(self, model: Any, pad_token_id: int | None, *, more: int = 0) -> Any:
        """The ``GenerationConfig`` for ``model`` with these settings; ``more`` tokens are not seen.

        Sampling is done by our own processors (see ``processing``), so transformers is always told
        to take the likeliest token, and sampling defaults of the checkpoint are neutralised.

        Raises:
            ConfigurationError: ``extra`` holds a name that transformers does not know.
        """
        config = copy.deepcopy(model.generation_config)
        unknown = config.update(
            do_sample=False,
            temperature=1.0,
            top_p=1.0,
            top_k=50,
            max_new_tokens=self.max_new_tokens + more,
            max_length=None,
            return_dict_in_generate=False,
            **self._lengthened(more),
        )
        if unknown:
            raise ConfigurationError(
                f"Unknown generation settings: {', '.join(sorted(unknown))}; see transformers' "
                "GenerationConfig for the possible names."
            )
        if config.pad_token_id is None:
            config.pad_token_id = pad_token_id
        return config

    def _lengthened(self, more: int) -> dict[str, Any]:
        """``extra`` with its shortest answer counted from the first token that is seen."""
        least = self.extra.get("min_new_tokens")
        return {**self.extra, "min_new_tokens": least + more} if least and more else {**self.extra}


_FRACTIONS: Final = frozenset(
    {"repetition_penalty", "encoder_repetition_penalty", "length_penalty", "diversity_penalty"}
    | {"min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}
)
"""What transformers takes as a float alone; JSON writes 2 for 2.0."""


def read_options(stop: Sequence[str] | str = (), **settings: Any) -> GenerationOptions:
    """Sort keyword arguments into named settings and ``extra``.

    Raises:
        ConfigurationError: see :class:`GenerationOptions`.
    """
    named = {"max_new_tokens", "temperature", "top_p", "top_k", "seed", "grammar"}
    own = {key: value for key, value in settings.items() if key in named}
    extra = {
        key: float(value) if key in _FRACTIONS and type(value) is int else value
        for key, value in settings.items()
        if key not in named
    }
    texts = (stop,) if isinstance(stop, str) else tuple(stop or ())
    return GenerationOptions(stop=texts, extra=extra, **own)


def end_tokens(config: Any) -> set[int]:
    """What ends an answer under a ``GenerationConfig``."""
    end = config.eos_token_id
    if end is None:
        return set()
    return set(end) if isinstance(end, list | tuple) else {int(end)}
