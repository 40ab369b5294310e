"""A guard that is misspelt, copied, pickled or serialised never vanishes in silence."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.load import dumps, loads
from langchain_core.messages import HumanMessage
from llama_index.core.base.llms.types import ChatMessage, ImageBlock
from llama_index.core.schema import ImageNode, NodeWithScore
from pydantic import ValidationError

from chain_helpers import CARRIERS, RISKY, RedDetector, text64
from sightrail.guardrails import (
    ConfigurationError,
    ImageRefused,
    LocalLVLM,
    Policy,
    VisualSafetyPrompt,
)
from sightrail.guardrails.strict import StrictModel
from sightrail.integrations.llama_index import (
    LVLM,
    ImageBorderPostprocessor,
    ImageRiskPostprocessor,
    ImageRiskTransform,
)
from sightrail.runnables import BorderImages, ChatLVLM, RefusalGate, ScreenImages
from tiny_models import tiny

REFUSE = Policy(on_flagged="refuse")
NODE = NodeWithScore(node=ImageNode(image=text64(RISKY)), score=1.0)
MESSAGE = HumanMessage([CARRIERS["standard base64"](RISKY)])

MADE: dict[str, Callable[..., Any]] = {
    "ScreenImages": lambda **more: ScreenImages(detector=RedDetector(), **more),
    "GuardedModel": lambda **more: (
        ScreenImages(detector=RedDetector())
        .guard(ChatLVLM(model="testbed"))
        .__class__(screen=ScreenImages(detector=RedDetector()), model=ChatLVLM(model="x"), **more)
    ),
    "ChatLVLM": lambda **more: ChatLVLM(model="testbed", **more),
    "LVLM": lambda **more: LVLM(model="testbed", **more),
    "RefusalGate": lambda **more: RefusalGate(
        model=LocalLVLM(*tiny("llava"), guardrails=[RedDetector()]), **more
    ),
    "BorderImages": lambda **more: BorderImages(
        border=VisualSafetyPrompt.from_pretrained("testbed"), **more
    ),
    "ImageBorderPostprocessor": lambda **more: ImageBorderPostprocessor(
        border=VisualSafetyPrompt.from_pretrained("testbed"), **more
    ),
    "ImageRiskPostprocessor": lambda **more: ImageRiskPostprocessor(detector=RedDetector(), **more),
    "ImageRiskTransform": lambda **more: ImageRiskTransform(detector=RedDetector(), **more),
}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("misspelt", ["guardrail", "polcy", "timeout", "temprature"])
def test_unknown_fields_are_errors(name: str, misspelt: str) -> None:
    assert MADE[name]() is not None
    with pytest.raises(ValidationError, match=rf"{misspelt}\s+Extra inputs are not permitted"):
        MADE[name](**{misspelt: 1})


def test_a_class_that_would_take_unknown_fields_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="takes unknown fields"):

        class Loose(StrictModel, extra="ignore"):
            pass


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


COPIES = {"pickle": pickled, "deepcopy": copy.deepcopy, "copy": copy.copy}


@pytest.mark.parametrize("how", COPIES)
def test_a_guard_is_still_there_afterwards(how: str) -> None:
    screen = ScreenImages(detector=RedDetector(), policy=REFUSE)
    nodes = ImageRiskPostprocessor(detector=RedDetector(), policy=REFUSE)
    transform = ImageRiskTransform(detector=RedDetector(), policy=REFUSE)
    for _ in range(2):  # the original goes on as well
        with pytest.raises(ImageRefused):
            COPIES[how](screen).invoke(MESSAGE)
        left = COPIES[how](nodes).postprocess_nodes([NODE])
        assert not any(isinstance(found.node, ImageNode) for found in left)
        assert COPIES[how](transform)([NODE.node]) == []
    with pytest.raises(ImageRefused):
        screen.invoke(MESSAGE)


@pytest.mark.parametrize("how", COPIES)
def test_a_model_given_by_name_keeps_its_guardrails(how: str) -> None:
    chat = ChatLVLM(model="testbed", guardrails=[RedDetector()], policy=REFUSE, max_tokens=4)
    llm = LVLM(model="testbed", guardrails=[RedDetector()], policy=REFUSE, max_tokens=4)
    assert COPIES[how](chat).invoke([MESSAGE]).response_metadata["refused"]
    asked = [ChatMessage(blocks=[ImageBlock(image=RISKY)])]
    assert COPIES[how](llm).chat(asked).raw["refused"]
    assert llm.chat(asked).raw["refused"]


def test_a_loaded_model_says_at_once_that_it_does_not_travel() -> None:
    local = LocalLVLM(*tiny("llava"), guardrails=[RedDetector()])
    for wrapper in (ChatLVLM(model=local), LVLM(model=local), RefusalGate(model=local)):
        with pytest.raises(ConfigurationError, match=r"its model cannot.*by its name"):
            pickle.dumps(wrapper)
        assert copy.deepcopy(wrapper).model is local
    assert LVLM(model=local, max_tokens=2).chat([ChatMessage("hi")]).message.content is not None


def test_what_cannot_be_pickled_is_named() -> None:
    screen = ScreenImages(detector=RedDetector(), on_verdict=lambda verdict: None)
    with pytest.raises(ConfigurationError, match="its on_verdict cannot"):
        pickle.dumps(screen)


def test_a_serialised_form_never_comes_back_without_its_guards() -> None:
    guarded = LVLM(model="testbed", guardrails=[RedDetector()]).to_dict()
    with pytest.raises(ValidationError, match="name of a guard in a serialised form"):
        LVLM.from_dict(guarded, model="testbed")
    back = LVLM.from_dict(guarded, model="testbed", guardrails=[RedDetector()], policy=REFUSE)
    assert back.guardrails == (RedDetector(),)
    for guard in (ScreenImages(detector=RedDetector()), MADE["GuardedModel"]()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # loads is in beta
            with pytest.raises(NotImplementedError):
                loads(dumps(guard))


def test_guardrails_are_a_list_of_guards() -> None:
    for wrapper in (ChatLVLM, LVLM):
        with pytest.raises(ValidationError, match=r"write guardrails=\[...\]"):
            wrapper(model="testbed", guardrails=RedDetector())  # type: ignore[arg-type]
