"""Remote pictures: what may be fetched is fetched, and nothing else is ever connected to."""

from __future__ import annotations

import _thread
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from bad_pictures import encoded, photo
from sightrail.guardrails import ImageError, Limits, RemotePolicy, read_picture
from sightrail.guardrails.deadline import time_limit
from sightrail.guardrails.intake import Picture, RequestReader
from sightrail.guardrails.intake.remote import is_public, read_target
from sightrail.guardrails.verdict import NotInspected
from web_helpers import PUBLIC, Server, World, drip, redirect, respond, serving

PNG = encoded(photo())
HOST = "images.example.org"


@pytest.fixture
def server() -> Iterator[Server]:
    answers = {
        "/cat.png": respond("200 OK", PNG),
        "/text": respond("200 OK", b"<html>no picture", Content_Type="image/png"),
        "/gone": respond("404 Not Found"),
        "/drip": drip,
        "/loop": redirect("/loop"),
        "/relative": redirect("cat.png"),
        "/to-file": redirect("file:///etc/passwd"),
        "/short": lambda c, _: c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc"),
        "/nonsense": lambda c, _: c.sendall(b"SSH-2.0-OpenSSH\r\n\r\n"),
        "/endless": lambda c, _: c.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 300_000),
    }
    with serving(answers) as running:
        yield running


@pytest.fixture
def world(server: Server, monkeypatch: pytest.MonkeyPatch) -> World:
    names = {
        HOST: [[PUBLIC]],
        "internal.example.org": [["10.1.2.3"]],
        "local.example.org": [["127.0.0.1"]],
        "mixed.example.org": [[PUBLIC, "127.0.0.1"]],
        "six.example.org": [["::1"]],
        "mapped.example.org": [["::ffff:127.0.0.1"]],
        "metadata.example.org": [["169.254.169.254"]],
        "rebound.example.org": [[PUBLIC], ["127.0.0.1"]],
    }
    made = World(names)
    made.enter(monkeypatch)
    return made


def limits(server: Server, *, hosts: tuple[str, ...] = ("*",), **changes: object) -> Limits:
    policy = RemotePolicy(
        hosts=frozenset(hosts), ports=frozenset({server.port}), timeout_s=5, **changes
    )
    return Limits(remote=policy, max_bytes=200_000)


def reason_of(url: str, allowed: Limits) -> str:
    with pytest.raises(ImageError) as caught:
        read_picture(url, allowed)
    assert "example" not in str(caught.value), "an address may be private"
    return caught.value.reason


def test_nothing_is_fetched_unless_asked_for(server: Server, world: World) -> None:
    assert reason_of(f"http://{HOST}:{server.port}/cat.png", Limits()) == "remote_url"
    assert (world.asked, world.dialled, server.accepted) == ([], [], 0)


@pytest.mark.parametrize("path", ["/cat.png", "/relative"])
def test_an_allowed_picture_is_fetched(server: Server, world: World, path: str) -> None:
    allowed = limits(server, hosts=("*.example.org",))
    picture = read_picture(f"HTTP://Images.Example.ORG.:{server.port}{path}", allowed)
    assert picture.image.tobytes() == photo().tobytes()
    assert f"Host: {HOST}:{server.port}\r\n" in server.requests[0]
    assert set(world.dialled) == {PUBLIC}


def test_no_proxy_of_the_environment_is_used(
    server: Server, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    read_picture(f"http://{HOST}:{server.port}/cat.png", limits(server))
    assert server.accepted == 1


FORGED = {
    "loopback": "http://127.0.0.1:{port}/cat.png",
    "its name": "http://localhost:{port}/cat.png",
    "decimal": "http://2130706433:{port}/cat.png",
    "hexadecimal": "http://0x7f000001:{port}/cat.png",
    "octal": "http://0177.0.0.1:{port}/cat.png",
    "shortened": "http://127.1:{port}/cat.png",
    "full width digits": "http://１２７.０.０.１:{port}/cat.png",
    "nothing": "http://0.0.0.0:{port}/cat.png",
    "ipv6": "http://[::1]:{port}/cat.png",
    "mapped": "http://[::ffff:127.0.0.1]:{port}/cat.png",
    "mapped in hex": "http://[::ffff:7f00:1]:{port}/cat.png",
    "compatible": "http://[::127.0.0.1]:{port}/cat.png",
    "nat64": "http://[64:ff9b::7f00:1]:{port}/cat.png",
    "6to4": "http://[2002:7f00:1::]:{port}/cat.png",
    "unspecified": "http://[::]:{port}/cat.png",
    "private name": "http://internal.example.org:{port}/cat.png",
    "loopback name": "http://local.example.org:{port}/cat.png",
    "one of two": "http://mixed.example.org:{port}/cat.png",
    "ipv6 name": "http://six.example.org:{port}/cat.png",
    "mapped name": "http://mapped.example.org:{port}/cat.png",
    "metadata": "http://metadata.example.org:{port}/latest",
}


@pytest.mark.parametrize("form", FORGED)
def test_no_private_address_is_connected_to(form: str, server: Server, world: World) -> None:
    url = FORGED[form].format(port=server.port)
    assert reason_of(url, limits(server)) in ("remote_private", "remote_failed")
    assert (world.dialled, server.accepted) == ([], 0)


@pytest.mark.parametrize("form", FORGED)
def test_no_redirect_leads_to_a_private_address(form: str, server: Server, world: World) -> None:
    server.answers["/away"] = redirect(
        FORGED[form].format(port=server.port).encode("ascii", "xmlcharrefreplace").decode()
    )
    url = f"http://{HOST}:{server.port}/away"
    assert reason_of(url, limits(server)).startswith("remote_")
    assert (world.dialled, server.accepted) == ([PUBLIC], 1)


def test_a_name_is_asked_once_a_hop_and_its_answer_is_what_is_dialled(
    server: Server, world: World
) -> None:
    url = f"http://rebound.example.org:{server.port}/cat.png"
    read_picture(url, limits(server))
    assert world.dialled == [PUBLIC]
    assert reason_of(url, limits(server)) == "remote_private"
    assert server.accepted == 1


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://elsewhere.org:{port}/cat.png", "remote_forbidden"),
        ("http://images.example.org.elsewhere.org:{port}/cat.png", "remote_forbidden"),
        ("http://images.example.org/cat.png", "remote_forbidden"),
        ("http://user:secret@images.example.org:{port}/cat.png", "remote_url"),
        ("http://images.example.org:{port}\\@elsewhere.org/", "remote_url"),
        ("http://images.example.org:{port}/a\r\nX: b", "remote_url"),
        ("http://images.example.org:99999/cat.png", "remote_url"),
        ("http://[::1%25eth0]:{port}/cat.png", "remote_url"),
        ("http:///cat.png", "remote_url"),
        ("http://a..b/cat.png", "remote_url"),
        ("ftp://images.example.org:{port}/cat.png", "remote_url"),
    ],
)
def test_forms_that_are_never_fetched(url: str, reason: str, server: Server, world: World) -> None:
    allowed = limits(server, hosts=(HOST,))
    with pytest.raises(ImageError) as caught:
        read_picture(url.format(port=server.port), allowed)
    assert caught.value.reason == reason
    assert "secret" not in str(caught.value)
    assert (world.asked, server.accepted) == ([], 0)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/text", "not_an_image"),
        ("/gone", "remote_failed"),
        ("/loop", "remote_failed"),
        ("/to-file", "remote_url"),
        ("/short", "remote_failed"),
        ("/nonsense", "remote_failed"),
        ("/endless", "too_large"),
    ],
)
def test_what_is_no_good_picture_says_so(
    path: str, reason: str, server: Server, world: World
) -> None:
    assert reason_of(f"http://{HOST}:{server.port}{path}", limits(server)) == reason
    assert server.accepted <= 4, "three redirects at most"


def test_a_server_that_drips_is_cut_off(server: Server, world: World) -> None:
    policy = RemotePolicy(hosts={HOST}, ports={server.port}, timeout_s=0.4)
    started = time.monotonic()
    url = f"http://{HOST}:{server.port}/drip"
    assert reason_of(url, Limits(remote=policy)) == "remote_timeout"
    assert time.monotonic() - started < 5


def test_a_resolver_that_hangs_is_not_waited_for(
    server: Server, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(World, "resolve", lambda *a, **k: time.sleep(2))
    world.enter(monkeypatch)
    policy = RemotePolicy(hosts={HOST}, ports={server.port}, timeout_s=0.2)
    url = f"http://{HOST}:{server.port}/cat.png"
    assert reason_of(url, Limits(remote=policy)) == "remote_timeout"


def test_tls_is_verified_for_the_name(server: Server, world: World) -> None:
    url = f"https://{HOST}:{server.port}/cat.png"  # the server speaks no TLS: no way around it
    assert reason_of(url, limits(server)) == "remote_failed"
    assert server.requests == [] or "GET" not in server.requests[0]


@pytest.mark.parametrize(
    "text",
    ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"],
)
def test_public_addresses(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "127.9.9.9",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "198.18.0.1",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "64:ff9b:1::1",
        "2002:a00:1::",
        "2001:0:1::1",
        "::8.8.8.8",
    ],
)
def test_addresses_that_are_not_public(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


def test_an_address_is_sent_as_it_was_judged() -> None:
    policy = RemotePolicy(hosts={"*.example.org"})
    target = read_target("https://A.Example.org./a b?q=ü#x".replace(" ", "%20"), policy)
    assert (target.host, target.port, target.path) == ("a.example.org", 443, "/a%20b?q=%C3%BC")
    assert target.authority == "a.example.org"


def test_the_addresses_of_a_request_are_fetched_side_by_side(server: Server, world: World) -> None:
    meet = threading.Barrier(5)

    def wait_for_the_others(connection: socket.socket, request: str) -> None:
        meet.wait(20)  # broken, and never answered, where they come one after the other
        respond("200 OK", PNG)(connection, request)

    server.answers.update({f"/{n}.png": wait_for_the_others for n in range(5)})
    addresses = [f"http://{HOST}:{server.port}/{n}.png" for n in range(5)]
    found = RequestReader(limits(server)).read_all([(address, 0) for address in addresses])
    assert all(isinstance(seen, Picture) for seen in found)


def test_fetches_share_the_bytes_and_the_deadline_of_their_request(
    server: Server, world: World
) -> None:
    addresses = [f"http://{HOST}:{server.port}/cat.png"] * 4
    some = limits(server).model_copy(update={"max_bytes_per_request": 2 * len(PNG) + 10})
    found = RequestReader(some).read_all([(address, 0) for address in addresses])
    reasons = [seen.reason for seen in found if isinstance(seen, NotInspected)]
    assert 2 <= len(reasons) < 4  # one that broke off has spent what it took in
    assert set(reasons) == {"too_large"}

    slow = [(f"http://{HOST}:{server.port}/drip", 0)] * 20
    started = time.monotonic()
    with time_limit(0.5), pytest.raises(TimeoutError):
        RequestReader(limits(server)).read_all(slow)
    assert time.monotonic() - started < 4  # each alone may take five seconds


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_does_not_wait_for_a_server_that_is_silent(
    server: Server, world: World
) -> None:
    asked, answer = threading.Event(), threading.Event()

    def keep_silent(connection: socket.socket, request: str) -> None:
        asked.set()
        answer.wait(20)

    server.answers["/silent"] = keep_silent
    waiting: list[threading.Thread] = []

    def interrupt() -> None:
        asked.wait(20)
        waiting.extend(t for t in threading.enumerate() if t.name.startswith("sightrail-fetch"))
        _thread.interrupt_main()

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        RequestReader(limits(server)).read_all([(f"http://{HOST}:{server.port}/silent", 0)] * 2)
    assert any(thread.is_alive() for thread in waiting)
    answer.set()
    for thread in waiting:
        thread.join(20)
    assert not any(thread.is_alive() for thread in waiting)
