"""The table store and a server that takes its leave."""

from __future__ import annotations

import asyncpg
import pytest

from handstamp import TableStore

# What a server sends to whoever is connected when an administrator ends it.
FIELDS = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0"
FATAL = b"E" + (len(FIELDS) + 4).to_bytes(4, "big") + FIELDS


async def test_a_farewell_read_just_before_a_query_is_asked_again(dsn: str) -> None:
    """A FATAL that arrived while nothing was asked loses that connection, and no more.

    The driver then reports an error outside of its own hierarchy, for its connection is
    neither idle nor closed until the end of the stream has been read too.
    """
    store = TableStore(dsn, pool_size=1)
    try:
        await store.ping()
        (connection,) = store._database._reads._free
        connection._protocol.data_received(FATAL)
        with pytest.raises(asyncpg.InternalClientError):
            await connection.fetch("select 1")
        await store.ping()
        assert store._database._reads._free[0] is not connection
    finally:
        await store.close()
