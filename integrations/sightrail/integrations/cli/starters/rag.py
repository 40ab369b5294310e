"""A LlamaIndex query engine over a folder of pictures, guarded by sightrail.

python guarded_rag.py "what do you see in the image?"

It needs: pip install sightrail
"""

import sys
from pathlib import Path

from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.schema import ImageNode

from sightrail.guardrails import (
    CachedDetector,
    Limits,
    LocalLVLM,
    Policy,
    RiskDetector,
    SafetyPrefix,
)
from sightrail.integrations.llama_index import LVLM, ImageRiskPostprocessor, read_marker

# 1. THE MODELS. "testbed" is a toy of a few MB that knows drawn scenes only: the ones in pictures/.
#    A real model, by name or folder of transformers: MODEL = "llava-hf/llava-1.5-7b-hf".
#    A real encoder: ENCODER = "ViT-L-14-336/openai" (1.7 GB, once). Before you rely on it:
#        sightrail doctor --model MODEL --encoder ENCODER --pictures photos/
#        sightrail calibrate benign/ --encoder ENCODER --source "our photos" --out screening.json
#        sightrail eval --model MODEL --encoder ENCODER --benchmark figstep=FOLDER
MODEL = "testbed"
ENCODER = "testbed"
local = LocalLVLM.from_pretrained(MODEL)
detector = CachedDetector(RiskDetector.from_pretrained(ENCODER))  # looks at each picture once

# 2. WHAT IS RETRIEVED. The mock finds everything; put your own embedding here.
PICTURES = Path(__file__).with_name("pictures")
nodes = [
    ImageNode(text=path.stem, image_path=str(path), metadata={"file": path.name})
    for path in sorted(PICTURES.iterdir())
]
index = VectorStoreIndex(nodes, embed_model=MockEmbedding(embed_dim=4))

# 3. THE GUARD. Retrieved pictures are screened before the model sees them: "drop" takes a risky
#    one out, "mask" covers what is risky in it. Without multimodal=True LlamaIndex shows the model
#    no picture at all. A node may name files of this machine only in the folders that you allow.
guard = ImageRiskPostprocessor(
    detector=detector, policy=Policy(on_flagged="drop"), limits=Limits(folders=(PICTURES,))
)
engine = index.as_query_engine(
    llm=LVLM(model=local, guardrails=[SafetyPrefix()], max_tokens=64),
    node_postprocessors=[guard],
    similarity_top_k=2,
    multimodal=True,
)


def main(question: str) -> None:
    """Ask, and show what the guard saw in each retrieved picture."""
    response = engine.query(question)
    print(response)
    for found in response.source_nodes:
        marker = read_marker(found)
        seen = [verdict.summary() for verdict in marker.verdicts] if marker else ["not looked at"]
        print(
            f"seen: {found.node.metadata.get('file', 'left out')}: {'; '.join(seen)}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "what do you see in the image?")
