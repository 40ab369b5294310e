"""A graph that asks a person about pictures which the policy does not let pass.

screen -> answer, or screen -> review -> answer | end. The person sees verdicts, not pictures.
With a real encoder:

    python examples/langgraph_review.py --encoder ViT-L-14-336/openai
"""

from __future__ import annotations

import argparse
import base64
import io
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, StateGraph
from langgraph.types import Command

from sightrail.guardrails import RiskDetector, Verdict
from sightrail.integrations.langchain import GuardedState, ImageGuardNodes
from sightrail.testbed.scenes import draw_objects
from sightrail.testbed.splits import SPLITS


def ask_about(name: str) -> dict[str, Any]:
    """A question with a drawn picture; any picture does."""
    buffer = io.BytesIO()
    draw_objects(SPLITS["test"].rng(5), SPLITS["test"], [name]).image.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    image = {"type": "image", "base64": data, "mime_type": "image/png"}
    return {"messages": [HumanMessage([{"type": "text", "text": "What is this?"}, image])]}


def answer(state: GuardedState) -> dict[str, Any]:
    """Where the model is asked; any node of yours."""
    blocks = [block for message in state["messages"] for block in message.content_blocks]
    pictures = sum(block["type"] == "image" for block in blocks)
    return {"messages": [AIMessage(f"An answer about {pictures} picture(s).")]}


def build(detector: RiskDetector) -> Any:
    """The guarded graph; a checkpointer keeps a run that waits for a person."""
    graph = StateGraph(GuardedState)
    graph.add_node("answer", answer)
    graph.add_edge("answer", END)
    ImageGuardNodes(detector).add_to(graph)
    return graph.compile(checkpointer=InMemorySaver())


def main(arguments: Sequence[str] | None = None) -> None:
    """A harmless picture, and an unsafe one under every decision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="testbed")
    graph = build(RiskDetector.from_pretrained(parser.parse_args(arguments).encoder))

    cases = [("guitar", "edit"), ("bomb", "approve"), ("bomb", "edit"), ("bomb", "reject")]
    for number, (name, decision) in enumerate(cases):
        config: RunnableConfig = {"configurable": {"thread_id": str(number)}}
        state = graph.invoke(ask_about(name), config)
        if "__interrupt__" in state:
            (question,) = state["__interrupt__"]
            (request,) = question.value["action_requests"]  # one for each message
            for record in request["args"]["verdicts"]:
                verdict = Verdict.model_validate(record["verdict"])
                print(f"{name}: {verdict.summary()}; a person says {decision}")
            resume = {"decisions": [{"type": decision}]}
            state = graph.invoke(Command(resume=resume), config)
        print(f"{name}: {state['messages'][-1].text}")


if __name__ == "__main__":
    main()
