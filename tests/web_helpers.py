"""A real HTTP server on this machine, and a world in which names lead where a test wants."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from sightrail.guardrails.intake import fetch

PUBLIC = "93.184.215.14"
"""Stands for the local server: the only address that `World` lets a connection through to."""

Answer = Callable[[socket.socket, str], None]


def respond(status: str, body: bytes = b"", **headers: str) -> Answer:
    """An answer with this status, body and headers (underscores read as hyphens)."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *lines, "", ""])

    def answer(connection: socket.socket, request: str) -> None:
        connection.sendall(head.encode() + body)

    return answer


def redirect(location: str) -> Answer:
    return respond("302 Found", Location=location)


def drip(connection: socket.socket, request: str) -> None:
    """A header that never ends, a byte at a time: no single read ever times out."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    for _ in range(600):
        connection.sendall(b"a")
        time.sleep(0.02)


@dataclass
class Server:
    """Answers by path, and keeps every connection that anything made to it."""

    answers: dict[str, Answer]
    tls: ssl.SSLContext | None = None
    requests: list[str] = field(default_factory=list)
    accepted: int = 0
    port: int = 0

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._answer, args=[connection], daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        try:
            with connection, self._secured(connection) as spoken:
                request = spoken.recv(65536).decode("latin-1")
                if not request:
                    return
                self.requests.append(request)
                self.answers[request.split()[1]](spoken, request)
        except (OSError, KeyError, IndexError):
            return

    def _secured(self, connection: socket.socket) -> socket.socket:
        return self.tls.wrap_socket(connection, server_side=True) if self.tls else connection


@contextmanager
def serving(answers: dict[str, Answer], tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(answers, tls)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server.port = listener.getsockname()[1]
        thread = threading.Thread(target=server.serve, args=[listener], daemon=True)
        thread.start()
        yield server
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@dataclass
class World:
    """Names and their addresses; counts what was asked and dialled."""

    names: dict[str, list[list[str]]]
    asked: list[str] = field(default_factory=list)
    dialled: list[str] = field(default_factory=list)

    def resolve(self, host: str, port: int, **kwargs: Any) -> list[Any]:
        """Each time a name is asked for, the next answer; the last one for good."""
        self.asked.append(host)
        if host not in self.names:
            return self._real(host, port, **kwargs)
        answers = self.names[host]
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, 1, 6, "", (address, port))
            for address in (answers.pop(0) if len(answers) > 1 else answers[0])
        ]

    def dial(self, family: int, address: tuple[Any, ...], timeout_s: float) -> socket.socket:
        self.dialled.append(address[0])
        target = "127.0.0.1" if address[0] == PUBLIC else address[0]
        return self._dial(family, (target, *address[1:]), timeout_s)

    def enter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real, self._dial = socket.getaddrinfo, fetch.dial
        monkeypatch.setattr(fetch.socket, "getaddrinfo", self.resolve)
        monkeypatch.setattr(fetch, "dial", self.dial)
