"""A request on its way to an LLM: its messages, and the settings of the call beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
)
from llama_index.core.prompts import ChatPromptTemplate

from sightrail.guardrails.carriers.conversation import Turns, answered, screen_turns
from sightrail.guardrails.carriers.loop import passed
from sightrail.guardrails.verdict import Verdict

from .screening import LLAMA_INDEX, ImageScreen, marked_verdicts

_TURN: Final = (
    *("user_msg", "chat_history", "verbose", "allow_parallel_tool_calls", "tool_required"),
)


@dataclass(frozen=True)
class Request:
    """What an LLM is asked in one call.

    Attributes:
        messages: the conversation; a prompt is a message of its own.
        settings: the other arguments of the call, which may hold pictures too.
        user_msg: whether the last message came apart from the others, and in which form.
        refused: the policy refuses it.
        verdicts: one per picture of the newest turn.
        cause: what the detector raised, where a verdict says that it failed.
    """

    messages: list[ChatMessage]
    settings: dict[str, Any] = field(default_factory=dict)
    user_msg: str | ChatMessage | None = None
    refused: bool = False
    verdicts: tuple[Verdict, ...] = ()
    cause: Exception | None = None

    @property
    def prompt(self) -> str:
        """The text of the only message."""
        return self.messages[0].content or ""

    @property
    def turn(self) -> tuple[str | ChatMessage | None, list[ChatMessage]]:
        """The user's message and the history, as they were given."""
        if self.user_msg is None:
            return None, self.messages
        *history, last = self.messages
        same = isinstance(self.user_msg, str) and last.content == self.user_msg
        return self.user_msg if same else last, history


def as_request(messages: Sequence[ChatMessage], settings: dict[str, Any]) -> Request:
    """The request of a conversation."""
    return Request(list(messages), settings)


def as_turn(*args: Any, **settings: Any) -> Request:
    """The request of ``chat_with_tools``, by its arguments behind the tools."""
    settings = {**dict(zip(_TURN, args, strict=False)), **settings}
    user_msg = settings.pop("user_msg", None)
    said = list(settings.pop("chat_history", None) or ())
    if user_msg is not None:
        said.append(ChatMessage(user_msg) if isinstance(user_msg, str) else user_msg)
    return Request(said, settings, user_msg)


def as_prompt(prompt: str, settings: dict[str, Any]) -> Request:
    """The request of a completion."""
    return Request([ChatMessage(prompt)], settings)


def answer_of(answer: Any) -> ChatMessage:
    """What an LLM answered, in any form, as the message that it is."""
    if isinstance(answer, ChatResponse):
        return answer.message
    if isinstance(answer, CompletionResponse):
        return ChatMessage(answer.text, role=MessageRole.ASSISTANT)
    return _beside({"output": answer}, MessageRole.ASSISTANT)


class _Formatted(ChatPromptTemplate):  # type: ignore[no-redef]
    """Messages that are no template any more: braces in them are what somebody wrote."""

    def format_messages(self, llm: Any = None, **_: Any) -> list[ChatMessage]:
        return list(self.message_templates)


def template_of(messages: list[ChatMessage]) -> ChatPromptTemplate:
    """A prompt template that gives these messages."""
    return _Formatted(message_templates=messages)  # type: ignore[call-arg]


def screen_request(screen: ImageScreen, request: Request) -> Request:
    """What may be asked; only what is new in a conversation can refuse it.

    A picture that was refused in an earlier turn is taken out in every later one.

    Raises:
        ImageRefused: the policy's action is ``raise`` for something that is new.
    """
    count = answered(request.messages, LLAMA_INDEX)
    past, newest = request.messages[:count], request.messages[count:]
    beside = _beside(request.settings, MessageRole.USER)
    turns = Turns(past, [*newest, beside], request.messages)
    [(earlier, outcome)] = screen_turns(screen.loop, [turns])
    seen = passed(outcome)
    *now, settings = seen.value
    return replace(
        request,
        messages=[*earlier, *now],
        settings=settings.additional_kwargs,
        refused=seen.refused,
        # The verdicts of this screening, or else those of the earlier step that refused.
        verdicts=seen.verdicts or marked_verdicts(request.messages),
        cause=seen.cause,
    )


def _beside(values: dict[str, Any], role: MessageRole) -> ChatMessage:
    """Values of any kind as something that is walked and held as a message is; not validated,
    because LlamaIndex would fetch pictures that it finds there.
    """
    return ChatMessage.model_construct(role=role, additional_kwargs=values, blocks=[])
