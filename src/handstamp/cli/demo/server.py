"""The demo's server: its database, the example behind it, and the page in front of it.

Rule 1. The page's own requests never reach the middleware, so watching changes no figure.
Rule 2. The page shows no token, and of an address only its network.
Rule 3. The stolen refresh token is for the demo ONLY. Scripts cannot read our cookies, so
the server plays the thief: it remembers, in memory, the last two refresh tokens that each
session's browser has sent. No application should ever do that.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict, fields
from datetime import timedelta
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from types import FrameType, ModuleType

import asyncpg
import typer
import uvicorn
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route, Router

import handstamp
from handstamp import Sessions
from handstamp._connections import ASGIApp, Receive, Scope, Send
from handstamp.cli.app import connected, fail
from handstamp.cli.demo import Address
from handstamp.config import Cookies, Policy
from handstamp.core.cookies import CookieReader
from handstamp.core.models import Client, mask_address
from handstamp.core.requests import is_cross_site
from handstamp.events import Event
from handstamp.testing.postgres import (
    AlreadyRunning,
    EmbeddedPostgres,
    PostgresError,
    cache_home,
)

SHORT = {
    "HANDSTAMP_SESSION_TTL": "20",
    "HANDSTAMP_GRACE": "5",
    "HANDSTAMP_FLUSH_EVERY": "2",
    "HANDSTAMP_TOUCH_EVERY": "2",
    "HANDSTAMP_REFRESH_TTL": "3600",
}
"""Lifetimes that a person can watch, in seconds."""
_SHUTDOWN_TIMEOUT = 3
"""Seconds that the requests in progress get at the end."""
_LOG_LINE = "%(asctime)s  %(message)-16s  %(handstamp_session_id)s"
_EVENTS_SHOWN = 30
_THIEF = Client(address="203.0.113.66", user_agent="a thief")
_NO_STORE = {"Cache-Control": "no-store"}
_CONTENT_POLICY = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; "
    "connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)


def run(dsn: str | None, address: Address) -> None:
    """Run the demo until Ctrl-C, on the database ``dsn`` or on one of its own.

    Raises :class:`typer.Exit`, after a line that says why it could not.
    """
    sys.path.insert(0, str(_find_examples().parent))
    with address.socket, _database(dsn) as url:
        _set_environment(url)
        # With a database that was given, the user sees what is created there.
        with redirect_stdout(io.StringIO() if dsn is None else sys.stdout):
            asyncio.run(_create_tables_and_users(url))
        _serve(import_module("examples.starlette.app"), address)


def _find_examples() -> Path:
    """The folder ``examples``: in the installed package, or in the clone around it."""
    package = Path(handstamp.__file__).parent
    for folder in (package / "_bundled", package.parents[1]):
        if (folder / "examples" / "starlette" / "app.py").is_file():
            return folder / "examples"
    raise fail("the examples were not installed along with handstamp", status=2)


@contextmanager
def _database(dsn: str | None) -> Iterator[str]:
    """Yield the address of the database.

    A server of our own keeps its data for the next run, and is stopped at the end.
    """
    if dsn is not None:
        typer.echo("Creating tables and users in the database you gave ...")
        yield dsn
        return
    server = EmbeddedPostgres(data_dir=cache_home() / "demo" / "data")
    remark = "" if server.data_dir.exists() else " (the first time takes longer)"
    typer.echo(f"Starting PostgreSQL in {server.data_dir}{remark} ...")
    try:
        server.start()
    except AlreadyRunning as error:
        raise fail(
            f"another demo is running: stop it, or use --dsn. In full: {error}", status=1
        ) from None
    except PostgresError as error:
        raise fail(str(error), status=1) from None
    try:
        yield server.dsn()
    finally:
        # A second Ctrl-C must not leave the server behind.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        server.stop()


def _set_environment(url: str) -> None:
    """Set the variables that the examples read: database, secret and lifetimes.

    ``DATABASE_URL`` of the shell is replaced: the demo writes only into a database that
    ``--dsn`` names.
    """
    os.environ["DATABASE_URL"] = url
    os.environ["HANDSTAMP_INSECURE_COOKIES"] = "1"
    if not os.environ.get("HANDSTAMP_SECRET"):
        os.environ["HANDSTAMP_SECRET"] = _kept_secret(cache_home() / "demo" / "secret")
    names = set(SHORT)
    if "HANDSTAMP_SESSION_TTL" in os.environ:
        # The others follow from it by themselves, and ours might not fit it.
        names = {"HANDSTAMP_TOUCH_EVERY"}
    for name in names:
        os.environ.setdefault(name, SHORT[name])


def _kept_secret(file: Path) -> str:
    """The secret in ``file``; made at the first run, so that cookies survive a restart."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=file.parent)  # mode 0600
        with open(descriptor, "w") as draft:
            draft.write(secrets.token_urlsafe(32))
        with suppress(FileExistsError):  # another demo was faster
            os.link(name, file)
        os.unlink(name)
    return file.read_text()


async def _create_tables_and_users(url: str) -> None:
    async with connected(url):
        pass  # an error to connect has a line of its own
    try:
        await import_module("examples.seed").seed()
    except asyncpg.PostgresError as error:
        raise fail(f"cannot create tables and users: {error}", status=1) from None


def _serve(example: ModuleType, address: Address) -> None:
    """Serve the example behind the demo's page until Ctrl-C, which is raised again."""
    logger = logging.getLogger("handstamp")
    stream = logging.StreamHandler()
    no_session = {"handstamp_session_id": ""}
    stream.setFormatter(logging.Formatter(_LOG_LINE, "%H:%M:%S", defaults=no_session))
    logger.addHandler(stream)
    logger.setLevel(logging.INFO)
    page = DemoPage(example.app, example.sessions, with_thief=address.is_local)
    config = uvicorn.Config(
        page,
        log_level="warning",
        lifespan="on",
        proxy_headers=False,
        timeout_graceful_shutdown=_SHUTDOWN_TIMEOUT,
    )
    welcome = _welcome(address, example.sessions.policy)
    _Server(config, welcome).run(sockets=[address.socket])


class _Server(uvicorn.Server):
    """Prints its address when it is ready, and ends in order at every Ctrl-C."""

    def __init__(self, config: uvicorn.Config, welcome: str) -> None:
        super().__init__(config)
        self._welcome = welcome

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            typer.echo(self._welcome)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # A second Ctrl-C would leave activity unwritten.
        if not self.should_exit:
            super().handle_exit(sig, frame)


def _welcome(address: Address, policy: Policy) -> str:
    seconds = lifetimes(policy)
    session, refresh, grace = (
        f"{seconds[name]:g} s" if seconds[name] % 3600 else f"{seconds[name] / 3600:g} h"
        for name in ("session_ttl", "refresh_ttl", "grace")
    )
    warning = [
        f"It listens on {address.host}. Over plain http, signing in works at 127.0.0.1 and",
        "localhost only. It is refused under any other name, because the cookies could be",
        "read on the way. Everyone who reaches this address sees the page and its figures.",
        "",
    ]
    lines = [
        "",
        f"The demo is ready:  {address.url}",
        "",
        "  Users      alice / wonderland    bob / builder",
        f"  Lifetimes  session token {session}, refresh token {refresh}, grace {grace}",
        "",
        "From a terminal, to sign in and to ask who is signed in:",
        "",
        f"  curl -b '' -d 'username=alice&password=wonderland' {address.url}/login \\",
        f"    --next -b '' {address.url}/me",
        "",
        *([] if address.is_local else warning),
        "Ctrl-C ends it. Events are logged below.",
        "",
    ]
    return "\n".join(lines)


def lifetimes(policy: Policy) -> dict[str, float]:
    """Every duration of the policy, in seconds."""
    values = {f.name: getattr(policy, f.name) for f in fields(policy)}
    return {n: v.total_seconds() for n, v in values.items() if isinstance(v, timedelta)}


class DemoPage:
    """An ASGI application: ``/`` and ``/demo/…`` are the demo's, the rest the example's.

    ``with_thief`` adds the demonstration of a stolen refresh token.
    """

    def __init__(self, example: ASGIApp, sessions: Sessions, *, with_thief: bool) -> None:
        self._example = example
        self._sessions = sessions
        self._events = _LastEvents(sessions)
        self._thief = _Thief(sessions) if with_thief else None
        self._requests = 0
        self._page = (files("handstamp.cli.demo") / "page.html").read_text("utf-8")
        routes = [Route("/", self._show_page), Route("/demo/figures", self._show_figures)]
        if self._thief is not None:
            routes.append(Route("/demo/replay", self._thief.replay, methods=["POST"]))
        self._router = Router(routes, default=self._pass_on, redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection; the lifespan is the example's."""
        inner = self._example if scope["type"] == "lifespan" else self._router
        await inner(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._requests += 1
        if self._thief is not None:
            self._thief.watch(scope)
        await self._example(scope, receive, send)

    async def _show_page(self, request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        policy = {"Content-Security-Policy": _CONTENT_POLICY.format(nonce)}
        page = self._page.replace("{nonce}", nonce)
        return HTMLResponse(page, headers={**_NO_STORE, **policy})

    async def _show_figures(self, request: Request) -> Response:
        """The counters of this process, the policy and the last events."""
        stats = asdict(self._sessions.stats())
        looked_up = stats["hits"] + stats["misses"]
        hit_rate = stats["hits"] / looked_up if looked_up else None
        state = {
            "figures": {"requests": self._requests, "hit_rate": hit_rate, **stats},
            "policy": lifetimes(self._sessions.policy),
            "feed": self._events.as_json(),
            "thief": self._thief is not None,
        }
        return JSONResponse(state, headers=_NO_STORE)


class _LastEvents:
    """The last events of one :class:`Sessions`."""

    def __init__(self, sessions: Sessions) -> None:
        self._events: deque[tuple[int, float, Event]] = deque(maxlen=_EVENTS_SHOWN)
        self._number = 0
        sessions.on(Event, self._add)

    def _add(self, event: Event) -> None:
        self._number += 1
        self._events.append((self._number, time.monotonic(), event))

    def as_json(self) -> list[dict[str, object]]:
        """The events, oldest first, with their age in seconds."""
        now = time.monotonic()
        return [
            {
                "number": number,
                "age": round(now - at, 3),
                "action": event.action,
                "alarming": event.alarming,
                **{f.name: _shown(getattr(event, f.name)) for f in fields(event)},
            }
            for number, at, event in self._events
        ]


def _shown(value: object) -> object:
    """A field of an event; of a client only the network of its address (rule 2)."""
    return mask_address(value.address) if isinstance(value, Client) else value


class _Thief:
    """Remembers the refresh tokens of all requests, and presents one on demand (rule 3)."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._read = CookieReader(Cookies.insecure()).read
        self._sent: dict[str, tuple[str | None, str]] = {}

    def watch(self, scope: Scope) -> None:
        """Remember the refresh token of a request, and the one that it replaced."""
        token = self._token(scope)
        if token is None:
            return
        session_id = token.partition(".")[0]
        _, current = self._sent.get(session_id, (None, None))
        if token != current:
            self._sent[session_id] = (current, token)

    async def replay(self, request: Request) -> Response:
        """Present the token that this browser's session had before the current one."""
        if is_cross_site(request.scope["headers"]):
            return JSONResponse({"outcome": "cross_site"}, 403)
        self.watch(request.scope)
        token = self._token(request.scope)
        stale = self._sent[token.partition(".")[0]][0] if token else None
        if stale is None:
            return JSONResponse({"outcome": "no_stale_token"})
        replayed = self._sessions.stats().events.get("replayed", 0)
        issued = await self._sessions.refresh(stale, client=_THIEF)
        if issued is not None:
            outcome = "same_successor"
        elif self._sessions.stats().events.get("replayed", 0) > replayed:
            outcome = "revoked"
        else:
            outcome = "refused"
        return JSONResponse({"outcome": outcome})

    def _token(self, scope: Scope) -> str | None:
        sent = self._read(scope["headers"]).refresh
        return sent[0].decode("latin-1") if len(sent) == 1 else None
