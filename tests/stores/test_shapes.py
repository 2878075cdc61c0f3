"""What may stand in SQL text: names that were checked, and nothing else."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from handstamp.core.models import EARLIEST, LATEST
from handstamp.errors import ConfigError
from handstamp.stores.shapes import (
    ULID_HASHED,
    UUID_PLAIN,
    TableShape,
    UsersTable,
    quoted,
)
from handstamp.stores.table import TableStore

NOT_NAMES = [
    'a"b',
    "a;b",
    "a b",
    "a'b",
    "",
    "1a",
    "a.b.c",
    "a\n",
    "é",
    "a" * 64,
    "a--",
    ".",
]


@pytest.mark.parametrize("name", NOT_NAMES, ids=ascii)
@pytest.mark.parametrize("field", ["table", "id", "token"])
def test_c131_an_invalid_identifier_is_refused(field: str, name: str) -> None:
    """At construction, with the field that is wrong."""
    with pytest.raises(ConfigError, match=field):
        TableShape(**{field: name})


@pytest.mark.parametrize("name", NOT_NAMES, ids=ascii)
def test_c131_an_invalid_identifier_of_the_users_is_refused(name: str) -> None:
    """The users' names end up in the same SQL."""
    with pytest.raises(ConfigError, match="is_active"):
        UsersTable(is_active=name)


def test_a_shape_whose_ids_are_tokens_in_plaintext_is_refused() -> None:
    """The id of a session is in logs, events and lists: there it would open the session.
    The refusal says how to get ids that are none."""
    with pytest.raises(ConfigError, match="could sign in with it") as refusal:
        TableShape(table="app.logins", id="sid", token="sid", at_rest="plain")
    assert 'alter table "app"."logins" add column session_id' in str(refusal.value)
    with pytest.raises(ConfigError, match="could sign in with it"):
        replace(UUID_PLAIN, id=UUID_PLAIN.token)
    for at_rest in ("digest", "prefixed"):
        assert TableShape(id="sid", token="sid", at_rest=at_rest).id_is_token
    assert not TableShape(id="Sid", token="sid", at_rest="plain").id_is_token


@pytest.mark.parametrize("held", ["token", "refresh_token"])
@pytest.mark.parametrize("shown", ["user_id", "fingerprint", "user_agent", "location"])
def test_a_column_of_tokens_is_never_shown_as_something_else(held: str, shown: str) -> None:
    """By whatever field an application would see it."""
    with pytest.raises(ConfigError, match=f"{shown}= names secret, a column of tokens"):
        TableShape(**{held: "secret", shown: "secret"})
    with pytest.raises(ConfigError, match="id= names secret"):
        TableShape(id="secret", refresh_token="secret")
    with pytest.raises(ConfigError, match="token= names secret"):
        TableShape(token="secret", refresh_token="secret")


def test_a_name_is_quoted_part_by_part() -> None:
    """A schema and a table are two identifiers."""
    assert quoted("app.Users") == '"app"."Users"'


@pytest.fixture(params=[ULID_HASHED, UUID_PLAIN], ids=["ulid", "uuid"])
async def statements(request: pytest.FixtureRequest, dsn: str, uuid_dsn: str) -> list[str]:
    """Every statement of a shape, as text."""
    shape = request.param
    store = TableStore(dsn if shape is ULID_HASHED else uuid_dsn, shape=shape)
    sql = await store.statements()
    await store.close()
    return [text for text in vars(sql).values() if isinstance(text, str)]


async def test_values_are_bound_and_never_text(statements: list[str]) -> None:
    """No statement holds a literal but those that its own text spells out."""
    literals = {literal for sql in statements for literal in re.findall(r"'[^']*'", sql)}
    notify = {"'handstamp'", "'s:'", "'O'", "'A'"}
    notify |= {"'handstamp_notify_session'", "'handstamp_notify_user'"}
    notify |= {"'handstamp_notify_all'", "'sha256:'", "'utc'"}
    notify |= {f"'{date.date()} 00:00+00'" for date in (EARLIEST, LATEST)}
    assert literals - notify <= {"''", "'1 minute'", "'1 microsecond'", "'1 second'", "'0'"}


async def test_every_template_is_filled(statements: list[str]) -> None:
    """No placeholder of a template is left in a statement."""
    assert len(statements) >= 14
    assert not any(re.search(r"[{}]|::duration", sql) for sql in statements)
