"""Starts the examples as real servers, reads their logs, and sends requests to them."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import jwt
import pytest
from _pytest.mark.structures import ParameterSet

import handstamp
from handstamp.supabase.cookies import decode_session, encode_session

ROOT = Path(__file__).resolve().parents[2]
OURS = Path(handstamp.__file__).parents[1]
"""Where the handstamp is that the tests import: in src, or installed from a wheel."""

SECRET = "the secret of the example contract: 32 bytes and more"
PATIENCE = 30.0
PASSWORDS = {"alice": "wonderland", "bob": "builder"}

# What uvicorn lets through by default, so that the application has to cope with it.
GUNICORN_LIMITS = ["--limit-request-line=8190", "--limit-request-field_size=16384"]


@dataclass(frozen=True)
class Example:
    """One row of the matrix that the contract suite is run over."""

    framework: str
    transport: str = "asgi"
    shape: str = "ulid"

    def __str__(self) -> str:
        return f"{self.framework}-{self.transport}-{self.shape}"

    @property
    def module(self) -> str:
        """Where its application is. A framework with both transports has a file each."""
        both = sum(e.framework == self.framework for e in ULID_EXAMPLES) > 1
        name = "wsgi" if both and self.transport == "wsgi" else "app"
        return f"examples.{self.framework}.{name}"

    @property
    def rotates(self) -> bool:
        """Whether there is a refresh token, so that cookies are replaced at times."""
        return self.shape != "uuid"

    @property
    def pairs(self) -> bool:
        """Whether the refresh token has a cookie of its own."""
        return self.shape == "ulid"

    @property
    def clears_blindly(self) -> bool:
        """Whether a sign-out removes cookies that the request did not have."""
        return self.shape != "supabase"

    @property
    def session_cookie(self) -> str:
        """The name of the cookie with the session token, on plain http."""
        return "sb-127-auth-token" if self.shape == "supabase" else "session"

    @property
    def no_store(self) -> str:
        """The Cache-Control of an answer that sets cookies."""
        if self.shape == "supabase":  # in the words of @supabase/ssr
            return "private, no-cache, no-store, must-revalidate, max-age=0"
        return "private, no-store"

    @property
    def some_id(self) -> str:
        """The id of a session that there is not."""
        ulid, uuid = "01HZY3J8Z8Z8Z8Z8Z8Z8Z8Z8Z8", "018f3c1e-6d2b-7c44-9a51-0f6e2d9b7a10"
        return ulid if self.shape == "ulid" else uuid

    def ages(self, *, remember: bool) -> list[str]:
        """The Max-Age of each cookie of a new session, as attributes; none for a cookie
        that ends with the browser. Supabase's always lives for 400 days."""
        if self.shape == "supabase":
            return [f"Max-Age={400 * 86400}"]
        if not remember:
            return []
        long = {"uuid": 90 * 86400}.get(self.shape, 900)
        return [f"Max-Age={long}", *([f"Max-Age={30 * 86400}"] if self.pairs else [])]

    def command(self, port: int) -> list[str]:
        """How to serve it."""
        app = f"{self.module}:app"
        if self.transport == "asgi":
            serve = ["uvicorn", app, "--port", str(port), "--log-level", "info"]
        else:
            serve = ["gunicorn", app, "--bind", f"127.0.0.1:{port}", "--threads", "8"]
            serve += ["--access-logfile", "-", *GUNICORN_LIMITS]
        return [sys.executable, "-m", *serve]


ULID_EXAMPLES = [
    Example("starlette"),
    Example("fastapi"),
    Example("litestar"),
    Example("django"),
    Example("django", "wsgi"),
    Example("falcon"),
    Example("falcon", "wsgi"),
    Example("flask", "wsgi"),
    Example("quart"),
    Example("pyramid", "wsgi"),
    Example("bottle", "wsgi"),
]
OTHER_SHAPES = ["uuid", "supabase"]
_WHOLE = {("uuid", "flask"), ("supabase", "starlette")}  # one of each transport
_OTHERS = [replace(e, shape=shape) for shape in OTHER_SHAPES for e in ULID_EXAMPLES]
_ALL = os.environ.get("HANDSTAMP_EVERY_SHAPE") == "1"

EXAMPLES = ULID_EXAMPLES + [e for e in _OTHERS if _ALL or (e.shape, e.framework) in _WHOLE]
"""Those that the whole contract suite is run over; all there are with
``HANDSTAMP_EVERY_SHAPE=1``, which takes ten minutes."""
SMOKED = [e for e in _OTHERS if (e.shape, e.framework) not in _WHOLE]
"""All others: a few tests show that each of them works."""
SOCKETS = [example for example in EXAMPLES if example.transport == "asgi"]
"""Those that have WebSockets."""
_QUICK = [Example("starlette"), Example("flask", "wsgi")]


def each(examples: Iterable[Example]) -> list[ParameterSet]:
    """Examples as the parameters of a fixture. One of each transport is quick to run; the
    others are for those who want to know about every framework."""
    server, slow = pytest.mark.server, pytest.mark.slow
    marks = {example: [server] for example in _QUICK}
    return [
        pytest.param(example, id=str(example), marks=marks.get(example, [server, slow]))
        for example in examples
    ]


@dataclass
class Server:
    """A running example, its log, and every token it was seen to hand out."""

    example: Example
    port: int
    dsn: str
    log: Path
    insecure: bool
    process: subprocess.Popen[bytes] = field(repr=False)
    tokens: set[str] = field(default_factory=set, repr=False)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def cookie_names(self) -> tuple[str, ...]:
        """The names of the cookies of a new session, that of the session token first."""
        if self.example.shape == "supabase":
            return (self.example.session_cookie,)
        names = ("session", "refresh") if self.example.pairs else ("session",)
        return names if self.insecure else tuple(f"__Host-{name}" for name in names)

    def note(self, response: httpx.Response) -> None:
        """Remember the tokens that a response sets, for the leak check."""
        for value in response.headers.get_list("set-cookie"):
            token = value.partition("=")[2].partition(";")[0]
            if token:
                self.tokens.add(token)

    def client(self, **options: Any) -> httpx.Client:
        """A browser without cookies; use as a context manager."""
        hooks = {"response": [self.note]}
        return httpx.Client(base_url=self.url, event_hooks=hooks, timeout=20, **options)

    def leaks(self, *, tracebacks: bool = True) -> list[str]:
        """What must not be in the log and is: tokens, parts of them, tracebacks."""
        text = self.log.read_text("utf-8", "replace")
        parts = {part for token in self.tokens for part in telling(token)}
        found = [f"a token: {part[:6]}…" for part in parts if part in text]
        return found + (re.findall(r"Traceback(?s:.*)", text) if tracebacks else [])


def telling(token: str) -> list[str]:
    """The token and its secret parts, each of which would be a leak in itself."""
    found = decode_session(token) if token.startswith("base64-") else None
    if found is not None:
        return [token, found.refresh_token, *telling(found.access_token)]
    return [token, *(part for part in token.split(".") if len(part) > 30)]


def due(cookies: dict[str, str], left: float = 60) -> dict[str, str]:
    """These cookies as they are when time has come to replace them: without the one of
    the session, which has run out. In Supabase's, the access token has ``left`` seconds.
    """
    if "refresh" in cookies:
        return {"refresh": cookies["refresh"]}
    return {name: _aged(value, left) for name, value in cookies.items()}


def _aged(value: str, left: float) -> str:
    if not value.startswith("base64-"):
        return value  # nothing replaces it
    held = json.loads(urlsafe_b64decode(value.removeprefix("base64-") + "==="))
    claims = jwt.decode(held["access_token"], options={"verify_signature": False})
    ends = int(time.time() + left)
    held["access_token"] = jwt.encode({**claims, "exp": ends}, SECRET)
    return encode_session({**held, "expires_at": ends})


def make_due(client: httpx.Client, left: float = 60) -> None:
    """See :func:`due`: a client in that state."""
    aged = due(dict(client.cookies), left)
    client.cookies.clear()
    client.cookies.update(aged)


async def execute(dsn: str, sql: str, *values: object) -> list[asyncpg.Record]:
    """Run one statement on a connection of its own."""
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(sql, *values)
    finally:
        await connection.close()


def environment(dsn: str, **settings: str) -> dict[str, str]:
    """The environment of an example, free of what the developer has set."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HANDSTAMP_")}
    given = {"DATABASE_URL": dsn, "HANDSTAMP_SECRET": SECRET}
    given["HANDSTAMP_TIME_BUDGET"] = "15"  # how fast the machine is proves nothing here
    path = os.pathsep.join([str(OURS), os.environ.get("PYTHONPATH", "")])
    return {**clean, **given, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **settings}


def free_port() -> int:
    """A port that is not in use now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Wait for a condition; its first true value, or a failure that says what for."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    pytest.fail(f"waited {patience:.0f} s in vain: {what}")


@contextmanager
def serving(example: Example, dsn: str, log: Path, **settings: str) -> Iterator[Server]:
    """One example as a process of its own, ready to answer."""
    port = free_port()
    insecure = settings.get("HANDSTAMP_INSECURE_COOKIES") == "1"
    settings = {"HANDSTAMP_SHAPE": example.shape, **settings}
    with log.open("wb") as output:
        process = subprocess.Popen(
            example.command(port),
            cwd=ROOT,
            env=environment(dsn, **settings),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        server = Server(example, port, dsn, log, insecure, process)
        try:
            until(lambda: _is_ready(server), f"{example} to become ready")
            yield server
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _is_ready(server: Server) -> bool:
    if server.process.poll() is not None:
        pytest.fail(f"{server.example} ended:\n{server.log.read_text()}")
    try:
        return httpx.get(f"{server.url}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def seed(dsn: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m examples.seed`."""
    return subprocess.run(
        [sys.executable, "-m", "examples.seed"],
        cwd=ROOT,
        env=environment(dsn, **settings),
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )


def sign_in(client: httpx.Client, username: str = "alice", **form: str) -> httpx.Response:
    """Sign in, which must succeed."""
    form = {"username": username, "password": PASSWORDS[username], **form}
    response = client.post("/login", data=form)
    assert response.status_code == 204, response.text
    return response
