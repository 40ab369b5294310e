"""The steps of a Workflow: screened, decided, answered, refused, or put before a person."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.llms import MockFunctionCallingLLM

from chain_helpers import CLEAN, REMOTE, RISKY, BrokenDetector, RedDetector, risky_picture
from llama_helpers import pictures_in, same
from sightrail.guardrails import ConfigurationError, ImageRefused, Policy
from sightrail.integrations.llama_index import (
    ImageGuardWorkflow,
    ReviewedEvent,
    ReviewRequestedEvent,
)

REFUSE = Policy(on_flagged="refuse", refusal="Not this.")


class Brain(MockFunctionCallingLLM):
    """A model that repeats what it is shown."""

    def __init__(self) -> None:
        super().__init__(response_generator=lambda messages, **_: messages[-1])


def asked(block: Any) -> list[ChatMessage]:
    return [ChatMessage(blocks=[TextBlock(text="what is this?"), block])]


async def run(detector: Any, block: Any, policy: Policy | None = None) -> Any:
    workflow = ImageGuardWorkflow(llm=Brain(), detector=detector, policy=policy)
    return await workflow.run(messages=asked(block))


async def test_pictures_pass_covered_or_as_they_are(detector: RedDetector) -> None:
    shown = await run(detector, ImageBlock(image=CLEAN))
    assert same(pictures_in(shown.message), detector.seen[0])
    (covered,) = pictures_in((await run(detector, ImageBlock(image=RISKY))).message)
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
    response = await run(detector, block, REFUSE)
    assert response.message.content == "Not this."
    assert response.raw["refused"]
    assert [v["action"] for v in response.raw["verdicts"]] == ["refuse"]


@pytest.mark.parametrize("ruling", ["allow", "refuse"])
async def test_a_person_decides_and_is_shown_no_picture(ruling: Any, detector: RedDetector) -> None:
    workflow = ImageGuardWorkflow(llm=Brain(), detector=detector, policy=REFUSE, review=True)
    handler = workflow.run(messages=asked(ImageBlock(image=RISKY)))
    async for event in handler.stream_events():
        if isinstance(event, ReviewRequestedEvent):
            assert [v.action for v in event.verdicts] == ["refuse"]
            assert not list(pictures_in(event.model_dump(mode="json")))
            handler.ctx.send_event(ReviewedEvent(ruling=ruling))
    response = await handler
    if ruling == "allow":
        assert same(pictures_in(response.message), risky_picture())
    else:
        assert response.message.content == "Not this."


async def test_the_policy_may_ask_for_an_exception(detector: RedDetector) -> None:
    with pytest.raises(ImageRefused):
        await run(detector, ImageBlock(image=RISKY), Policy(on_flagged="raise"))


def test_what_is_no_detector_is_said_at_once() -> None:
    with pytest.raises(ConfigurationError, match="has no method screen"):
        ImageGuardWorkflow(llm=Brain(), detector="testbed")  # type: ignore[arg-type]
