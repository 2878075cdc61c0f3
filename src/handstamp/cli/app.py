"""The command line's application, and what its commands share: a connection and an error.

Rule 1. A command that fails writes one line to stderr, which says what to do, and has an
exit status of its own.
Rule 2. No line holds a password, or what a row holds.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import asyncpg
import typer

from handstamp import __version__
from handstamp.errors import ConfigError
from handstamp.stores.connection import FAULTS, Connection, check_dsn, dsn_error

_TIMEOUT = 10.0  # seconds

app = typer.Typer(
    name="handstamp",
    help="Session middleware for the sessions table that you already have.",
    no_args_is_help=True,
    add_completion=False,
    # A traceback with local variables would print connection strings.
    pretty_exceptions_show_locals=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"handstamp {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """Read the options that come before a command."""


def fail(text: str, *, status: int) -> typer.Exit:
    """Write one line to stderr; returns the exception that ends the command."""
    typer.echo(f"handstamp: {' '.join(text.split())}", err=True)
    return typer.Exit(status)


def required(dsn: str | None) -> str:
    """The address of the database. Raises :class:`typer.Exit` if there is none."""
    if not dsn:
        raise fail("which database? give --dsn or set DATABASE_URL", status=2)
    return dsn


def reason(error: BaseException) -> str:
    """Why the database refused, in words without data of a row.

    The driver's own text can quote a row, so it is used only where it cannot.
    """
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return str(error).partition("\n")[0]
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()
    return words.removesuffix(" error")


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[Connection]:
    """Connect to the database for the time of a ``with`` block.

    Raises :class:`typer.Exit` with status 2 if the database cannot be reached within ten
    seconds.
    """
    try:
        # Without the cache of statements it also works through PgBouncer.
        connection = await asyncpg.connect(
            check_dsn(dsn), timeout=_TIMEOUT, statement_cache_size=0
        )
    except ConfigError as error:
        raise fail(str(error), status=2) from None
    except TimeoutError:
        problem = f"no answer within {_TIMEOUT:.0f} seconds"
        raise fail(f"cannot reach the database: {problem}", status=2) from None
    except OSError as error:
        raise fail(f"cannot reach the database: {error}", status=2) from None
    except ValueError:
        # Its text can quote a piece of the address.
        raise fail(dsn_error("the driver refuses it"), status=2) from None
    except FAULTS as error:
        raise fail(f"cannot reach the database: {error}", status=2) from None
    try:
        yield connection
    finally:
        await connection.close()
