"""From a catalog to a proposed shape: which column of a table is probably what.

Rule 1. Names decide, and types must allow it. Where the column of tokens is called as in
the nearest preset, the preset's other names go first.
Rule 2. Whether a column holds tokens or digests is said by whoever asks; by its name; or by
its rows, where none of them could be a digest. Everything else is not decided here: with
digests taken for tokens, whoever reads the table could sign in.
Rule 3. Nothing is guessed in silence: each doubt is a finding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from handstamp.errors import ConfigError
from handstamp.stores.catalog import Column, Table
from handstamp.stores.doctor.column_names import (
    FIELDS,
    USER_FIELDS,
    plain,
    says_digest,
)
from handstamp.stores.doctor.doubting import Users, columns_of, doubts_about
from handstamp.stores.doctor.findings import Finding, Level
from handstamp.stores.fitting import types_of
from handstamp.stores.shapes import (
    PREFIX,
    ULID_HASHED,
    UUID_PLAIN,
    AtRest,
    NewId,
    TableShape,
    UsersTable,
)
from handstamp.stores.token_forms import SHA256, Rows

PRESETS: Mapping[str, TableShape] = {"ulid": ULID_HASHED, "uuid": UUID_PLAIN}
NEEDED = ("id", "user_id", "token", "expires_at")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}")
_DIGEST = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A shape for a table, the preset it is nearest to, and the doubts about it.

    ``decided`` is False where only somebody who knows the application can say how tokens
    are stored: ``shape.at_rest`` is then the guess that signs nobody in.
    """

    shape: TableShape
    preset: str
    doubts: tuple[Finding, ...]
    decided: bool


def nearest(table: Table) -> str:
    """The preset that shares the most columns with the table."""

    def shared(preset: str) -> int:
        return len(set(columns_of(PRESETS[preset]).values()) & set(table.columns))

    return max(sorted(PRESETS), key=shared)


def propose(
    name: str,
    table: Table,
    *,
    users: Users | None = None,
    rows: Rows | None = None,
    preset: str | None = None,
    at_rest: AtRest | None = None,
) -> Proposal:
    """The shape of the table that is called ``name``.

    ``rows`` are what :func:`choose_token` 's column holds, None where nobody counted them.
    ``preset`` insists on one to start from, ``at_rest`` says how tokens are stored. Raises
    :class:`ConfigError` where a column that is needed cannot be found.
    """
    preset = preset or nearest(table)
    chosen = _choose(table, PRESETS[preset])
    lacks = [field for field in NEEDED if field not in chosen]
    if lacks:
        raise ConfigError(_not_found(name, table, lacks, set(chosen.values())))
    token = table.columns[chosen["token"]]
    documented = set(columns_of(PRESETS[preset]).values()) <= set(table.columns)
    own = chosen["id"] == chosen["token"]
    is_plain = documented and PRESETS[preset].at_rest == "plain" and not own
    said = at_rest or _by_name(token, rows)
    guess, doubt = _by_rows(token, rows, is_plain) if said is None else (said, ())
    missing: dict[str, str | None] = dict.fromkeys(set(FIELDS) - set(chosen))
    shape = TableShape(
        table=name,
        **missing | chosen,  # type: ignore[arg-type]
        at_rest=guess,
        new_id=_new_id(table.columns[chosen["id"]]),
        users=_users(users),
    )
    doubts = [*doubt, *doubts_about(shape, table, users)]
    return Proposal(shape=shape, preset=preset, doubts=tuple(doubts), decided=not doubt)


def choose_token(table: Table, preset: str | None = None) -> str | None:
    """The column of the table that probably holds tokens."""
    return _choose(table, PRESETS[preset or nearest(table)]).get("token")


def _choose(table: Table, preset: TableShape) -> dict[str, str]:
    chosen: dict[str, str] = {}
    free = {plain(name): name for name in table.columns if _NAME.fullmatch(name)}
    named = columns_of(preset)
    named = named if named["token"] in table.columns else {}
    for field, words in FIELDS.items():
        names = ([named[field]] if field in named else []) + list(words)
        found = [free[plain(n)] for n in names if plain(n) in free]
        column = _first(found, field, table)
        if column is not None:
            chosen[field] = column
            del free[plain(column)]
    if "refresh_token" not in chosen or "refresh_expires_at" not in chosen:
        chosen.pop("refresh_token", None)
        chosen.pop("refresh_expires_at", None)
    return _with_one_for_both(chosen, table)


def _first(names: list[str], field: str, table: Table) -> str | None:
    """The best name whose type will do; for what is needed, else the best name."""
    fitting = [n for n in names if table.columns[n].type in types_of(field)]
    if fitting or field not in NEEDED:
        return fitting[0] if fitting else None
    return names[0] if names else None


def _with_one_for_both(chosen: dict[str, str], table: Table) -> dict[str, str]:
    """A table whose id is the token (or whose token is the key) names it twice."""
    if "token" not in chosen and "id" in chosen:
        own = table.columns[chosen["id"]]
        if own.type in types_of("token") and own.default is None:
            return {**chosen, "token": own.name}
    if "id" not in chosen:
        keys = [n for (n, *more) in sorted(table.unique) if not more and _NAME.fullmatch(n)]
        usable = types_of("id") - {"text"}
        ids = [n for n in keys if table.columns[n].type in usable]
        ids = [n for n in ids if n not in chosen.values()]
        if ids or "token" in chosen:
            return {**chosen, "id": ids[0] if ids else chosen["token"]}
    return chosen


def _not_found(name: str, table: Table, fields: list[str], taken: set[str]) -> str:
    free = [c for c in table.columns.values() if _NAME.fullmatch(c.name)]
    free = [c for c in free if c.name not in taken]
    guesses = []
    for field in fields:
        usable = [c.name for c in free if c.type in types_of(field)]
        if usable:
            guesses.append(f"{field}: one of {', '.join(usable)}?")
    asked = ", ".join(f"{field}=…" for field in fields)
    problem = f"no column of {name} looks like {' or '.join(fields)}"
    return " ".join([f"{problem}: write TableShape({asked}) yourself.", *guesses])


def _by_name(token: Column, rows: Rows | None) -> AtRest | None:
    if not says_digest(token.name):
        return None
    return "prefixed" if rows is not None and _only_ours(rows) else "digest"


def _only_ours(rows: Rows) -> bool:
    """A sample is no proof of it."""
    return bool(rows.ours) and not rows.unhashed and not rows.about


def _by_rows(
    token: Column, rows: Rows | None, is_plain: bool
) -> tuple[AtRest, tuple[Finding, ...]]:
    """What the rows say, and the doubt where they do not; ``is_plain`` says that this is
    the documented table with tokens in clear."""
    room = token.length is None or token.length >= _DIGEST + len(PREFIX)
    safe: AtRest = "prefixed" if room else "digest"
    if rows is None:
        return safe, (_doubt(token.name, "the rows were not counted"),)
    if rows.ambiguous:
        if set(rows.forms) <= {SHA256}:
            safe = "digest"
        about = "about " if rows.about else ""
        found = Rows(forms=rows.ambiguous)
        return safe, (_doubt(token.name, f"{about}{found}: such texts may be digests"),)
    if _only_ours(rows) or not (rows.forms or is_plain):
        return safe, ()
    return "plain", ()


def _doubt(column: str, why: str) -> Finding:
    return Finding(
        Level.WARNING,
        "tokens",
        f"whether {column} holds tokens or digests of them cannot be seen ({why})."
        " Compare the cookie of a session of your own with its row. If they are the same"
        ' text, your code stores the token itself: at_rest="plain". If not, and the row has'
        ' 64 small digits of hex: at_rest="digest". Otherwise: at_rest="prefixed", and the'
        " sessions that are in the table are over. If you are not sure, do not say"
        ' "plain": with it, whoever reads a table of digests could sign in with one. Say it'
        " here with --at-rest",
    )


def _new_id(column: Column) -> NewId:
    if column.type == "uuid":
        return "uuid"
    default = column.default or ""
    if column.type.startswith("int") or (default and "ulid" not in default):
        return "database"
    room = column.length
    return "uuid" if room is not None and 36 <= room < 40 else "ulid"


def _users(users: Users | None) -> UsersTable | None:
    """Nothing where the table of users has nothing that handstamp looks at."""
    if users is None:
        return None
    free = {plain(n): n for n in users.table.columns if _NAME.fullmatch(n)}
    found: dict[str, str | None] = {}
    for field, words in USER_FIELDS.items():
        names = [free[plain(word)] for word in words if plain(word) in free]
        found[field] = _first(names, field, users.table)
    if not any(found.values()):
        return None
    return UsersTable(table=users.name, id=users.id, **found)
