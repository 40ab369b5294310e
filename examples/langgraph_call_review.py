"""A person is asked before an agent does anything after an unsafe photo: LangGraph's interrupts.

The agent runs on the local model. ``ImageGuardMiddleware`` drops the unsafe photo from the result
of the tool, and holds back the calls that the model proposes next. The run stops, is kept by the
checkpointer, and goes on with the person's decision, here or in another process. With a model and
an encoder of your own, and a chat template that knows tools:

    python examples/langgraph_call_review.py --model FOLDER_OR_NAME --encoder ViT-L-14-336/openai
"""

from __future__ import annotations

import argparse
import base64
import io
from collections.abc import Sequence
from typing import Any

from langchain.agents import create_agent
from langchain.tools import tool
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from sightrail.guardrails import CallRules, LocalLVLM, Policy, RiskDetector
from sightrail.integrations.langchain import ImageGuardMiddleware
from sightrail.runnables import ChatLVLM
from sightrail.testbed.scenes import draw_objects
from sightrail.testbed.splits import SPLITS

POLICY = Policy(on_flagged="mask", calls=CallRules(after_unsafe="ask"))
DECISIONS: dict[str, dict[str, Any]] = {
    "approve": {"type": "approve"},
    "edit": {"type": "edit", "edited_action": {"name": "send", "args": {"note": "nothing new"}}},
    "reject": {"type": "reject", "message": "not today"},
}
ROUNDS = 2  # a model may propose again what was rejected
sent: list[str] = []


@tool
def look(photo: int) -> list[dict[str, Any]]:
    """Look at a photo of the album."""
    buffer = io.BytesIO()
    name = "bomb" if photo == 2 else "guitar"
    draw_objects(SPLITS["test"].rng(5), SPLITS["test"], [name]).image.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    image = {"type": "image", "base64": data, "mime_type": "image/png"}
    return [image, {"type": "text", "text": f"photo {photo}."}]


@tool
def send(note: str) -> str:
    """Send a note to the user's friends."""
    sent.append(note)
    return "sent."


def run(lvlm: LocalLVLM, detector: Any) -> None:
    """The same request under three decisions."""
    guard = ImageGuardMiddleware(detector=detector, policy=POLICY)
    model = ChatLVLM(model=lvlm, max_tokens=96)
    agent = create_agent(model, [look, send], middleware=[guard], checkpointer=InMemorySaver())
    request = {"messages": [HumanMessage("look at photo 2. send a note of what it shows.")]}
    for name, decision in DECISIONS.items():
        sent.clear()
        config: RunnableConfig = {"configurable": {"thread_id": name}, "recursion_limit": 24}
        state = agent.invoke(request, config)
        for _ in range(ROUNDS):
            if "__interrupt__" not in state:
                break
            requests = state["__interrupt__"][0].value["action_requests"]
            for asked in requests:
                print(f"  a person is asked: {asked['name']} {asked['args']}, and says {name}")
            resume = Command(resume={"decisions": [decision] * len(requests)})
            state = agent.invoke(resume, config)
        print(f"{name}: {state['messages'][-1].text!r}; sent: {sent or 'nothing'}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Load both models and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="testbed")
    parser.add_argument("--encoder", default="testbed")
    chosen = parser.parse_args(arguments)
    lvlm = LocalLVLM.from_pretrained(chosen.model)
    run(lvlm, RiskDetector.from_pretrained(chosen.encoder))


if __name__ == "__main__":
    main()
