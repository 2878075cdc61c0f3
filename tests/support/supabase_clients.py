"""Users, engines and cookies for test clients of applications on Supabase's sessions."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg

from handstamp.supabase import SupabaseSessions
from handstamp.supabase.cookies import SupabaseCookie, decode_session
from handstamp.supabase.rules import SupabaseRules
from handstamp.testing import add_user
from handstamp.testing.cookies import jar_of
from tests.support.supabase_site import JWT_SECRET, NAME, URL

SHORT = timedelta(seconds=60)
"""Every request replaces an access token with this lifetime."""
READABLE = SupabaseCookie(name=NAME, http_only=False)
"""A cookie that includes the user, whose metadata makes it large."""


def fetch(dsn: str, sql: str, *values: object) -> Any:
    """The single value that a statement returns."""

    async def ask() -> Any:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval(sql, *values)
        finally:
            await connection.close()

    return asyncio.run(ask())


def add(dsn: str, email: str, size: int = 0) -> str:
    """Add a user with ``size`` bytes of metadata. Returns the id."""
    user = add_user(dsn, email, shape="supabase")
    if not size:
        return user
    sql = """update auth.users set raw_user_meta_data =
        jsonb_build_object('x', repeat('y', $2)) where id = $1"""
    fetch(dsn, sql, UUID(user), size)
    return user


def sessions_on(dsn: str, version: Any = 2, **options: Any) -> SupabaseSessions:
    """An engine whose access tokens every request replaces."""
    rules = SupabaseRules(access_token_ttl=SHORT, algorithm_version=version)
    options = {"jwt_secret": JWT_SECRET, "rules": rules, **options}
    return SupabaseSessions(dsn, **({} if "cookie" in options else {"url": URL}), **options)


def held(client: object) -> dict[str, str]:
    """The cookies that a client would send."""
    return dict(jar_of(client).held())


def in_jar(client: object) -> str:
    """The refresh token in a client's cookie, which must be in one piece."""
    claim = decode_session(held(client)[NAME])
    assert claim is not None
    return claim.refresh_token


def pieces(number: int) -> set[str]:
    return {f"{NAME}.{n}" for n in range(number)}
