"""The tables handstamp works with, as SQL files, one for each table shape.

The files are plain SQL. A line ``-- name: KIND NAME [on TABLE]`` begins each
statement, and ``-- needs: TABLE.COLUMN ...`` may follow it. Nothing in them names
a schema, so that the connection's search path decides. The tables of Supabase Auth are
never made here. The trigger that makes every writer notify is in no file: it is made from
the table (:mod:`handstamp.stores.notify_trigger`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources

_HEAD = re.compile(r"-- name: (?P<kind>\w+) (?P<name>\w+)(?: on (?P<relation>[\w.]+))?\n")
_NEEDS = re.compile(r"-- needs: (?P<columns>.+)\n")


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One statement that creates one object of the database.

    `kind` is ``function``, ``table``, ``index`` or ``trigger``; `relation` is the
    table an index or trigger is on. `needs` names the columns, as (table, column),
    that must exist for the object to make sense. `sql` ends without a semicolon.
    """

    name: str
    kind: str
    relation: str | None
    needs: tuple[tuple[str, str], ...]
    sql: str

    @classmethod
    def function(cls, name: str, sql: str) -> Statement:
        """The statement that creates a function."""
        return cls(name=name, kind="function", relation=None, needs=(), sql=sql)

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def shapes() -> list[str]:
    """Name the table shapes there is SQL for, in alphabetical order."""
    files = (file.name for file in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(".sql") for name in files if name.endswith(".sql"))


def statements(shape: str) -> list[Statement]:
    """Read the statements that make the tables of `shape`, in their order.

    Raises `ValueError` when there is no such shape.
    """
    if shape not in shapes():
        raise ValueError(f"no table shape {shape!r}, only {', '.join(shapes())}")
    text = (resources.files(__name__) / f"{shape}.sql").read_text("utf-8")
    heads = list(_HEAD.finditer(text))
    if not heads:
        return []  # Supabase Auth makes its tables itself
    ends = [head.start() for head in heads[1:]] + [len(text)]
    return [
        _statement(head, text[head.end() : end])
        for head, end in zip(heads, ends, strict=True)
    ]


def _statement(head: re.Match[str], body: str) -> Statement:
    needs = _NEEDS.match(body)
    return Statement(
        name=head["name"],
        kind=head["kind"],
        relation=head["relation"],
        needs=_columns(needs["columns"]) if needs else (),
        sql=body[needs.end() if needs else 0 :].strip().removesuffix(";"),
    )


def _columns(text: str) -> tuple[tuple[str, str], ...]:
    pairs = (name.rsplit(".", 1) for name in text.split())
    return tuple((table, column) for table, column in pairs)
