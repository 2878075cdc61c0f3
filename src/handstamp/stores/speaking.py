"""Saying what has ended in the very transaction that ends it, whatever the queue says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import asyncpg

from handstamp.stores.database import Database
from handstamp.stores.lanes import Connection
from handstamp.stores.listening import QUEUE_USAGE
from handstamp.stores.notify_trigger import QUIETLY

T = TypeVar("T")


async def said(
    database: Database,
    connection: Connection,
    act: Callable[[Connection, bool], Awaitable[T]],
) -> T:
    """Do something that notifies, also while the notification queue is full.

    A full queue fails the COMMIT (54000), and the revocation with it. Asking for its usage
    frees what nobody needs any more; if that does not help, ``act`` is called with False
    and the change is made without a word: ``max_staleness`` does the rest.
    """
    for _ in range(2):
        try:
            return await moved(lambda: act(connection, True))
        except asyncpg.ProgramLimitExceededError:
            database.queries += 1
            await connection.execute(QUEUE_USAGE)
    async with connection.transaction():
        await connection.execute(QUIETLY)
        return await act(connection, False)


async def moved(act: Callable[[], Awaitable[T]]) -> T:
    """Do something again whose row moved to another partition meanwhile: it is there."""
    for _ in range(3):
        with suppress(asyncpg.SerializationError):
            return await act()
    return await act()
