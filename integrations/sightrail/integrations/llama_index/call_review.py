"""The tool calls of an answer as a policy has them, and a tool that puts them before a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    MessageRole,
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

from sightrail.guardrails.call_rules import CallContext, CallGuard, CallRuling, came_in_unsafe
from sightrail.guardrails.carriers.loop import decode
from sightrail.guardrails.errors import ConfigurationError
from sightrail.guardrails.intake import Limits, Picture, RequestReader

from .replies import refused, selections
from .screening import LLAMA_INDEX, marked_verdicts
from .walk import surface_of

if TYPE_CHECKING:
    from sightrail.guardrails.policy import Policy

REVIEW: Final = "review_call"
_RAW: Final = ("tool_calls", "function_call")


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


class _ReviewTool(FunctionTool):
    def __init__(self, tools: Sequence[BaseTool]) -> None:
        async def review_call(ctx: Context, **call: Any) -> str:
            """Ask a person about a call that is held back."""
            return str(await self._reviewed(ctx, call))

        made = FunctionTool.from_defaults(async_fn=review_call, name=REVIEW)
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
    spoken = [number for number, item in enumerate(messages) if surface_of(item) == "user"]
    return any(map(came_in_unsafe, marked_verdicts(messages[spoken[-1] if spoken else 0 :])))


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
    if not message.content:
        message.content = policy.calls.review
    raw = {
        **(response.raw if isinstance(response.raw, dict) else {}),
        "verdicts": [verdict.model_dump(mode="json") for verdict in ruling.verdicts],
        "held_calls": [call.model_dump(mode="json") for call in calls],
    }
    return response.model_copy(update={"message": message, "raw": raw})


def review_calls(response: ChatResponse) -> list[ToolSelection] | None:
    """The calls of the tool that asks a person; None where an answer has none."""
    calls = selections(response)
    return calls if any(call.tool_name == REVIEW for call in calls) else None


def sent_to_review(response: ChatResponse, tools: Sequence[BaseTool]) -> ChatResponse:
    """The answer with what it holds back sent to the tool that asks a person, if there is one."""
    raw = response.raw if isinstance(response.raw, dict) else {}
    if not raw.get("held_calls") or not any(isinstance(tool, _ReviewTool) for tool in tools):
        return response
    told = [verdict for verdict in raw.get("verdicts", ()) if verdict["subject"] == "calls"]
    reasons = [verdict["category"] for verdict in told]
    sent = [
        ToolCallBlock(
            tool_call_id=call["tool_id"],
            tool_name=REVIEW,
            tool_kwargs={
                "call_id": call["tool_id"],
                "tool_name": call["tool_name"],
                "tool_kwargs": call["tool_kwargs"],
                "reasons": reasons,
            },
        )
        for call in raw["held_calls"]
    ]
    message = _with_blocks(response.message, [*response.message.blocks, *sent])
    return response.model_copy(update={"message": message})


class CallsWait:
    """A streamed answer, of which everything waits from the first call on.

    Attributes:
        left: the last piece, where it has not passed.
    """

    def __init__(self, waits: bool) -> None:
        self.left: ChatResponse | None = None
        self._waits = waits
        self._told = ""

    def take(self, piece: ChatResponse) -> ChatResponse | None:
        """The next piece comes in; gives what may go on, None as long as nothing may."""
        blocks = any(isinstance(block, ToolCallBlock) for block in piece.message.blocks)
        raw = any(piece.message.additional_kwargs.get(key) for key in _RAW)
        if not self._waits or (self.left is None and not (blocks or raw)):
            self._told = piece.message.content or ""
            return piece
        text = piece.message.content or ""
        rest = text[len(self._told) :] if text.startswith(self._told) else text
        self.left = piece.model_copy(update={"delta": rest})
        return None
