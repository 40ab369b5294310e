"""What the agent tests share: a scripted brain, tools that return pictures, ways to ask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest
from langchain.tools import tool
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.tool import tool_call
from pydantic import Field

from chain_helpers import CLEAN, REMOTE, RISKY, find_pictures, text64
from sightrail.guardrails import Limits, Picture
from sightrail.integrations.langchain import ImageGuardMiddleware


class Brain(GenericFakeChatModel):
    """Says what it was told to say, and keeps what it was asked."""

    messages: Iterator[AIMessage | str] = Field(exclude=True)  # tracers of old releases read it up
    asked: list[list[BaseMessage]] = Field(default_factory=list)

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        self.asked.append(list(messages))
        return super()._generate(messages, *args, **kwargs)

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        return self


def brain(*answers: AIMessage | str) -> Brain:
    return Brain(messages=iter(answers), disable_streaming=True)


def calls(*names: str) -> AIMessage:
    """The model calls these tools, all at once."""
    made = [tool_call(name=name, args={}, id=f"call_{n}") for n, name in enumerate(names)]
    return AIMessage("", tool_calls=made)


def image(data: bytes) -> dict[str, Any]:
    return {"type": "image", "base64": text64(data), "mime_type": "image/png"}


def user(*data: bytes, text: str = "what is this?", **fields: Any) -> HumanMessage:
    return HumanMessage([{"type": "text", "text": text}, *map(image, data)], **fields)


@tool
def screenshot() -> list[dict[str, Any]]:
    """Show a risky page."""
    return [{"type": "text", "text": "the page"}, image(RISKY)]


@tool
def photo() -> list[dict[str, Any]]:
    """Show a harmless photo."""
    return [image(CLEAN)]


@tool
def link() -> list[dict[str, Any]]:
    """Show a remote picture."""
    return [{"type": "image", "url": REMOTE}]


@tool
def clock() -> str:
    """Tell the time."""
    return "noon"


def agent(model: Brain, guard: ImageGuardMiddleware, *more: Any, **settings: Any) -> Any:
    """A real agent with every tool, the guard last."""
    tools = settings.pop("tools", [screenshot, photo, link, clock])
    return create_agent(model, tools, middleware=[*more, guard], **settings)


def statuses(state: Any) -> list[str]:
    """What the state's records say, in order."""
    return [record["verdict"]["status"] for record in state.get("image_verdicts", [])]


class Adds(AgentMiddleware[Any, Any, Any]):
    """Puts pictures before the model, the first also into the system prompt."""

    def __init__(self, *data: bytes) -> None:
        self.data = data

    def wrap_model_call(self, request: ModelRequest[Any], handler: Any) -> Any:
        return handler(self._more(request))

    async def awrap_model_call(self, request: ModelRequest[Any], handler: Any) -> Any:
        return await handler(self._more(request))

    def _more(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        system = SystemMessage([{"type": "text", "text": "a page"}, image(self.data[0])])
        return request.override(
            system_message=system, messages=[*request.messages, user(*self.data)]
        )


async def run(app: Any, mode: str, *messages: Any, config: Any = None) -> Any:
    request = {"messages": list(messages)}
    return app.invoke(request, config) if mode == "sync" else await app.ainvoke(request, config)


def pictures(value: Any) -> list[Picture]:
    return [f.seen for f in find_pictures(value, Limits()) if isinstance(f.seen, Picture)]


def red_pixels(value: Any) -> int:
    arrays = [np.asarray(picture.image) for picture in pictures(value)]
    return sum(int((array[..., 0] > 240).sum()) for array in arrays)


def assert_every_call_is_answered(messages: list[BaseMessage]) -> None:
    called = [c["id"] for m in messages if isinstance(m, AIMessage) for c in m.tool_calls]
    answered = [m.tool_call_id for m in messages if isinstance(m, ToolMessage)]
    assert sorted(answered) == sorted(called)
