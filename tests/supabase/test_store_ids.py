"""Supabase's ids are uuids: one id in every spelling, and ended where that is said."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable

import pytest

from handstamp.errors import ConfigError
from tests.support.supabase import Supabase, supabase

SPELLINGS = {
    "as it is": str,
    "capitals": str.upper,
    "without hyphens": lambda text: uuid.UUID(text).hex,
}


@pytest.fixture
async def auth(supabase_dsn: str) -> AsyncIterator[Supabase]:
    """Supabase's tables, empty."""
    async with supabase(supabase_dsn) as auth:
        yield auth


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=list(SPELLINGS))
async def test_a_session_ends_by_its_id_in_every_spelling(
    auth: Supabase, spelling: Callable[[str], str]
) -> None:
    """And by its user's; what is no uuid is no session."""
    made = await auth.login()
    user = made.session.user_id
    kept = await auth.login(user)
    revoke, named = auth.store.revoke, spelling(made.session.id)
    assert await revoke("{" + made.session.id + "}", reason="tested") is None
    assert await revoke(named, reason="tested", user_id=spelling(kept.session.id)) is None
    ended = await revoke(named, reason="tested", user_id=spelling(user))
    assert ended is not None
    assert ended.id == made.session.id
    keep = spelling(kept.session.id)
    assert not await auth.store.revoke_user(spelling(user), reason="tested", keep=keep)
    assert len(await auth.store.revoke_user(spelling(user), reason="tested")) == 1


async def test_a_session_that_the_database_keeps_has_not_ended(auth: Supabase) -> None:
    """A trigger of the application stops the deletion: that is no success."""
    made = await auth.login()
    await auth.psql.execute(
        "create function public.keep() returns trigger language plpgsql"
        " as 'begin return null; end';"
        " create trigger keep before delete on auth.sessions"
        " for each row execute function public.keep()"
    )
    with pytest.raises(ConfigError, match="still live after it was ended"):
        await auth.store.revoke(made.session.id, reason="tested")
    with pytest.raises(ConfigError, match="still live after it was ended"):
        await auth.store.revoke_user(made.session.user_id, reason="tested")
    assert await auth.store.find_by_id(made.session.id) is not None
