"""`sightrail chat`: one question to a local model, guarded or bare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .consoles import printable, stderr
from .models import (
    Device,
    DeviceMap,
    Dtype,
    Quantization,
    Revision,
    TrustRemoteCode,
    load_detector,
    load_model,
)

if TYPE_CHECKING:
    from sightrail.guardrails import Verdict


def chat(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    model: Annotated[str, typer.Option(help="A model by name or folder, or testbed.")],
    image: Annotated[list[Path] | None, typer.Option(help="A picture; repeat for more.")] = None,
    guard: Annotated[
        bool, typer.Option("--guard/--bare", help="With or without guardrails.")
    ] = True,
    encoder: Annotated[
        str | None,
        typer.Option(envvar="SIGHTRAIL_ENCODER", help="The screening encoder, as for screen."),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    quantization: Quantization = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Ask a local vision-language model; the answer streams to stdout, verdicts go to stderr."""
    from sightrail.guardrails import SafetyPrefix  # loads torch

    pictures = image or []
    guardrails: list[Any] = []
    if guard:
        guardrails = [load_detector(encoder, device)] if pictures else []
        guardrails.append(SafetyPrefix())
    lvlm = load_model(
        model,
        guardrails,
        device,
        dtype=dtype,
        device_map=device_map,
        quantization=quantization,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    content: list[dict[str, Any]] = [{"type": "image", "image": path} for path in pictures]
    content.append({"type": "text", "text": question})
    for chunk in lvlm.stream([{"role": "user", "content": content}]):
        typer.echo(chunk.text, nl=False)
        if chunk.answer is not None:
            typer.echo()
            _show_verdicts(pictures, chunk.answer.verdicts)


def _show_verdicts(pictures: list[Path], verdicts: tuple[Verdict, ...]) -> None:
    names = [printable(Path(path.name)) for path in pictures]
    for verdict in verdicts:
        about = "request" if verdict.subject == "request" or not names else names.pop(0)
        stderr().print(f"{about}: {verdict.summary()}", markup=False, soft_wrap=True)
