"""The tables handstamp works with, as SQL files, one for each table shape.

The files are plain SQL. A line ``-- name: KIND NAME [on TABLE]`` begins each
statement, and ``-- needs: TABLE.COLUMN ...`` may follow it. Nothing in them names
a schema, so that the connection's search path decides; only the tables of Supabase Auth
are always in theirs, and never made here.
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

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def shapes() -> list[str]:
    """Name the table shapes there is SQL for, in alphabetical order."""
    files = (file.name for file in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(".sql") for name in files if name.endswith(".sql"))


def statements(shape: str, *, trigger: bool = False) -> list[Statement]:
    """Read the statements that make the tables of `shape`, in their order.

    With `trigger` follow those that make every writer notify. Raises `ValueError` when
    there is no such shape.
    """
    if shape not in shapes():
        raise ValueError(f"no table shape {shape!r}, only {', '.join(shapes())}")
    folder = resources.files(__name__)
    text = (folder / f"{shape}.sql").read_text("utf-8")
    if trigger:
        text += "\n" + (folder / "trigger" / f"{shape}.sql").read_text("utf-8")
    heads = list(_HEAD.finditer(text))
    if not heads:
        return []  # Supabase Auth makes its tables itself
    ends = [head.start() for head in heads[1:]] + [len(text)]
    return [
        _statement(head, text[head.end() : end])
        for head, end in zip(heads, ends, strict=True)
    ]


def script(shape: str, *, trigger: bool = False) -> str:
    """Give the statements of `shape` as one script, for a database without them.

    Raises `ValueError` when there is no such shape.
    """
    return "\n".join(
        f"-- {step}\n{step.sql};\n" for step in statements(shape, trigger=trigger)
    )


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
