"""The address of the database: read as it is meant, or refused without quoting it."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from urllib.parse import quote, unquote, urlsplit

import pytest
from asyncpg import connect_utils
from hypothesis import example, given
from hypothesis import strategies as st

from handstamp import ConfigError, Sessions
from handstamp.errors import SessionsUnavailable
from handstamp.stores.connection import Database, check_dsn
from handstamp.supabase import SupabaseSessions
from tests.conftest import execute
from tests.support.commands import handstamp

SECRET = "the secret of the tests of addresses: 32 bytes"
GOOD = "postgresql://user:word@127.0.0.1:5432/name"
HALVES = ("kangaroo", "wallaby")
"""The parts of a password: no text of ours holds either of them."""
MARKS = ["#", "?", "?a=", "?a&", "/", "@", "[", "]", "%", "%zz", "%00", "%ff", " ", "\t"]
PASSWORDS = [
    *(f"{HALVES[0]}{mark}{HALVES[1]}" for mark in MARKS),
    # What stands before the mark can be taken for a port: then nothing fails by itself.
    *(f"5432{mark}{HALVES[1]}" for mark in ("#", "?a=", "/", "@")),
    f"[{HALVES[0]}]{HALVES[1]}",
    f"{HALVES[0]}\u2100{HALVES[1]}",
]
REFUSED = [f"postgresql://user:{password}@127.0.0.1:5432/name" for password in PASSWORDS]
ODD = [
    f"{HALVES[0]}://user:{HALVES[1]}@127.0.0.1/name",
    f"postgresql+asyncpg://user:{HALVES[1]}@127.0.0.1/name",
    f"host=127.0.0.1 password={HALVES[1]}",
    f"//user:{HALVES[1]}@127.0.0.1/name",
    f"postgresql://user:word@{HALVES[0]}..{HALVES[1]}/name",
    f"postgresql://user:word@127.0.0.1:{HALVES[0]}/name",
    f"postgresql://user:word@127.0.0.1:65536/{HALVES[0]}",
    f"postgresql://user:word@{HALVES[0]},,{HALVES[1]}/name",
    f"postgresql://user:word@[{HALVES[0]}]:5432/name",
    f"postgresql://user:word@127.0.0.1/name?{HALVES[0]}",
    f"postgresql://user:word@127.0.0.1/name?port={HALVES[0]}",
    f"postgresql://user:word@127.0.0.1/name#{HALVES[0]}",
    "",
]


def texts_of(error: BaseException | None) -> str:
    """All that an error and the errors behind it say, also where no traceback shows it."""
    said = ""
    while error is not None:
        said += f"{error!s} {error!r} {error.args!r} {error.__dict__!r}\n"
        said += "".join(traceback.format_exception(error, chain=False)[-1:])
        error = error.__cause__ or error.__context__
    return said


def discreet(error: BaseException) -> bool:
    """Whether an error quotes nothing of an address."""
    return not any(half in texts_of(error) for half in HALVES)


@pytest.mark.parametrize("dsn", [*REFUSED, *ODD])
@pytest.mark.parametrize(
    "build",
    [
        lambda dsn: Sessions(dsn, secret=SECRET),
        lambda dsn: Sessions(GOOD, secret=SECRET, listen_dsn=dsn or "nothing"),
        lambda dsn: SupabaseSessions(dsn, url="http://x.example", jwt_secret=SECRET),
        lambda dsn: SupabaseSessions(
            GOOD, url="http://x.example", jwt_secret=SECRET, listen_dsn=dsn or "nothing"
        ),
    ],
    ids=["sessions", "listen_dsn", "supabase", "supabase-listen_dsn"],
)
def test_a_dsn_with_an_unescaped_character_is_refused_at_construction_and_not_quoted(
    build: Callable[[str], Sessions], dsn: str
) -> None:
    """Before anything is sent to a host that is a piece of the password; what is said
    tells what to do."""
    with pytest.raises(ConfigError) as caught:
        build(dsn)
    assert discreet(caught.value)
    assert "postgresql://" in str(caught.value) or "%23" in str(caught.value)


@pytest.mark.parametrize("password", PASSWORDS)
async def test_the_same_password_escaped_opens_the_database(
    empty_dsn: str, password: str
) -> None:
    """As the message says: PostgreSQL takes it once it is percent-encoded."""
    role = f"role {password}".replace("\x00", "")
    literal = password.replace("'", "''")
    await execute(empty_dsn, f"create role \"{role}\" login password '{literal}'")
    parts = urlsplit(empty_dsn)
    who = f"{quote(role, safe='')}:{quote(password, safe='')}"
    dsn = parts._replace(netloc=f"{who}@{parts.hostname}:{parts.port}").geturl()
    try:
        database = Database(dsn, pool_size=1, budget=timedelta(seconds=60))
        assert await database.read("select session_user::text") == [(role,)]
        await database.close()
    finally:
        await execute(empty_dsn, f'drop role "{role}"')


READ = connect_utils._parse_connect_dsn_and_args
NOTHING_ELSE = dict.fromkeys(inspect.signature(READ).parameters)


@given(st.text(st.characters(codec="utf-8"), max_size=12), st.booleans())
@example("12#3", False)
@example("1/2", False)
@example("%e2%82%ac", False)
@example("a\nb", False)
@example("a:b", False)
def test_a_dsn_is_read_as_it_was_written_or_refused(text: str, escaped: bool) -> None:
    """Whatever stands for the password: the driver finds this password, user and host, or
    the address is refused. It never finds another host."""
    password = quote(text, safe="") if escaped else text
    dsn = f"postgresql://user:{password}@127.0.0.1:5432/name"
    try:
        dsn = check_dsn(dsn)
    except ConfigError as exc:
        assert not escaped or "\x00" in text
        assert exc.__cause__ is exc.__context__ is None  # noqa: PT017
        return
    addresses, parameters, *_ = READ(**{**NOTHING_ELSE, "dsn": dsn})
    assert addresses == [("127.0.0.1", 5432)]
    assert (parameters.user, parameters.database) == ("user", "name")
    assert (parameters.password or "") == unquote(password)


@pytest.mark.parametrize(
    "dsn",
    [
        GOOD,
        "postgres://127.0.0.1/name",
        "POSTGRESQL://user@127.0.0.1",
        "postgresql://",
        "postgresql:///name",
        "postgresql://user:pw@/name",
        "postgresql://user@[::1]:5432/name",
        "postgresql://user:p:w@one.example:5432,two.example,[::1]:6000/name",
        "postgresql://%2Fvar%2Frun%2Fpostgresql/name",
        "postgresql:///name?host=/var/run/postgresql&port=5432",
        "postgresql://user:word@127.0.0.1/n%20a%40me?application_name=a%20b&sslmode=require",
        "postgresql://us%40er:w%23rd@b\u00fccher.example/name",
        "postgresql://postgres.abcd:word@aws-0.pooler.supabase.com:6543/postgres",
    ],
)
def test_a_dsn_that_postgresql_accepts_is_accepted(dsn: str) -> None:
    """It goes to the driver as it is."""
    assert check_dsn(dsn) == dsn


def test_a_newline_after_a_dsn_is_ignored() -> None:
    """A file that holds a secret ends with one."""
    assert check_dsn(f" {GOOD}\n") == GOOD


@pytest.mark.parametrize(
    "tail",
    ["?sslmode=kangaroo", "?sslmode=require&sslnegotiation=kangaroo"],
)
async def test_what_only_the_driver_refuses_is_a_config_error_too(tail: str) -> None:
    """No outage: waiting would not help. What the driver says of it may quote it."""
    database = Database(GOOD + tail, pool_size=1, budget=timedelta(seconds=60))
    with pytest.raises(ConfigError) as caught:
        await database.read("select 1")
    assert discreet(caught.value)
    await database.close()


async def test_a_connect_option_that_the_driver_refuses_is_a_config_error(
    empty_dsn: str,
) -> None:
    """``open()`` says it, for whoever starts the application."""
    sessions = Sessions(empty_dsn, secret=SECRET, connect={"ssl": "kangaroo"})
    with pytest.raises(ConfigError) as caught:
        await sessions.open()
    assert discreet(caught.value)


async def test_a_database_that_is_down_is_an_outage_and_no_config_error() -> None:
    """An address that can be read, and nobody at home."""
    database = Database(
        "postgresql://user:word@127.0.0.1:1/name", pool_size=1, budget=timedelta(seconds=60)
    )
    with pytest.raises(SessionsUnavailable):
        await database.read("select 1")
    await database.close()


COMMANDS = [
    ["init", "--dsn"],
    ["doctor", "--dsn"],
    ["migrate-tokens", "--dsn"],
]


def refused(*arguments: str, **environ: str) -> str:
    """Run a command in vain; all that it says."""
    return checked(handstamp(*arguments, **environ))


def checked(done: subprocess.CompletedProcess[str]) -> str:
    """What was said, which quotes nothing."""
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert not any(half in said for half in HALVES), "quoted"
    return said


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: "-".join(words[:2]))
def test_a_command_says_how_to_write_the_address(command: list[str]) -> None:
    """In one line, without a traceback."""
    said = refused(*command, REFUSED[0])
    assert "Traceback" not in said
    assert "%23" in said


def test_the_doctor_takes_the_address_to_listen_at_with_the_same_care(
    empty_dsn: str,
) -> None:
    """It may lead to another server, with another password."""
    command = ["doctor", "--dsn", empty_dsn, "--listen-dsn"]
    assert "%23" in refused(*command, REFUSED[0])


def test_a_command_takes_the_variable_with_the_same_care() -> None:
    """DATABASE_URL is an address as well."""
    assert "%23" in refused("doctor", DATABASE_URL=REFUSED[0])


def test_the_examples_do_not_quote_the_address() -> None:
    """Neither the application at its start, nor what makes its tables, nor the demo."""
    environ = os.environ | {"DATABASE_URL": REFUSED[0], "HANDSTAMP_SECRET": SECRET}
    for arguments in (
        ["-m", "examples.seed"],
        ["-c", "import examples.starlette.app"],
        ["-m", "handstamp", "demo", "--port", "0", "--dsn", REFUSED[0]],
    ):
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            env=environ,
            timeout=100,
        )
        assert "%23" in checked(done)
