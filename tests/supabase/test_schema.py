"""The tables the tests run on are the documented ones, and our statements fit them."""

from __future__ import annotations

import pytest

from tests.support.catalog import COLUMNS_OF, CONSTRAINTS_OF, INDEXES_OF, connected
from tests.support.supabase import OWNER

# The documentation of the tables, word for word: name, type, default, nullable.
SESSIONS = [
    ("id", "uuid", "", False),
    ("user_id", "uuid", "", False),
    ("created_at", "timestamp with time zone", "", True),
    ("updated_at", "timestamp with time zone", "", True),
    ("factor_id", "uuid", "", True),
    ("aal", "auth.aal_level", "", True),
    ("not_after", "timestamp with time zone", "", True),
    ("refreshed_at", "timestamp without time zone", "", True),
    ("user_agent", "text", "", True),
    ("ip", "inet", "", True),
    ("tag", "text", "", True),
    ("oauth_client_id", "uuid", "", True),
    ("refresh_token_hmac_key", "text", "", True),
    ("refresh_token_counter", "bigint", "", True),
    ("scopes", "text", "", True),
]
TOKENS = [
    ("instance_id", "uuid", "", True),
    ("id", "bigint", "nextval('auth.refresh_tokens_id_seq'::regclass)", False),
    ("token", "varchar(255)", "", True),
    ("user_id", "varchar(255)", "", True),
    ("revoked", "boolean", "", True),
    ("created_at", "timestamp with time zone", "", True),
    ("updated_at", "timestamp with time zone", "", True),
    ("parent", "varchar(255)", "", True),
    ("session_id", "uuid", "", True),
]
SESSION_CONSTRAINTS = {
    "sessions_scopes_length": "CHECK ((char_length(scopes) <= 4096))",
    "sessions_user_id_fkey": (
        "FOREIGN KEY (user_id) REFERENCES auth.users(id) ON DELETE CASCADE"
    ),
    "sessions_pkey": "PRIMARY KEY (id)",
    "sessions_oauth_client_id_fkey": (
        "FOREIGN KEY (oauth_client_id) REFERENCES auth.oauth_clients(id) ON DELETE CASCADE"
    ),
}
TOKEN_CONSTRAINTS = {
    "refresh_tokens_pkey": "PRIMARY KEY (id)",
    "refresh_tokens_token_unique": "UNIQUE (token)",
    "refresh_tokens_session_id_fkey": (
        "FOREIGN KEY (session_id) REFERENCES auth.sessions(id) ON DELETE CASCADE"
    ),
}
SESSION_INDEXES = {
    "CREATE UNIQUE INDEX sessions_pkey ON auth.sessions USING btree (id)",
    "CREATE INDEX user_id_created_at_idx ON auth.sessions"
    " USING btree (user_id, created_at)",
    "CREATE INDEX sessions_user_id_idx ON auth.sessions USING btree (user_id)",
    "CREATE INDEX sessions_not_after_idx ON auth.sessions USING btree (not_after DESC)",
    "CREATE INDEX sessions_oauth_client_id_idx ON auth.sessions"
    " USING btree (oauth_client_id)",
}
TOKEN_INDEXES = {
    "CREATE UNIQUE INDEX refresh_tokens_pkey ON auth.refresh_tokens USING btree (id)",
    "CREATE INDEX refresh_tokens_instance_id_idx ON auth.refresh_tokens"
    " USING btree (instance_id)",
    "CREATE INDEX refresh_tokens_instance_id_user_id_idx ON auth.refresh_tokens"
    " USING btree (instance_id, user_id)",
    "CREATE UNIQUE INDEX refresh_tokens_token_unique ON auth.refresh_tokens"
    " USING btree (token)",
    "CREATE INDEX refresh_tokens_parent_idx ON auth.refresh_tokens USING btree (parent)",
    "CREATE INDEX refresh_tokens_session_id_revoked_idx ON auth.refresh_tokens"
    " USING btree (session_id, revoked)",
    "CREATE INDEX refresh_tokens_updated_at_idx ON auth.refresh_tokens"
    " USING btree (updated_at DESC)",
}
COMMENTS = {
    "not_after": (
        "Auth: Not after is a nullable column that contains a timestamp after which the"
        " session should be regarded as expired."
    ),
    "refresh_token_hmac_key": (
        "Holds a HMAC-SHA256 key used to sign refresh tokens for this session."
    ),
    "refresh_token_counter": "Holds the ID (counter) of the last issued refresh token.",
}

TABLES = pytest.mark.parametrize(
    ("table", "columns", "constraints", "indexes"),
    [
        ("auth.sessions", SESSIONS, SESSION_CONSTRAINTS, SESSION_INDEXES),
        ("auth.refresh_tokens", TOKENS, TOKEN_CONSTRAINTS, TOKEN_INDEXES),
    ],
    ids=["sessions", "refresh-tokens"],
)


@TABLES
async def test_the_supabase_tables_are_the_documented_ones(
    each_supabase_dsn: str,
    table: str,
    columns: list[tuple[str, str, str, bool]],
    constraints: dict[str, str],
    indexes: set[str],
) -> None:
    """Columns with order, type, default and nullability, constraints and indexes."""
    async with connected(each_supabase_dsn) as psql:
        rows = await psql.fetch(COLUMNS_OF, table)
        assert [tuple(row) for row in rows] == columns
        assert dict(map(tuple, await psql.fetch(CONSTRAINTS_OF, table))) == constraints
        assert {row[0] for row in await psql.fetch(INDEXES_OF, table)} == indexes


async def test_the_columns_are_commented_as_documented(supabase_dsn: str) -> None:
    """Three columns of the sessions say what they are."""
    async with connected(supabase_dsn) as psql:
        rows = await psql.fetch(
            "select a.attname, col_description(a.attrelid, a.attnum) from pg_attribute a"
            " where a.attrelid = 'auth.sessions'::regclass and a.attnum > 0"
            " and col_description(a.attrelid, a.attnum) is not null"
        )
    assert dict(map(tuple, rows)) == COMMENTS


async def test_every_table_hides_its_rows_behind_no_policy(supabase_dsn: str) -> None:
    """Row level security is on, there is no policy, and the owner is Supabase's own."""
    async with connected(supabase_dsn) as psql:
        rows = await psql.fetch(
            "select relname, relrowsecurity, pg_get_userbyid(relowner)"
            " from pg_class where relnamespace = 'auth'::regnamespace and relkind = 'r'"
        )
        assert await psql.fetchval("select count(*) from pg_policy") == 0
    assert len(rows) == 7
    assert {(row[1], row[2]) for row in rows} == {(True, OWNER)}


async def test_a_role_without_bypassrls_sees_no_row_and_no_error(supabase_dsn: str) -> None:
    """What makes row level security dangerous for whoever reads the tables."""
    async with connected(supabase_dsn) as psql, psql.transaction():
        await psql.execute(
            "insert into auth.users (id) values (gen_random_uuid());"
            "create role handstamp_stranger; grant usage on schema auth to"
            " handstamp_stranger; grant select on auth.users to handstamp_stranger"
        )
        assert await psql.fetchval("select count(*) from auth.users") == 1
        await psql.execute("set local role handstamp_stranger")
        assert await psql.fetchval("select count(*) from auth.users") == 0
        await psql.execute("reset role; drop owned by handstamp_stranger")
        await psql.execute("drop role handstamp_stranger")
