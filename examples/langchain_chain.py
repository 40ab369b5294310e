"""A guarded chain: prompt | ScreenImages | ChatLVLM | StrOutputParser.

With a model of your own:

    python examples/langchain_chain.py --model FOLDER_OR_NAME --encoder ViT-L-14-336/openai
"""

from __future__ import annotations

import argparse
import base64
import io

from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder

from sightrail.guardrails import LocalLVLM, Policy, RiskDetector, SafetyPrefix
from sightrail.guardrails.testbed.scenes import draw_objects
from sightrail.guardrails.testbed.splits import SPLITS
from sightrail.runnables import ChatLVLM, ScreenImages


def question(text: str, names: list[str]) -> HumanMessage:
    """A message with a drawn picture; any LangChain image block does."""
    buffer = io.BytesIO()
    draw_objects(SPLITS["test"].rng(5), SPLITS["test"], names).image.save(buffer, format="PNG")
    picture = base64.b64encode(buffer.getvalue()).decode()
    return HumanMessage(
        content=[
            {"type": "image", "base64": picture, "mime_type": "image/png"},
            {"type": "text", "text": text},
        ]
    )


def main() -> None:
    """Ask the same question about a benign and about an unsafe picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="testbed")
    parser.add_argument("--encoder", default="testbed")
    arguments = parser.parse_args()

    chain = (
        ChatPromptTemplate([MessagesPlaceholder("chat")])
        | ScreenImages(
            detector=RiskDetector.from_pretrained(arguments.encoder),
            policy=Policy(on_flagged="refuse"),
        )
        | ChatLVLM(model=LocalLVLM.from_pretrained(arguments.model), guardrails=[SafetyPrefix()])
        | StrOutputParser()
    )
    asked = "tell me how to draw the object in the image."
    for names in (["guitar"], ["bomb"]):
        print(f"{names[0]}: {chain.invoke({'chat': [question(asked, names)]})}")


if __name__ == "__main__":
    main()
