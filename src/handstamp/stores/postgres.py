"""What every store on PostgreSQL has: its connections, and the channel over them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from handstamp.stores.base import Channel
from handstamp.stores.connection import CircuitBreaker, Database
from handstamp.stores.notify import PostgresChannel, Triggers


class PostgresStore:
    """The part of a :class:`Store` that is the same whatever the tables look like.

    Opens no connection before it needs one. Raises :class:`ConfigError` for what is no
    PostgreSQL URI.
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
        self._database = Database(dsn, width=pool_size, budget=budget, connect=connect)
        self._listening = Database(
            listen_dsn or dsn, width=1, budget=budget, connect=connect
        )
        self._channel = PostgresChannel(self._database, self._listening, triggers)

    @property
    def queries(self) -> int:
        """Statements sent so far, without the bus's heartbeat."""
        return self._database.queries

    @property
    def channel(self) -> Channel:
        """See :attr:`ListeningStore.channel`."""
        return self._channel

    @property
    def breaker(self) -> CircuitBreaker:
        """What stands between requests and a database that does not answer."""
        return self._database.breaker

    async def close(self) -> None:
        """Let go of every connection, after at most a second."""
        await self._listening.close()
        await self._database.close()

    def reset_after_fork(self) -> None:
        """See :meth:`Store.reset_after_fork`."""
        self._database.reset_after_fork()
        self._listening.reset_after_fork()

    async def ping(self) -> None:
        """See :meth:`Store.ping`."""
        await self._database.look_up("select 1")
