"""Opening a session in Supabase Auth's own tables, as GoTrue does at a sign-in."""

from __future__ import annotations

from handstamp.core.clients import canonical_address
from handstamp.core.records import Client
from handstamp.errors import LoginRefused, SessionsUnavailable
from handstamp.stores.base import Ended
from handstamp.stores.lanes import Connection
from handstamp.stores.supabase.outcomes import CreatedAuthSession, NewAuthSession
from handstamp.stores.supabase.rows import (
    amr_of,
    ended_of,
    mint_uuid,
    session_of,
    storable,
    user_of,
    uuids_of,
)
from handstamp.stores.supabase.schema import HIDDEN
from handstamp.stores.supabase.tokens import mint_v1, new_key, write_v2
from handstamp.stores.supabase.work import Work


async def create(
    work: Work,
    connection: Connection,
    owner: str,
    client: Client,
    new: NewAuthSession,
    *,
    loud: bool,
) -> CreatedAuthSession:
    """Insert a session for the user with the uuid ``owner``, in the transaction that the
    connection is in, and say what ends with it if ``loud``.

    Raises :class:`LoginRefused`, in which case nothing was inserted.
    """
    ended = await _make_room(work, connection, new, loud)
    session_id = mint_uuid(work.entropy(16))
    v2 = work.sql.knows_v2 and work.rules.algorithm_version == 2
    sealed, token = _first_token(work, session_id, v2)
    work.database.queries += 1
    row = await connection.fetchrow(
        work.sql.create,
        session_id,
        owner,
        storable(client.user_agent),
        canonical_address(client.address),
        new.not_after,
        storable(new.tag),
        new.oauth_client_id,
        storable(new.scopes),
        sealed,
        0 if v2 else None,
        storable(new.method),
        None if v2 else token,
    )
    if row is None:
        raise await _refusal(work, connection, owner)
    session = session_of(row)
    assert session is not None  # noqa: S101 - it has just been inserted
    return CreatedAuthSession(
        session=session,
        user=user_of(row),
        amr=amr_of(row),
        refresh_token=token,
        v2=v2,
        ended=ended,
    )


async def _make_room(
    work: Work, connection: Connection, new: NewAuthSession, loud: bool
) -> tuple[Ended, ...]:
    if not new.replaces:
        return ()
    work.database.queries += 1
    ids = uuids_of(new.replaces)
    return ended_of(await connection.fetch(work.sql.revoke, loud, ids))


def _first_token(work: Work, session_id: str, v2: bool) -> tuple[str | None, str]:
    """The key to store, for v2, and the refresh token to hand out."""
    if not v2:
        return None, mint_v1(work.entropy(8))
    plain = new_key(work.entropy(32))
    sealed = work.keys.seal(plain, session_id, work.entropy(12))
    return sealed, write_v2(session_id, 0, work.keys.open(sealed, session_id))


async def _refusal(
    work: Work, connection: Connection, owner: str
) -> LoginRefused | SessionsUnavailable:
    work.database.queries += 1
    (row,) = await connection.fetch(work.sql.refusal, owner)
    if row["hidden"]:
        return SessionsUnavailable(HIDDEN)
    return LoginRefused("user_disabled" if row["found"] else "unknown_user")
