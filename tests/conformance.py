"""The table of docs/conformance.md: what becomes of every carrier on every surface.

Each cell screens one carrier with the shipped policy and looks at the outcome. `python -m
conformance FILE` writes the table; a test asserts that the committed one is the same.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from bad_pictures import READABLE, UNREADABLE, bomb
from chain_helpers import CARRIERS, RISKY, UNSEEN, RedDetector
from sightrail.guardrails.carriers.loop import Screened, passed
from sightrail.integrations.cli.batches import screen_files
from sightrail.runnables import ScreenImages

INSPECTED: Final = "inspected"
NOT_INSPECTED: Final = "refused: "
SILENT: Final = "PASSED UNSEEN"

Surface = Callable[[Any], Any]
SURFACES: Final[dict[str, Surface]] = {
    "human": lambda block: HumanMessage([{"type": "text", "text": "what is this?"}, block]),
    "system": lambda block: SystemMessage([block]),
    "ai": lambda block: AIMessage([block]),
    "tool": lambda block: ToolMessage([block], tool_call_id="1"),
    "artifact": lambda block: ToolMessage(
        "done", tool_call_id="1", artifact={"shots": [{"content": [block]}]}
    ),
    "document": lambda block: Document("done", metadata={"content": [block]}),
}
UNTYPED: Final = "no block"
"""A dict without a type or a payload is data where any JSON may stand, and holds no carrier."""


@dataclass(frozen=True)
class Table:
    """One host's cells: carrier -> surface -> what became of it."""

    title: str
    intro: str
    rows: dict[str, dict[str, str]]

    @property
    def cells(self) -> list[str]:
        return [cell for row in self.rows.values() for cell in row.values()]


def cell(screened: Screened, detector: RedDetector) -> str:
    """What became of a value with one carrier in it."""
    if detector.seen and screened.verdicts and screened.verdicts[0].status == "flagged":
        return INSPECTED
    unseen = [one.reason for v in screened.verdicts for one in v.not_inspected]
    return f"{NOT_INSPECTED}{unseen[0]}" if unseen and screened.refused else SILENT


def screened_by_chain(value: Any) -> str:
    detector = RedDetector()
    return cell(passed(ScreenImages(detector=detector).screen([value])[0]), detector)


def langchain() -> Table:
    blocks = {name: make(RISKY) for name, make in CARRIERS.items()}
    blocks |= {f"{name} (unseen)": block for name, (_, block) in UNSEEN.items()}
    rows = {
        name: {
            surface: UNTYPED
            if _is_data(name, block) and surface in ("artifact", "document")
            else screened_by_chain(make(copy.deepcopy(block)))
            for surface, make in SURFACES.items()
        }
        for name, block in blocks.items()
    }
    intro = (
        "Content blocks in messages, tool artifacts and retrieved documents, through "
        f"`ScreenImages`. `{UNTYPED}`: a dict with neither a type nor a picture is no carrier "
        "where any JSON may stand."
    )
    return Table("LangChain", intro, rows)


def _is_data(name: str, block: Any) -> bool:
    return "type" not in block and name.endswith("(unseen)") and "image" not in block


def llama_index() -> Table | None:
    """Blocks in messages and nodes in responses; None where the integration is not there."""
    try:
        from llama_index.core.base.llms.types import ChatMessage
        from llama_index.core.base.response.schema import Response
        from llama_index.core.schema import NodeWithScore

        import llama_helpers as llama
        from sightrail.integrations.llama_index import ImageScreen
    except ImportError:
        return None

    def look(value: Any) -> str:
        detector = RedDetector()
        return cell(ImageScreen(detector, limits=llama.HERE).screen([value])[0], detector)

    def said(block: Any, role: str) -> Any:
        message = ChatMessage(role=role, content="see")
        return [message.model_copy(update={"blocks": [*message.blocks, block]})]

    def answered(node: Any) -> Any:
        return Response("hi", source_nodes=[NodeWithScore(node=node)])

    rows: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        blocks = dict(llama.BLOCKS)
        blocks |= {f"{key} (unseen)": make for key, (_, make) in llama.UNSEEN_BLOCKS.items()}
        for key, make in blocks.items():
            rows[key] = {
                role: look(said(make(RISKY, folder), role)) for role in ("user", "system", "tool")
            }
        nodes = dict(llama.NODES)
        nodes |= {f"{key} (unseen)": make for key, (_, make) in llama.UNSEEN_NODES.items()}
        for key, make in nodes.items():
            rows[key] = {"retrieved": look(answered(make(RISKY, folder)))}
        for key, make in llama.VALUES.items():
            rows[key] = {"by itself": look(make(RISKY, folder))}
    intro = (
        "Blocks in chat messages, retrieved nodes, and other values, through `ImageScreen`. Files "
        "may be named of one folder; `elsewhere` is outside of it."
    )
    return Table("LlamaIndex", intro, rows)


class SeenDetector(RedDetector):
    """Flags whatever it is shown: what is not flagged afterwards was not looked at."""

    def screen(self, images: Any) -> Any:
        return [
            verdict.model_copy(update={"status": "flagged"})
            if verdict.status == "clean"
            else verdict
            for verdict in super().screen(images)
        ]


def command_line() -> Table:
    files: dict[str, Callable[[], bytes]] = {"picture.png": lambda: RISKY, **READABLE}
    files |= {name: make for name, (_, make) in UNREADABLE.items() if make is not bomb}
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        for file, make in files.items():
            path = Path(name, file)
            path.write_bytes(make())
            rows[file] = {"file": screened_file(path)}
    return Table("Command line", "Files through `sightrail screen`.", rows)


def screened_file(path: Path) -> str:
    (one,) = screen_files(FileDetector(), [path])  # type: ignore[arg-type]
    if one.verdict.status == "flagged":
        return INSPECTED
    reasons = [why.reason for why in one.verdict.not_inspected]
    return f"{NOT_INSPECTED}{reasons[0]}" if reasons else SILENT


class FileDetector(SeenDetector):
    """As a real detector does, words the verdict on what cannot be read."""

    def screen(self, images: Any) -> Any:
        from sightrail.guardrails import ImageError, Verdict, read_picture

        verdicts = []
        for image in images:
            try:
                read_picture(image) if isinstance(image, Path) else None
                verdicts += super().screen([image])
            except ImageError as error:
                verdicts.append(Verdict.uninspected(error.reason))
        return verdicts


def tables() -> list[Table]:
    found = [langchain(), llama_index(), command_line()]
    return [table for table in found if table is not None]


def markdown(found: list[Table]) -> str:
    """The document."""
    cells = [cell for table in found for cell in table.cells]
    counts = (
        len(cells),
        sum(cell == INSPECTED for cell in cells),
        sum(cell.startswith(NOT_INSPECTED) for cell in cells),
        sum(cell == SILENT for cell in cells),
    )
    lines = [
        "# Conformance: what becomes of every carrier on every surface",
        "",
        "Each cell is one carrier of a risky picture, or of something nobody can look at, on one",
        "surface, under the shipped policy. It is `inspected` (the risk in it was found), or it is",
        "refused as not inspected, with the reason. `make docs` writes this; a test holds it true.",
        "",
        "{} cells: {} inspected, {} refused as not inspected, {} passed unseen.".format(*counts),
        "",
    ]
    for table in found:
        lines += [f"## {table.title}", "", table.intro, "", *_grid(table), ""]
    return "\n".join(lines)


def _grid(table: Table) -> list[str]:
    columns = list(dict.fromkeys(column for row in table.rows.values() for column in row))
    head = ["| carrier | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    return head + [
        f"| {name} | " + " | ".join(row.get(column, "") for column in columns) + " |"
        for name, row in table.rows.items()
    ]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(markdown(tables()), encoding="utf-8")
