"""`handstamp doctor`, as a developer and as CI run it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from handstamp import ConfigError, Sessions
from handstamp.core.cookies import Credentials
from handstamp.core.models import Authenticated, Client
from handstamp.stores.install import install
from handstamp.stores.shapes import ULID_HASHED, UUID_PLAIN, TableShape
from tests.faults.pooler import pooled, program
from tests.support.commands import handstamp
from tests.support.waiting import until

SECRET = "the secret of the tests of the doctor: 32 bytes"
LOGINS = """
    create table logins (
        key bigint generated always as identity primary key,
        "accountId" uuid not null, token_digest text not null unique,
        expires timestamp not null, "createdAt" timestamp, revoked_at timestamp, ip inet);
    create index on logins ("accountId")"""


@dataclass
class Output:
    """The output of the command; ``report`` is the JSON object."""

    status: int
    text: str
    errors: str
    report: dict[str, Any]

    def of(self, about: str) -> dict[str, str]:
        """The findings about something: level by text."""
        return {
            f["text"]: f["level"] for f in self.report["findings"] if f["about"] == about
        }

    def mends(self, about: str) -> list[str]:
        """The SQL that is offered for it."""
        found = self.report["findings"]
        return [f["mend"] for f in found if f["about"] == about and f["mend"]]

    def bad(self) -> list[str]:
        """The texts of warnings and dangers."""
        bad = ("warning", "danger")
        return [f["text"] for f in self.report["findings"] if f["level"] in bad]

    def shape(self) -> TableShape:
        """The shape that the proposed Python makes."""
        names: dict[str, Any] = {}
        exec(self.report["shape"], names)
        return names["shape"]


def run(dsn: str, *arguments: str, as_json: bool = True) -> Output:
    options = ["--json"] if as_json else []
    done = handstamp("doctor", "--dsn", dsn, *arguments, *options)
    output = json.loads(done.stdout) if as_json and done.stdout else {}
    return Output(done.returncode, done.stdout, done.stderr, output)


async def ask(dsn: str, *arguments: str, as_json: bool = True) -> Output:
    """Run it in a thread, so that the test's own connections work meanwhile."""
    return await asyncio.to_thread(run, dsn, *arguments, as_json=as_json)


@asynccontextmanager
async def connection_to(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def sql(dsn: str, *statements: str) -> None:
    async with connection_to(dsn) as connection:
        for statement in statements:
            await connection.execute(statement)


@pytest.fixture(params=["ulid", "uuid"])
def preset(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The name of a preset, and a database with its table."""
    name = request.param
    return name, request.getfixturevalue("dsn" if name == "ulid" else "uuid_dsn")


async def test_the_documented_tables_have_no_finding(preset: tuple[str, str]) -> None:
    """With the trigger of init there is no warning, so --strict passes, and the shape is
    the preset."""
    name, dsn = preset
    async with connection_to(dsn) as connection:
        await install(connection, name, trigger=True)
    output = await ask(dsn, "--strict")
    assert (output.status, output.errors, output.bad()) == (0, "", [])
    assert output.shape() == {"ulid": ULID_HASHED, "uuid": UUID_PLAIN}[name]
    assert output.report["bound"] == "pushed"
    assert output.of("trigger") == {"the trigger is complete: every writer notifies": "ok"}


async def test_it_changes_nothing(uuid_dsn: str) -> None:
    """A connection that may not write is enough."""
    output = await ask(f"{uuid_dsn}?default_transaction_read_only=on")
    assert (output.status, output.bad()) == (0, [])


async def test_the_proposal_for_an_unknown_table_works(empty_dsn: str) -> None:
    """The Python as it is printed: sign-in, look-up and revocation."""
    await sql(empty_dsn, LOGINS)
    output = await ask(empty_dsn)
    assert (output.status, output.report["table"]) == (0, "logins")
    shape = output.shape()
    assert (shape.token, shape.at_rest, shape.id) == ("token_digest", "digest", "key")
    async with Sessions(empty_dsn, secret=SECRET, shape=shape) as sessions:
        issued = await sessions.create("00000000-0000-0000-0000-000000000007")
        credentials = Credentials(session=(issued.session_token.encode(),), sent=True)
        answer = await sessions.authenticate(credentials, Client())
        assert isinstance(answer, Authenticated)
        assert await sessions.revoke(issued.session.id)


async def test_the_text_has_the_whole_report(empty_dsn: str) -> None:
    """Without --json it shows the same shape, capabilities and findings."""
    await sql(empty_dsn, LOGINS)
    output = await ask(empty_dsn)
    shown = await ask(empty_dsn, as_json=False)
    assert output.report["shape"] in shown.text
    for words, able in output.report["capabilities"].items():
        assert f"  {'yes' if able else 'no '}  {words}\n" in shown.text
    for finding in output.report["findings"]:
        if finding["about"] != "clock":
            assert finding["text"] in shown.text
    assert "nothing rotates" in shown.text


DANGERS = {
    "drop constraint user_sessions_session_token_key": "no unique index",
    "alter session_token drop not null": "may be null",
    "alter session_token type varchar(64)": "takes 64 characters",
    "add column tenant int not null": "no session could be written",
    "alter deleted_at set default now(), alter deleted_at set not null": "may not be null",
}


@pytest.mark.parametrize("change", DANGERS)
async def test_a_danger_fails_and_its_ddl_mends_it(uuid_dsn: str, change: str) -> None:
    """The exit status is 1, and 0 after the printed DDL."""
    await sql(uuid_dsn, f"alter table user_sessions {change}")
    output = await ask(uuid_dsn)
    assert output.status == 1
    (text,) = output.of("table")
    assert DANGERS[change] in text
    assert output.of("table")[text] == "danger"
    await sql(uuid_dsn, *output.mends("table"))
    again = await ask(uuid_dsn)
    assert (again.status, again.bad()) == (0, [])


async def test_every_danger_is_reported_at_once(uuid_dsn: str) -> None:
    """One run is enough."""
    for change in list(DANGERS)[:3]:
        await sql(uuid_dsn, f"alter table user_sessions {change}")
    output = await ask(uuid_dsn)
    assert len(output.of("table")) == 3
    await sql(uuid_dsn, *output.mends("table"))
    assert (await ask(uuid_dsn)).status == 0


async def test_ids_that_no_token_can_carry_are_a_danger(empty_dsn: str) -> None:
    """The DDL gives the rows other ids, and no id is shown."""
    await sql(
        empty_dsn,
        "create table logins (id text primary key, user_id uuid not null,"
        " token_digest text not null unique, expires_at timestamptz not null)",
        "insert into logins select repeat('secret', 50) || n, gen_random_uuid(), n, now()"
        " from generate_series(1, 3) n",
    )
    output = await ask(empty_dsn)
    assert output.status == 1
    (text,) = (text for text, level in output.of("table").items() if level == "danger")
    assert "logins.id holds ids of up to 301 characters" in text
    assert "secret" not in output.text
    await sql(empty_dsn, *output.mends("table"))


async def test_an_id_that_is_a_token_in_plaintext_is_a_danger(empty_dsn: str) -> None:
    """Ids are shown in logs and lists, so no shape is proposed that would show tokens."""
    await sql(
        empty_dsn,
        "create table sessions (id text primary key, user_id uuid not null,"
        " expires_at timestamptz not null)",
        "insert into sessions values ('hidden', gen_random_uuid(), now())",
    )
    output = await ask(empty_dsn)
    assert (output.status, output.report["shape"]) == (1, None)
    (text,) = output.of("table")
    assert "anybody who sees the id of a session" in text
    assert "hidden" not in output.text
    await sql(empty_dsn, *output.mends("table"))


async def test_a_missing_column_is_a_danger(uuid_dsn: str) -> None:
    """The finding says what to name in the TableShape."""
    await sql(uuid_dsn, "alter table user_sessions drop column expires_at")
    output = await ask(uuid_dsn, "--table", "user_sessions")
    assert (output.status, output.report["shape"]) == (1, None)
    (text,) = output.of("table")
    assert "TableShape(expires_at=…)" in text


async def test_the_trigger_is_offered_for_the_table_s_own_columns(empty_dsn: str) -> None:
    """Run as printed, twice, it is complete, and notifies of the sessions that end."""
    await sql(empty_dsn, LOGINS)
    output = await ask(empty_dsn)
    (text,) = output.of("trigger")
    assert "no trigger" in text
    assert output.report["bound"] == "max_staleness"
    (ddl,) = output.mends("trigger")
    await sql(empty_dsn, ddl, ddl)
    again = await ask(empty_dsn)
    assert again.report["bound"] == "pushed"
    payloads = await notified(
        empty_dsn,
        'insert into logins ("accountId", token_digest, expires) values'
        " (gen_random_uuid(), 'a', now() + interval '1 day'),"
        " (gen_random_uuid(), 'b', now() + interval '1 day'),"
        " (gen_random_uuid(), 'c', now() - interval '1 day')",
        "update logins set expires = expires + interval '1 hour'",
        "update logins set revoked_at = now() where key = 1",
        "delete from logins where key in (2, 3)",
        "truncate logins",
    )
    assert payloads == ["s:1", "s:2", "all"]
    async with Sessions(empty_dsn, secret=SECRET, shape=output.shape()) as sessions:
        await until(lambda: sessions.stats().all_writers_notify)


async def notified(dsn: str, *statements: str) -> list[str]:
    """The payloads of the notifications that the statements send."""
    payloads: list[str] = []
    end = asyncio.Event()

    def receive(*notification: Any) -> None:
        if notification[3] == "end":
            end.set()
        else:
            payloads.append(notification[3])

    async with connection_to(dsn) as listening:
        await listening.add_listener("handstamp", receive)
        await sql(dsn, *statements, "select pg_notify('handstamp', 'end')")
        async with asyncio.timeout(60):
            await end.wait()
    return payloads


ON = "on user_sessions for each row"
OURS = "execute function handstamp_notify_session('id')"
INCOMPLETE = {
    f"create or replace trigger handstamp_session_changed after update of is_active {ON}"
    f" {OURS}": "fires for some columns only, its condition is another one",
    f"create or replace trigger handstamp_session_changed after update {ON}"
    f" when (old.is_active is distinct from new.is_active) {OURS}": (
        "its condition is another one"
    ),
    f"create or replace trigger handstamp_session_changed after update {ON} when (false)"
    f" {OURS}": "its condition is another one",
    f"create or replace trigger handstamp_session_deleted after delete {ON} {OURS}": (
        "its condition is another one"
    ),
    f"drop trigger handstamp_session_deleted on user_sessions; create constraint trigger"
    f" handstamp_session_deleted after delete on user_sessions deferrable for each row"
    f" when (old.is_active and old.deleted_at is null and old.expires_at > now()) {OURS}": (
        "it fires at other events"
    ),
    "create or replace trigger handstamp_sessions_truncated after truncate"
    f" on user_sessions for each statement {OURS}": "names another column of ids",
    "alter table user_sessions disable trigger handstamp_session_changed": (
        "trigger handstamp_session_changed on user_sessions is disabled"
    ),
    "alter table user_sessions enable replica trigger handstamp_session_changed": (
        "trigger handstamp_session_changed on user_sessions is disabled"
    ),
    "drop trigger handstamp_sessions_truncated on user_sessions": (
        "there is no trigger handstamp_sessions_truncated on user_sessions"
    ),
    "create or replace function handstamp_notify_session() returns trigger language plpgsql"
    " set search_path = pg_catalog, pg_temp as 'begin return null; end'": (
        "its body is another one"
    ),
    "alter function handstamp_notify_session() reset search_path": (
        "its search path is not fixed"
    ),
}


@pytest.mark.parametrize("change", INCOMPLETE)
async def test_an_incomplete_trigger_is_reported(uuid_dsn: str, change: str) -> None:
    """handstamp does not rely on it, and the printed DDL completes it."""
    async with connection_to(uuid_dsn) as connection:
        await install(connection, "uuid", trigger=True)
    await sql(uuid_dsn, change)
    output = await ask(uuid_dsn)
    ((text, found),) = output.of("trigger").items()
    assert found == "warning"
    assert INCOMPLETE[change] in text
    assert (output.status, output.report["bound"]) == (0, "max_staleness")
    await sql(uuid_dsn, *output.mends("trigger"))
    assert (await ask(uuid_dsn)).report["bound"] == "pushed"


@pytest.fixture
async def mallory(uuid_dsn: str) -> AsyncIterator[str]:
    """A role that may make functions in the schema public, and nothing else."""
    name = f"mallory_{secrets.token_hex(4)}"
    await sql(uuid_dsn, f"create role {name}", f"grant create on schema public to {name}")
    yield name
    await sql(uuid_dsn, f"drop owned by {name} cascade", f"drop role {name}")


@pytest.mark.parametrize("when", ["before", "after", "owner", "definer"])
async def test_a_planted_function_is_a_danger(
    uuid_dsn: str, mallory: str, when: str
) -> None:
    """Every writer would run it. It is reported with its owner, called already or not, and
    the DDL mends it."""
    planted = (
        "create function handstamp_notify_session() returns trigger language plpgsql"
        " as 'begin return null; end'"
    )
    if when == "before":
        await sql(uuid_dsn, f"set role {mallory}; {planted}")
    else:
        async with connection_to(uuid_dsn) as connection:
            await install(connection, "uuid", trigger=True)
    if when == "after":
        await sql(
            uuid_dsn,
            f"create schema other authorization {mallory};"
            f"set role {mallory}; set search_path = other; {planted}",
            "reset role; reset search_path; create or replace trigger"
            f" handstamp_session_changed after update {ON}"
            " execute function other.handstamp_notify_session('id')",
        )
    elif when == "owner":
        await sql(uuid_dsn, f"alter function handstamp_notify_session() owner to {mallory}")
    elif when == "definer":
        await sql(uuid_dsn, "alter function handstamp_notify_session() security definer")
    output = await ask(uuid_dsn)
    ((text, level),) = output.of("trigger").items()
    assert (level, output.status, output.report["bound"]) == ("danger", 1, "max_staleness")
    assert ("rights of its owner" if when == "definer" else mallory) in text
    await sql(uuid_dsn, *output.mends("trigger"))
    again = await ask(uuid_dsn, "--strict")
    assert (again.status, again.bad(), again.report["bound"]) == (0, [], "pushed")


async def test_a_trigger_with_another_name_is_one_of_the_application(
    uuid_dsn: str,
) -> None:
    """Whatever function it calls."""
    async with connection_to(uuid_dsn) as connection:
        await install(connection, "uuid", trigger=True)
    await sql(
        uuid_dsn,
        "create function handstamp_notify_me() returns trigger language plpgsql"
        " as 'begin return new; end'",
        f"create trigger sneaky before update {ON} execute function handstamp_notify_me()",
    )
    output = await ask(uuid_dsn)
    assert any("fire at an UPDATE: sneaky." in text for text in output.of("trigger"))


ALL_GRANTS = (
    "select, insert, update, delete on user_sessions",
    "select (id, is_active, locked_until, last_password_change) on users",
)
LESS = {
    "revoke delete on user_sessions": ("warning", "pruning needs DELETE"),
    "revoke insert on user_sessions": ("danger", "sign-in needs INSERT"),
    "revoke update on user_sessions": ("danger", "revocation needs UPDATE (is_active)"),
    "revoke select on user_sessions": ("danger", "everything needs SELECT"),
    "revoke select (is_active) on users": ("danger", "needs SELECT (is_active) on users"),
}


@pytest.fixture
async def role(dsn: str) -> AsyncIterator[tuple[str, str]]:
    """A role with the documented grants, and its address."""
    name, password = f"app_{secrets.token_hex(6)}", secrets.token_hex(16)
    await sql(
        dsn,
        f"create role {name} login password '{password}'",
        *(f"grant {grant} to {name}" for grant in ALL_GRANTS),
    )
    url = urlsplit(dsn)
    host = url.netloc.rpartition("@")[2]
    yield name, urlunsplit(url._replace(netloc=f"{name}:{password}@{host}"))
    await sql(dsn, f"drop owned by {name}", f"drop role {name}")


async def test_the_documented_grants_are_enough(role: tuple[str, str]) -> None:
    """The finding names the role."""
    name, address = role
    output = await ask(address, "--strict")
    assert output.of("grants") == {f"the role {name} has every right that is needed": "ok"}
    assert (output.status, output.report["role"]) == (0, name)
    assert urlsplit(address).password not in output.text + output.errors


@pytest.mark.parametrize("less", LESS)
async def test_a_missing_grant_is_reported_and_its_ddl_mends_it(
    dsn: str, role: tuple[str, str], less: str
) -> None:
    """With the feature that needs it."""
    name, address = role
    await sql(dsn, f"{less} from {name}")
    output = await ask(address)
    level, text = LESS[less]
    found = output.of("grants")
    assert [found[one] for one in found if text in one] == [level]
    await sql(dsn, *output.mends("grants"))
    assert (await ask(address, "--strict")).status == 0


async def test_the_sequence_of_the_ids_needs_a_grant(
    dsn: str, role: tuple[str, str]
) -> None:
    """handstamp takes the next number from it."""
    name, address = role
    await sql(dsn, LOGINS, f"grant select, insert, update, delete on logins to {name}")
    output = await ask(address, "--table", "logins")
    assert any("USAGE of the sequence" in text for text in output.of("grants"))
    await sql(dsn, *output.mends("grants"))
    assert (await ask(address, "--table", "logins")).status == 0


async def test_row_level_security_is_reported(dsn: str, role: tuple[str, str]) -> None:
    """If it applies to the role."""
    await sql(dsn, "alter table user_sessions enable row level security")
    output = await ask(role[1])
    assert any("row level security" in text for text in output.bad())
    assert not any("row level security" in text for text in (await ask(dsn)).bad())


async def test_a_missing_index_is_reported_and_its_ddl_mends_it(empty_dsn: str) -> None:
    """For each frequent statement that would read the whole table."""
    await sql(empty_dsn, LOGINS, 'drop index "logins_accountId_idx"')
    output = await ask(empty_dsn)
    ((text, level),) = output.of("indexes").items()
    assert (output.status, level) == (0, "warning")
    assert "a list of a user's sessions reads all of logins" in text
    assert (await ask(empty_dsn, "--strict")).status == 1
    await sql(
        empty_dsn,
        *output.mends("indexes"),
        'insert into logins ("accountId", token_digest, expires)'
        " values (gen_random_uuid(), repeat('a', 64), now())",
        "analyze logins",  # so small a table is read whole all the same
    )
    assert (await ask(empty_dsn)).of("indexes") == {
        "every frequent statement uses an index": "ok"
    }


FILL = """
    insert into user_sessions (user_id, session_token, expires_at, user_agent, ip_address)
    select gen_random_uuid(), 'a plaintext token ' || n, now(), 'an odd browser',
        '203.0.113.' || n from generate_series(1, 9) n"""


async def test_tokens_in_plaintext_are_counted_and_none_is_shown(uuid_dsn: str) -> None:
    """Nor any other value of a row."""
    await sql(uuid_dsn, FILL)
    for output in (await ask(uuid_dsn), await ask(uuid_dsn, as_json=False)):
        assert "9 rows of session_token are not hashed by handstamp" in output.text
        assert "9 other; plaintext tokens" in output.text
        for data in ("a plaintext token ", "an odd browser", "203.0.113."):
            assert data not in output.text + output.errors


DIGESTS = {
    "capitals": "upper(encode(sha256(n::text::bytea), 'hex'))",
    "base64": "encode(sha256(n::text::bytea), 'base64')",
    "SHA-512": "encode(sha512(n::text::bytea), 'hex')",
    "named": "'sha512:' || encode(sha512(n::text::bytea), 'hex')",
    "one of ten": "case n when 1 then md5(n::text) else 'in plaintext ' || n end",
}


@pytest.mark.parametrize("digest", DIGESTS)
async def test_digests_are_never_taken_for_tokens(uuid_dsn: str, digest: str) -> None:
    """Else the stored text would open the session. No at_rest is proposed: the Python
    raises until it is filled in."""
    await sql(
        uuid_dsn,
        "insert into user_sessions (user_id, session_token, expires_at)"
        f" select gen_random_uuid(), {DIGESTS[digest]}, now() + interval '1 day'"
        " from generate_series(1, 10) n",
    )
    output = await ask(uuid_dsn)
    assert "at_rest=..." in output.report["shape"]
    with pytest.raises(ConfigError, match="at_rest must be"):
        output.shape()
    (text,) = (text for text in output.bad() if "cannot be seen" in text)
    assert "Compare the cookie of one of your own sessions with its row" in text
    assert (await ask(uuid_dsn, "--strict")).status == 1
    decided = await ask(uuid_dsn, "--at-rest", "prefixed")
    assert decided.shape().at_rest == "prefixed"
    assert not any("cannot be seen" in text for text in decided.bad())
    assert (await ask(uuid_dsn, "--at-rest", "plain")).shape() == UUID_PLAIN
    stored = await connected_rows(uuid_dsn)
    async with Sessions(uuid_dsn, secret=SECRET, shape=decided.shape()) as sessions:
        for token in stored:
            credentials = Credentials(session=(token.encode(),), sent=True)
            answer = await sessions.authenticate(credentials, Client())
            assert not isinstance(answer, Authenticated)
    assert not any(token in output.text + decided.text for token in stored)


async def connected_rows(dsn: str) -> list[str]:
    """The texts in the column of tokens."""
    async with connection_to(dsn) as connection:
        rows = await connection.fetch("select session_token from user_sessions")
    return [row[0] for row in rows]


async def test_how_tokens_are_stored_is_undecided_without_the_right_to_read(
    uuid_dsn: str,
) -> None:
    """The name of the column does not prove it."""
    name = f"app_{secrets.token_hex(6)}"
    await sql(uuid_dsn, f"create role {name} login password 'x'")
    try:
        parts = urlsplit(uuid_dsn)
        host = parts.netloc.rpartition("@")[2]
        address = urlunsplit(parts._replace(netloc=f"{name}:x@{host}"))
        output = await ask(address, "--table", "user_sessions")
        assert "at_rest=..." in output.report["shape"]
        assert any("the rows were not counted" in text for text in output.bad())
    finally:
        await sql(uuid_dsn, f"drop role {name}")


async def test_an_unknown_form_is_refused(uuid_dsn: str) -> None:
    """--at-rest lists the values that it takes."""
    output = await ask(uuid_dsn, "--at-rest", "hashed", as_json=False)
    assert output.status == 2
    assert "digest, prefixed, plain" in output.errors


async def test_a_big_table_is_estimated(uuid_dsn: str) -> None:
    """A sample proves nothing, so plaintext tokens stay accepted."""
    digest = "'sha256:' || encode(sha256(n::text::bytea), 'hex')"
    await sql(
        uuid_dsn,
        "insert into user_sessions (user_id, session_token, expires_at)"
        f" select gen_random_uuid(), {digest}, now() from generate_series(1, 2000) n",
        "update pg_class set reltuples = 2e6 where relname = 'user_sessions'",
    )
    output = await ask(uuid_dsn)
    assert output.of("tokens") == {"about 0 rows hold a plaintext token": "ok"}
    assert output.shape().at_rest == "plain"


async def test_no_token_in_plaintext_is_left(uuid_dsn: str) -> None:
    """Then the shape is prefixed."""
    await sql(
        uuid_dsn,
        FILL,
        "update user_sessions set session_token ="
        " 'sha256:' || encode(sha256(session_token::bytea), 'hex')",
    )
    output = await ask(uuid_dsn)
    assert output.shape().at_rest == "prefixed"
    assert any('at_rest="prefixed"' in text for text in output.of("tokens"))


@pytest.mark.parametrize(
    ("ahead", "level"), [("0.1 s", "ok"), ("-20 s", "notice"), ("5 min", "warning")]
)
async def test_the_database_s_clock_is_compared(
    uuid_dsn: str, ahead: str, level: str
) -> None:
    """With this machine's clock."""
    await sql(
        uuid_dsn,
        "create function public.clock_timestamp() returns timestamptz language sql"
        f" as $$ select pg_catalog.clock_timestamp() + interval '{ahead}' $$",
    )
    output = await ask(f"{uuid_dsn}?search_path=public,pg_catalog")
    ((text, found),) = output.of("clock").items()
    assert found == level
    assert ("ahead of" if "-" not in ahead else "behind") in text


@pytest.mark.skipif(program() is None, reason="pgbouncer is not installed")
async def test_a_pooler_in_between_is_reported(uuid_dsn: str) -> None:
    """It delivers no notification, unless --listen-dsn is the server itself."""
    with pooled(uuid_dsn) as address:
        undelivered = await ask(address)
        assert sorted(undelivered.of("pooler").values()) == ["notice", "warning"]
        assert "listen_dsn=" in " ".join(undelivered.of("pooler"))
        assert undelivered.report["bound"] == "max_staleness"
        delivered = await ask(address, "--listen-dsn", uuid_dsn)
        assert list(delivered.of("pooler").values()) == ["notice"]
    assert (await ask(uuid_dsn)).of("pooler") == {}


async def test_triggers_of_the_application_are_listed(uuid_dsn: str) -> None:
    """One that sets a date at every UPDATE would make every session look used."""
    await sql(
        uuid_dsn,
        "create function set_updated_at() returns trigger language plpgsql as"
        " $$ begin new.updated_at = now(); return new; end $$",
        "create trigger dates before update on user_sessions for each row"
        " execute function set_updated_at()",
    )
    output = await ask(uuid_dsn)
    assert any("fire at an UPDATE: dates" in text for text in output.of("trigger"))


async def test_a_table_that_could_not_be_examined_is_status_2(
    dsn: str, empty_dsn: str
) -> None:
    """With one line that says why, and no password."""
    url = urlsplit(dsn)
    port = url._replace(netloc=f"app:hidden@{url.hostname}:1").geturl()
    wrong = url._replace(netloc=f"app:hidden@{url.hostname}:{url.port}").geturl()
    for address, arguments, text in (
        (port, (), "cannot reach the database"),
        (wrong, (), "cannot reach the database"),
        (dsn, ("--table", "nowhere"), "there is no table nowhere"),
        (dsn, ("--table", "auth.sessions"), "there is no table auth.sessions"),
        (dsn, ("--table", 'x"; drop'), "no SQL name"),
        (empty_dsn, (), "no table looks like a table of sessions"),
        ("", (), "which database?"),
    ):
        output = await ask(address, *arguments)
        assert (output.status, output.text) == (2, "")
        assert text in output.errors
        assert output.errors.count("\n") == 1
        assert "hidden" not in output.errors


async def test_several_tables_are_listed(uuid_dsn: str) -> None:
    """It asks for one of them."""
    await sql(uuid_dsn, LOGINS)
    output = await ask(uuid_dsn)
    assert output.status == 2
    assert "logins, user_sessions" in output.errors
