"""The steps of a Workflow: screened, decided, answered, refused, or put before a person."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.core.llms import MockFunctionCallingLLM
from llama_index.core.workflow import Context

from chain_helpers import (
    CLEAN,
    REMOTE,
    RISKY,
    BrokenDetector,
    RedDetector,
    data_url,
    risky_picture,
    text64,
)
from llama_helpers import pictures_in, same
from sightrail.guardrails import ConfigurationError, ImageRefused, Policy
from sightrail.integrations.llama_index import (
    AnswerStream,
    ImageGuardWorkflow,
    ReviewedEvent,
    ReviewRequestedEvent,
)

REFUSE = Policy(on_flagged="refuse", refusal="Not this.")


class Brain(MockFunctionCallingLLM):
    """A model that keeps what it is shown."""

    def __init__(self, heard: list[ChatMessage], says: Any = "a cat") -> None:
        def answer(messages: Any, **_: Any) -> ChatMessage:
            heard.extend(messages)
            return ChatMessage(says, role=MessageRole.ASSISTANT)

        super().__init__(response_generator=answer, is_chat_model=True)


def asked(block: Any) -> list[ChatMessage]:
    return [ChatMessage(blocks=[TextBlock(text="what is this?"), block])]


async def run(detector: Any, block: Any, policy: Policy | None = None) -> tuple[Any, list[Any]]:
    """What is answered, and the pictures that the model saw."""
    heard: list[ChatMessage] = []
    workflow = ImageGuardWorkflow(llm=Brain(heard), detector=detector, policy=policy)
    response = await workflow.run(messages=asked(block))
    return response, list(pictures_in(heard))


async def test_pictures_pass_covered_or_as_they_are(detector: RedDetector) -> None:
    _, shown = await run(detector, ImageBlock(image=CLEAN))
    assert same(shown, detector.seen[0])
    _, (covered,) = await run(detector, ImageBlock(image=RISKY))
    assert covered.tobytes() != risky_picture().tobytes()


@pytest.mark.parametrize(
    ("detector", "block"),
    [
        (RedDetector(), ImageBlock(image=RISKY)),
        (RedDetector(), ImageBlock(url=REMOTE)),
        (BrokenDetector(), ImageBlock(image=CLEAN)),
    ],
)
async def test_what_the_policy_refuses_never_reaches_the_model(detector: Any, block: Any) -> None:
    response, shown = await run(detector, block, REFUSE)
    assert response.message.content == "Not this."
    assert response.raw["refused"]
    assert [v["action"] for v in response.raw["verdicts"]] == ["refuse"]
    assert not shown


async def test_an_earlier_refusal_does_not_stick() -> None:
    heard: list[ChatMessage] = []
    guard = ImageGuardWorkflow(llm=Brain(heard), detector=RedDetector(), policy=REFUSE)
    said = ChatMessage("Not this.", role=MessageRole.ASSISTANT)
    history = [*asked(ImageBlock(image=RISKY)), said, ChatMessage("2 + 2?")]
    response = await guard.run(messages=history)
    assert response.message.content == "a cat"
    assert [message.role for message in heard] == [message.role for message in history]
    assert not list(pictures_in(heard))


async def paused() -> str:
    """A run that waits for a person, as JSON; the process that began it is done with it."""
    workflow = ImageGuardWorkflow(llm=Brain([]), detector=RedDetector(), policy=REFUSE, review=True)
    handler = workflow.run(messages=asked(ImageBlock(image=RISKY)))
    async for event in handler.stream_events():
        if isinstance(event, ReviewRequestedEvent):
            assert [v.action for v in event.verdicts] == ["refuse"]
            assert not list(pictures_in(event.model_dump(mode="json")))
            data = json.dumps(handler.ctx.to_dict())
            await handler.cancel_run()
            return data
    raise AssertionError("nobody was asked")


RULINGS: list[tuple[dict[str, Any], str, bool | None]] = [
    ({"ruling": "approve"}, "a cat", True),
    ({"ruling": "allow"}, "a cat", True),
    ({"ruling": "mask"}, "a cat", False),
    ({"ruling": "edit", "messages": [ChatMessage("never mind")]}, "a cat", None),
    ({"ruling": "respond", "text": "ask ann"}, "ask ann", None),
    ({"ruling": "reject"}, "Not this.", None),
    ({"ruling": "reject", "text": "no way"}, "no way", None),
]


@pytest.mark.parametrize(("ruling", "said", "raw"), RULINGS)
async def test_a_person_rules_in_another_process_and_leaves_no_picture(
    ruling: dict[str, Any], said: str, raw: bool | None
) -> None:
    heard: list[ChatMessage] = []
    workflow = ImageGuardWorkflow(
        llm=Brain(heard), detector=RedDetector(), policy=REFUSE, review=True
    )
    context = Context.from_dict(workflow, json.loads(await paused()))
    handler = workflow.run(ctx=context)
    handler.ctx.send_event(ReviewedEvent(**ruling))
    response = await handler
    assert response.message.content == said
    shown = list(pictures_in(heard))
    assert bool(shown) is (raw is not None)
    assert same(shown, risky_picture()) is bool(raw)
    finished = json.dumps(handler.ctx.to_dict())
    assert text64(RISKY) not in finished


async def test_what_a_person_writes_is_screened_too() -> None:
    workflow = ImageGuardWorkflow(llm=Brain([]), detector=RedDetector(), policy=REFUSE, review=True)
    handler = workflow.run(messages=asked(ImageBlock(image=RISKY)))
    times = 0
    async for event in handler.stream_events():
        if isinstance(event, ReviewRequestedEvent):
            times += 1
            again = asked(ImageBlock(image=RISKY)) if times == 1 else [ChatMessage("hi")]
            handler.ctx.send_event(ReviewedEvent(ruling="edit", messages=again))
    assert (await handler).message.content == "a cat"
    assert times == 2


async def test_an_answer_is_streamed_and_its_pictures_are_looked_at(detector: RedDetector) -> None:
    workflow = ImageGuardWorkflow(llm=Brain([]), detector=detector, streaming=True)
    handler = workflow.run(messages=asked(ImageBlock(image=CLEAN)))
    pieces = [e.delta async for e in handler.stream_events() if isinstance(e, AnswerStream)]
    assert "".join(pieces) == "a cat"
    assert (await handler).message.content == "a cat"
    drawn = f"see ![it]({data_url(RISKY)})"
    for streaming in (True, False):
        brain = Brain([], drawn)
        workflow = ImageGuardWorkflow(
            llm=brain, detector=detector, policy=REFUSE, streaming=streaming
        )
        assert (await workflow.run(messages=[ChatMessage("draw")])).message.content == "Not this."


async def test_the_policy_may_ask_for_an_exception(detector: RedDetector) -> None:
    with pytest.raises(ImageRefused):
        await run(detector, ImageBlock(image=RISKY), Policy(on_flagged="raise"))


def test_what_is_no_detector_is_said_at_once() -> None:
    with pytest.raises(ConfigurationError, match="has no method screen"):
        ImageGuardWorkflow(llm=Brain([]), detector="testbed")  # type: ignore[arg-type]
