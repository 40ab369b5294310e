"""Answers in the form of a schema, guarded, through LangChain and through LlamaIndex.

A grammar holds the model to the schema, token by token, whatever guards it; a refusal is no
parsing error. With a model of your own:

    python examples/structured_output.py --model FOLDER_OR_NAME
"""

from __future__ import annotations

import argparse
import base64
import io
from collections.abc import Sequence
from typing import Literal

from langchain_core.messages import HumanMessage
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel, ConfigDict, Field

from sightrail.guardrails import LocalLVLM, SafetyPrefix
from sightrail.integrations.llama_index import LVLM
from sightrail.runnables import ChatLVLM
from sightrail.testbed.scenes import draw_objects
from sightrail.testbed.splits import SPLITS


class Seen(BaseModel):
    """What a picture shows."""

    model_config = ConfigDict(title="seen")  # the tool's name; the mini model knows no capitals

    kind: Literal["animal", "food", "instrument", "tool", "weapon"]
    count: int = Field(ge=0, le=9)


def question() -> HumanMessage:
    """A question about a drawn picture; any picture does."""
    buffer = io.BytesIO()
    scene = draw_objects(SPLITS["test"].rng(5), SPLITS["test"], ["guitar"])
    scene.image.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    image = {"type": "image", "base64": data, "mime_type": "image/png"}
    return HumanMessage([image, {"type": "text", "text": "what is in the image?"}])


def run(lvlm: LocalLVLM) -> None:
    """The same schema through both frameworks, and what is left of a refusal."""
    guards = [SafetyPrefix()]
    chat = ChatLVLM(model=lvlm, guardrails=guards, max_tokens=96)
    print("LangChain:", chat.with_structured_output(Seen).invoke([question()]))
    raw = chat.with_structured_output(Seen, include_raw=True).invoke([question()])
    print("with the message:", sorted(raw), raw["parsing_error"])
    llm = LVLM(model=lvlm, guardrails=guards, max_tokens=96)
    prompt = PromptTemplate("how many {things} are there?")
    print("LlamaIndex:", llm.structured_predict(Seen, prompt, things="guitars"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Load the model and ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="testbed")
    run(LocalLVLM.from_pretrained(parser.parse_args(arguments).model))


if __name__ == "__main__":
    main()
