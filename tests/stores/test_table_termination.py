"""The table store and a server that takes its leave."""

from __future__ import annotations

import pytest

from handstamp import SessionsUnavailable, TableStore

# What a server sends to whoever is connected when an administrator ends it.
FIELDS = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0"
FATAL = b"E" + (len(FIELDS) + 4).to_bytes(4, "big") + FIELDS


async def test_a_farewell_read_just_before_a_query_is_no_answer(dsn: str) -> None:
    """A FATAL that arrived while nothing was asked makes the next query unavailable.

    The driver then reports an error outside of its own hierarchy, for its connection is
    neither idle nor closed until the end of the stream has been read too.
    """
    store = TableStore(dsn, pool_size=1)
    try:
        await store.ping()
        async with store._pool.acquire() as connection:
            connection._con._protocol.data_received(FATAL)
        with pytest.raises(SessionsUnavailable, match="InternalClientError"):
            await store.ping()
    finally:
        await store.close()
