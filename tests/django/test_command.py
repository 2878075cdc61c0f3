"""`manage.py handstamp`, on a real database."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from handstamp import Client, Sessions, blocking
from handstamp.django import get_sessions
from tests.conftest import execute
from tests.django import django_setup

SECRET = "a secret of the command: 32 bytes and more"
USERS = """insert into users (id, username, password_hash) values
    ('01HZY3J8Z8Z8Z8Z8Z8Z8Z8Z8Z8', 'alice', '-')"""
ALICE = "01HZY3J8Z8Z8Z8Z8Z8Z8Z8Z8Z8"
assert django_setup.OURS


@pytest.fixture
def sessions(dsn: str) -> Iterator[Sessions]:
    """The engine of the settings, on a database with alice."""
    asyncio.run(execute(dsn, USERS))
    with override_settings(HANDSTAMP={"DATABASE_URL": dsn, "SECRETS": [SECRET]}):
        yield get_sessions()
        blocking.call(get_sessions().close)


def run(*words: str) -> str:
    """What the command prints."""
    output = StringIO()
    call_command("handstamp", *words, stdout=output)
    return output.getvalue()


def sign_in(sessions: Sessions) -> Any:
    """A session of alice's."""
    client = Client(address="198.51.100.7")
    return blocking.call(sessions.create, ALICE, client=client).session


def test_sessions_are_listed(sessions: Sessions) -> None:
    """A line each, with no full address in it."""
    ids = {sign_in(sessions).id for _ in range(2)}
    lines = run("sessions", ALICE).splitlines()
    assert {line.split()[0] for line in lines} == ids
    assert all(line.endswith("198.51.…") for line in lines)


def test_one_session_is_revoked(sessions: Sessions) -> None:
    """And a second time there is none."""
    session = sign_in(sessions)
    sign_in(sessions)
    assert run("revoke", session.id, "--reason", "lost phone") == "revoked 1\n"
    assert len(run("sessions", ALICE).splitlines()) == 1
    with pytest.raises(CommandError, match="no live session"):
        run("revoke", session.id)


def test_all_sessions_of_a_user_are_revoked(sessions: Sessions) -> None:
    """The output is the number of rows."""
    for _ in range(3):
        sign_in(sessions)
    assert run("revoke-user", ALICE) == "revoked 3\n"
    assert run("revoke-user", ALICE) == "revoked 0\n"


def test_prune_says_how_many(sessions: Sessions) -> None:
    """None of them is dead for long enough here."""
    sign_in(sessions)
    assert run("prune") == "deleted 0\n"


def test_check_says_how_revocations_are_heard(sessions: Sessions, dsn: str) -> None:
    """The test's tables have no trigger."""
    first = ["database: ok", "notifications: listening"]
    lines = [*first, "other writers: within max_staleness"]
    assert run("check").splitlines() == lines


def test_a_database_that_is_away_is_one_line() -> None:
    """No traceback, no password."""
    url = "postgresql://user:password@127.0.0.1:1/app"
    with override_settings(HANDSTAMP={"DATABASE_URL": url, "SECRETS": [SECRET]}):
        for words in (["check"], ["prune"], ["revoke", ALICE], ["sessions", ALICE]):
            with pytest.raises(CommandError, match="cannot be checked") as error:
                run(*words)
            assert "password" not in str(error.value)
        blocking.call(get_sessions().close)


def test_settings_that_cannot_work_are_one_line() -> None:
    """The reason is that of the checks."""
    given = {"DATABASE_URL": "postgresql://localhost/app"}
    with override_settings(HANDSTAMP=given), pytest.raises(CommandError, match="SECRET"):
        run("prune")
