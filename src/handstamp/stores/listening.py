"""LISTEN and NOTIFY on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from handstamp.errors import SessionsUnavailable
from handstamp.stores.channel import CHANNEL, Link
from handstamp.stores.database import FAULTS, Database
from handstamp.stores.lanes import Connection

SPEAK = "select pg_notify($1, $2)"
QUEUE_USAGE = "select pg_notification_queue_usage()"
QUIETLY = "select set_config('handstamp.quietly', 'on', true)"
"""Within a transaction: whoever sets this says what is to be said, the trigger nothing."""
FULLEST = 0.5
"""How full the notification queue may be. In a full one a revocation is committed without
a word, so from here on silence proves nothing, well before it comes to that."""


class Watched(Protocol):
    """The tables whose writers must notify, and the question whether they do."""

    @property
    def tables(self) -> tuple[object, ...]:
        """The parameters of the question."""
        ...

    @property
    def triggers(self) -> str:
        """The question, as SQL."""
        ...


class PostgresChannel:
    """Speaks where the revocations are written, and listens where it is told to."""

    def __init__(self, speaking: Database, listening: Database, sql: Watched) -> None:
        self._speaking = speaking
        self._listening = listening
        self._sql = sql

    async def listen(self, heard: Callable[[str], None], lost: Callable[[], None]) -> Link:
        """See :meth:`Channel.listen`; a connection of its own, never lent to anyone."""
        try:
            connection = await self._listening.connect()
            try:
                connection.add_termination_listener(lambda _: lost())
                await connection.add_listener(CHANNEL, lambda *said: heard(str(said[3])))
                link = PostgresLink(connection, self._sql)
                await link.prove()
            except BaseException:
                connection.terminate()  # a standby refuses, a frozen server never answers
                raise
        except FAULTS as exc:
            raise SessionsUnavailable(type(exc).__name__) from exc
        return link

    async def speak(self, payload: str) -> None:
        """See :meth:`Channel.speak`."""
        async with self._speaking.working() as connection:
            await connection.execute(SPEAK, CHANNEL, payload)


class PostgresLink:
    """One listening connection."""

    def __init__(self, connection: Connection, sql: Watched) -> None:
        self._connection = connection
        self._sql = sql

    async def prove(self) -> None:
        """See :meth:`Link.prove`."""
        usage = await self._ask(QUEUE_USAGE)
        if not isinstance(usage, float) or usage >= FULLEST:
            raise SessionsUnavailable("the notification queue is full")

    async def covers_foreign_writers(self) -> bool:
        """See :meth:`Link.covers_foreign_writers`."""
        return bool(await self._ask(self._sql.triggers, *self._sql.tables))

    async def _ask(self, sql: str, *values: object) -> object:
        try:
            return await self._connection.fetchval(sql, *values)
        except FAULTS as exc:
            raise SessionsUnavailable(type(exc).__name__) from exc

    def drop(self) -> None:
        """See :meth:`Link.drop`."""
        self._connection.terminate()
