"""The tool calls of an answer as a policy has them, and a tool that puts them before a person."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Literal

from llama_index.core.agent.react.output_parser import ReActOutputParser
from llama_index.core.agent.react.types import ActionReasoningStep
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import (
    AsyncBaseTool,
    BaseTool,
    FunctionTool,
    ToolOutput,
    adapt_to_async_tool,
)
from llama_index.core.workflow import Context, HumanResponseEvent, InputRequiredEvent
from pydantic import BaseModel

from sightrail.guardrails.call_rules import CallContext, CallGuard, CallRuling, came_in_unsafe
from sightrail.guardrails.carriers.loop import decode
from sightrail.guardrails.errors import ConfigurationError
from sightrail.guardrails.intake import Limits, Picture, RequestReader
from sightrail.guardrails.model.tools import ToolCall

from .replies import refused, selections
from .screening import LLAMA_INDEX, marked_verdicts
from .walk import surface_of

if TYPE_CHECKING:
    from sightrail.guardrails.policy import Policy

REVIEW: Final = "review_call"
_RAW: Final = ("tool_calls", "function_call")
_WORDS: Final = ("Thought", "Action")
_STEP: Final = re.compile(rf"(?:{'|'.join(_WORDS)}):")
_OWN: Final = (
    "Observation: ",
    "Error while parsing the output:",
    "FAILURE: Your previous response",
)
"""How ReActAgent begins what it says in the user's name: a tool's result, and what was wrong."""


class CallReviewRequestedEvent(InputRequiredEvent):
    """A person is asked about a tool call.

    Attributes:
        call_id: which call; the answer has to name it.
        tool_name: of the tool.
        tool_kwargs: what it would be called with.
        reasons: the policy's rules that hold it back: ``after_unsafe``, ``read_words``.
    """

    call_id: str
    tool_name: str
    tool_kwargs: dict[str, Any]
    reasons: list[str]


class CallReviewedEvent(HumanResponseEvent):
    """What the person says.

    Attributes:
        call_id: which call.
        ruling: ``approve`` carries the call out, ``edit`` with `tool_kwargs` in place of its
            arguments; ``reject`` tells the model so, with `text` as the reason; ``respond`` gives
            `text` as the tool's result.
        tool_kwargs: for ``edit``.
        text: for ``respond`` and ``reject``.
    """

    call_id: str
    ruling: Literal["approve", "edit", "reject", "respond"]
    tool_kwargs: dict[str, Any] | None = None
    text: str | None = None


def review_tool(tools: Sequence[BaseTool]) -> FunctionTool:
    """A tool through which a person approves the calls that ``policy.calls`` holds back.

    Give it to an agent beside its tools. The agent's model is not told of it: where ``LVLM`` or a
    guarded LLM holds a call back, the call goes to this tool, which writes a
    ``CallReviewRequestedEvent`` to the run's stream and waits for a ``CallReviewedEvent``. A run
    that waits can be stored by ``ctx.to_dict()`` and taken up by another process. Without this
    tool a call that is held back is carried out by nobody, and the run ends with the policy's text.

    Args:
        tools: those that the agent has.

    Raises:
        ConfigurationError: two of one name.

    Example:
        ``FunctionAgent(tools=[*tools, review_tool(tools)], llm=llm)``
    """
    return _ReviewTool(tools)


class _Held(BaseModel):
    """A call that is held back, and why."""

    call_id: str
    tool_name: str
    tool_kwargs: dict[str, Any]
    reasons: list[str]


class _ReviewTool(FunctionTool):
    def __init__(self, tools: Sequence[BaseTool]) -> None:
        async def review_call(ctx: Context, **call: Any) -> str:
            """Ask a person about a call that is held back."""
            return str(await self._reviewed(ctx, call))

        made = FunctionTool.from_defaults(async_fn=review_call, name=REVIEW, fn_schema=_Held)
        super().__init__(async_fn=made.async_fn, metadata=made.metadata)
        self.requires_context, self.ctx_param_name = True, "ctx"
        names = [tool.metadata.get_name() for tool in tools]
        if len({*names, REVIEW}) <= len(names):
            raise ConfigurationError("Two tools have one name, or one is called review_call.")
        self._tools = dict(zip(names, map(adapt_to_async_tool, tools), strict=True))

    async def acall(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """Ask, and carry out what the person says.

        Raises:
            ValueError: an agent's context is needed to ask.
        """
        ctx = kwargs.pop("ctx", None)
        if ctx is None:
            raise ValueError("review_call asks within an agent's run; it needs its context.")
        return await self._reviewed(ctx, kwargs)

    async def _reviewed(self, ctx: Context, call: Mapping[str, Any]) -> ToolOutput:
        name, id = str(call.get("tool_name")), str(call.get("call_id"))
        given = call.get("tool_kwargs")
        arguments = dict(given) if isinstance(given, Mapping) else {}
        asked = CallReviewRequestedEvent(
            call_id=id,
            tool_name=name,
            tool_kwargs=arguments,
            reasons=list(call.get("reasons") or ()),
        )
        said = await ctx.wait_for_event(
            CallReviewedEvent,
            waiter_event=asked,
            waiter_id=f"{REVIEW} {id}",
            requirements={"call_id": id},
            timeout=None,
        )
        tool = self._tools.get(name)
        if said.ruling == "respond":
            return _output(name, arguments, said.text or "")
        if said.ruling == "reject" or (said.ruling == "edit" and said.tool_kwargs is None):
            why = f" with reason: {said.text}" if said.text else ". Do not try it again."
            return _output(name, arguments, f"The user rejected this call{why}", error=True)
        if tool is None:
            return _output(name, arguments, f"There is no tool {name}.", error=True)
        arguments = arguments if said.tool_kwargs is None else said.tool_kwargs
        return await tool.acall(**_with_context(tool, ctx, arguments))


def _with_context(tool: AsyncBaseTool, ctx: Context, arguments: dict[str, Any]) -> dict[str, Any]:
    if isinstance(tool, FunctionTool) and tool.requires_context and tool.ctx_param_name:
        return {**arguments, tool.ctx_param_name: ctx}
    return arguments


def _output(name: str, arguments: Any, text: str, *, error: bool = False) -> ToolOutput:
    return ToolOutput(
        content=text, tool_name=name, raw_input=arguments, raw_output=text, is_error=error
    )


# Calls that stand in an answer's text


class ReActCalls:
    """The calls that LlamaIndex's ReActAgent reads out of an answer, by its own parser."""

    def before(self, text: str) -> str:
        """The text up to where a step begins, or may be about to begin."""
        if found := _STEP.search(text):
            return text[: found.start()]
        *_, tail = re.split(r"\W", text)
        begun = bool(tail) and any(word.startswith(tail) for word in _WORDS)
        return text.removesuffix(tail) if begun else text

    def find(self, text: str) -> list[ToolCall]:
        """The call, if the text is a step that has one."""
        step = _step(text)
        return [] if step is None else [ToolCall(step.action, dict(step.action_input))]


def _step(text: str) -> ActionReasoningStep | None:
    if "Action:" not in text:
        return None
    try:
        step = ReActOutputParser().parse(text)
    except ValueError:
        return None  # nor can the agent: it asks again
    return step if isinstance(step, ActionReasoningStep) else None


def written_calls(response: ChatResponse) -> list[ToolSelection]:
    """The calls in an answer's text as ReActAgent carries them out."""
    return [
        ToolSelection(tool_id=call.id, tool_name=call.name, tool_kwargs=dict(call.arguments))
        for call in ReActCalls().find(response.message.content or "")
    ]


def as_spoken(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The transcript with what ReActAgent says in the user's name as a tool's.

    It gives results of tools, and what was wrong with a step, as the user's words by default.
    """
    said = list(messages[:1])
    for before, message in pairwise(messages):
        own = before.role == MessageRole.ASSISTANT and message.role == MessageRole.USER
        if own and (message.content or "").startswith(_OWN):
            message = message.model_copy(update={"role": MessageRole.TOOL})
        said.append(message)
    return said


# On the way to a model, and back


def for_model(tools: Sequence[BaseTool]) -> list[BaseTool]:
    """The tools that a model is told about."""
    return [tool for tool in tools if not isinstance(tool, _ReviewTool)]


def as_proposed(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The transcript with the calls as the model proposed them, wherever they went."""
    return [_proposed(message) for message in messages]


def _proposed(message: ChatMessage) -> ChatMessage:
    if not any(isinstance(b, ToolCallBlock) and b.tool_name == REVIEW for b in message.blocks):
        return message
    return _with_blocks(message, [_proposed_block(block) for block in message.blocks])


def _proposed_block(block: Any) -> Any:
    if not isinstance(block, ToolCallBlock) or block.tool_name != REVIEW:
        return block
    held = block.tool_kwargs if isinstance(block.tool_kwargs, Mapping) else {}
    kwargs = held.get("tool_kwargs")
    return ToolCallBlock(
        tool_call_id=block.tool_call_id,
        tool_name=str(held.get("tool_name")),
        tool_kwargs=dict(kwargs) if isinstance(kwargs, Mapping) else {},
    )


def _with_blocks(message: ChatMessage, blocks: list[Any]) -> ChatMessage:
    changed = message.model_copy(update={"blocks": blocks})
    extra = {k: v for k, v in message.additional_kwargs.items() if k not in _RAW}
    changed.additional_kwargs = extra
    return changed


def rule_calls(
    calls: Sequence[ToolSelection], asked: Sequence[ChatMessage], guard: CallGuard, limits: Limits
) -> CallRuling:
    """What a policy has for the calls of an answer to a transcript, after screening."""
    asked = as_spoken(asked)
    users = MessageRole.USER, MessageRole.SYSTEM, MessageRole.DEVELOPER
    orders = [message.content or "" for message in asked if message.role in users]

    def pictures() -> list[Picture | None]:
        untrusted = guard.policy.calls.untrusted
        carriers = [c for c in LLAMA_INDEX.carriers(list(asked)) if c.surface in untrusted]
        read = (decode(carrier, RequestReader(limits)) for carrier in carriers)
        return [picture if isinstance(picture, Picture) else None for picture in read]

    context = CallContext(brings_unsafe(asked), pictures, "\n".join(orders))
    return guard.rule([call.tool_kwargs for call in calls], context)


def brings_unsafe(messages: Sequence[ChatMessage]) -> bool:
    """Whether marks say that an unsafe picture has come in since the user last spoke."""
    spoken = [surface_of(message) == "user" for message in as_spoken(messages)]
    start = len(spoken) - 1 - spoken[::-1].index(True) if any(spoken) else 0
    while start and spoken[start - 1]:  # the user may speak in several messages
        start -= 1
    return any(map(came_in_unsafe, marked_verdicts(messages[start:])))


def ruled(
    response: ChatResponse,
    calls: Sequence[ToolSelection],
    ruling: CallRuling,
    policy: Policy,
    model: str,
) -> ChatResponse:
    """The answer with its calls as the policy has them; those held back stand in ``raw``."""
    if ruling.action == "refuse":
        text = policy.refusal_for(ruling.verdicts)
        return refused(text, ruling.verdicts, model, None if response.delta is None else text)
    if ruling.action == "allow":
        return response
    blocks = [block for block in response.message.blocks if not isinstance(block, ToolCallBlock)]
    message = _with_blocks(response.message, blocks)
    if not message.content or ReActCalls().find(message.content):
        message = _with_text(message, policy.calls.review)
    delta = response.delta if response.delta is None else message.content
    raw = {
        **(response.raw if isinstance(response.raw, dict) else {}),
        "verdicts": [verdict.model_dump(mode="json") for verdict in ruling.verdicts],
        "held_calls": [call.model_dump(mode="json") for call in calls],
    }
    return response.model_copy(update={"message": message, "raw": raw, "delta": delta})


def review_calls(response: ChatResponse) -> list[ToolSelection] | None:
    """The calls of the tool that asks a person; None where an answer has none."""
    calls = selections(response)
    return calls if any(call.tool_name == REVIEW for call in calls) else None


def sent_to_review(response: ChatResponse, tools: Sequence[BaseTool]) -> ChatResponse:
    """The answer with what it holds back sent to the tool that asks a person, if there is one."""
    if not any(isinstance(tool, _ReviewTool) for tool in tools):
        return response
    sent = [
        ToolCallBlock(tool_call_id=held["call_id"], tool_name=REVIEW, tool_kwargs=held)
        for held in _held(response)
    ]
    if not sent:
        return response
    message = _with_blocks(response.message, [*response.message.blocks, *sent])
    return response.model_copy(update={"message": message})


def written_to_review(response: ChatResponse, asked: Sequence[ChatMessage]) -> ChatResponse:
    """The same for ReActAgent, which names its tools at the head of what it asks."""
    held = _held(response)
    head = (asked[0].content or "") if asked else ""
    if not held or f"> Tool Name: {REVIEW}\n" not in head:
        return response
    step = f"Thought: A person has to approve this.\nAction: {REVIEW}\nAction Input: "
    text = step + json.dumps(held[0], default=str)
    delta = response.delta if response.delta is None else text
    message = _with_text(response.message, text)
    return response.model_copy(update={"message": message, "delta": delta})


def _held(response: ChatResponse) -> list[dict[str, Any]]:
    """What the tool that asks a person is called with, for every call that is held back."""
    raw = response.raw if isinstance(response.raw, dict) else {}
    told = [verdict for verdict in raw.get("verdicts", ()) if verdict["subject"] == "calls"]
    held = (
        _Held(
            call_id=call["tool_id"],
            tool_name=call["tool_name"],
            tool_kwargs=call["tool_kwargs"],
            reasons=[verdict["category"] for verdict in told],
        )
        for call in raw.get("held_calls") or ()
    )
    return [call.model_dump() for call in held]


def _with_text(message: ChatMessage, text: str) -> ChatMessage:
    """A message that says this instead of what it says."""
    kept = [block for block in message.blocks if not isinstance(block, TextBlock)]
    return message.model_copy(update={"blocks": [*kept, TextBlock(text=text)]})


class CallsWait:
    """A streamed answer, of which everything waits from the first call on.

    Args:
        waits: whether there is anything to wait for.
        written: calls may stand in the text.

    Attributes:
        left: the last piece, where it has not passed.
    """

    def __init__(self, waits: bool, *, written: bool) -> None:
        self.left: ChatResponse | None = None
        self._waits = waits
        self._written = written
        self._told = ""

    def take(self, piece: ChatResponse) -> ChatResponse | None:
        """The next piece comes in; gives what may go on, None as long as nothing may."""
        blocks = any(isinstance(block, ToolCallBlock) for block in piece.message.blocks)
        raw = any(piece.message.additional_kwargs.get(key) for key in _RAW)
        text = piece.message.content or ""
        begins = blocks or raw or (self._written and _STEP.search(text) is not None)
        if not self._waits or (self.left is None and not begins):
            self._told = text
            return piece
        rest = text[len(self._told) :] if text.startswith(self._told) else text
        self.left = piece.model_copy(update={"delta": rest})
        return None
