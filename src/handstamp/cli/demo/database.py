"""The demo's database: the given one, or a PostgreSQL of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from handstamp.cli.connecting import complain
from handstamp.testing.postgres import (
    AlreadyRunning,
    EmbeddedPostgres,
    PostgresError,
    cache_home,
)


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
