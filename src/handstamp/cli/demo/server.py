"""Serving the demo, and saying so when it answers."""

from __future__ import annotations

import logging
import socket
from types import ModuleType

import typer
import uvicorn

from handstamp.cli.demo.address import Address
from handstamp.cli.demo.example import load
from handstamp.cli.demo.feed import lifetimes
from handstamp.cli.demo.front import Front
from handstamp.config import Policy

_LAST_REQUESTS = 3
"""Seconds that requests under way get at the end."""


def serve(example: ModuleType, address: Address) -> None:
    """Serve the example behind our front until Ctrl-C, which is raised on."""
    _log_events()
    front = Front(example.app, example.sessions, with_thief=address.is_local)
    config = uvicorn.Config(
        front,
        log_level="warning",
        lifespan="on",
        timeout_graceful_shutdown=_LAST_REQUESTS,
    )
    server = _Announced(config, _welcome(address, example.sessions.policy))
    server.run(sockets=[address.socket])
    if not server.started:
        raise complain("the demo did not start", status=1)
