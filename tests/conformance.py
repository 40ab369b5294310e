"""The table of docs/conformance.md: what becomes of every carrier on every surface.

Each cell screens one carrier with the shipped policy and looks at the outcome. `python -m
conformance FILE` writes the table; a test asserts that the committed one is the same.
"""

from __future__ import annotations

import base64
import copy
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompt_values import StringPromptValue

from bad_pictures import READABLE, UNREADABLE, bomb
from chain_helpers import CARRIERS, RISKY, UNSEEN, RedDetector, data_url, text64
from sightrail.guardrails.carriers.loop import Screened, passed
from sightrail.guardrails.testing import StubDetector
from sightrail.integrations.cli.batches import screen_files
from sightrail.runnables import ScreenImages
from untouched import values as langchain_values

INSPECTED: Final = "inspected"
NOT_INSPECTED: Final = "refused: "
SILENT: Final = "PASSED UNSEEN"

UNTOUCHED: Final = "the very same"
TOUCHED: Final = "TOUCHED"

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
            if _is_data(name, block, surface)
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


WRITTEN: Final[dict[str, Callable[[bytes], str]]] = {
    "data address": data_url,
    "bare base64": text64,
    "in a sentence": lambda data: f"this one: {data_url(data)}, please",
    "Markdown": lambda data: f"before ![a cat]({data_url(data)}) after",
    "HTML": lambda data: f"<p><img alt='x' src='{data_url(data)}'/></p>",
    "CSS": lambda data: f"body {{ background: url({data_url(data)}) }}",
    "JSON": lambda data: json.dumps({"id": 7, "image": text64(data)}),
    "JSON in JSON": lambda data: json.dumps({"body": json.dumps({"image": data_url(data)})}),
    "JSON with escaped slashes": lambda data: json.dumps(data_url(data)).replace("/", "\\/"),
    "url-safe base64": lambda data: base64.urlsafe_b64encode(data).decode(),
    "percent encoded": lambda data: quote(data_url(data), safe=":;,/"),
    "lines of MIME": lambda data: base64.encodebytes(data).decode(),
    "shouting": lambda data: "DATA:IMAGE/PNG;BASE64," + text64(data),
    "with invisible signs": lambda data: "data:image/png;base64,\u200b" + text64(data),
    "behind a byte order mark": lambda data: "\ufeff" + text64(data),
    "XML": lambda data: f"<image>{text64(data)}</image>",
    "a drawing that holds it": lambda data: (
        f"<svg><image href='{data_url(data)}' width='3'/></svg>"
    ),
}
"""Name -> a text in which the picture of these bytes is written."""
WORDS: Final[dict[str, Callable[[str], Any]]] = {
    "human": HumanMessage,
    "text block": lambda text: HumanMessage([{"type": "text", "text": text}]),
    "system": SystemMessage,
    "ai": AIMessage,
    "thinking": lambda text: AIMessage([{"type": "thinking", "thinking": text}]),
    "tool call": lambda text: AIMessage(
        "", tool_calls=[{"name": "f", "args": {"deep": [text]}, "id": "1", "type": "tool_call"}]
    ),
    "tool": lambda text: ToolMessage(text, tool_call_id="1"),
    "artifact": lambda text: ToolMessage("x", tool_call_id="1", artifact={"page": text}),
    "document": Document,
    "metadata": lambda text: Document("x", metadata={"page": {"html": text}}),
    "string prompt": lambda text: StringPromptValue(text=text),
}


def written_in_text() -> Table:
    rows = {
        name: {place: screened_by_chain(make(write(RISKY))) for place, make in WORDS.items()}
        for name, write in WRITTEN.items()
    }
    intro = "Pictures written in a text, in every place of LangChain's where text stands."
    return Table("LangChain: pictures in text", intro, rows)


def untouched(title: str, values: Mapping[str, Any], screen: Callable[[Any], Any]) -> Table:
    """What holds no picture, after a screening that flags whatever it is shown.

    Args:
        title: names the framework.
        values: name -> a value.
        screen: the value that comes out; the very object is expected.
    """
    rows = {
        name: {"afterwards": UNTOUCHED if screen(value) is value else TOUCHED}
        for name, value in values.items()
    }
    return Table(title, "Values that hold no picture.", rows)


def untouched_tables() -> list[Table]:
    """One table a framework."""
    screen = ScreenImages(detector=StubDetector(flag=True))
    found = [untouched("LangChain: untouched", langchain_values(), screen.invoke)]
    try:
        from llama_untouched import values
        from sightrail.integrations.llama_index import ImageScreen
    except ImportError:
        return found
    look = ImageScreen(StubDetector(flag=True))
    return [
        *found,
        untouched(
            "LlamaIndex: untouched",
            values(),
            lambda value: passed(look.screen([value])[0]).value,
        ),
    ]


def _is_data(name: str, block: Any, surface: str) -> bool:
    """Whether a block is none there: links in metadata are metadata."""
    untyped = "type" not in block and name.endswith("(unseen)")
    return untyped and (surface == "document" or (surface == "artifact" and "image" not in block))


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
    found = [langchain(), written_in_text(), llama_index(), command_line()]
    return [table for table in found if table is not None]


def markdown(found: list[Table], left: list[Table]) -> str:
    """The document: carriers, and what is none."""
    kept = [cell for table in left for cell in table.cells]
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
        f"{len(kept)} kinds of value that hold no picture: {kept.count(UNTOUCHED)} came out as the",
        f"very object that went in, {kept.count(TOUCHED)} were touched.",
        "",
    ]
    for table in [*found, *left]:
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
    Path(sys.argv[1]).write_text(markdown(tables(), untouched_tables()), encoding="utf-8")
