"""Draw docs/picture.png: three of the demo's scenes, what was found in them, and both answers.

python tests/benchmarks/readme_picture.py docs/picture.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from sightrail.guardrails import CachedDetector, RiskDetector
from sightrail.integrations.cli.demo import run_case, save_sheet
from sightrail.integrations.cli.models import load_model
from sightrail.testbed.demo_cases import draw_cases

SHOWN = ("attack through an object", "attack through words", "look-alike")


def main(path: Path) -> None:
    """Ask as the demo does, and draw."""
    model = load_model("testbed")
    detector = CachedDetector(RiskDetector.from_pretrained("testbed"))
    cases = [case for case in draw_cases(0) if case.title in SHOWN]
    save_sheet(path, [run_case(case, model, detector) for case in cases])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
