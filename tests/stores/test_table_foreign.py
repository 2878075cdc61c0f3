"""Six tables that were not made for handstamp: what each can do, and what stays unchanged.

The contract suite runs on all of them; here is what is beside it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from hashlib import sha256

import asyncpg
import pytest

from handstamp import Client, Policy, Sessions
from handstamp.core.cookies import Credentials
from handstamp.core.models import Authenticated, Record, Touch
from handstamp.errors import LoginRefused
from handstamp.stores.base import Capabilities, recording
from handstamp.stores.plaintext import MAX_UPGRADES
from tests.support.foreign_tables import FOREIGN
from tests.support.tables import (
    DAY,
    DEFINITIONS,
    POLICY,
    SECOND,
    PostgresTable,
    fresh_session,
    has,
    postgres_table,
    step_up,
    successor,
)
from tests.support.waiting import until

SECRET = "the secret of the tests of foreign tables: 32 bytes"
CLIENT = Client(address="192.0.2.7", user_agent="a browser " * 50)
NAMES = [*FOREIGN, "uuid"]
PLAIN = [name for name in NAMES if has(name, "plain")]

ABLE = {
    "django": Capabilities(
        refresh=False, sliding=True, password_change=False, fingerprint=False
    ),
    "rails": Capabilities(
        refresh=False, sliding=True, user_status=False, fingerprint=False
    ),
    "lucia": Capabilities(
        refresh=False,
        activity=False,
        absolute=False,
        user_status=False,
        password_change=False,
        fingerprint=False,
    ),
    "better_auth": Capabilities(
        refresh=False,
        sliding=True,
        user_status=False,
        password_change=False,
        fingerprint=False,
        plain=True,
    ),
    "integers": Capabilities(password_change=False, fingerprint=False),
    "partitioned": Capabilities(
        refresh=False,
        sliding=True,
        user_status=False,
        password_change=False,
        fingerprint=False,
        plain=True,
    ),
    "uuid": Capabilities(
        refresh=False,
        sliding=True,
        user_status=False,
        password_change=False,
        level=True,
        plain=True,
    ),
}
COLUMNS = """
    select c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod),
        a.attnotnull, pg_get_expr(d.adbin, d.adrelid)
    from pg_class c join pg_attribute a on a.attrelid = c.oid
    left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
    where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'i', 'I', 'S')
    order by 1, 2"""
OTHERS = {
    "django": {},
    "rails": {
        "browser_id": "'kept'",
        "data": "'kept'",
        "login_at": "'2001-01-01'",
        "last_activity_ip": "'192.0.2.99'",
        "requests": "41",
        "updated_at": "'2001-01-01'",
    },
    "lucia": {},
    "better_auth": {},
    "integers": {"note": "'kept'"},
    "partitioned": {"device": "'{\"kept\": 1}'"},
    "uuid": {},
}
"""Columns that no field of the shape names, and what the application keeps there."""


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """Each foreign table, and the one with UUIDs."""
    return str(request.param)


@pytest.fixture
async def table(
    name: str, foreign_dsn: Callable[[str], str]
) -> AsyncIterator[PostgresTable]:
    """An empty table of that definition; its sessions are in Tokyo."""
    async with postgres_table(
        await asyncio.to_thread(foreign_dsn, name),
        definition=DEFINITIONS[name],
        pool_size=20,
        time_zone="Asia/Tokyo",
    ) as table:
        await table.store.ready()
        yield table


async def created(table: PostgresTable, user: str, **changes: object) -> Record:
    """A session as the engine makes one."""
    new = await fresh_session(table, user, **changes)
    return (await table.store.create(new, POLICY)).record


async def planted(table: PostgresTable, user: str) -> tuple[Record, str]:
    """A session from before, whose row holds the token itself; and the token."""
    record, token = await created(table, user), secrets.token_urlsafe(24)
    await table.plant(record.id, token)
    return record, token


def digest_of(token: str) -> str:
    """What a row holds instead of the token."""
    return sha256(token.encode()).hexdigest()


def presented(token: str) -> Credentials:
    """A request with this session cookie."""
    return Credentials(session=(token.encode(),), sent=True, ambient=True)


async def whole_life(table: PostgresTable, user: str) -> Record:
    """Every write a store has, to some effect; the session that is left."""
    store = table.store
    first, second = await created(table, user), await created(table, user)
    await table.advance(DAY)
    token = first.token_digest
    if store.capabilities.refresh:
        rotated = await store.rotate(successor(first.id, first.refresh_digest))
        assert rotated is not None
        await store.redate(successor(first.id, rotated.refresh_digest))
        token = rotated.token_digest
    touch = Touch(session_id=first.id, token_digest=token, at=table.now)
    if await recording(store) is not None:
        await store.touch([touch], POLICY)
    if store.capabilities.level:
        assert await store.replace_tokens(step_up(first.id, 1)) is not None
    assert await store.revoke(second.id, reason="logout") is not None
    third = await created(table, user, limit=5)
    assert len(await store.revoke_user(user, reason="all", keep=first.id)) == 1
    assert third.id != first.id
    (left,) = await store.list_for_user(user)
    return left


# What each can do.


async def test_the_capabilities_of_each_table(table: PostgresTable, name: str) -> None:
    """So no rule of the contract is skipped that the table could have kept."""
    assert await table.store.ready() == ABLE[name]
    assert (await table.store.statements()).resolved.missing == ()


# P14: the table stays theirs.


async def test_p14_no_column_is_added_and_none_is_changed(table: PostgresTable) -> None:
    """The catalog is the same after every statement there is was sent."""
    before = await table.frozen.connection.fetch(COLUMNS)
    await whole_life(table, await table.add_user())
    await table.advance(365 * DAY)
    await table.store.prune(POLICY, batch=100)
    assert await table.frozen.connection.fetch(COLUMNS) == before


async def test_p14_nothing_but_the_named_columns_is_written(
    table: PostgresTable, name: str
) -> None:
    """What the application keeps in columns of its own is as it was."""
    connection, others = table.frozen.connection, OTHERS[name]
    shape, users = table.shape, table.shape.users
    if others:
        sets = ", ".join(f"{column} = {value}" for column, value in others.items())
        await connection.execute(
            f"create function keep() returns trigger language plpgsql as $$ begin"
            f" {'; '.join(f'new.{c} = {v}' for c, v in others.items())};"
            f" return new; end $$;"
            f' create trigger keep before insert on "{shape.table}"'
            " for each row execute function keep()"
        )
        assert sets
    user = await table.add_user()
    people = f'select * from "{users.table}"' if users else "select 1"
    before = await connection.fetch(people)
    await whole_life(table, user)
    for column, value in others.items():
        differing = await connection.fetchval(
            f'select count(*) from "{shape.table}" where {column} is distinct from {value}'
        )
        assert differing == 0
    assert await connection.fetch(people) == before


async def test_p14_every_column_of_a_row_is_named_or_kept(
    table: PostgresTable, name: str
) -> None:
    """The list of what is not ours, above, is whole."""
    columns = (await table.store.statements()).resolved.columns.values()
    ours = {spelling.name.strip('"') for spelling in columns}
    rows = await table.frozen.connection.fetch(
        "select attname::text from pg_attribute where attrelid = to_regclass($1)"
        " and attnum > 0",
        f'"{table.shape.table}"',
    )
    assert {row[0] for row in rows} - ours == set(OTHERS[name])


# Ids.


@pytest.mark.parametrize(
    "alien",
    [
        "01J00000000000000000000000",
        "6f50943b-461f-4c2e-8a57-f606eedfa45d",
        "6f50943b461f4c2e8a57f606eedfa45d",
        "{6f50943b-461f-4c2e-8a57-f606eedfa45d}",
        "7",
        "2147483648",
        "9223372036854775808",
        "-9223372036854775809",
        "٧",
        " 7",
        "7e0",
        "0x7",
        "1_0",
        "NaN",
        "null",
    ],
)
async def test_an_id_of_another_form_is_not_there(table: PostgresTable, alien: str) -> None:
    """Whatever form ids have elsewhere: no method takes it for an error."""
    store, user = table.store, await table.add_user()
    assert await store.find_by_id(alien) is None
    assert await store.revoke(alien, reason="x") is None
    assert await store.revoke(alien, reason="x", user_id=user) is None
    assert list(await store.revoke_user(alien, reason="x")) == []
    assert list(await store.list_for_user(alien)) == []
    assert await store.replace_tokens(step_up(alien, None)) is None
    new = await fresh_session(table, user, replaces=(alien,))
    assert (await store.create(new, POLICY)).ended == ()


async def test_a_login_without_a_user_is_refused(table: PostgresTable, name: str) -> None:
    """A user who is not there, or whose id has another form, is refused as unknown."""
    aliens = ["x" * 3, "987654321"] if name not in ("uuid", "partitioned") else ["x"]
    for alien in aliens:
        with pytest.raises(LoginRefused) as refusal:
            await created(table, alien)
        assert refusal.value.reason == "unknown_user"
    assert await table.count() == 0


# Logins.


@pytest.mark.parametrize("evict", [True, False], ids=["evict", "refuse"])
async def test_fifty_logins_at_once_keep_to_the_limit(
    table: PostgresTable, evict: bool
) -> None:
    """Whatever ids and endings a table has."""
    user = await table.add_user()
    news = [await fresh_session(table, user, limit=3, evict=evict) for _ in range(50)]
    answers = await asyncio.gather(
        *(table.store.create(new, POLICY) for new in news), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, LoginRefused)]
    faults = [a for a in answers if isinstance(a, Exception) and a not in refused]
    assert faults == []
    assert len(refused) == (0 if evict else 47)
    assert len(await table.store.list_for_user(user)) == 3


@pytest.mark.parametrize("name", ["django", "rails", "integers"], indirect=True)
async def test_two_forms_of_a_user_id_are_one_user(table: PostgresTable) -> None:
    """A login of "07" waits for one of "7", and both count."""
    user = await table.add_user()
    await created(table, user)
    sql, connection = await table.store.statements(), table.frozen.connection
    new = await fresh_session(table, f"0{user}", limit=1)
    async with connection.transaction():
        await connection.execute(sql.lock_user, f"{table.shape.table}:", user)
        waiting = asyncio.create_task(table.store.create(new, POLICY))
        await _waited_for(table)
    assert len((await waiting).ended) == 1


# Through the engine.


async def test_a_session_from_login_to_logout(
    name: str, foreign_dsn: Callable[[str], str]
) -> None:
    """Signed in, known, seen in the list, signed out, unknown: in another process too."""
    dsn = await asyncio.to_thread(foreign_dsn, name)
    definition = DEFINITIONS[name]
    async with (
        postgres_table(dsn, definition=definition) as table,
        Sessions(dsn, secret=SECRET, shape=definition.shape) as sessions,
        Sessions(dsn, secret=SECRET, shape=definition.shape) as other,
    ):
        user = await table.add_user()
        await until(lambda: other.stats().listener == "listening")
        issued = await sessions.create(user, client=CLIENT, remember=True)
        stored = await table.frozen.connection.fetch(
            f'select * from "{definition.shape.table}"'
        )
        assert issued.session_token not in repr(stored)
        for engine in (sessions, other):
            answer = await engine.authenticate(presented(issued.session_token), CLIENT)
            assert isinstance(answer, Authenticated)
            assert (answer.session.id, answer.session.user_id) == (issued.session.id, user)
        (listed,) = await other.list_for_user(user)
        assert listed.id == issued.session.id
        assert await sessions.revoke(issued.session.id, user_id=user)

        async def unknown() -> bool:
            answer = await other.authenticate(presented(issued.session_token), CLIENT)
            return not isinstance(answer, Authenticated)

        async with asyncio.timeout(15):
            while not await unknown():  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert await other.list_for_user(user) == []


@pytest.mark.parametrize(
    "name", [n for n in NAMES if DEFINITIONS[n].shape.at_rest != "digest"], indirect=True
)
async def test_a_prefixed_value_is_refused_before_any_query(
    name: str, foreign_dsn: Callable[[str], str]
) -> None:
    """What a reader of the table could present reaches no database."""
    dsn = await asyncio.to_thread(foreign_dsn, name)
    definition = DEFINITIONS[name]
    async with (
        postgres_table(dsn, definition=definition) as table,
        Sessions(dsn, secret=SECRET, shape=definition.shape) as sessions,
    ):
        await sessions.create(await table.add_user())
        stored = await table.frozen.connection.fetchval(
            f'select {definition.shape.token} from "{definition.shape.table}"'
        )
        assert stored.startswith("sha256:")
        before = sessions.stats().queries
        for text in (stored, f"sha256:{stored}", "sha256:", "sha256:x"):
            answer = await sessions.authenticate(presented(text), CLIENT)
            assert not isinstance(answer, Authenticated)
        assert sessions.stats().queries == before
        answer = await sessions.authenticate(presented(stored.upper()), CLIENT)
        assert not isinstance(answer, Authenticated)


# Plaintext tokens.


@pytest.mark.parametrize("name", PLAIN, indirect=True)
async def test_tokens_in_plaintext_are_replaced_under_load(table: PostgresTable) -> None:
    """While they are used, touched, revoked and pruned: every holder is served until the
    revocation, no write fails, and none is alive after it."""
    store, user = table.store, await table.add_user()
    pairs = [await planted(table, user) for _ in range(12)]
    await table.advance(SECOND)
    doomed = {record.id for record, _ in pairs[::2]}

    async def use(record: Record, token: str) -> None:
        for _ in range(8):
            seen = await store.find_plaintext([digest_of(token)], [token])
            assert [one.id for one in seen if one.is_active] or record.id in doomed
            await store.touch(
                [
                    Touch(session_id=r.id, token_digest=digest_of(t), at=table.now)
                    for r, t in pairs
                ],
                POLICY,
            )

    async def end() -> None:
        for id in doomed:
            assert await store.revoke(id, reason="x") is not None

    async def sweep() -> None:
        for _ in range(20):
            assert await store.prune(POLICY, batch=10) == 0

    await asyncio.gather(*(use(*pair) for pair in pairs), end(), sweep())
    live = {record.id for record in await store.list_for_user(user)}
    assert live == {record.id for record, _ in pairs} - doomed

    async def in_plaintext() -> int:
        tokens = [token for _, token in pairs[1::2]]
        return await table.frozen.connection.fetchval(
            f'select count(*) from "{table.shape.table}" where token = any($1)'
            if table.shape.token == "token"
            else "select count(*) from user_sessions where session_token = any($1)",
            tokens,
        )

    async with asyncio.timeout(15):
        while await in_plaintext():
            for _, token in pairs[1::2]:
                await store.find_plaintext([digest_of(token)], [token])
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("name", PLAIN, indirect=True)
async def test_an_upgrade_never_resurrects(table: PostgresTable) -> None:
    """A row that ended, or went, while its token was being replaced stays as it is."""
    store, user = table.store, await table.add_user()
    for end in ("revoke", "delete"):
        record, token = await planted(table, user)
        sql = (await store.statements()).upgrade
        if end == "revoke":
            await store.revoke(record.id, reason="x")
        else:
            await table.frozen.connection.execute(f'delete from "{table.shape.table}"')
        before = await table.count()
        await table.frozen.connection.execute(sql, [token], ["sha256:" + digest_of(token)])
        assert await table.count() == before
        assert list(await store.list_for_user(user)) == []
        again = await store.find_by_id(record.id)
        assert again is None or not again.is_active


@pytest.mark.parametrize("name", PLAIN, indirect=True)
async def test_an_upgrade_replaces_only_what_was_found(table: PostgresTable) -> None:
    """A row that got another token meanwhile keeps it."""
    user = await table.add_user()
    record, token = await planted(table, user)
    await table.plant(record.id, "another token")
    sql = (await table.store.statements()).upgrade
    await table.frozen.connection.execute(sql, [token], ["sha256:" + digest_of(token)])
    (seen,) = await table.store.find_plaintext([], ["another token"])
    assert seen.id == record.id


@pytest.mark.parametrize("name", PLAIN, indirect=True)
async def test_a_read_only_database_serves_tokens_in_plaintext(
    table: PostgresTable,
) -> None:
    """The replacement fails without a word, and the holder is signed in, every time."""
    _, token = await planted(table, await table.add_user())
    database = await table.frozen.connection.fetchval("select current_database()")
    await table.frozen.connection.execute(
        f'alter database "{database}" set default_transaction_read_only = on'
    )
    await table.store.close()
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: faults.append(context)
    )
    for _ in range(3):
        (seen,) = await table.store.find_plaintext([digest_of(token)], [token])
        assert seen.is_active
        await until(lambda: not table.store._upgrader)
    assert faults == []
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        async with table.store._database._writes.acquire() as connection:
            await connection.execute("create table x ()")


@pytest.mark.parametrize("name", PLAIN, indirect=True)
async def test_p2_a_locked_table_blocks_a_bounded_number_of_upgrades(
    table: PostgresTable,
) -> None:
    """An index is built, say. However often a token is shown meanwhile, its holder is
    served, and the token is replaced at a use after that."""
    record, token = await planted(table, await table.add_user())
    psql = table.frozen.connection
    async with psql.transaction():
        await psql.execute(f'lock table "{table.shape.table}" in share mode')
        for _ in range(20):
            (seen,) = await table.store.find_plaintext([digest_of(token)], [token])
            assert seen.id == record.id
        assert len(table.store._upgrader) == MAX_UPGRADES
    await until(lambda: not table.store._upgrader)
    await table.store.find_plaintext([digest_of(token)], [token])
    await until(lambda: not table.store._upgrader)
    (seen,) = await table.store.find([digest_of(token)])
    assert seen.id == record.id


@pytest.mark.parametrize("name", PLAIN, indirect=True)
async def test_closing_stops_an_upgrade(table: PostgresTable) -> None:
    """No task and no connection outlives the store."""
    _, token = await planted(table, await table.add_user())
    await table.store.find_plaintext([digest_of(token)], [token])
    await table.store.close()
    assert not table.store._upgrader
    assert table.store._database._writes is None


# Rows as these applications leave them.


@pytest.mark.parametrize("name", ["rails"], indirect=True)
@pytest.mark.parametrize("column", ["expires_at"])
async def test_a_row_without_an_end_is_no_session(
    table: PostgresTable, column: str
) -> None:
    """Authie leaves NULL there for browsers' sessions: nothing to judge, and no error."""
    user = await table.add_user()
    record = await created(table, user)
    await table.write(record.id, **{column: None})
    assert list(await table.store.find([record.token_digest])) == []
    assert list(await table.store.list_for_user(user)) == []
    await table.advance(365 * DAY)
    assert await table.store.prune(POLICY, batch=10) == 0


@pytest.mark.parametrize("name", ["integers"], indirect=True)
async def test_an_id_the_database_always_makes_is_taken(table: PostgresTable) -> None:
    """`generated always as identity` gives ids in a row, each known before the insert."""
    user = await table.add_user()
    ids = [int((await created(table, user)).id) for _ in range(3)]
    assert ids == [ids[0], ids[0] + 1, ids[0] + 2]


@pytest.mark.parametrize("name", ["django", "integers"], indirect=True)
async def test_a_text_that_may_not_be_null_is_empty(table: PostgresTable) -> None:
    """A client of whom nothing is known signs in, and nothing is read back."""
    record = await created(table, await table.add_user(), client=Client())
    assert (record.user_agent, record.address) == (None, None)


@pytest.mark.parametrize("name", ["django", "rails", "integers"], indirect=True)
async def test_a_long_user_agent_is_cut_to_the_column(table: PostgresTable) -> None:
    """No browser's name stops a login."""
    record = await created(table, await table.add_user(), client=CLIENT)
    length = {"accounts_usersession": 200, "member_sessions": 60}.get(table.shape.table)
    assert record.user_agent == str(CLIENT.user_agent)[:length]


@pytest.mark.parametrize("name", ["integers"], indirect=True)
async def test_a_long_reason_is_cut_to_the_column(table: PostgresTable) -> None:
    """A reason is for people, and a revocation is not to fail for one."""
    record = await created(table, await table.add_user())
    assert await table.store.revoke(record.id, reason="r" * 90) is not None
    after = await table.store.find_by_id(record.id)
    assert after is not None
    assert after.revoked_reason == "r" * 20


@pytest.mark.parametrize("name", ["django"], indirect=True)
async def test_a_limit_without_dates_still_counts(table: PostgresTable) -> None:
    """An idle limit counts every session that was active."""
    user = await table.add_user()
    policy = Policy(idle_ttl=DAY)
    await created(table, user)
    new = await fresh_session(table, user, limit=1)
    assert len((await table.store.create(new, policy)).ended) == 1


@pytest.mark.parametrize("name", ["lucia"], indirect=True)
async def test_an_idle_limit_overlooks_no_session_without_dates(
    table: PostgresTable,
) -> None:
    """Where a table knows neither birth nor activity, every live row takes its place."""
    user = await table.add_user()
    policy = Policy(idle_ttl=DAY, end_on_password_change=True)
    await created(table, user)
    new = await fresh_session(table, user, limit=1)
    assert len((await table.store.create(new, policy)).ended) == 1


# A row that moves to another partition.


@pytest.mark.parametrize("name", ["partitioned"], indirect=True)
@pytest.mark.parametrize("act", ["revoke", "revoke_user", "touch"])
async def test_a_write_follows_a_row_to_another_partition(
    table: PostgresTable, act: str
) -> None:
    """A statement that waited for a row whose token was replaced still finds it."""
    store, user = table.store, await table.add_user()
    record, token = await planted(table, user)
    await table.advance(SECOND)
    touch = Touch(session_id=record.id, token_digest=digest_of(token), at=table.now)
    acts = {
        "revoke": lambda: store.revoke(record.id, reason="x"),
        "revoke_user": lambda: store.revoke_user(user, reason="x"),
        "touch": lambda: store.touch([touch], POLICY),
    }
    connection = table.frozen.connection
    async with connection.transaction():
        moved = 0
        while not moved:  # one of a few values has its place elsewhere
            before = await connection.fetchval("select tableoid from app_sessions")
            await table.plant(record.id, secrets.token_urlsafe(24))
            after = await connection.fetchval("select tableoid from app_sessions")
            moved = before != after
        waiting = asyncio.create_task(acts[act]())
        await _waited_for(table)
    assert await waiting
    if act.startswith("revoke"):
        assert list(await store.list_for_user(user)) == []


async def _waited_for(table: PostgresTable) -> None:
    sql = (
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
        " and datname = current_database()"
    )
    async with asyncio.timeout(15):
        while not await table.frozen.connection.fetchval(sql):  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_one_of_many_rotations_wins_though_its_row_moves(
    foreign_dsn: Callable[[str], str],
) -> None:
    """A table split by a token that rotates: the others judge again, and none fails."""
    definition = DEFINITIONS["partitioned"]
    rotating = replace(
        definition,
        shape=replace(
            definition.shape, refresh_token="refresh", refresh_expires_at="refresh_until"
        ),
    )
    dsn = await asyncio.to_thread(foreign_dsn, "partitioned")
    async with postgres_table(dsn, definition=rotating, pool_size=20) as table:
        await table.frozen.connection.execute(
            "alter table app_sessions add refresh text, add refresh_until timestamptz"
        )
        assert (await table.store.ready()).refresh
        record = await created(table, await table.add_user())
        for _ in range(3):
            steps = [successor(record.id, record.refresh_digest) for _ in range(20)]
            answers = await asyncio.gather(*map(table.store.rotate, steps))
            (record,) = [answer for answer in answers if answer is not None]
            assert await table.store.find_by_id(record.id) == record
