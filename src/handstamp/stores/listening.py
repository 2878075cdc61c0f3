"""LISTEN and NOTIFY on PostgreSQL."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

from handstamp.errors import ConfigError, SessionsUnavailable
from handstamp.stores.channel import CHANNEL, Link
from handstamp.stores.database import FAULTS, Database
from handstamp.stores.lanes import Connection
from handstamp.stores.notify_check import check_triggers, read_version
from handstamp.stores.notify_trigger import NotifyTrigger

logger = logging.getLogger("handstamp")

SPEAK = "select pg_notify($1, $2)"
QUEUE_USAGE = "select pg_notification_queue_usage()"
FULLEST = 0.5
"""How full the notification queue may be. In a full one a revocation is committed without
a word, so from here on silence proves nothing, well before it comes to that."""


Triggers = Callable[[], Awaitable[Sequence[NotifyTrigger]]]
"""The triggers by which every writer is heard, once the tables were looked at."""


class PostgresChannel:
    """Speaks where the revocations are written, and listens where it is told to."""

    def __init__(self, speaking: Database, listening: Database, triggers: Triggers) -> None:
        self._speaking = speaking
        self._listening = listening
        self._triggers = triggers

    async def listen(self, heard: Callable[[str], None], lost: Callable[[], None]) -> Link:
        """See :meth:`Channel.listen`; a connection of its own, never lent to anyone."""
        try:
            connection = await self._listening.connect()
            try:
                connection.add_termination_listener(lambda _: lost())
                await connection.add_listener(CHANNEL, lambda *said: heard(str(said[3])))
                link = PostgresLink(connection, self._triggers)
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

    def __init__(self, connection: Connection, triggers: Triggers) -> None:
        self._connection = connection
        self._triggers = triggers
        self._version: str | None = None
        self._complete = False

    async def prove(self) -> None:
        """See :meth:`Link.prove`."""
        try:
            usage = await self._connection.fetchval(QUEUE_USAGE)
        except FAULTS as exc:
            raise SessionsUnavailable(type(exc).__name__) from exc
        if not isinstance(usage, float) or usage >= FULLEST:
            raise SessionsUnavailable("the notification queue is full")

    async def covers_foreign_writers(self) -> bool:
        """See :meth:`Link.covers_foreign_writers`.

        Once False after any change of the triggers, whatever they are now: nobody says
        what was written while they were different.
        """
        try:
            triggers = await self._triggers()
        except ConfigError:
            return False  # whoever uses the table is told
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
        """See :meth:`Link.drop`."""
        self._connection.terminate()
