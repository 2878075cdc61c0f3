"""A claim in the tokens of sessions in a real table, which has no column for it."""

from __future__ import annotations

from functools import partial

import asyncpg
import pytest

from handstamp import UUID_PLAIN, Sessions, TableShape
from handstamp.core.cookies import Credentials
from handstamp.core.models import Authenticated, Client, Issued
from handstamp.stores.shapes import ULID_HASHED
from tests.support.tables import ULID_TABLE

SECRET = "a secret for tests of thirty-two bytes or more"
USER = "7f1e0b0a-8d2c-4c39-9d0e-0c1a2b3c4d5e"


def presented(issued: Issued) -> Credentials:
    """What its browser sends."""
    refresh = [issued.refresh_token.encode()] if issued.refresh_token else []
    return Credentials(session=(issued.session_token.encode(),), refresh=tuple(refresh))


async def claim_of(sessions: Sessions, issued: Issued) -> str | None:
    """The claim of whoever presents these tokens; None for nobody."""
    answer = await sessions.authenticate(presented(issued), Client())
    return answer.session.claim if isinstance(answer, Authenticated) else None


@pytest.fixture(params=[ULID_HASHED, UUID_PLAIN], ids=["ulid", "uuid"])
def table(request: pytest.FixtureRequest) -> tuple[TableShape, str]:
    """Each documented table, in a database of its own."""
    name = "dsn" if request.param is ULID_HASHED else "uuid_dsn"
    return request.param, request.getfixturevalue(name)


async def test_a_claim_is_kept_and_replaced(table: tuple[TableShape, str]) -> None:
    """Found in the table and in the cache, also by another process; the old tokens of a
    session that got new ones open nothing, and the session is the same."""
    shape, dsn = table
    psql = await asyncpg.connect(dsn)
    is_ulid = shape is ULID_HASHED
    user = str(await psql.fetchval(ULID_TABLE.new_user, "alice")) if is_ulid else USER
    process = partial(Sessions, dsn, secret=SECRET, shape=shape)
    async with process() as one, process() as two:
        issued = await one.create(user, remember=True, claim="first")
        for sessions in (one, two, one, two):
            assert await claim_of(sessions, issued) == "first"
        refresh = presented(issued).refresh
        answer = await one.renew(issued.session.id, claim="second", refresh=refresh)
        assert answer is not None
        assert answer.issued is not None
        async with process() as three:
            for sessions in (one, three):
                assert await claim_of(sessions, issued) is None
                assert await claim_of(sessions, answer.issued) == "second"
        assert answer.session.id == issued.session.id
        assert answer.session.created_at == issued.session.created_at
    await psql.close()
