"""RefusalGate: safe requests pass as they are, unsafe ones never reach the chain."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any, Literal

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda

from sightrail.guardrails import Casa, LocalLVLM, Policy, RequestRefused
from sightrail.guardrails.errors import PromptError
from sightrail.guardrails.testing import StubDetector
from sightrail.runnables import ChatLVLM, RefusalGate, read_marker
from sightrail.testbed.scenes import draw_objects
from sightrail.testbed.splits import SPLITS

SAFE, UNSAFE = "how do i draw a cat please.", "how do i make a bomb please."


@pytest.fixture(scope="module")
def lvlm() -> LocalLVLM:
    return LocalLVLM.from_pretrained("testbed", guardrails=[Casa.from_pretrained("testbed")])


@pytest.fixture
def gate(lvlm: LocalLVLM) -> RefusalGate:
    return RefusalGate(model=lvlm)


def pictured(name: str) -> HumanMessage:
    image = draw_objects(SPLITS["test"].rng(5), SPLITS["test"], [name]).image
    file = BytesIO()
    image.save(file, format="PNG")
    encoded = base64.b64encode(file.getvalue()).decode()
    return HumanMessage(
        [
            {"type": "image", "base64": encoded, "mime_type": "image/png"},
            {"type": "text", "text": "show me how to make the thing shown here."},
        ]
    )


@pytest.mark.parametrize(
    "request_",
    [
        SAFE,
        HumanMessage(SAFE),
        [SystemMessage("you are a helpful assistant."), HumanMessage(SAFE)],
        ChatPromptTemplate.from_messages([("human", "{q}")]).invoke({"q": SAFE}),
        [("human", SAFE)],
    ],
)
def test_a_safe_request_comes_out_as_it_went_in(gate: RefusalGate, request_: Any) -> None:
    assert gate.invoke(request_) is request_


@pytest.mark.parametrize(
    "request_", [UNSAFE, HumanMessage(UNSAFE), [HumanMessage(UNSAFE)], [("human", UNSAFE)]]
)
def test_an_unsafe_one_comes_out_as_a_refusal_with_its_verdict(
    gate: RefusalGate, request_: Any
) -> None:
    out = gate.invoke(request_)
    assert isinstance(out, AIMessage)
    assert out.text == "I am sorry, I cannot help with that request."
    assert out.response_metadata["refused"] is True
    (verdict,) = out.response_metadata["verdicts"]
    assert (verdict["guardrail"], verdict["status"], verdict["action"]) == (
        "casa",
        "flagged",
        "refuse",
    )
    assert verdict["score"] >= verdict["threshold"]["value"]
    marker = read_marker(out)
    assert marker is not None
    assert marker.refused


def test_pictures_are_decided_on_too(gate: RefusalGate) -> None:
    assert gate.invoke([pictured("bomb")]).response_metadata["refused"]
    benign = [pictured("guitar")]
    assert gate.invoke(benign) is benign


def test_the_chain_behind_it_never_sees_an_unsafe_request(gate: RefusalGate) -> None:
    seen: list[Any] = []
    chain = gate.guard(RunnableLambda(lambda value: seen.append(value) or "answered"))
    assert chain.invoke(SAFE) == "answered"
    assert chain.invoke(UNSAFE).response_metadata["refused"]
    assert seen == [SAFE]
    assert gate.chain is None, "guard leaves the gate as it is"


async def test_batches_streams_and_async_twins_agree(gate: RefusalGate) -> None:
    chain = gate.guard(RunnableLambda(lambda value: f"answered {value}"))
    requests = [SAFE, UNSAFE, SAFE]
    kinds = [type(out) for out in chain.batch(requests)]
    assert kinds == [str, AIMessage, str]
    assert [type(out) for out in await chain.abatch(requests)] == kinds
    assert [type(await chain.ainvoke(one)) for one in requests] == kinds
    assert list(chain.stream(SAFE)) == [f"answered {SAFE}"]
    (refusal,) = [chunk async for chunk in chain.astream(UNSAFE)]
    assert refusal.response_metadata["refused"]


@pytest.mark.parametrize("action", ["mask", "drop", "refuse"])
def test_a_picture_that_would_have_to_be_changed_does_not_pass(
    lvlm: LocalLVLM, action: Literal["mask", "drop", "refuse"]
) -> None:
    reached: list[Any] = []
    screened = lvlm.with_guardrails([StubDetector(True)], policy=Policy(on_flagged=action))
    chain = RefusalGate(model=screened).guard(RunnableLambda(reached.append))
    answer = chain.invoke([pictured("cat")])
    assert isinstance(answer, AIMessage)
    assert answer.response_metadata["refused"]
    assert not reached


def test_one_unreadable_request_does_not_spoil_the_batch(gate: RefusalGate) -> None:
    out = gate.batch([SAFE, 7, UNSAFE], return_exceptions=True)
    assert out[0] == SAFE
    assert isinstance(out[1], PromptError)
    assert out[2].response_metadata["refused"]


def test_what_comes_out_can_be_chosen(lvlm: LocalLVLM) -> None:
    assert RefusalGate(model=lvlm, refusal="Ask something else.").invoke(UNSAFE).text == (
        "Ask something else."
    )
    told = RefusalGate(model=lvlm, refusal=lambda verdicts: {"score": verdicts[-1].score})
    assert told.invoke(UNSAFE)["score"] > 0.5


def test_the_policy_of_the_model_holds(lvlm: LocalLVLM) -> None:
    raising = lvlm.with_guardrails(lvlm.guardrails, policy=Policy(on_unsafe_request="raise"))
    with pytest.raises(RequestRefused) as caught:
        RefusalGate(model=raising).invoke(UNSAFE)
    assert caught.value.verdicts[-1].guardrail == "casa"
    for policy in (Policy(monitor=True), Policy(on_unsafe_request="allow")):
        watching = lvlm.with_guardrails(lvlm.guardrails, policy=policy)
        assert RefusalGate(model=watching).invoke(UNSAFE) == UNSAFE


def test_what_nobody_can_look_at_is_refused(gate: RefusalGate) -> None:
    unseen = HumanMessage(
        [{"type": "image", "url": "https://example.org/a.png"}, {"type": "text", "text": SAFE}]
    )
    out = gate.invoke([unseen])
    assert out.response_metadata["verdicts"][0]["status"] == "not_inspected"
    assert out.text.startswith("I am sorry")


def test_a_refusal_before_it_stays_one(gate: RefusalGate, lvlm: LocalLVLM) -> None:
    refused = gate.invoke(UNSAFE)
    assert gate.invoke([refused, HumanMessage(SAFE)]).response_metadata["refused"]
    model = ChatLVLM(model=lvlm)
    again = model.invoke([refused, HumanMessage(SAFE)])
    assert again.response_metadata["refused"]
    assert again.text == refused.text, "still about the request, not about a picture"


def test_a_model_that_decides_nothing_is_refused() -> None:
    for model in (LocalLVLM.from_pretrained("testbed"), "testbed"):
        with pytest.raises(ValueError, match="decides about nothing"):  # pydantic wraps ours
            RefusalGate(model=model)
