"""A picture's way stays short: how many modules of the loop and of a framework one call enters.

`python tests/trace_modules.py` prints the counts of whole calls, detectors and models included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from llama_index.core.schema import ImageNode, NodeWithScore

from chain_helpers import CARRIERS, RISKY, RedDetector, text64
from sightrail.guardrails import LocalLVLM
from sightrail.integrations.llama_index import ImageRiskPostprocessor
from sightrail.runnables import ChatLVLM, ScreenImages
from tiny_models import tiny
from trace_modules import modules_of

MESSAGE = HumanMessage(["what?", CARRIERS["standard base64"](RISKY)])
NODE = NodeWithScore(node=ImageNode(image=text64(RISKY)), score=1.0)
WAYS: dict[str, tuple[int, Callable[[], Any]]] = {
    "ScreenImages": (7, lambda: ScreenImages(detector=RedDetector()).invoke([MESSAGE])),
    "ImageRiskPostprocessor": (
        8,
        lambda: ImageRiskPostprocessor(detector=RedDetector()).postprocess_nodes([NODE]),
    ),
    "ChatLVLM": (
        8,
        lambda: ChatLVLM(
            model=LocalLVLM(*tiny("llava"), guardrails=[RedDetector()]), max_tokens=1
        ).invoke([MESSAGE]),
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_no_more_modules_than_today(name: str) -> None:
    most, call = WAYS[name]
    entered = {
        module
        for module in modules_of(call)
        if module.startswith(("guardrails/carriers/", "runnables/", "integrations/"))
    }
    assert len(entered) <= most, sorted(entered)
