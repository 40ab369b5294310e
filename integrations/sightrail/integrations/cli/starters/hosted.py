"""A LangChain agent on a hosted model, whose tool returns pictures. sightrail looks at them first.

export OPENAI_API_KEY=...        # and OPENAI_BASE_URL for another OpenAI-compatible server
python guarded_agent.py "What is in souvenir.png?"

It needs: pip install "sightrail[langchain]" langchain-openai
"""

import base64
import os
import sys
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain.tools import tool
from langchain_openai import ChatOpenAI

from sightrail.guardrails import CachedDetector, Policy, RiskDetector, Verdict
from sightrail.integrations.langchain import ImageGuardMiddleware

# 1. WHAT LOOKS. "testbed" knows drawn scenes only: the ones in pictures/, not your photographs.
#    A real encoder: ENCODER = "ViT-L-14-336/openai" (1.7 GB, downloaded once). Then, in a shell:
#        sightrail calibrate benign/ --encoder ENCODER --source "our photos" --out screening.json
#    and give the calibrated threshold to the detector, as from_pretrained's second argument:
#        settings=ScreeningSettings.from_file("screening.json")
ENCODER = "testbed"
detector = CachedDetector(RiskDetector.from_pretrained(ENCODER))  # looks at each picture once

# 2. WHAT FOLLOWS. "mask" covers the risky regions; "drop" takes the picture out; "refuse" ends the
#    run with a refusal. What nobody could look at (a broken file, a remote address) is refused.
policy = Policy(on_flagged="mask")

# 3. YOUR AGENT. Replace the model and the tool; the middleware stays, last in the list.
PICTURES = Path(__file__).with_name("pictures")


@tool
def open_picture(name: str) -> list[dict[str, Any]]:
    """Open a picture of the album by its file name."""
    data = (PICTURES / Path(name).name).read_bytes()
    encoded = base64.b64encode(data).decode()
    return [{"type": "image", "base64": encoded, "mime_type": "image/png"}]


def main(question: str) -> None:
    """Ask the agent, and show what the guard saw."""
    model = ChatOpenAI(model=os.environ.get("MODEL", "gpt-5-mini"))
    guard = ImageGuardMiddleware(detector=detector, policy=policy)
    agent: Any = create_agent(model, [open_picture], middleware=[guard])
    state = agent.invoke({"messages": [{"role": "user", "content": question}]})
    print(state["messages"][-1].text)
    for record in state.get("image_verdicts", []):
        print("seen:", Verdict.model_validate(record["verdict"]).summary(), file=sys.stderr)


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "What is in souvenir.png?")
