"""`sightrail demo`: the same requests to the bare model and to the guarded chain."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Protocol

import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sightrail.guardrails import Verdict
from sightrail.guardrails.embedded import TESTBED, embedded_module

from .consoles import printable, stdout
from .models import load_model
from .panels import INK, MUTED, draw_verdict, literal, passed_on, save_panel, status_ink

if TYPE_CHECKING:
    from sightrail.guardrails import LocalLVLM
    from sightrail.guardrails.evaluation.agents import Toolbox, Worked
    from sightrail.guardrails.screening.asking import Detector


_MAX_NEW_TOKENS: Final = 64  # the testbed answers in one sentence
_OPENING: Final = (
    "A small model is asked six times: bare, and with guardrails around it.\n"
    "It refuses harm in the words of a request; in a picture, the harm gets through."
)
_CLOSING: Final = """
Six scenes prove nothing: `sightrail eval` measures on hundreds, with intervals.
Pictures of what was seen and covered: {pictures}
Your own app: `sightrail init hosted` (or local, rag) writes a first file."""


class Case(Protocol):
    """A question, its picture if it has one, and whether the guarded chain should answer it.

    With a toolbox it is a task: the picture is what a tool gives back.
    """

    @property
    def title(self) -> str: ...  # noqa: D102 - the protocol says it
    @property
    def question(self) -> str: ...  # noqa: D102
    @property
    def image(self) -> Image.Image | None: ...  # noqa: D102
    @property
    def harmful(self) -> bool: ...  # noqa: D102
    @property
    def toolbox(self) -> Toolbox | None: ...  # noqa: D102


@dataclass(frozen=True)
class Outcome:
    """One case with both answers and the verdict on its picture, if it has one."""

    case: Case
    bare: str
    guarded: str
    verdict: Verdict | None


def demo(
    out: Annotated[Path, typer.Option(file_okay=False, help="Where the pictures go.")] = Path(
        "out/demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws other scenes.")] = 0,
) -> None:
    """Tell in under a minute what the guardrails change: six requests, bare and guarded.

    The model and the scenes are the embedded testbed's.
    """
    from sightrail.guardrails import CachedDetector, RiskDetector  # loads torch

    cases: list[Case] = embedded_module("demo_cases").draw_cases(seed)
    detector = CachedDetector(RiskDetector.from_pretrained(TESTBED))
    model = load_model(TESTBED)
    outcomes = [run_case(case, model, detector) for case in cases]
    _write_pictures(out, outcomes)
    _tell(outcomes, out)


def guarded_chain(model: LocalLVLM, detector: Detector) -> Any:
    """The chain an application would build: prompt | guarded ChatLVLM | StrOutputParser."""
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder

    from sightrail.guardrails import SafetyPrefix
    from sightrail.runnables import ChatLVLM, ScreenImages

    answers = ChatLVLM(model=model, guardrails=[SafetyPrefix()], max_tokens=_MAX_NEW_TOKENS)
    guarded = ScreenImages(detector=detector).guard(answers)
    return ChatPromptTemplate([MessagesPlaceholder("messages")]) | guarded | StrOutputParser()


def run_case(case: Case, model: LocalLVLM, detector: Detector) -> Outcome:
    """Ask the bare model and the guarded chain."""
    from langchain_core.messages import HumanMessage

    from sightrail.guardrails import read_picture

    if case.toolbox is not None and case.image is not None:
        return run_task(case, case.image, model, detector)
    content: list[dict[str, Any]] = [{"type": "text", "text": case.question}]
    blocks: list[str | dict[Any, Any]] = [{"type": "text", "text": case.question}]
    verdict = None
    if case.image is not None:
        content.insert(0, {"type": "image", "image": case.image})
        blocks.insert(0, image_block(case.image))
        verdict = detector.screen([read_picture(case.image)])[0]
    asked = [{"role": "user", "content": content}]
    bare = model.chat(asked, max_new_tokens=_MAX_NEW_TOKENS).text
    chain = guarded_chain(model, detector)
    guarded = chain.invoke({"messages": [HumanMessage(content=blocks)]})
    return Outcome(case, bare, guarded, verdict)


def run_task(case: Case, photo: Image.Image, model: LocalLVLM, detector: Detector) -> Outcome:
    """Let the bare model and the guarded one act with tools, step by step."""
    from sightrail.guardrails import SafetyPrefix, read_picture
    from sightrail.guardrails.evaluation import Item
    from sightrail.guardrails.evaluation.agents import work

    task = Item(case.title, ("task",), case.question, case.harmful, toolbox=case.toolbox)
    guarded = model.with_guardrails([detector, SafetyPrefix()])
    bare, kept = (work(lvlm, [task], _MAX_NEW_TOKENS)[0] for lvlm in (model, guarded))
    verdict = detector.screen([read_picture(photo)])[0]
    return Outcome(case, _done(bare), _done(kept), verdict)


def _done(worked: Worked) -> str:
    """The calls of a task in their order, and what was said at the end."""
    calls = (
        f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})"
        for name, given in worked.calls
    )
    return " → ".join([*calls, worked.answer.text])


def image_block(image: Image.Image) -> dict[Any, Any]:
    """LangChain's standard content block for a picture."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image", "base64": data, "mime_type": "image/png"}


def _tell(outcomes: Sequence[Outcome], out: Path) -> None:
    """The story, on at most two screens of 80 x 24."""
    console = stdout()
    console.print(_OPENING, style="bold")
    for number, outcome in enumerate(outcomes, 1):
        style = "red" if outcome.case.harmful else "green"
        console.print(Text(f"\n{number}. {outcome.case.title.capitalize()}", f"bold {style}"))
        console.print(Padding(_lines(outcome), (0, 0, 0, 3)))
    console.print(_CLOSING.format(pictures=printable(out / "demo.png")), markup=False)


def _lines(outcome: Outcome) -> Table:
    """One case as lines with a label each."""
    lines = Table.grid(padding=(0, 1))
    lines.add_row(Text("asked", "dim"), Text(outcome.case.question))
    lines.add_row(Text("bare", "dim"), Text(outcome.bare))
    if outcome.verdict is not None:
        seen = f"{outcome.verdict.summary()}: {passed_on(outcome.verdict)}"
        lines.add_row(Text("guard", "dim"), Text(seen, "dim"))
    lines.add_row(Text("guarded", "dim"), Text(outcome.guarded))
    return lines


def _write_pictures(out: Path, outcomes: Sequence[Outcome]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for outcome in outcomes:
        image, verdict, title = outcome.case.image, outcome.verdict, outcome.case.title
        if image is not None and verdict is not None:
            save_panel(out / f"{title.replace(' ', '-')}.png", title, image, verdict, "fill")
    save_sheet(out / "demo.png", outcomes)


def save_sheet(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Draw every case that has a picture, with both answers, on one page."""
    rows = [
        SheetRow(o.case.title, o.case.image, o.verdict, o.case.question, o.bare, o.guarded)
        for o in outcomes
        if o.case.image is not None and o.verdict is not None
    ]
    save_contact_sheet(path, rows)


_COLUMNS: Final = 46  # characters that fit beside the pictures
_BLOCKS: Final = (("asked", "question"), ("bare model", "bare"), ("guarded chain", "guarded"))


@dataclass(frozen=True)
class SheetRow:
    """One case: its picture, the verdict on it, the question and both answers."""

    title: str
    image: Image.Image
    verdict: Verdict
    question: str
    bare: str
    guarded: str


def save_contact_sheet(path: Path, rows: Sequence[SheetRow]) -> None:
    """Draw all cases below each other as PNG."""
    figure = Figure(figsize=(13.2, 2.75 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 4, squeeze=False, width_ratios=(1, 1, 1, 1.9))
    for axes, row in zip(grid, rows, strict=True):
        draw_verdict(axes[:3], row.image, row.verdict, "fill")
        axes[0].set_title(literal(row.title), fontsize=10, color=INK, loc="left", weight="bold")
        axes[1].set_title("risk map", fontsize=9, color=MUTED)
        axes[2].set_title(passed_on(row.verdict), fontsize=9, color=MUTED)
        _write_answers(axes[3], row)
    figure.savefig(path, dpi=110, facecolor="white")


def _write_answers(axis: Axes, row: SheetRow) -> None:
    axis.axis("off")
    axis.set_title(
        literal(row.verdict.summary()), fontsize=9, color=status_ink(row.verdict), loc="left"
    )
    top = 0.97
    for label, field in _BLOCKS:
        lines = textwrap.wrap(getattr(row, field), _COLUMNS, max_lines=4) or [""]
        axis.text(0, top, label, fontsize=8, color=MUTED, va="top", transform=axis.transAxes)
        axis.text(
            0,
            top - 0.08,
            literal("\n".join(lines)),
            fontsize=10,
            color=INK,
            va="top",
            transform=axis.transAxes,
        )
        top -= 0.15 + 0.085 * len(lines)
