"""`sightrail chat`: one question to a local model, guarded or bare."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .consoles import printable, stderr
from .models import (
    CasaFolder,
    DavspFolder,
    Device,
    DeviceMap,
    Dtype,
    EvidenceFolder,
    MorasFolder,
    Quantization,
    Revision,
    ScreeningEncoder,
    TrustRemoteCode,
    load_detector,
    load_model,
)

if TYPE_CHECKING:
    from sightrail.guardrails import LocalLVLM, Verdict


def chat(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    model: Annotated[str, typer.Option(help="A model by name or folder, or testbed.")],
    image: Annotated[list[Path] | None, typer.Option(help="A picture; repeat for more.")] = None,
    guard: Annotated[
        bool, typer.Option("--guard/--bare", help="With or without guardrails.")
    ] = True,
    stack: Annotated[
        str | None,
        typer.Option(
            help="Defences joined by +, as for eval; or all: one decision from all evidence."
        ),
    ] = None,
    moras: MorasFolder = None,
    casa: CasaFolder = None,
    davsp: DavspFolder = None,
    evidence: EvidenceFolder = None,
    encoder: ScreeningEncoder = None,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    quantization: Quantization = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Ask a local vision-language model; the answer streams to stdout, verdicts go to stderr.

    Guarded, that is by screening its pictures and the safety prefix, or by the stack named.
    """
    from sightrail.guardrails import SafetyPrefix  # loads torch

    if stack is not None and not guard:
        raise typer.BadParameter("--bare has no guardrails; leave out --stack.")
    pictures = image or []
    guardrails: list[Any] = []
    if guard and stack is None:
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
    if stack is not None:
        given = {"moras": moras, "casa": casa, "davsp": davsp, "evidence": evidence}
        named = {kind: folder for kind, folder in given.items() if folder is not None}
        lvlm = _behind(stack, lvlm, named, encoder, device)
    content: list[dict[str, Any]] = [{"type": "image", "image": path} for path in pictures]
    content.append({"type": "text", "text": question})
    for chunk in lvlm.stream([{"role": "user", "content": content}]):
        typer.echo(chunk.text, nl=False)
        if chunk.answer is not None:
            typer.echo()
            _show_verdicts(pictures, chunk.answer.verdicts)


def _behind(
    stack: str, lvlm: LocalLVLM, artifacts: Mapping[str, str], encoder: str | None, device: Any
) -> LocalLVLM:
    """The model behind a stack.

    Raises:
        ConfigurationError, ArtifactError: see ``evaluation.stacks.guarded``.
    """
    from sightrail.guardrails.evaluation import stacks

    detector: Any = load_detector(encoder, device) if stacks.screens(stack) else stacks.Blind()
    supplies = stacks.Supplies(
        detector,
        stacks.artifacts_for(lvlm.name, artifacts),
        stacks.calibration_for(lvlm.name),
        encoder,
    )
    return stacks.guarded(stack, lvlm, supplies)


def _show_verdicts(pictures: list[Path], verdicts: tuple[Verdict, ...]) -> None:
    shown = [verdict for verdict in verdicts if verdict.subject == "picture"]
    each, rest = divmod(len(shown), max(1, len(pictures)))  # as many as detectors looked at each
    names = [printable(Path(path.name)) for path in pictures for _ in range(each)]
    about = iter(["picture"] * len(shown) if rest else names)
    for verdict in verdicts:
        what = next(about) if verdict.subject == "picture" else "request"
        stderr().print(f"{what}: {verdict.summary()}", markup=False, soft_wrap=True)
