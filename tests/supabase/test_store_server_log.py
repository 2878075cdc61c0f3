"""What the database's own log holds of Supabase's sessions."""

from __future__ import annotations

import asyncio
import os

import asyncpg

from handstamp.core.models import Client
from handstamp.errors import SessionsUnavailable
from handstamp.supabase.rows import Refreshed
from handstamp.supabase.rules import SupabaseRules
from handstamp.supabase.store import SupabaseStore
from handstamp.supabase.tokens import KeyRing
from handstamp.testing.postgres import ephemeral
from tests.support.supabase import LAPTOP, ZERO, make_tables

LOUD = {
    "log_statement": "all",
    "log_min_duration_statement": "0",
    "log_parameter_max_length": "-1",
}
USER = "123e4567-e89b-42d3-a456-426614174000"
RING = KeyRing("a", {"a": bytes(range(32))}, encrypt=True)


async def life(dsn: str, version: int, keys: KeyRing) -> list[str]:
    """Sign in, refresh, fail, end; every secret there was."""
    await make_tables(dsn)
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        "insert into auth.users (instance_id, id, email) values ($1, $2, 'a@b.example')",
        ZERO,
        USER,
    )
    rules = SupabaseRules(algorithm_version=version)  # type: ignore[arg-type]
    store = SupabaseStore(dsn, rules=rules, keys=keys, entropy=os.urandom)
    try:
        created = await store.sign_in(USER, LAPTOP)
        done = await store.refresh(created.refresh_token, LAPTOP)
        assert isinstance(done, Refreshed)
        stored = await connection.fetchval(
            "select refresh_token_hmac_key from auth.sessions"
        )
        plain = [] if stored is None else [_plain(keys, stored, created.session.id)]
        await connection.execute(
            "alter table auth.sessions add check (user_agent <> 'bad')"
        )
        try:
            await store.sign_in(USER, Client(user_agent="bad"))
        except SessionsUnavailable:
            pass
        else:
            raise AssertionError("the table took what it must refuse")
        await store.revoke(created.session.id, reason="x")
    finally:
        await store.close()
        await connection.close()
    return [created.refresh_token, done.refresh_token, *plain]


def _plain(keys: KeyRing, stored: str, session_id: str) -> str:
    from base64 import urlsafe_b64encode

    return urlsafe_b64encode(keys.open(stored, session_id)).rstrip(b"=").decode()


def test_c47_the_servers_log_holds_no_v2_token_and_no_key() -> None:
    """Also when it logs every statement with its parameters, if keys are sealed."""
    with ephemeral(settings=LOUD) as server:
        secrets = asyncio.run(life(server.dsn(), 2, RING))
        log = (server.data_dir / "server.log").read_text()
    assert USER in log  # it does log parameters
    assert len(secrets) == 3
    assert [secret for secret in secrets if secret in log] == []


def test_c47_an_ordinary_log_holds_no_v1_token() -> None:
    """They are plaintext in the table, but no error and no slow statement quotes one."""
    with ephemeral() as server:
        secrets = asyncio.run(life(server.dsn(), 0, KeyRing()))
        log = (server.data_dir / "server.log").read_text()
    assert "violates check constraint" in log
    assert len(secrets) == 2
    assert [secret for secret in secrets if secret in log] == []
