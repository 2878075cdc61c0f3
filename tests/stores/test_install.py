"""The tables that `handstamp init` makes are the documented ones."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import asyncpg
import pytest
from ulid import ULID

from handstamp.stores.install import PRESETS, install, script, statements
from tests.support.catalog import COLUMNS_OF, CONSTRAINTS_OF, INDEXES_OF, connected

# The documentation of the table, word for word: name, type, default, nullable.
COLUMNS = [
    ("id", "character(26)", "generate_ulid()", False),
    ("user_id", "character(26)", "", False),
    ("session_token_hash", "character(64)", "", False),
    ("refresh_token_hash", "character(64)", "", True),
    ("ip_address", "inet", "", False),
    ("user_agent_hash", "character(64)", "", False),
    ("device_fingerprint", "character(64)", "", True),
    ("expires_at", "timestamp with time zone", "", False),
    ("refresh_expires_at", "timestamp with time zone", "", True),
    ("last_activity_at", "timestamp with time zone", "now()", True),
    ("is_active", "boolean", "true", True),
    ("revoked_at", "timestamp with time zone", "", True),
    ("revoked_reason", "varchar(100)", "", True),
    ("created_at", "timestamp with time zone", "now()", True),
]
CONSTRAINTS = {
    "sessions_expires_check": "CHECK ((expires_at > created_at))",
    "user_sessions_user_id_fkey": (
        "FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE"
    ),
    "user_sessions_pkey": "PRIMARY KEY (id)",
    "user_sessions_session_token_hash_key": "UNIQUE (session_token_hash)",
}
INDEXES = {
    "CREATE UNIQUE INDEX user_sessions_pkey ON public.user_sessions USING btree (id)",
    "CREATE UNIQUE INDEX user_sessions_session_token_hash_key "
    "ON public.user_sessions USING btree (session_token_hash)",
    "CREATE UNIQUE INDEX idx_sessions_token_hash "
    "ON public.user_sessions USING btree (session_token_hash)",
    "CREATE INDEX idx_sessions_user_active ON public.user_sessions "
    "USING btree (user_id, is_active, last_activity_at DESC)",
    "CREATE INDEX idx_sessions_expires ON public.user_sessions "
    "USING btree (expires_at) WHERE (is_active = true)",
    "CREATE INDEX idx_sessions_cleanup ON public.user_sessions "
    "USING btree (expires_at, is_active) WHERE (is_active = false)",
}
TRIGGERS = {
    "CREATE TRIGGER trigger_reset_failed_attempts AFTER INSERT ON public.user_sessions "
    "FOR EACH ROW EXECUTE FUNCTION reset_failed_attempts_on_success()",
}
USER_COLUMNS = """
    id character(26), username varchar(50), email_encrypted bytea,
    email_hash character(64), password_hash varchar(255), display_name varchar(100),
    avatar_url varchar(500), bio text, website_url varchar(500), timezone varchar(50),
    language varchar(10), theme varchar(20), email_notifications boolean,
    weekly_digest boolean, trending_alerts boolean, failed_login_attempts integer,
    locked_until timestamp with time zone,
    last_password_change timestamp with time zone,
    password_reset_token_hash character(64),
    password_reset_expires_at timestamp with time zone,
    email_verification_token_hash character(64),
    email_verified_at timestamp with time zone,
    last_login_at timestamp with time zone, last_activity_at timestamp with time zone,
    articles_read_count integer, bookmarks_count integer, is_active boolean,
    is_admin boolean, created_at timestamp with time zone,
    updated_at timestamp with time zone, created_by character(26),
    updated_by character(26)"""

UUID_COLUMNS = [
    ("id", "uuid", "gen_random_uuid()", False),
    ("user_id", "uuid", "", False),
    ("session_token", "varchar(255)", "", False),
    ("expires_at", "timestamp with time zone", "", False),
    ("is_active", "boolean", "true", True),
    ("device_id", "varchar(100)", "", True),
    ("ip_address", "varchar(45)", "", True),
    ("user_agent", "varchar(500)", "", True),
    ("location", "varchar(100)", "", True),
    ("trust_level", "integer", "0", True),
    ("created_at", "timestamp with time zone", "CURRENT_TIMESTAMP", True),
    ("updated_at", "timestamp with time zone", "CURRENT_TIMESTAMP", True),
    ("deleted_at", "timestamp with time zone", "", True),
]
UUID_CONSTRAINTS = {
    "user_sessions_pkey": "PRIMARY KEY (id)",
    "user_sessions_session_token_key": "UNIQUE (session_token)",
}
_ON = "ON public.user_sessions USING btree"
UUID_INDEXES = {
    f"CREATE UNIQUE INDEX user_sessions_pkey {_ON} (id)",
    f"CREATE UNIQUE INDEX user_sessions_session_token_key {_ON} (session_token)",
    f"CREATE INDEX idx_user_sessions_token {_ON} (session_token)",
    f"CREATE INDEX idx_user_sessions_user_id {_ON} (user_id)",
    f"CREATE INDEX idx_user_sessions_expires_at {_ON} (expires_at)",
    f"CREATE INDEX idx_user_sessions_session_token {_ON} (session_token)",
    f"CREATE INDEX idx_user_sessions_user_active {_ON} (user_id, is_active)"
    " WHERE (is_active = true)",
    f"CREATE INDEX idx_user_sessions_device_user {_ON} (device_id, user_id)",
    f"CREATE INDEX idx_user_sessions_ip_created {_ON} (ip_address, created_at DESC)",
    f"CREATE INDEX idx_user_sessions_token_active {_ON} (session_token)"
    " WHERE (is_active = true)",
    f"CREATE INDEX idx_user_sessions_user_device_active {_ON}"
    " (user_id, device_id, is_active)",
}

NEW_SESSION = """
    insert into user_sessions
        (user_id, session_token_hash, ip_address, user_agent_hash, expires_at)
    values ($1, repeat('a', 64), '127.0.0.1', repeat('b', 64), now() + $2)
    returning id"""

ALPHABET = set("0123456789ABCDEFGHJKMNPQRSTVWXYZ")


async def new_user(connection: asyncpg.Connection, attempts: int = 0) -> str:
    return await connection.fetchval(
        "insert into users (username, password_hash, email_hash, "
        "failed_login_attempts, locked_until) values ($1::text, 'x', $1::text, $2, "
        "case when $2 > 0 then now() end) returning id",
        f"user-{time.monotonic_ns()}",
        attempts,
    )


async def test_the_columns_are_the_documented_ones(each_dsn: str) -> None:
    """Every column has the documented name, type, default and nullability."""
    async with connected(each_dsn) as connection:
        rows = await connection.fetch(COLUMNS_OF, "user_sessions")
    assert [tuple(row) for row in rows] == COLUMNS


async def test_the_users_have_the_documented_columns(each_dsn: str) -> None:
    """The users table has every column of the documented diagram, in its order."""
    async with connected(each_dsn) as connection:
        rows = await connection.fetch(COLUMNS_OF, "users")
    documented = " ".join(USER_COLUMNS.split())
    assert ", ".join(f"{name} {kind}" for name, kind, *_ in rows) == documented


async def test_the_constraints_are_the_documented_ones(each_dsn: str) -> None:
    """Every constraint has the documented name and definition."""
    async with connected(each_dsn) as connection:
        rows = await connection.fetch(CONSTRAINTS_OF, "user_sessions")
    assert dict(map(tuple, rows)) == CONSTRAINTS


async def test_the_indexes_are_the_documented_ones(each_dsn: str) -> None:
    """Every index is there as documented, the redundant one too."""
    async with connected(each_dsn) as connection:
        rows = await connection.fetch(INDEXES_OF, "user_sessions")
    assert {row[0] for row in rows} == INDEXES


async def test_the_trigger_is_the_documented_one(each_dsn: str) -> None:
    """The one trigger has the documented definition."""
    async with connected(each_dsn) as connection:
        rows = await connection.fetch(
            "select pg_get_triggerdef(oid) from pg_trigger "
            "where tgrelid = 'user_sessions'::regclass and not tgisinternal"
        )
    assert {row[0] for row in rows} == TRIGGERS


async def test_ulids_are_real_and_unique(each_dsn: str) -> None:
    """Ten thousand ULIDs differ, use the alphabet, and carry the time."""
    before = time.time()
    async with connected(each_dsn) as connection:
        rows = await connection.fetch(
            "select generate_ulid() from generate_series(1, 10000)"
        )
    texts = [row[0] for row in rows]
    assert len(set(texts)) == 10_000
    assert set("".join(texts)) == ALPHABET
    ulids = [ULID.from_str(text) for text in texts]
    assert all(before - 1 < ulid.timestamp < time.time() + 1 for ulid in ulids)


async def test_every_random_bit_of_a_ulid_is_random(dsn: str) -> None:
    """Each of the 80 random bits is set about every second time."""
    async with connected(dsn) as connection:
        rows = await connection.fetch(
            "select generate_ulid() from generate_series(1, 4000)"
        )
    numbers = [int(ULID.from_str(row[0])) for row in rows]
    counts = [sum(number >> bit & 1 for number in numbers) for bit in range(80)]
    # 2000 expected; 200 is more than six standard deviations
    assert all(abs(count - 2000) < 200 for count in counts)


async def test_a_new_session_resets_failed_attempts(each_dsn: str) -> None:
    """A login clears the failed attempts and the lock of its user, and of no other."""
    async with connected(each_dsn) as connection:
        one, other = [await new_user(connection, attempts=3) for _ in range(2)]
        await connection.fetchval(NEW_SESSION, one, timedelta(hours=1))
        rows = await connection.fetch(
            "select id, failed_login_attempts, locked_until is null from users"
        )
    assert {tuple(row) for row in rows} == {(one, 0, True), (other, 3, False)}


async def test_an_insert_does_not_update_a_user_without_failed_attempts(dsn: str) -> None:
    """The trigger writes no new version of a row that has nothing to reset."""
    async with connected(dsn) as connection:
        user = await new_user(connection)
        before = await connection.fetchval("select xmin from users")
        await connection.fetchval(NEW_SESSION, user, timedelta(hours=1))
        assert await connection.fetchval("select xmin from users") == before


async def test_the_trigger_works_from_any_search_path(dsn: str) -> None:
    """An insert that names the schema fires the trigger just as well."""
    async with connected(dsn) as connection:
        user = await new_user(connection, attempts=1)
        await connection.execute("set search_path = pg_catalog")
        insert = NEW_SESSION.replace("into ", "into public.")
        await connection.fetchval(insert, user, timedelta(hours=1))
        attempts = "select failed_login_attempts from public.users"
        assert await connection.fetchval(attempts) == 0


async def test_a_session_cannot_end_before_it_began(dsn: str) -> None:
    """The check constraint refuses a session that is over when it is made."""
    async with connected(dsn) as connection:
        user = await new_user(connection)
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.fetchval(NEW_SESSION, user, timedelta(hours=-1))


async def test_deleting_a_user_deletes_the_sessions(dsn: str) -> None:
    """The foreign key cascades."""
    async with connected(dsn) as connection:
        user = await new_user(connection)
        await connection.fetchval(NEW_SESSION, user, timedelta(hours=1))
        await connection.execute("delete from users")
        assert await connection.fetchval("select count(*) from user_sessions") == 0


async def test_installing_twice_creates_nothing(dsn: str) -> None:
    """Everything is found the second time, and nothing is an error."""
    async with connected(dsn) as connection:
        outcomes = await install(connection, "ulid")
    assert {outcome.state for outcome in outcomes} == {"found"}


async def test_processes_may_install_at_once(empty_dsn: str) -> None:
    """Of four that install at the same moment, one creates and three find."""

    async def once() -> set[str]:
        async with connected(empty_dsn) as connection:
            return {outcome.state for outcome in await install(connection, "ulid")}

    states = await asyncio.gather(*(once() for _ in range(4)))
    assert sorted(map(sorted, states)) == [["created"], ["found"], ["found"], ["found"]]


async def test_the_search_path_decides_the_schema(empty_dsn: str) -> None:
    """Tables of the same name in another schema are not taken for ours."""
    async with connected(empty_dsn) as connection:
        await connection.execute("create table users (id int); create schema app")
        await connection.execute("set search_path = app")
        outcomes = await install(connection, "ulid")
        made = await connection.fetchval("select 'app.user_sessions'::regclass::text")
    assert {outcome.state for outcome in outcomes} == {"created"}
    assert made == "user_sessions"


async def test_the_uuid_columns_are_the_documented_ones(each_uuid_dsn: str) -> None:
    """Every column has the documented name, type, default and nullability."""
    async with connected(each_uuid_dsn) as connection:
        rows = await connection.fetch(COLUMNS_OF, "user_sessions")
    assert [tuple(row) for row in rows] == UUID_COLUMNS


async def test_the_uuid_constraints_are_the_documented_ones(each_uuid_dsn: str) -> None:
    """Both, and no foreign key: the table refers to nothing."""
    async with connected(each_uuid_dsn) as connection:
        rows = await connection.fetch(CONSTRAINTS_OF, "user_sessions")
    assert dict(map(tuple, rows)) == UUID_CONSTRAINTS


async def test_the_uuid_indexes_are_the_eleven_documented_ones(each_uuid_dsn: str) -> None:
    """The redundant ones too."""
    async with connected(each_uuid_dsn) as connection:
        rows = await connection.fetch(INDEXES_OF, "user_sessions")
    assert {row[0] for row in rows} == UUID_INDEXES
    assert len(rows) == 11


async def test_the_uuid_table_has_no_trigger_and_no_function(each_uuid_dsn: str) -> None:
    """Unless they are asked for."""
    async with connected(each_uuid_dsn) as connection:
        triggers = await connection.fetchval("select count(*) from pg_trigger")
        functions = await connection.fetchval(
            "select count(*) from pg_proc where pronamespace = 'public'::regnamespace"
        )
    assert (triggers, functions) == (0, 0)


async def test_installing_the_uuid_table_twice_creates_nothing(each_uuid_dsn: str) -> None:
    """Everything is found the second time."""
    async with connected(each_uuid_dsn) as connection:
        outcomes = await install(connection, "uuid")
    assert {outcome.state for outcome in outcomes} == {"found"}


def test_each_statement_is_named() -> None:
    """The statements are read in their order, each with its kind and table."""
    steps = [(step.kind, step.name, step.relation) for step in statements("ulid")]
    sessions = "user_sessions"
    assert steps == [
        ("function", "generate_ulid", None),
        ("table", "users", None),
        ("table", sessions, None),
        ("index", "idx_sessions_token_hash", sessions),
        ("index", "idx_sessions_user_active", sessions),
        ("index", "idx_sessions_expires", sessions),
        ("index", "idx_sessions_cleanup", sessions),
        ("function", "reset_failed_attempts_on_success", None),
        ("trigger", "trigger_reset_failed_attempts", sessions),
    ]
    assert all(step.sql.startswith("create ") for step in statements("ulid"))


def test_an_unknown_shape_is_refused_by_name() -> None:
    """The error names the shapes there are."""
    assert set(PRESETS) == {"ulid", "uuid"}
    with pytest.raises(ValueError, match="ulid"):
        script("../ulid")
