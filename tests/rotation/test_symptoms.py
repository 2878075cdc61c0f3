"""Defects that the state machine has found, each named after its symptom."""

from __future__ import annotations

from handstamp.config import Policy
from handstamp.core.models import NewSession
from handstamp.stores.table import TableStore
from tests.rotation.worlds import PostgresBase, client, sha256


async def test_a_short_fingerprint_comes_back_as_it_was_given(dsn: str) -> None:
    """The column is a character(64), and its padding stays in the table."""
    postgres = PostgresBase(dsn)
    await postgres.open()
    try:
        assert await _fingerprint_read_back(postgres.store) == "device 1"
    finally:
        await postgres.close()


async def _fingerprint_read_back(store: TableStore) -> str | None:
    policy = Policy()
    new = NewSession(
        id="01JGQ000000000000000000001",
        user_id="01JGQ0000000000000000ALICE",
        token_digest=sha256("session"),
        refresh_digest=sha256("refresh"),
        client=client(1),
        session_ttl=policy.session_ttl,
        refresh_ttl=policy.refresh_ttl,
        longest=policy.absolute_ttl,
    )
    await store.create(new, policy)
    record = await store.find_by_id(new.id)
    return None if record is None else record.client.fingerprint
