"""Where the demo listens. The port is taken first, before anything slow is started.

The demo's database: the given one, or a PostgreSQL of its own.

The example that the demo runs: where it is, and the environment it reads.

Tables and users, by the code of the examples.

Serving the demo, and saying so when it answers.
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
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType, ModuleType

import asyncpg
import typer
import uvicorn

import handstamp
from handstamp.cli._shared import complain, connected
from handstamp.cli.demo.page import Front, lifetimes
from handstamp.config import Policy
from handstamp.testing.postgres import (
    AlreadyRunning,
    EmbeddedPostgres,
    PostgresError,
    cache_home,
)

FIRST_PORT = 8000
_TRIES = 20

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A listening socket and what it was asked for."""

    host: str
    socket: socket.socket

    @property
    def port(self) -> int:
        """The port, also where any was asked for."""
        return int(self.socket.getsockname()[1])

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it, at a name that may have cookies."""
        return self.host in _LOOPBACK

    @property
    def url(self) -> str:
        """What to open on this machine."""
        host = _EVERYWHERE.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def listen(host: str, port: int | None) -> Address:
    """Take ``port``, or the first free one from 8000 on where it is None.

    Raises `typer.Exit` with status 1 after a line that says why not.
    """
    ports = range(FIRST_PORT, FIRST_PORT + _TRIES) if port is None else (port,)
    problem: OSError | None = None
    for candidate in ports:
        try:
            return Address(host=host, socket=_bound(host, candidate))
        except OSError as error:
            problem = error
    which = f"ports {ports[0]} to {ports[-1]}" if port is None else f"port {port}"
    cause = problem.strerror if problem else "none was tried"
    raise complain(f"cannot listen on {host}, {which}: {cause}", status=1)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


@contextmanager
def database(dsn: str | None) -> Iterator[str]:
    """Give the address of the database for the time of a ``with`` block.

    Our own server keeps its data for the next run, and is stopped at the end. Raises
    `typer.Exit` with status 1, after a line that says why it did not start.
    """
    if dsn is not None:
        typer.echo("Making tables and users in the database you gave ...")
        yield dsn
        return
    server = EmbeddedPostgres(data_dir=cache_home() / "demo" / "data")
    _start(server)
    try:
        yield server.dsn()
    finally:
        # An impatient second Ctrl-C must not leave the server behind.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        server.stop()


def _start(server: EmbeddedPostgres) -> None:
    remark = "" if server.data_dir.exists() else " (the first time takes longer)"
    typer.echo(f"Starting PostgreSQL in {server.data_dir}{remark} ...")
    try:
        server.start()
    except AlreadyRunning as error:
        raise complain(
            f"another demo is running: stop it, or use --dsn. In full: {error}", status=1
        ) from None
    except PostgresError as error:
        raise complain(str(error), status=1) from None


SHORT = {
    "HANDSTAMP_SESSION_TTL": "20",
    "HANDSTAMP_GRACE": "5",
    "HANDSTAMP_FLUSH_EVERY": "2",
    "HANDSTAMP_TOUCH_EVERY": "2",
    "HANDSTAMP_REFRESH_TTL": "3600",
}
"""Lifetimes that a person can watch, in seconds."""


def find_examples() -> Path:
    """The folder ``examples``: in the installed package, or in the clone around it.

    Raises `typer.Exit` with status 2 when it is in neither.
    """
    package = Path(handstamp.__file__).parent
    for place in (package / "_bundled", package.parents[1]):
        if (place / "examples" / "starlette" / "app.py").is_file():
            return place / "examples"
    raise complain("the examples were not installed along with handstamp", status=2)


def load(name: str) -> ModuleType:
    """Import a module of the examples, which read the environment as they are."""
    return import_module(name)


def set_environment(url: str) -> None:
    """Point the examples to the demo's database, secret and lifetimes.

    ``DATABASE_URL`` of the shell is overridden: the demo writes into no database that
    it was not given in so many words.
    """
    os.environ["DATABASE_URL"] = url
    os.environ["HANDSTAMP_INSECURE_COOKIES"] = "1"
    if not os.environ.get("HANDSTAMP_SECRET"):
        os.environ["HANDSTAMP_SECRET"] = kept_secret(cache_home() / "demo" / "secret")
    for name, seconds in _lifetimes().items():
        os.environ.setdefault(name, seconds)


def _lifetimes() -> dict[str, str]:
    if "HANDSTAMP_SESSION_TTL" not in os.environ:
        return SHORT
    # The others follow from it by themselves, and ours might not go with it.
    return {"HANDSTAMP_TOUCH_EVERY": SHORT["HANDSTAMP_TOUCH_EVERY"]}


def kept_secret(file: Path) -> str:
    """The secret in ``file``, made at the first run so that cookies survive a restart."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=file.parent)  # mode 0600
        with open(descriptor, "w") as draft:
            draft.write(secrets.token_urlsafe(32))
        with suppress(FileExistsError):  # another demo was faster
            os.link(name, file)
        os.unlink(name)
    return file.read_text()


def seed(url: str, *, quietly: bool) -> None:
    """Make what is missing of the tables and users; say so unless ``quietly``.

    Raises `typer.Exit` after a line that says why it could not.
    """
    with redirect_stdout(io.StringIO() if quietly else sys.stdout):
        asyncio.run(_seed(url))


async def _seed(url: str) -> None:
    async with connected(url):
        pass  # whether it can be reached is told apart from what is wrong inside
    try:
        await load("examples.seed").seed()
    except asyncpg.PostgresError as error:
        raise complain(f"cannot make tables and users: {error}", status=1) from None


_LAST_REQUESTS = 3
"""Seconds that requests under way get at the end."""
_LINE = "%(asctime)s  %(message)-16s  %(handstamp_session_id)s"
_NO_SESSION = {"handstamp_session_id": ""}


def serve(example: ModuleType, address: Address) -> None:
    """Serve the example behind our front until Ctrl-C, which is raised on."""
    _log_events()
    front = Front(example.app, example.sessions, with_thief=address.is_local)
    config = uvicorn.Config(
        front,
        log_level="warning",
        lifespan="on",
        proxy_headers=False,
        timeout_graceful_shutdown=_LAST_REQUESTS,
    )
    welcome = _welcome(address, example.sessions.policy)
    _Server(config, welcome).run(sockets=[address.socket])


class _Server(uvicorn.Server):
    """Says where it is as soon as it answers, and ends in order however often asked."""

    def __init__(self, config: uvicorn.Config, welcome: str) -> None:
        super().__init__(config)
        self._welcome = welcome

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            typer.echo(self._welcome)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Cut short by a second Ctrl-C, it would leave activity unwritten.
        if not self.should_exit:
            super().handle_exit(sig, frame)


def _log_events() -> None:
    """Show what an application's log would hold: one line an event, no token in it."""
    logger = logging.getLogger("handstamp")
    stream = logging.StreamHandler()
    stream.setFormatter(logging.Formatter(_LINE, "%H:%M:%S", defaults=_NO_SESSION))
    logger.addHandler(stream)
    logger.setLevel(logging.INFO)


def _welcome(address: Address, policy: Policy) -> str:
    span = {name: _span(value) for name, value in lifetimes(policy).items()}
    url = address.url
    lines = [
        "",
        f"The demo is ready:  {url}",
        "",
        "  Users      alice / wonderland    bob / builder",
        f"  Lifetimes  session token {span['session_ttl']}, "
        f"refresh token {span['refresh_ttl']}, grace {span['grace']}",
        "",
        "From a terminal, signing in and asking who that is:",
        "",
        f"  curl -b '' -d 'username=alice&password=wonderland' {url}/login \\",
        f"    --next -b '' {url}/me",
        "",
        *([] if address.is_local else [*_warning(address), ""]),
        "Ctrl-C ends it. What happens is logged below.",
        "",
    ]
    return "\n".join(lines)


def _span(seconds: float) -> str:
    return f"{seconds:g} s" if seconds % 3600 else f"{seconds / 3600:g} h"


def _warning(address: Address) -> list[str]:
    return [
        f"It listens on {address.host}. Over plain http, signing in works at 127.0.0.1 and",
        "localhost only and is refused under any other name: the cookies could be read",
        "on the way. Everybody who reaches this address sees the page and its figures.",
    ]
