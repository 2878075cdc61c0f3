"""What may stand in SQL text: names that were checked, and nothing else."""

from __future__ import annotations

import re

import pytest

from handstamp.errors import ConfigError
from handstamp.stores.shapes import ULID_HASHED, TableShape, UsersTable, quoted
from handstamp.stores.statements import Statements

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
NOT_TYPES = ['"x"', "bpchar; drop", "varchar(10)", "Bpchar", "", "a  b", "int[]"]


@pytest.mark.parametrize("name", NOT_NAMES, ids=ascii)
@pytest.mark.parametrize("field", ["table", "id", "token_digest"])
def test_c131_what_is_no_name_is_refused(field: str, name: str) -> None:
    """At construction, with the field that is wrong."""
    with pytest.raises(ConfigError, match=field):
        TableShape(**{field: name})


@pytest.mark.parametrize("name", NOT_NAMES, ids=ascii)
def test_c131_what_is_no_name_of_the_users_is_refused(name: str) -> None:
    """The users' names end up in the same SQL."""
    with pytest.raises(ConfigError, match="is_active"):
        UsersTable(is_active=name)


@pytest.mark.parametrize("kind", NOT_TYPES, ids=ascii)
def test_c131_what_is_no_type_is_refused(kind: str) -> None:
    """A type is lower-case words and nothing else."""
    with pytest.raises(ConfigError, match="id_type"):
        TableShape(id_type=kind)


def test_a_name_is_quoted_part_by_part() -> None:
    """A schema and a table are two identifiers."""
    assert quoted("app.Users") == '"app"."Users"'


def test_values_are_bound_and_never_text() -> None:
    """No statement holds a literal but those that its own text spells out."""
    literals = {
        literal
        for sql in vars(Statements(ULID_HASHED)).values()
        if isinstance(sql, str)
        for literal in re.findall(r"'[^']*'", sql)
    }
    notify = {"'handstamp'", "'s:'", "'O'", "'A'"}
    notify |= {"'handstamp_notify_session'", "'handstamp_notify_user'"}
    notify |= {"'handstamp_notify_all'"}
    assert literals - notify == {"'1 minute'", "'1 microsecond'", "'1 second'", "'0'"}


def test_every_template_is_filled() -> None:
    """No placeholder of a template is left in a statement."""
    statements = [s for s in vars(Statements(ULID_HASHED)).values() if isinstance(s, str)]
    assert len(statements) >= 14
    assert not any(re.search(r"[{}]|::duration", sql) for sql in statements)
