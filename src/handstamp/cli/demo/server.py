"""Serving the demo, and saying so when it answers."""

from __future__ import annotations

import logging
import socket
from types import FrameType, ModuleType

import typer
import uvicorn

from handstamp.cli.demo.address import Address
from handstamp.cli.demo.feed import lifetimes
from handstamp.cli.demo.front import Front
from handstamp.config import Policy

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
