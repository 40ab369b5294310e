"""ScreenImages.guard in front of a chat model that is not ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable

from chain_helpers import CLEAN, REMOTE, RISKY, BrokenDetector, RedDetector, text64
from sightrail.guardrails import ImageRefused, Policy
from sightrail.runnables import GuardedModel, ScreenImages

POLICY = Policy(on_flagged="refuse", refusal="Not this picture.")


class Prompts(BaseCallbackHandler):
    """Keeps what chat models were given."""

    def __init__(self) -> None:
        self.given: list[list[BaseMessage]] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.given += messages


def asked(data: bytes) -> list[HumanMessage]:
    return [HumanMessage([{"type": "image", "base64": text64(data), "mime_type": "image/png"}])]


def answers() -> Iterator[AIMessage]:
    number = 0
    while True:
        number += 1
        yield AIMessage(f"answer {number}")


def guarded(policy: Policy = POLICY, detector: Any = None) -> tuple[GuardedModel, Prompts]:
    prompts = Prompts()
    model = GenericFakeChatModel(messages=answers(), callbacks=[prompts])
    return ScreenImages(detector=detector or RedDetector(), policy=policy).guard(model), prompts


def is_refusal(message: Any) -> bool:
    return bool(
        message.text == POLICY.refusal
        and message.response_metadata["refused"]
        and message.response_metadata["finish_reason"] == "refused"
        and message.usage_metadata["total_tokens"] == 0
    )


def test_a_refused_request_never_reaches_the_model() -> None:
    model, prompts = guarded()
    answer = model.invoke(asked(RISKY))
    assert is_refusal(answer)
    assert answer.response_metadata["verdicts"][0]["category"] == "red"
    assert prompts.given == []


def test_a_clean_request_is_answered() -> None:
    model, prompts = guarded()
    assert model.invoke(asked(CLEAN)).text == "answer 1"
    assert model.invoke("hello").text == "answer 2"
    assert len(prompts.given) == 2


def test_a_masked_request_is_answered_without_the_risk() -> None:
    model, prompts = guarded(Policy(on_flagged="mask"))
    assert model.invoke(asked(RISKY)).text == "answer 1"
    shown = repr(prompts.given)
    assert text64(RISKY)[:200] not in shown
    assert "data:image/png;base64," in shown


@pytest.mark.parametrize("block", [{"type": "image", "url": REMOTE}, {"type": "hologram"}])
def test_what_cannot_be_looked_at_is_refused(block: dict[str, Any]) -> None:
    model, prompts = guarded()
    assert is_refusal(model.invoke([HumanMessage([block])]))
    assert prompts.given == []


def test_a_broken_detector_refuses() -> None:
    model, prompts = guarded(detector=BrokenDetector())
    assert is_refusal(model.invoke(asked(CLEAN)))
    assert prompts.given == []


def test_streams_are_passed_on_or_refused_in_one_chunk() -> None:
    model, prompts = guarded()
    assert len([chunk.text for chunk in model.stream(asked(CLEAN)) if chunk.text]) > 1
    (refusal,) = model.stream(asked(RISKY))
    assert is_refusal(refusal)
    assert len(prompts.given) == 1


async def test_the_async_twins_refuse_as_well() -> None:
    model, prompts = guarded()
    assert is_refusal(await model.ainvoke(asked(RISKY)))
    assert [is_refusal(chunk) async for chunk in model.astream(asked(RISKY))] == [True]
    outcomes = await model.abatch([asked(RISKY), asked(CLEAN)])
    assert [is_refusal(outcome) for outcome in outcomes] == [True, False]
    assert len(prompts.given) == 1
    assert len([chunk async for chunk in model.astream(asked(CLEAN))]) > 1


def test_a_batch_screens_once_and_asks_only_for_what_passed() -> None:
    detector = RedDetector()
    model, prompts = guarded(detector=detector)
    outcomes = model.batch([asked(RISKY), asked(CLEAN), "hello", asked(RISKY)])
    assert [is_refusal(outcome) for outcome in outcomes] == [True, False, False, True]
    assert [len(call) for call in detector.calls] == [3]
    assert len(prompts.given) == 2


def test_exceptions_stay_with_their_request() -> None:
    model, _ = guarded(Policy(on_flagged="raise"))
    outcomes = model.batch([asked(RISKY), asked(CLEAN)], return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ImageRefused, AIMessage]
    for call in (model.invoke, lambda value: list(model.stream(value))):
        with pytest.raises(ImageRefused):
            call(asked(RISKY))


def test_what_an_earlier_step_refused_stays_refused() -> None:
    screen = ScreenImages(detector=RedDetector(), policy=POLICY)
    model, prompts = guarded()
    answer = (screen | model).invoke(asked(RISKY))
    assert is_refusal(answer)
    assert answer.response_metadata["verdicts"][0]["category"] == "red"
    assert is_refusal(model.invoke(HumanMessage("hi", additional_kwargs=refused()).model_copy()))
    assert prompts.given == []


def refused() -> dict[str, Any]:
    return {"sightrail": {"refused": True, "verdicts": "none of your business"}}


def test_it_composes_and_passes_settings_on() -> None:
    model, prompts = guarded()
    image = {"type": "image", "base64": "{picture}", "mime_type": "image/png"}
    prompt = ChatPromptTemplate.from_messages([("human", [image])])
    chain: Runnable[Any, str] = prompt | model.bind(stop=["\n"]) | StrOutputParser()
    assert chain.invoke({"picture": text64(RISKY)}) == POLICY.refusal
    assert "".join(chain.stream({"picture": text64(CLEAN)})) == "answer 1"
    assert len(prompts.given) == 1
