"""What every store on PostgreSQL has: connections, a channel, and how values are stored."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import asyncpg

from handstamp.core.models import Record
from handstamp.stores.base import Capabilities, Channel, Ended
from handstamp.stores.connection import CircuitBreaker, Database
from handstamp.stores.notify import PostgresChannel, Triggers
from handstamp.stores.shapes import PREFIX, AtRest

UNKNOWN_ADDRESS = "0.0.0.0"  # noqa: S104 - nothing is bound to it
"""What a NOT NULL address column holds for a client without an address."""
LONGEST_REASON = 100
LONGEST_HASH = 64
_UNSTORABLE = re.compile("[\\x00\\ud800-\\udfff]")


def record_of(row: asyncpg.Record, at_rest: AtRest, able: Capabilities) -> Record:
    """A row as a record. Its token is a digest there, whatever the column holds."""
    values = dict(row)
    token = str(values["token_digest"])
    if at_rest != "digest":
        is_plain = not token.startswith(PREFIX)
        token = digest_of(token) if is_plain else token.removeprefix(PREFIX)
    address = values["address"]
    if address is not None:
        address = str(address).partition("/")[0]
    values["token_digest"] = token
    values["address"] = None if address == UNKNOWN_ADDRESS else address
    return Record(**values, slides=able.sliding, undated=not able.absolute)


def ended_of(row: asyncpg.Record) -> Ended:
    """A row that names a session that ended."""
    return Ended(id=str(row["id"]), user_id=str(row["user_id"]))


def digest_of(token: str) -> str:
    """What is stored of a token, in hex."""
    return hashlib.sha256(token.encode()).hexdigest()


def storable(text: str) -> str:
    """``text`` without the characters that PostgreSQL stores in no text: NUL and
    surrogates."""
    return _UNSTORABLE.sub("?", text)


def bindable(value: object) -> object:
    """``value`` as a parameter, whatever text a client sent."""
    if isinstance(value, list):
        return [storable(item) for item in value]
    return storable(value) if isinstance(value, str) else value


def count_of(status: str) -> int:
    """The number of rows in a command tag, such as ``UPDATE 3``."""
    return int(status.rpartition(" ")[2])


class PostgresStore:
    """The part of a :class:`Store` that is the same for all tables.

    No connection is opened before it is needed. Raises :class:`ConfigError` if ``dsn`` is
    no PostgreSQL URI.
    """

    def __init__(
        self,
        dsn: str,
        triggers: Triggers,
        *,
        pool_size: int,
        budget: timedelta,
        connect: Mapping[str, Any] | None,
        listen_dsn: str | None,
    ) -> None:
        self._database = Database(dsn, pool_size=pool_size, budget=budget, connect=connect)
        self._listening = Database(
            listen_dsn or dsn, pool_size=1, budget=budget, connect=connect
        )
        self._channel = PostgresChannel(self._database, self._listening, triggers)

    @property
    def queries(self) -> int:
        """See :attr:`Store.queries`; without the heartbeat of the listener."""
        return self._database.queries

    @property
    def channel(self) -> Channel:
        """See :attr:`ListeningStore.channel`."""
        return self._channel

    @property
    def breaker(self) -> CircuitBreaker:
        """The circuit breaker of the connections."""
        return self._database.breaker

    async def close(self) -> None:
        """See :meth:`Store.close`; takes at most a second for each connection."""
        await self._listening.close()
        await self._database.close()

    def reset_after_fork(self) -> None:
        """See :meth:`Store.reset_after_fork`."""
        self._database.reset_after_fork()
        self._listening.reset_after_fork()

    async def ping(self) -> None:
        """See :meth:`Store.ping`."""
        await self._database.read("select 1")
