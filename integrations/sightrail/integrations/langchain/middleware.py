"""Screening as middleware of LangChain's agents."""

from __future__ import annotations

import asyncio
import operator
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Annotated, Any, NotRequired
from uuid import uuid4

from langchain.agents.middleware import (
    AgentMiddleware,
    AgentState,
    ExtendedModelResponse,
    ModelRequest,
    ModelResponse,
    ToolCallRequest,
    hook_config,
)
from langchain.agents.middleware.types import OmitFromInput
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage, SystemMessage, ToolMessage
from langchain_core.runnables.config import ensure_config, merge_configs, set_config_context
from langchain_core.runnables.utils import coro_with_context
from langgraph.runtime import Runtime
from langgraph.types import Command

from sightrail.guardrails.call_rules import CallGuard, check_reader
from sightrail.guardrails.carriers.carrier import Carrier
from sightrail.guardrails.carriers.conversation import asked_in
from sightrail.guardrails.carriers.loop import OnVerdict
from sightrail.guardrails.errors import ImageRefused
from sightrail.guardrails.intake import Limits
from sightrail.guardrails.policy import Policy
from sightrail.guardrails.screening.asking import Detector
from sightrail.guardrails.telemetry import LOGGER
from sightrail.guardrails.verdict import NotInspected, Verdict
from sightrail.runnables.held_calls import held_calls
from sightrail.runnables.walk import LANGCHAIN, as_json, is_refused, marked_verdicts

from .call_review import reviewed, rule_output
from .message_screen import MessageScreen, SeenMessage, SeenMessages, screen_result, unanswered
from .transcript import STATE_KEY, ImageRecord, raised_by, records_of, refusal, refused_output


def _without_payload() -> Any:
    """A trace policy that records that a hook ran and how long, not the transcript it saw.

    None where the installed langchain has no such policies yet.
    """
    try:
        from langchain.agents.middleware import TracePolicy, omit_payload
    except ImportError:
        return None
    return TracePolicy(process_inputs=omit_payload, process_outputs=omit_payload)


class ImageGuardState(AgentState[Any]):
    """What the middleware adds to an agent's state.

    Attributes:
        image_verdicts: a record of every picture looked at, in order. No caller can set it.
    """

    image_verdicts: NotRequired[Annotated[list[ImageRecord], OmitFromInput, operator.add]]


class ImageGuardMiddleware(AgentMiddleware[ImageGuardState, Any, Any]):
    """Look at every picture on its way through an agent.

    User messages are screened before the model is called, results of tools before they enter the
    transcript, the model's own pictures before its answer does, and once more everything that the
    model is about to get, so that what other middleware has added (system prompts included) is seen
    as well.

    Pictures are masked, dropped or refused in the state itself, under the ids they came with. A
    refusal ends the run with an ``AIMessage`` that holds ``policy.refusal``; every tool call keeps
    its result, so the transcript can be continued. What turns before brought, and was refused, does
    not refuse later ones. Where the policy says ``raise`` the transcript is made safe in the same
    way, and the run ends with ``ImageRefused``: no retry of a tool or a model swallows it, and a
    thread with a checkpointer goes on with the next request. Verdicts stand in the state's
    ``image_verdicts`` and on each message (``sightrail.runnables.read_marker``).

    Tool calls go by ``policy.calls``, at every step anew. Where a rule refuses them the run ends
    with the rule's refusal, and the thread can go on. Where a person is to be asked they are held
    back, and the run is interrupted in the words of ``HumanInTheLoopMiddleware``: an
    ``action_request`` for each call, resumed with ``{"decisions": [...]}``, one each: ``approve``,
    ``edit`` (with ``edited_action``), ``reject`` or ``respond`` (with ``message``). Whatever is not
    of this form rejects. Another process may resume, and a thread that goes on without a decision
    has carried nothing out. Calls that a ``ChatLVLM`` or a guarded model holds back are put before
    a person here as well. That needs a checkpointer.

    Put it last in the list, where it sees what all others add. That is checked while the agent
    runs: a picture that comes to the model and that this guard has not let through is looked at on
    the spot, and unless it may pass as it is the model is not called and the run is refused, for
    nothing can be masked there. Put another one, of another ``name``, first in the list
    where other middleware shows the transcript to a model of its own, as summaries do.

    However often the history is sent again, each distinct picture is looked at once, and agents
    that run at the same time share the detector's calls. One instance serves any number of agents
    and threads.

    Limits: a model that streams pictures has sent them before the finished message can be looked
    at; and the checkpoint of a run's input, made before any middleware runs, holds the pictures as
    they came, as do LangGraph's events of the run's start and of a tool's own end.
    The limits on one request count the pictures of what is to be answered now, from all its
    messages together, and of every earlier message by itself (which is new to a guard after a
    restart, or where a caller sends a whole history): they bound what is decoded at once, not how
    many pictures a thread may gather.

    Args:
        detector: has ``screen(images) -> list[Verdict]``; give a ``CachedDetector`` to share its
            memory with other surfaces.
        policy: what a verdict leads to.
        limits: what intake is willing to decode.
        name: tells several guards of one agent apart.
        on_verdict: called with every verdict, in the thread that screens.

    Raises:
        ImageRefused: out of the agent's run, where the policy's action is ``raise``.

    Example:
        ``create_agent(model, tools, middleware=[ImageGuardMiddleware(detector=detector)])``
    """

    state_schema = ImageGuardState
    trace_policy = _without_payload()

    def __init__(
        self,
        *,
        detector: Detector,
        policy: Policy | None = None,
        limits: Limits | None = None,
        name: str = "ImageGuardMiddleware",
        on_verdict: OnVerdict | None = None,
    ) -> None:
        self.policy = policy or Policy()
        self._name = name
        self._screen = MessageScreen(detector, self.policy, limits or Limits(), name, on_verdict)
        self._calls = CallGuard(self.policy, (detector,))
        check_reader(self.policy, (detector,))

    @property
    def name(self) -> str:
        """What LangChain knows this guard by."""
        return self._name

    @hook_config(can_jump_to=["end"])
    def before_model(self, state: ImageGuardState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Screen the transcript; end with a refusal where the policy says so."""
        return self._before(state, self._screen(state["messages"]))

    @hook_config(can_jump_to=["end"])
    async def abefore_model(
        self, state: ImageGuardState, runtime: Runtime[Any]
    ) -> dict[str, Any] | None:
        """``before_model``, in a worker thread."""
        return self._before(state, await asyncio.to_thread(self._screen, state["messages"]))

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        """Screen what the model is about to get, whoever put it there, and what it answers."""
        seen = self._screen(_asked(request))
        if seen.refused:
            return self._refused(seen)
        last = _LastLook(self._screen, seen.messages)
        try:
            with set_config_context(last.config()) as context:
                response = context.run(handler, _with_seen(request, seen))
        except ImageRefused:
            if not last.stopped:
                raise
            return self._refused(seen, last.stopped)
        answer = self._screen(_named(response.result), all_open=True, said=seen.messages)
        return self._answered(response, seen, last, answer)

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any] | AIMessage:
        """``wrap_model_call``, asynchronously."""
        seen = await asyncio.to_thread(self._screen, _asked(request))
        if seen.refused:
            return self._refused(seen)
        last = _LastLook(self._screen, seen.messages)
        try:
            with set_config_context(last.config()) as context:
                call = handler(_with_seen(request, seen))
                response = await coro_with_context(call, context)
        except ImageRefused:
            if not last.stopped:
                raise
            return self._refused(seen, last.stopped)
        answer = await asyncio.to_thread(
            self._screen, _named(response.result), all_open=True, said=seen.messages
        )
        return self._answered(response, seen, last, answer)

    def after_model(self, state: ImageGuardState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Ask a person about calls that are held back, and carry out what they decide."""
        last = state["messages"][-1]
        return reviewed(last) if isinstance(last, AIMessage) and held_calls(last) else None

    async def aafter_model(
        self, state: ImageGuardState, runtime: Runtime[Any]
    ) -> dict[str, Any] | None:
        """``after_model``; LangGraph waits, no thread does."""
        return self.after_model(state, runtime)

    def wrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]],
    ) -> ToolMessage | Command[Any]:
        """Screen a tool's result before it enters the transcript."""
        result: ToolMessage | Command[Any] = screen_result(
            handler(request), self._screen, _transcript(request)
        )
        return result

    async def awrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]],
    ) -> ToolMessage | Command[Any]:
        """``wrap_tool_call``, asynchronously."""
        result = await handler(request)
        return await asyncio.to_thread(screen_result, result, self._screen, _transcript(request))

    def after_agent(self, state: ImageGuardState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """End the run as the policy says, now that the transcript is safe.

        Raises:
            ImageRefused: it says ``raise``.
        """
        messages = state["messages"]
        if messages and (error := raised_by(messages[-1])):
            raise error
        found = unanswered(messages)  # by a tool whose result is the run's
        records = self._records(state, [SeenMessage(m, marked_verdicts([m])) for m in found])
        if not is_refused(found):
            return _update([], records) or None
        ending = refusal(self.policy, marked_verdicts(found))
        if error := raised_by(ending):
            raise error
        return _update([ending], records)

    async def aafter_agent(
        self, state: ImageGuardState, runtime: Runtime[Any]
    ) -> dict[str, Any] | None:
        """``after_agent``; there is nothing to wait for."""
        return self.after_agent(state, runtime)

    def _before(self, state: ImageGuardState, seen: SeenMessages) -> dict[str, Any] | None:
        records = self._records(state, seen.seen)
        if not seen.refused:
            return _update(seen.changed, records)
        ending = refusal(self.policy, seen.refusal_verdicts)
        return {**_update([*seen.changed, ending], records), "jump_to": "end"}

    def _refused(
        self, seen: SeenMessages, stopped: Sequence[Verdict] = ()
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        """The refusal in place of the model's answer."""
        ending = refusal(self.policy, stopped or seen.refusal_verdicts)
        records = [*self._new_records(seen), *self._unplaced(stopped)]
        return _recorded(ModelResponse(result=[ending]), records)

    def _answered(
        self,
        response: ModelResponse[Any],
        seen: SeenMessages,
        last: _LastLook,
        answer: SeenMessages,
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        """The model's answer as it may enter the transcript."""
        records = [
            *self._new_records(seen),
            *self._unplaced(last.passed),
            *self._new_records(answer),
        ]
        found = [verdict for item in answer.seen if item.new for verdict in item.verdicts]
        touched = any(verdict.action != "allow" for verdict in found) and not self.policy.monitor
        result, structured = answer.messages, response.structured_response
        # A part of a structure cannot be masked and still be what the model said.
        if answer.refused or (touched and structured is not None):
            result, structured = refused_output(result, self.policy, found), None
        ruled = rule_output(result, seen.messages, self._calls, self._screen.limits)
        records += [r for m in ruled if m not in result for r in self._about_calls(m)]
        if answer.changed or ruled != result:
            result = ruled
            response = ModelResponse(result=result, structured_response=structured)
        return _recorded(response, records)

    def _records(self, state: ImageGuardState, seen: Iterable[SeenMessage]) -> list[ImageRecord]:
        """Records of what is new, and of what the state does not know yet.

        The results of tools are looked at before they have the ids that records go by.
        """
        recorded = {record["message_id"] for record in state.get(STATE_KEY, [])}
        return [
            record
            for item in seen
            if item.new or item.message.id not in recorded
            for record in records_of(self._name, item.message, item.verdicts)
        ]

    def _new_records(self, seen: SeenMessages) -> list[ImageRecord]:
        return [
            record
            for item in seen.seen
            if item.new
            for record in records_of(self._name, item.message, item.verdicts)
        ]

    def _about_calls(self, answer: BaseMessage) -> list[ImageRecord]:
        told = answer.response_metadata.get("verdicts", ())
        verdicts = [Verdict.model_validate(verdict) for verdict in told]
        return records_of(self._name, answer, [v for v in verdicts if v.subject == "calls"])

    def _unplaced(self, verdicts: Iterable[Verdict]) -> list[ImageRecord]:
        """Records of pictures that stand in no message of the transcript."""
        return [
            ImageRecord(guard=self._name, message_id=None, message_type="unknown", verdict=verdict)
            for verdict in as_json(verdicts)
        ]


class _LastLook(BaseCallbackHandler):
    """Sees what really goes to a model, behind all middleware, and stops what nobody has seen.

    Attributes:
        stopped: the verdicts that stopped the model; none where it was called.
        passed: the verdicts on what was looked at here and may pass as it is.
    """

    raise_error = True
    run_inline = True

    def __init__(self, screen: MessageScreen, messages: Sequence[BaseMessage]) -> None:
        self._screen = screen
        payloads = map(_payload, LANGCHAIN.carriers(list(messages)))
        self._sent = {payload for payload in payloads if payload is not None}
        self._asked = asked_in(messages, LANGCHAIN)
        self.stopped: tuple[Verdict, ...] = ()
        self.passed: tuple[Verdict, ...] = ()

    def config(self) -> Any:
        """The config of the run that goes on, with this handler in it."""
        return merge_configs(ensure_config(), {"callbacks": [self]})

    def on_chat_model_start(
        self, serialized: dict[str, Any], messages: list[list[BaseMessage]], **kwargs: Any
    ) -> None:
        """The messages that a chat model is about to get."""
        self._look([carrier for given in messages for carrier in LANGCHAIN.carriers(given)])

    def on_llm_start(self, serialized: dict[str, Any], prompts: list[str], **kwargs: Any) -> None:
        """The prompts that a model of texts is about to get."""
        self._look(LANGCHAIN.carriers(prompts))

    def _look(self, carriers: Sequence[Carrier]) -> None:
        unseen = [carrier for carrier in carriers if _payload(carrier) not in self._sent]
        if not unseen:
            return
        [look] = self._screen.loop.look([unseen], words=[self._asked])
        stops = any(verdict.action != "allow" for verdict in look.verdicts)
        if stops and not self._screen.policy.monitor:
            LOGGER.warning(
                "%s: middleware behind it added a picture that may not pass; put it last in the "
                "list of middleware, where pictures can still be masked",
                self._screen.component,
            )
            self.stopped = tuple(map(_refusing, look.verdicts))
            raise ImageRefused("nobody has looked at this picture", verdicts=self.stopped)
        self._sent |= {payload for c in unseen if (payload := _payload(c)) is not None}
        self.passed += tuple(v for v in look.verdicts if v.status != "not_inspected")


def _payload(carrier: Carrier) -> bytes | int | None:
    """Tells the payloads of carriers apart, in whatever form a block holds them.

    None for what has none, so that it is never taken for something that was seen.
    """
    source = carrier.source
    if isinstance(source, str):
        source = source.partition(",")[2] or source if source[:5].lower() == "data:" else source
        return blake2b(source.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    if isinstance(source, bytes):
        return blake2b(b64encode(source), digest_size=16).digest()
    return None if isinstance(source, NotInspected) else id(source)


def _refusing(verdict: Verdict) -> Verdict:
    """The verdict on a picture that can only be let through or refused."""
    return verdict if verdict.action in ("allow", "raise") else verdict.taken("refuse")


def _update(messages: Any, records: list[ImageRecord]) -> dict[str, Any]:
    update = {"messages": list(messages), STATE_KEY: records}
    return {key: value for key, value in update.items() if value}


def _transcript(request: ToolCallRequest) -> list[BaseMessage]:
    """What was said before a tool was called; a tool node may also be called with a bare list."""
    state = request.state
    found = state.get("messages", ()) if isinstance(state, dict) else state
    return [item for item in found or () if isinstance(item, BaseMessage)]


def _asked(request: ModelRequest[Any]) -> list[BaseMessage]:
    system = [request.system_message] if request.system_message else []
    return [*system, *request.messages]


def _named(output: Sequence[BaseMessage]) -> list[BaseMessage]:
    """A model's output under the ids that the transcript will know it by."""
    return [m if m.id else m.model_copy(update={"id": str(uuid4())}) for m in output]


def _with_seen(request: ModelRequest[Any], seen: SeenMessages) -> ModelRequest[Any]:
    if not seen.changed:
        return request
    messages: list[Any] = seen.messages
    if request.system_message and isinstance(messages[0], SystemMessage):
        return request.override(system_message=messages[0], messages=messages[1:])
    return request.override(messages=messages)


def _recorded(
    response: ModelResponse[Any], records: list[ImageRecord]
) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
    if not records:
        return response
    return ExtendedModelResponse(response, Command(update={STATE_KEY: records}))
