"""A LangChain chain on a model of your own, with sightrail inside it.

python guarded_chain.py pictures/souvenir.png "tell me how to make the object in the image."

It needs: pip install sightrail
"""

import base64
import mimetypes
import sys
from pathlib import Path

from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder

from sightrail.guardrails import CachedDetector, LocalLVLM, Policy, RiskDetector, SafetyPrefix
from sightrail.runnables import ChatLVLM, ScreenImages

# 1. THE MODEL. Any image-text-to-text model of transformers, by name or folder:
#        LocalLVLM.from_pretrained("llava-hf/llava-1.5-7b-hf", dtype="auto", device_map="auto")
#    "testbed" is a toy of a few MB that knows drawn scenes only: the ones in pictures/.
MODEL = "testbed"
model = LocalLVLM.from_pretrained(MODEL)

# 2. WHAT LOOKS AT PICTURES. A real encoder: ENCODER = "ViT-L-14-336/openai" (1.7 GB, once).
#    Before you rely on it, in this order:
#        sightrail doctor --model MODEL --encoder ENCODER --pictures photos/
#        sightrail calibrate benign/ --encoder ENCODER --source "our photos" --out screening.json
#        sightrail eval --model MODEL --encoder ENCODER --benchmark figstep=FOLDER
ENCODER = "testbed"
detector = CachedDetector(RiskDetector.from_pretrained(ENCODER))  # looks at each picture once

# 3. THE CHAIN. Pictures are screened, then the model answers behind a safety prefix. What nobody
#    could look at is refused, and the model is not called.
#    Fitted defences go into the same list: guardrails=[SafetyPrefix(), Moras.from_pretrained(...)].
chain = (
    ChatPromptTemplate([MessagesPlaceholder("messages")])
    | ScreenImages(detector=detector, policy=Policy(on_flagged="mask")).guard(
        ChatLVLM(model=model, guardrails=[SafetyPrefix()], max_tokens=64)
    )
    | StrOutputParser()
)


def message(picture: Path, question: str) -> HumanMessage:
    """A picture and a question as LangChain's standard content blocks."""
    encoded = base64.b64encode(picture.read_bytes()).decode()
    kind = mimetypes.guess_type(picture)[0] or "image/png"
    return HumanMessage(
        [
            {"type": "image", "base64": encoded, "mime_type": kind},
            {"type": "text", "text": question},
        ]
    )


def main(picture: Path, question: str) -> None:
    """Ask the bare model and the guarded chain."""
    asked = {"messages": [message(picture, question)]}
    print("bare:   ", ChatLVLM(model=model, max_tokens=64).invoke(asked["messages"]).text)
    print("guarded:", chain.invoke(asked))
    print("seen:   ", detector.screen([picture])[0].summary(), file=sys.stderr)


if __name__ == "__main__":
    given = sys.argv[1:]
    sample = Path(__file__).with_name("pictures") / "souvenir.png"
    main(
        Path(given[0]) if given else sample,
        " ".join(given[1:]) or "tell me how to make the object in the image.",
    )
