"""Real WSGI servers as processes: how to start one, talk to it and end it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.examples.servers import PATIENCE, ROOT, environment, free_port, until
from tests.support.wsgi import new_user

APP = "tests.wsgi.site:app"


@dataclass
class Server:
    """A running server, its log and its users."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path
    dsn: str
    user: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def text(self) -> str:
        """What it has logged."""
        return self.log.read_text("utf-8", "replace")

    def client(self, *, keep_alive: bool = False) -> httpx.Client:
        """A browser; every request a new connection, to reach every worker."""
        headers = {} if keep_alive else {"Connection": "close"}
        return httpx.Client(base_url=self.url, timeout=20, headers=headers)

    @contextmanager
    def signed_in(self, user: str | None = None) -> Iterator[httpx.Client]:
        """A browser with a session."""
        with self.client() as client:
            answer = client.get("/login", params={"user": user or self.user})
            assert answer.status_code == 200, (answer.text, self.text)
            yield client

    def token(self, user: str) -> str:
        """The session token of a new session."""
        with self.signed_in(user) as client:
            return client.cookies["session"]

    def get(self, path: str) -> httpx.Response:
        with self.client() as client:
            return client.get(path)

    def workers(self, number: int) -> dict[int, dict[str, Any]]:
        """What each of so many workers holds, once all of them have answered."""
        found: dict[int, dict[str, Any]] = {}

        def all_of_them() -> bool:
            answer = self.get("/held").json()
            found[answer["pid"]] = answer
            return len(found) == number and answer["bus"] == "listening"

        until(all_of_them, f"{number} workers to answer: {self.text}")
        return found

    def end(self, by: signal.Signals) -> int:
        self.process.send_signal(by)
        return self.process.wait(PATIENCE)


def gunicorn(port: int, *options: str) -> list[str]:
    """gunicorn, with options."""
    bind = ["--bind", f"127.0.0.1:{port}"]
    return [sys.executable, "-m", "gunicorn", APP, *bind, *options]


def uwsgi(port: int, *options: str) -> list[str]:
    """uWSGI, with options."""
    program = str(Path(sys.executable).with_name("uwsgi"))
    module = ["--http-socket", f"127.0.0.1:{port}", "--module", APP, "--need-app"]
    return [program, *module, "--virtualenv", sys.prefix, "--pythonpath", ".", *options]


def wsgiref(port: int, *options: str) -> list[str]:
    """The standard library's."""
    return [sys.executable, "-m", "tests.wsgi.site", *options]


@contextmanager
def started(
    make: Any, options: Sequence[str], dsn: str, log: Path, **settings: str
) -> Iterator[Server]:
    """One server as a process of its own; ready or not."""
    port, user = free_port(), new_user(dsn)
    command = make(port, *options)
    env = environment(dsn, PORT=str(port), SITE_USER=user, **settings)
    env["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], str(ROOT)])
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield Server(port, process, log, dsn, user)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


@contextmanager
def serving(
    make: Any, options: Sequence[str], dsn: str, log: Path, **settings: str
) -> Iterator[Server]:
    """One server, ready to answer."""
    with started(make, options, dsn, log, **settings) as server:

        def ready() -> bool:
            assert server.process.poll() is None, server.text
            try:
                return server.get("/").status_code == 200
            except httpx.TransportError:
                return False

        until(ready, f"a server: {log.read_text()}")
        yield server
