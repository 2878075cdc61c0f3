"""LISTEN and NOTIFY: how one process tells the others what is over.

A payload is a kind and an id, far below PostgreSQL's limit of 8000 bytes, and nothing
else: whoever listens learns ids and no secret. Anybody who may connect to the database
may send one, so a notice proves nothing: it says what to read again.

=========== ===============================================
``s:<id>``  the session with this id is over
``d:<id>``  it is not over, and what is known of it changed
``u:<id>``  sessions of the user with this id are over
``all``     anything may be over
``c:<text>`` a canary: nothing is over
=========== ===============================================

LISTEN and NOTIFY on PostgreSQL.

Saying what has ended in the very transaction that ends it, whatever the queue says.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import asyncpg

from handstamp.core.tokens import LONGEST_ID
from handstamp.errors import ConfigError, SessionsUnavailable
from handstamp.stores.base import CHANNEL, ListenConnection, Notification
from handstamp.stores.connection import FAULTS, Connection, Database
from handstamp.stores.notify_check import check_triggers, read_version
from handstamp.stores.notify_trigger import QUIETLY, NotifyTrigger


@dataclass(frozen=True, slots=True)
class Canary:
    """A payload that is said to see whether it is heard."""

    nonce: str

    @property
    def payload(self) -> str:
        """The text to say."""
        return f"c:{self.nonce}"


EVERYTHING = Notification()
UNKNOWN = Notification(understood=False)


def read_payload(payload: str) -> Notification | Canary:
    """What a payload says.

    Anything malformed is "everything": to read too much again is the harmless mistake, and
    a newer version may have a word that this one does not know. What is kept of a notice
    is bounded, as ids are.
    """
    kind, _, value = payload.partition(":")
    if kind == "c":
        return Canary(value)
    if 0 < len(value) <= LONGEST_ID:
        if kind in ("s", "d"):
            return Notification(session_id=value)
        if kind == "u":
            return Notification(user_id=value)
    return EVERYTHING if payload == "all" else UNKNOWN


logger = logging.getLogger("handstamp")

NOTIFY = "select pg_notify($1, $2)"
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

    async def listen(
        self, heard: Callable[[str], None], lost: Callable[[], None]
    ) -> ListenConnection:
        """See :meth:`Channel.listen`; a connection of its own, never lent to anyone."""
        try:
            connection = await self._listening.connect()
            try:
                connection.add_termination_listener(lambda _: lost())
                await connection.add_listener(
                    CHANNEL, lambda *commit_with_notify: heard(str(commit_with_notify[3]))
                )
                link = PostgresListenConnection(connection, self._triggers)
                await link.prove()
            except BaseException:
                connection.terminate()  # a standby refuses, a frozen server never answers
                raise
        except FAULTS as exc:
            raise SessionsUnavailable(type(exc).__name__) from exc
        return link

    async def notify(self, payload: str) -> None:
        """See :meth:`Channel.speak`."""
        async with self._speaking.working() as connection:
            await connection.execute(NOTIFY, CHANNEL, payload)


class PostgresListenConnection:
    """One listening connection."""

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

    async def covers_foreign_writers(self) -> bool:
        """See :meth:`ListenConnection.covers_foreign_writers`.

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
        """See :meth:`ListenConnection.drop`."""
        self._connection.terminate()


T = TypeVar("T")


async def commit_with_notify(
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
            return await retry_if_row_moved(lambda: act(connection, True))
        except asyncpg.ProgramLimitExceededError:
            database.queries += 1
            await connection.execute(QUEUE_USAGE)
    async with connection.transaction():
        await connection.execute(QUIETLY)
        return await act(connection, False)


async def retry_if_row_moved(act: Callable[[], Awaitable[T]]) -> T:
    """Do something again whose row moved to another partition meanwhile: it is there."""
    for _ in range(3):
        with suppress(asyncpg.SerializationError):
            return await act()
    return await act()
