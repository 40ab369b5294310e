"""LangChain's standard suite for chat models, on ChatOpenAI that is pointed at the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import httpx
import pytest

pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from chain_helpers import ShownPictures, WithoutTools
from chat_server import Answering
from serve_helpers import scripted, serving

# What ChatOpenAI itself says while it parses; not the server's.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings"),
    pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema"),
]


class _AtTheServer(ShownPictures, ChatModelIntegrationTests):
    address: ClassVar[str]
    name: ClassVar[str]

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # Every test has an event loop of its own, and no connection may outlive it.
        client = httpx.AsyncClient(limits=httpx.Limits(max_keepalive_connections=0))
        at = {"base_url": f"{self.address}/v1", "api_key": "none", "http_async_client": client}
        return {"model": self.name, **at, "max_retries": 0, "stream_usage": True}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {"max_tokens": 16, "timeout": 60}


class TestGateway(_AtTheServer):
    name = "up"

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _served(cls) -> Iterator[None]:
        with (
            scripted(Answering()) as behind,
            serving(upstream=f"{behind}/v1", stack="screen", encoder="testbed") as address,
        ):
            cls.address = address
            yield

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True


class TestLocal(WithoutTools, _AtTheServer):
    name = "testbed"

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _served(cls, local: str) -> None:
        cls.address = local
