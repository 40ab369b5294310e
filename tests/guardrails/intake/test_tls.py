"""Remote pictures over TLS: the judged address is what is dialled, the name is what is verified."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bad_pictures import encoded, photo
from sightrail.guardrails import ImageError, Limits, RemotePolicy, read_picture
from web_helpers import PUBLIC, Server, World, redirect, respond, serving

HOST, OTHER = "images.example.org", "other.example.org"
OPENSSL = shutil.which("openssl")

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="certificates are made by openssl")


@dataclass
class Secure:
    """A server with a certificate for HOST, and the names that it was asked for."""

    server: Server
    certificate: Path
    named: list[str | None] = field(default_factory=list)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for HOST; its key lies beside it."""
    folder = tmp_path_factory.mktemp("tls")
    asked = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    asked += ["-keyout", "key.pem", "-out", "cert.pem", "-days", "2"]
    asked += ["-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"]
    subprocess.run([str(OPENSSL), *asked], cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem"


@pytest.fixture
def secure(certificate: Path) -> Iterator[Secure]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    named: list[str | None] = []
    context.sni_callback = lambda _, name, __: named.append(name)
    answers = {"/cat.png": respond("200 OK", encoded(photo()))}
    with serving(answers, context) as server:
        server.answers["/away"] = redirect(f"https://{OTHER}:{server.port}/cat.png")
        yield Secure(server, certificate, named)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World({HOST: [[PUBLIC]], OTHER: [[PUBLIC]]})
    made.enter(monkeypatch)
    return made


@pytest.fixture
def trusted(secure: Secure, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an administrator does to have one more authority trusted."""
    monkeypatch.setenv("SSL_CERT_FILE", str(secure.certificate))


def fetched(secure: Secure, host: str, path: str = "/cat.png") -> bytes:
    policy = RemotePolicy(hosts={"*.example.org"}, ports={secure.server.port}, timeout_s=10)
    url = f"https://{host}:{secure.server.port}{path}"
    return read_picture(url, Limits(remote=policy)).image.tobytes()


def refused(secure: Secure, host: str, path: str = "/cat.png") -> str:
    with pytest.raises(ImageError) as caught:
        fetched(secure, host, path)
    assert "example" not in str(caught.value), "an address may be private"
    return caught.value.reason


@pytest.mark.usefixtures("trusted")
def test_a_trusted_certificate_for_the_name_is_accepted(secure: Secure, world: World) -> None:
    assert fetched(secure, HOST) == photo().tobytes()
    assert (world.asked, world.dialled) == ([HOST], [PUBLIC])
    assert secure.named == [HOST]
    assert f"Host: {HOST}:{secure.server.port}\r\n" in secure.server.requests[0]


@pytest.mark.usefixtures("trusted")
def test_a_certificate_for_another_name_is_refused(secure: Secure, world: World) -> None:
    assert refused(secure, OTHER) == "remote_failed"
    assert (world.dialled, secure.named) == ([PUBLIC], [OTHER])
    assert secure.server.requests == [], "nothing is said to a server that is not the one asked for"


@pytest.mark.usefixtures("trusted")
def test_a_redirect_is_verified_for_the_name_it_leads_to(secure: Secure, world: World) -> None:
    assert refused(secure, HOST, "/away") == "remote_failed"
    assert secure.named == [HOST, OTHER]
    assert [request.split()[1] for request in secure.server.requests] == ["/away"]


def test_a_certificate_that_nobody_vouches_for_is_refused(secure: Secure, world: World) -> None:
    assert refused(secure, HOST) == "remote_failed"
    assert secure.server.requests == []
