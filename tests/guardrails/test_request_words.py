"""The request's words reach detectors that want them, through every surface, and no others."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompt_values import ChatPromptValue
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.schema import ImageNode, NodeWithScore

from lvlm_helpers import picture, user
from sightrail.guardrails import LocalLVLM, Verdict
from sightrail.guardrails.carriers.carrier import Encoded
from sightrail.guardrails.carriers.words import words_in
from sightrail.integrations.llama_index import ImageRiskPostprocessor
from sightrail.runnables import ScreenImages

URL = Encoded(picture(1)).url
BLOCKS = [
    {"type": "text", "text": "what is this?"},
    {"type": "image_url", "image_url": {"url": URL}},
]
MESSAGES = [
    SystemMessage("be kind"),
    HumanMessage(BLOCKS),
    AIMessage("a cat"),
    HumanMessage("and?"),
]


@dataclass
class Curious:
    """Keeps the words that came with each picture."""

    wants_request: bool
    words: list[str] = field(default_factory=list)

    def screen(self, images):
        self.words += [image.request for image in images]
        return [Verdict(status="clean") for _ in images]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("just text", "just text"),
        (MESSAGES, "what is this?\na cat\nand?"),
        (ChatPromptValue(messages=MESSAGES), "what is this?\na cat\nand?"),
        ([{"role": "system", "content": "be kind"}, {"role": "user", "content": BLOCKS}],
         "what is this?"),
        (ChatMessage(role="user", blocks=[TextBlock(text="one"), ImageBlock(url=URL)]), "one"),
        (NodeWithScore(node=ImageNode(text="caption", image="eA==")), "caption"),
        (URL, ""),
        (None, ""),
        ({"messages": MESSAGES[1:2]}, "what is this?"),
    ],
)  # fmt: skip
def test_what_a_value_says(value, expected) -> None:
    assert words_in(value) == expected


def test_a_value_that_holds_itself_ends() -> None:
    loop: list[object] = ["a"]
    loop.append(loop)
    assert words_in(loop).startswith("a\na")


@pytest.mark.parametrize("wants", [True, False])
def test_screening_in_front_of_a_chain(wants) -> None:
    detector = Curious(wants)
    ScreenImages(detector=detector).invoke(MESSAGES)
    assert detector.words == (["what is this?\nand?"] if wants else [""])


@pytest.mark.parametrize("wants", [True, False])
def test_screening_inside_the_model(wants) -> None:
    detector = Curious(wants)
    lvlm = LocalLVLM.from_pretrained("testbed", guardrails=[detector])
    lvlm.chat(user("what is in the image?", picture(2)), max_new_tokens=1)
    assert detector.words == (["what is in the image?"] if wants else [""])


@pytest.mark.parametrize("wants", [True, False])
def test_screening_of_retrieved_nodes(wants) -> None:
    detector = Curious(wants)
    node = NodeWithScore(node=ImageNode(text="caption", image=URL.partition(",")[2]))
    ImageRiskPostprocessor(detector=detector).postprocess_nodes([node])
    assert detector.words == (["caption"] if wants else [""])
