"""`sightrail serve`: an OpenAI-compatible API with the guardrails in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .consoles import stdout
from .models import Device, DeviceMap, Dtype, Quantization, Revision, TrustRemoteCode


def serve(
    settings: Annotated[
        Path | None,
        typer.Option("--settings", help="A TOML file; every setting can stand in it."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A local model by name or folder, or testbed.")
    ] = None,
    upstream: Annotated[
        str | None, typer.Option(help="The address of another server, such as http://gpu:8000/v1.")
    ] = None,
    stack: Annotated[
        str | None, typer.Option(help="Defences joined by +, as for eval; default: screen.")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(envvar="SIGHTRAIL_ENCODER", help="The screening encoder, as for screen."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; default: 8000.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    quantization: Quantization = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    check: Annotated[
        bool, typer.Option("--check", help="Load everything, say what would be served, and end.")
    ] = False,
) -> None:
    """Serve a guarded model, or guard another server, for many clients at once."""
    from sightrail.integrations.server import ServerSettings, check_upstream, create_app

    read = ServerSettings.from_file(
        settings,
        model=model,
        upstream=upstream,
        stack=stack,
        encoder=encoder,
        host=host,
        port=port,
        device=device,
        dtype=dtype,
        device_map=device_map,
        quantization=quantization,
        revision=revision,
        trust_remote_code=trust_remote_code or None,
    )
    app = create_app(read)
    what = f"the upstream {read.upstream}" if read.upstream else f"the model {read.model}"
    keys = f"{len(read.api_keys)} API keys" if read.api_keys else "no API key"
    stdout().print(
        f"{what}, behind {read.stack}, on http://{read.host}:{read.port}/v1 ({keys})",
        markup=False,
        soft_wrap=True,
    )
    if check:
        check_upstream(read)
        return
    from sightrail.integrations.server.app import log_to_stderr, server_for

    log_to_stderr()
    server_for(app, read).run()
