"""Reach the database for one command, or say in one line why that failed."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg
import typer

from handstamp.errors import ConfigError
from handstamp.stores.connection import FAULTS, checked_dsn, unreadable

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

_PATIENCE = 10.0  # seconds


def complain(text: str, *, status: int) -> typer.Exit:
    """Write one line to stderr; gives the exception that ends the command."""
    typer.echo(f"handstamp: {' '.join(text.split())}", err=True)
    return typer.Exit(status)


def reason(error: BaseException) -> str:
    """Why the database refused, in words that hold no data of a row.

    The driver's own text may quote what a row holds; only where it cannot, it is used.
    """
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return str(error).partition("\n")[0]
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()
    return words.removesuffix(" error")


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[Connection]:
    """Connect for the time of a ``with`` block.

    Raises `typer.Exit` with status 2, after a line on stderr that never holds the
    password, when the database cannot be reached within ten seconds.
    """
    connection = await _connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def _connect(dsn: str) -> Connection:
    try:
        # Without the cache of statements it works through PgBouncer, too.
        return await asyncpg.connect(
            checked_dsn(dsn), timeout=_PATIENCE, statement_cache_size=0
        )
    except ConfigError as error:
        raise complain(str(error), status=2) from None
    except TimeoutError:
        problem = f"no answer within {_PATIENCE:.0f} seconds"
        raise complain(f"cannot reach the database: {problem}", status=2) from None
    except OSError as error:
        raise complain(f"cannot reach the database: {error}", status=2) from None
    except ValueError:
        # Its text may quote a piece of the address.
        raise complain(unreadable("the driver refuses it"), status=2) from None
    except FAULTS as error:
        raise complain(f"cannot reach the database: {error}", status=2) from None
