"""LISTEN and NOTIFY: how one process tells the others that a session has ended.

Everything about them on the side of the store is in this package:

- :mod:`handstamp.stores.notify.sql`: the payload, read and written, and the trigger.
- :mod:`handstamp.stores.notify.check`: is the trigger in a database ours and complete?
- here: the connection that LISTENs, and the transactions that NOTIFY.

The other side is :mod:`handstamp.engine.invalidation`, which decides what a notification
means for the cache and for open connections.

Rule 1. A revocation and its notification are one transaction.
Rule 2. A full notification queue fails the COMMIT, and the revocation with it (54000). So
the change is then made without a notification: ``max_staleness`` bounds the delay.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import asyncpg

from handstamp.errors import ConfigError, SessionsUnavailable
from handstamp.stores.base import ListenConnection
from handstamp.stores.connection import FAULTS, Connection, Database
from handstamp.stores.notify.check import check_triggers, read_version
from handstamp.stores.notify.sql import CHANNEL, SKIP_TRIGGER, NotifyTrigger, Probe

logger = logging.getLogger("handstamp")

QUEUE_USAGE = "select pg_notification_queue_usage()"
FULLEST = 0.5
"""How full the notification queue may be before silence proves nothing. A full queue (1.0)
makes revocations commit without a notification; this limit is well before that."""
PROBE_TIMEOUT = 2.0
"""Seconds to wait for a probe."""

Triggers = Callable[[], Awaitable[Sequence[NotifyTrigger]]]
"""Returns the triggers that the tables should have, once the tables were read."""
T = TypeVar("T")


async def send(connection: Connection, payload: str) -> None:
    """NOTIFY on a connection, at the end of its transaction."""
    await connection.execute("select pg_notify($1, $2)", CHANNEL, payload)


async def commit_with_notify(
    database: Database,
    connection: Connection,
    work: Callable[[Connection, bool], Awaitable[T]],
) -> T:
    """Make a change that notifies, also while the notification queue is full (rule 2).

    ``work`` gets the connection and whether it may notify. Asking for the usage of the
    queue frees what all listeners have read; if that does not help, ``work`` is called
    once more with False.
    """
    for _ in range(2):
        try:
            return await retry_if_row_moved(lambda: work(connection, True))
        except asyncpg.ProgramLimitExceededError:
            database.queries += 1
            await connection.execute(QUEUE_USAGE)
    async with connection.transaction():
        await connection.execute(SKIP_TRIGGER)
        return await work(connection, False)


async def retry_if_row_moved(work: Callable[[], Awaitable[T]]) -> T:
    """Repeat a change whose row was moved to another partition at the same moment."""
    for _ in range(3):
        with suppress(asyncpg.SerializationError):
            return await work()
    return await work()


async def delivers(sender: Connection, listener: Connection, nonce: str) -> bool:
    """Whether a probe that ``sender`` sends arrives at ``listener``.

    Behind a pooler in transaction mode LISTEN succeeds and nothing arrives.
    """
    probe, arrived = Probe(nonce), asyncio.Event()

    def receive(*notification: object) -> None:
        if notification[3] == probe.payload:
            arrived.set()

    await listener.add_listener(CHANNEL, receive)
    await send(sender, probe.payload)
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            await arrived.wait()
    except TimeoutError:
        return False
    return True


class PostgresChannel:
    """Sends on the connections that write, and listens on one of its own."""

    def __init__(self, writing: Database, listening: Database, triggers: Triggers) -> None:
        self._writing = writing
        self._listening = listening
        self._triggers = triggers

    async def listen(
        self, receive: Callable[[str], None], lost: Callable[[], None]
    ) -> ListenConnection:
        """See :meth:`Channel.listen`; the connection is used for nothing else."""
        try:
            connection = await self._listening.connect()
            try:
                connection.add_termination_listener(lambda _: lost())
                await connection.add_listener(
                    CHANNEL, lambda *notification: receive(str(notification[3]))
                )
                listening = PostgresListenConnection(connection, self._triggers)
                await listening.prove()
            except BaseException:
                connection.terminate()  # a standby refuses, a frozen server never answers
                raise
        except FAULTS as exc:
            raise SessionsUnavailable(type(exc).__name__) from exc
        return listening

    async def notify(self, payload: str) -> None:
        """See :meth:`Channel.notify`."""
        async with self._writing.acquire_write() as connection:
            await send(connection, payload)


class PostgresListenConnection:
    """One connection that LISTENs."""

    def __init__(self, connection: Connection, triggers: Triggers) -> None:
        self._connection = connection
        self._triggers = triggers
        self._version: str | None = None
        self._complete = False

    async def prove(self) -> None:
        """See :meth:`ListenConnection.prove`."""
        try:
            usage = await self._connection.fetchval(QUEUE_USAGE)
        except FAULTS as exc:
            raise SessionsUnavailable(type(exc).__name__) from exc
        if not isinstance(usage, float) or usage >= FULLEST:
            raise SessionsUnavailable("the notification queue is full")

    async def all_writers_notify(self) -> bool:
        """See :meth:`ListenConnection.all_writers_notify`.

        False once after any change of the triggers, even if they are complete now: what
        was written while they were different notified nobody.
        """
        try:
            triggers = await self._triggers()
        except ConfigError:
            return False  # the first use of the table raises it
        try:
            version = await read_version(self._connection, triggers)
            if version == self._version:
                return self._complete
            known, self._version = self._version, version
            checked = await check_triggers(self._connection, triggers)
        except FAULTS as exc:
            raise SessionsUnavailable(type(exc).__name__) from exc
        self._complete = bool(triggers) and checked.complete
        if not self._complete and not checked.absent:
            logger.warning(
                "the trigger is not complete, so what other writers end is noticed within "
                "max_staleness: %s; handstamp doctor prints the SQL that mends it",
                "; ".join(checked.lacks),
                extra={"action": "trigger_incomplete"},
            )
        return self._complete and known is None

    def drop(self) -> None:
        """See :meth:`ListenConnection.drop`."""
        self._connection.terminate()
