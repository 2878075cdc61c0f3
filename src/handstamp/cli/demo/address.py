"""Where the demo listens. The port is taken first, before anything slow is started."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from handstamp.cli.connecting import complain

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
