"""`handstamp doctor` in a database of Supabase Auth, as roles of every kind run it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import pytest
from typer.testing import CliRunner

from handstamp.cli import load
from handstamp.errors import ConfigError
from handstamp.supabase.schema import TABLES, install_supabase_trigger
from handstamp.testing.postgres import ephemeral
from tests.cli.test_doctor import LOGINS, Output, connection_to, notified, run, sql
from tests.faults.pooler import pooled, program
from tests.supabase.test_schema_roles import AGES, GRANTS
from tests.support.supabase import OWNER, make_tables

USER = "a0000000-0000-4000-8000-000000000001"
SESSION = "b0000000-0000-4000-8000-000000000001"
ADA = (
    "insert into auth.users (id, instance_id, email, phone) values"
    f" ('{USER}', '00000000-0000-0000-0000-000000000000', 'ada@example.org', '+4915')",
    "insert into auth.sessions (id, user_id, user_agent, ip) values"
    f" ('{SESSION}', '{USER}', 'an odd browser', '203.0.113.9')",
    "insert into auth.refresh_tokens (token, user_id, session_id, revoked) values"
    f" ('abcdefghijkl', '{USER}', '{SESSION}', false)",
)
CHANGES = {
    "create or replace trigger handstamp_session_changed after update of aal"
    " on auth.sessions for each row execute function handstamp_notify_session('id')": (
        "trigger handstamp_session_changed on auth.sessions is not the one that handstamp"
        " makes: it fires for some columns only, its condition is another one"
    ),
    "alter table auth.users disable trigger handstamp_user_deleted": (
        "trigger handstamp_user_deleted on auth.users is disabled"
    ),
    "drop trigger handstamp_users_truncated on auth.users": (
        "there is no trigger handstamp_users_truncated on auth.users"
    ),
}


async def ask(dsn: str, *arguments: str) -> Output:
    """Run the command in this process, on a thread and a loop of its own."""
    line = ["doctor", "--dsn", dsn, "--json", *arguments]
    done = await asyncio.to_thread(CliRunner().invoke, load(), line)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    told = json.loads(done.stdout) if done.stdout else {}
    return Output(done.exit_code, done.stdout, done.stderr, told)


async def with_trigger(dsn: str) -> None:
    async with connection_to(dsn) as connection:
        await install_supabase_trigger(connection)


@dataclass
class Role:
    """A role of its own, that may nothing but connect, and the address it comes by."""

    name: str
    address: str


@pytest.fixture
async def role(supabase_dsn: str) -> AsyncIterator[Role]:
    name, word = f"app_{secrets.token_hex(4)}", secrets.token_hex(8)
    await sql(supabase_dsn, f"create role {name} login password '{word}'")
    url = urlsplit(supabase_dsn)
    place = f"{name}:{word}@{url.netloc.rpartition('@')[2]}"
    yield Role(name, urlunsplit(url._replace(netloc=place)))
    await sql(supabase_dsn, f"drop owned by {name}", f"drop role {name}")


async def give(dsn: str, role: Role, *grants: str, options: str = "bypassrls") -> None:
    await sql(dsn, f"alter role {role.name} {options}")
    await sql(dsn, *(f"grant {grant} to {role.name}" for grant in grants))


def grants_of(told: Output) -> dict[str, str]:
    """The findings about grants that are not well."""
    return {text: level for text, level in told.of("grants").items() if level != "ok"}


async def test_the_newest_supabase_is_well(each_supabase_dsn: str) -> None:
    """With the trigger of init there is nothing to say, not even for --strict."""
    await with_trigger(each_supabase_dsn)
    told = await ask(each_supabase_dsn, "--strict")
    assert (told.status, told.errors, told.bad()) == (0, "", [])
    assert (told.report["table"], told.report["preset"]) == ("auth.sessions", "SUPABASE")
    assert "SupabaseSessions(dsn, url=url, jwt_secret=jwt_secret)" in told.report["shape"]
    assert set(told.report["capabilities"].values()) == {True}
    assert told.of("columns") == {"every column that handstamp uses is there": "ok"}
    assert told.of("indexes") == {"every frequent statement uses an index": "ok"}
    assert [*told.of("trigger").values()] == ["ok"]
    assert told.report["bound"] == "pushed"


async def test_people_are_shown_the_same_and_no_row(supabase_dsn: str) -> None:
    """The text of the real command has every finding, and nothing of anybody."""
    await sql(supabase_dsn, *ADA)
    told = await ask(supabase_dsn)
    shown = await asyncio.to_thread(run, supabase_dsn, as_json=False)
    assert (told.status, shown.status) == (0, 0)
    assert "The tables of Supabase Auth:" in shown.text
    for finding in told.report["findings"]:
        if finding["about"] != "clock":
            assert finding["text"] in shown.text
    for words in told.report["capabilities"]:
        assert f"  yes  {words}\n" in shown.text
    for data in (USER, SESSION, "ada@", "+4915", "odd browser", "203.0.113", "abcdef"):
        assert data not in shown.text + told.text


async def test_the_table_or_the_shape_is_enough(supabase_dsn: str) -> None:
    """Also where there is another table of sessions."""
    await sql(supabase_dsn, "create table logins (id bigint, expires_at timestamptz)")
    assert "auth.sessions, logins" in (await ask(supabase_dsn)).errors
    for arguments in (
        ["--table", "auth.sessions"],
        ["--table", "Auth.Sessions"],
        ["--shape", "supabase"],
        ["--shape", "supabase", "--table", "auth.sessions"],
    ):
        told = await ask(supabase_dsn, *arguments)
        assert (told.status, told.report["table"]) == (0, "auth.sessions")
        assert told.report["preset"] == "SUPABASE"


async def test_the_owner_s_search_path_hides_nothing(supabase_dsn: str) -> None:
    """Supabase has it at auth, where the table would be called sessions alone."""
    told = await ask(f"{supabase_dsn}?search_path=auth")
    assert (told.status, told.report["preset"]) == (0, "SUPABASE")


async def test_it_changes_nothing_at_supabase(supabase_dsn: str) -> None:
    """It is content with a connection that may write nothing at all."""
    told = await ask(f"{supabase_dsn}?default_transaction_read_only=on")
    assert (told.status, told.bad()) == (0, [])


async def test_another_schema_is_named_by_its_sessions(
    supabase_dsn: str, role: Role
) -> None:
    """What is printed to mend it names that schema too."""
    await sql(
        supabase_dsn,
        'alter schema auth rename to "My$auth"',
        'drop index "My$auth".refresh_tokens_session_id_revoked_idx',
    )
    arguments = ("--shape", "supabase", "--table", "My$auth.sessions")
    told = await ask(role.address, *arguments)
    assert told.report["table"] == '"My$auth".sessions'
    assert 'schema="My$auth"' in told.report["shape"]
    await sql(supabase_dsn, *told.mends("trigger"), *told.mends("grants"))
    told = await ask(role.address, *arguments)
    await sql(supabase_dsn, *dict.fromkeys(told.mends("indexes")))
    again = await ask(role.address, *arguments, "--strict")
    assert (again.status, again.bad(), again.report["bound"]) == (0, [], "pushed")


async def test_what_an_older_supabase_lacks_is_reported(supabase_dsn: str) -> None:
    """Column by column, with the feature that is off; it is nothing to fail for."""
    told = await ask(supabase_dsn)
    for age, statements in enumerate(AGES):
        await sql(supabase_dsn, *statements)
        before, told = told, await ask(supabase_dsn, "--strict")
        assert (told.status, told.bad()) == (0, []), statements
        fresh = set(told.of("columns")) - set(before.of("columns"))
        off = sum(before.report["capabilities"].values())
        assert len(fresh) == off - sum(told.report["capabilities"].values()), statements
        # Nothing is off without the column that is the newest.
        assert {*told.of("columns").values()} == {"notice" if age else "ok"}, age
    said = " ".join(told.of("columns"))
    for missing in (
        "auth.sessions has no refresh_token_hmac_key, refresh_token_counter: new sessions",
        "auth.sessions has no aal: every session is of level 1",
        "auth.users has no banned_until: nobody can be banned",
        "there is no auth.mfa_amr_claims: access tokens made here say no amr",
    ):
        assert missing in said
    assert not any(told.report["capabilities"][words] for words in ("assurance levels",))


async def test_the_trigger_of_an_older_supabase_is_no_fault(supabase_dsn: str) -> None:
    """It watches what there is: nothing depends on a column that is not there."""
    await sql(supabase_dsn, "alter table auth.sessions drop column aal")
    told = await ask(supabase_dsn)
    await sql(supabase_dsn, *told.mends("trigger"))
    again = await ask(supabase_dsn, "--strict")
    ((text, level),) = again.of("trigger").items()
    assert (again.status, level, again.report["bound"]) == (0, "ok", "pushed")
    assert "complete" in text


async def test_a_role_without_a_single_grant_gets_a_full_report(
    supabase_dsn: str, role: Role
) -> None:
    """It gets findings and no traceback, and what is printed is enough."""
    await with_trigger(supabase_dsn)
    told = await ask(role.address)
    assert (told.status, told.errors, told.report["role"]) == (1, "", role.name)
    assert told.report["bound"] == "max_staleness"
    found = grants_of(told)
    assert found["everything needs USAGE on schema auth"] == "danger"
    assert found["everything needs SELECT on auth.sessions"] == "danger"
    assert found["revocation needs DELETE on auth.sessions"] == "danger"
    assert any("row level security hides" in text for text in found)
    assert [*told.of("indexes").values()] == ["notice"]
    assert "the role may not enter the schema" in " ".join(told.of("trigger"))
    assert urlsplit(role.address).password not in told.text
    await sql(supabase_dsn, *told.mends("grants"))
    again = await ask(role.address, "--strict")
    assert (again.status, again.bad(), grants_of(again)) == (0, [], {})
    assert again.report["bound"] == "pushed"
    async with connection_to(role.address) as connection:
        seen = "has_column_privilege('auth.users', 'encrypted_password', 'select')"
        assert await connection.fetchval(f"select {seen}") is False


async def test_the_documented_grants_are_all_it_asks_for(
    supabase_dsn: str, role: Role
) -> None:
    """Without any one of them it names it, the feature, and the statement that mends it."""
    await give(supabase_dsn, role, *GRANTS)
    well = {f"the role {role.name} may do all that is needed": "ok"}
    assert (await ask(role.address, "--strict")).of("grants") == well
    for grant in GRANTS:
        await sql(supabase_dsn, f"revoke {grant} from {role.name}")
        told = await ask(role.address)
        found = {
            text: told.of("grants")[text] for text in told.of("grants") if "needs" in text
        }
        factors = "mfa_factors" in grant
        assert {*found.values()} == {"notice" if factors else "danger"}, grant
        assert told.status == int(not factors)
        kind, _, place = grant.partition(" on ")
        for text in found:
            assert f"needs {kind.partition(' (')[0].upper()}" in text
            assert text.endswith(f" on {place}")
        await sql(supabase_dsn, *told.mends("grants"))
    assert (await ask(role.address, "--strict")).of("grants") == well


async def test_a_role_that_only_reads_is_reported_as_enough_to_read(
    supabase_dsn: str, role: Role
) -> None:
    """Nothing is said to be missing for everything, only for what it cannot do."""
    reading = ("usage on schema auth", "select on auth.sessions", "select on auth.users")
    await give(supabase_dsn, role, *reading)
    told = await ask(role.address)
    found = grants_of(told)
    assert not any(text.startswith("everything") for text in found)
    assert any("is enough to read sessions" in text for text in found)
    assert "sign-in needs INSERT on auth.sessions" in found
    assert told.of("indexes") == {
        "not every frequent statement was examined: correct the grants first": "notice"
    }


async def test_row_level_security_that_hides_everything_is_a_danger(
    supabase_dsn: str, role: Role
) -> None:
    """Each grant is there and no row would be seen; one statement mends it."""
    await give(supabase_dsn, role, *GRANTS, options="nobypassrls")
    told = await ask(role.address)
    ((text, level),) = grants_of(told).items()
    assert (told.status, level) == (1, "danger")
    assert "row level security hides every row of auth.sessions, auth.users" in text
    await sql(supabase_dsn, *told.mends("grants"))
    assert (await ask(role.address, "--strict")).status == 0


async def test_policies_for_the_role_are_seen(supabase_dsn: str, role: Role) -> None:
    """Then it is a warning: rows that they hide do not exist."""
    await give(supabase_dsn, role, *GRANTS, options="nobypassrls")
    policy = "create policy ours on auth.{} to {} using (true)"
    tables = [table for table in TABLES if table != "mfa_factors"]
    await sql(supabase_dsn, *(policy.format(table, role.name) for table in tables))
    told = await ask(role.address)
    levels = {level: text for text, level in grants_of(told).items()}
    assert (told.status, sorted(levels)) == (0, ["notice", "warning"])
    assert "auth.sessions" in levels["warning"]
    assert "allow_low_aal" in levels["notice"]
    assert "auth.mfa_factors" in levels["notice"]
    assert (await ask(role.address, "--strict")).status == 1


async def test_a_member_that_acts_as_the_owner_lacks_nothing(
    supabase_dsn: str, role: Role
) -> None:
    """It needs no grant and no BYPASSRLS."""
    await give(supabase_dsn, role, OWNER, options="nobypassrls")
    await sql(supabase_dsn, f"alter role {role.name} set role {OWNER}")
    told = await ask(role.address, "--strict")
    assert told.status == 0
    assert told.of("grants") == {f"the role {OWNER} may do all that is needed": "ok"}


async def test_without_the_trigger_gotrues_logouts_are_noticed_late(
    supabase_dsn: str,
) -> None:
    """The DDL that is printed may be run twice; then its logouts are heard."""
    await sql(supabase_dsn, *ADA)
    told = await ask(supabase_dsn, "--strict")
    ((text, level),) = told.of("trigger").items()
    assert (told.status, level, told.report["bound"]) == (0, "notice", "max_staleness")
    assert "GoTrue itself ends" in text
    assert "handstamp init --shape supabase --trigger" in text
    (ddl,) = told.mends("trigger")
    await sql(supabase_dsn, ddl, ddl)
    again = await ask(supabase_dsn)
    assert again.report["bound"] == "pushed"
    assert "GoTrue's own logouts, and all other writers, notify" in " ".join(
        again.of("trigger")
    )
    logout = f"delete from auth.sessions where user_id = '{USER}'"
    assert await notified(supabase_dsn, logout) == [f"s:{SESSION}"]


async def test_an_incomplete_trigger_is_reported(each_supabase_dsn: str) -> None:
    """Handstamp does not rely on it; the DDL completes it."""
    await with_trigger(each_supabase_dsn)
    for change, expected in CHANGES.items():
        await sql(each_supabase_dsn, change)
        told = await ask(each_supabase_dsn)
        ((text, found),) = told.of("trigger").items()
        assert (found, told.status) == ("warning", 0)
        assert told.report["bound"] == "max_staleness"
        assert expected in text
        await sql(each_supabase_dsn, *told.mends("trigger"))
    assert (await ask(each_supabase_dsn, "--strict")).report["bound"] == "pushed"


async def test_a_planted_function_at_supabase_is_a_danger(
    supabase_dsn: str, role: Role
) -> None:
    """A role of the project that may create in the first schema of the search path."""
    await sql(
        supabase_dsn,
        f"grant create on schema public to {role.name}",
        f"set role {role.name}; create function handstamp_notify_user() returns trigger"
        " language plpgsql as 'begin return null; end'",
    )
    with pytest.raises(ConfigError, match=role.name):
        await with_trigger(supabase_dsn)
    told = await ask(supabase_dsn)
    ((text, level),) = told.of("trigger").items()
    assert (level, told.status, told.report["bound"]) == ("danger", 1, "max_staleness")
    assert f"handstamp_notify_user() belongs to {role.name}" in text
    await sql(supabase_dsn, *told.mends("trigger"))
    assert (await ask(supabase_dsn, "--strict")).report["bound"] == "pushed"


async def test_a_trigger_on_the_factors_is_wanted_by_a_rule_only(
    supabase_dsn: str,
) -> None:
    """Without it every other writer is heard all the same."""
    await with_trigger(supabase_dsn)
    await sql(supabase_dsn, "drop trigger handstamp_factor_changed on auth.mfa_factors")
    told = await ask(supabase_dsn, "--strict")
    assert (told.status, told.report["bound"]) == (0, "pushed")
    (text,) = [t for t, level in told.of("trigger").items() if level == "notice"]
    assert "allow_low_aal" in text
    assert "there is no trigger handstamp_factor_changed on auth.mfa_factors" in text


async def test_a_missing_index_is_reported(supabase_dsn: str) -> None:
    """And its DDL mends it."""
    await sql(
        supabase_dsn,
        "drop index auth.sessions_user_id_idx",
        "drop index auth.user_id_created_at_idx",
        "alter table auth.refresh_tokens drop constraint refresh_tokens_token_unique",
    )
    told = await ask(supabase_dsn)
    assert set(told.of("indexes").values()) == {"warning"}
    assert set(told.of("indexes")) == {
        "a list of a user's sessions reads all of sessions, because an index is missing",
        "a refresh reads all of refresh_tokens, because an index is missing",
    }
    assert (await ask(supabase_dsn, "--strict")).status == 1
    await sql(supabase_dsn, *told.mends("indexes"))
    assert (await ask(supabase_dsn, "--strict")).status == 0


async def test_small_tables_are_not_taken_for_tables_without_an_index(
    supabase_dsn: str,
) -> None:
    """The planner would rather read three rows than look into an index."""
    await sql(supabase_dsn, *ADA, "analyze")
    assert [*(await ask(supabase_dsn)).of("indexes").values()] == ["ok"]


async def test_the_clock_of_supabase_is_compared(supabase_dsn: str) -> None:
    """As for every other table."""
    later = "pg_catalog.clock_timestamp() + interval '5 min'"
    await sql(
        supabase_dsn,
        "create function public.clock_timestamp() returns timestamptz language sql"
        f" as $$ select {later} $$",
    )
    told = await ask(f"{supabase_dsn}?search_path=public,pg_catalog")
    assert [*told.of("clock").values()] == ["warning"]


@pytest.fixture
def standby_dsn() -> Iterator[str]:
    """A real standby, with a table of each kind."""
    with ephemeral() as server:
        asyncio.run(make_tables(server.dsn()))
        asyncio.run(sql(server.dsn(), LOGINS))
        server.stop()
        (server.data_dir / "standby.signal").touch()
        server.start()
        yield server.dsn()


async def test_a_standby_is_reported_for_any_table(standby_dsn: str) -> None:
    """It refuses to listen, and is looked at all the same."""
    for arguments in (("--shape", "supabase"), ("--table", "logins")):
        told = await ask(standby_dsn, *arguments)
        assert (told.status, told.report["bound"]) == (1, "max_staleness")
        assert [*told.of("server").values()] == ["danger"]
        assert told.of("pooler") == {}


@pytest.mark.skipif(program() is None, reason="pgbouncer is not installed")
async def test_a_pooler_before_supabase_is_noticed(supabase_dsn: str) -> None:
    """With the server itself to listen to, all is heard."""
    with pooled(supabase_dsn) as address:
        told = await ask(address, "--listen-dsn", supabase_dsn)
    assert [*told.of("pooler").values()] == ["notice"]
    assert "a session that handstamp ends is refused" in " ".join(told.of("bound"))


async def test_sessions_that_are_not_supabase_s_are_reported(supabase_dsn: str) -> None:
    """Everything that is missing at once, and how to examine a table of one's own."""
    await sql(
        supabase_dsn,
        "drop table auth.refresh_tokens",
        "alter table auth.users drop column aud, drop column role",
    )
    told = await ask(supabase_dsn)
    assert (told.status, told.report["shape"], told.report["capabilities"]) == (1, None, {})
    missing = {text.partition(" is missing")[0] for text in told.of("table")}
    assert missing == {"auth.refresh_tokens", "auth.users.aud", "auth.users.role"}
    assert "--shape ulid" in " ".join(told.of("doctor"))
    own = await ask(supabase_dsn, "--shape", "uuid", "--table", "auth.sessions")
    assert "TableShape(token=…)" in " ".join(own.of("table"))


async def test_what_cannot_be_looked_at_of_supabase_is_status_2(
    supabase_dsn: str, empty_dsn: str
) -> None:
    """With one line that says why."""
    for address, arguments, text in (
        (empty_dsn, ("--shape", "supabase"), "there is no table auth.sessions"),
        (supabase_dsn, ("--shape", "supabase", "--table", "sessions"), "and not sessions"),
        (
            supabase_dsn,
            ("--shape", "supabase", "--table", "auth.users"),
            "and not auth.users",
        ),
        (supabase_dsn, ("--shape", "supabase", "--table", 'a"b.sessions'), "no SQL name"),
        (supabase_dsn, ("--shape", "other"), "ulid, uuid, supabase"),
    ):
        told = await ask(address, *arguments)
        assert (told.status, told.text) == (2, "")
        assert text in told.errors
        assert "Traceback" not in told.errors
