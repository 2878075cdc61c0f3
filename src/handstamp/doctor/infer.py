"""From a catalog to a proposed shape: which column of a table is probably what.

Rule 1. Names decide, and types must allow it. Where the column of tokens is called as in
the nearest preset, the preset's other names go first.
Rule 2. Whether a column holds tokens or digests is said by whoever asks; by its name; or by
its rows, where none of them could be a digest. Everything else is not decided here: with
digests taken for tokens, whoever reads the table could sign in.
Rule 3. Nothing is guessed in silence: each doubt is a finding.

A shape in words: as Python to paste, and how it differs from a preset.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from handstamp.doctor.columns import (
    FIELDS,
    USER_FIELDS,
    Finding,
    Level,
    Users,
    columns_of,
    doubts_about,
    plain,
    says_digest,
)
from handstamp.errors import ConfigError
from handstamp.stores.catalog import Column, Table
from handstamp.stores.resolve import capabilities_of, types_of
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


NAMES: Mapping[str, str] = {"ulid": "ULID_HASHED", "uuid": "UUID_PLAIN"}

_WITHOUT: Mapping[str, str] = {
    "refresh_token": "nothing rotates: a session has one token for life",
    "refresh_expires_at": "",
    "created_at": "nothing says when a session began: it has no absolute limit, and its"
    " expiry stays where the sign-in put it",
    "last_activity_at": "activity is not recorded: there is no idle limit, and a list of"
    " sessions cannot say when each was last used",
    "is_active": "there is no flag for a live session",
    "revoked_at": "the table does not remember when a session was ended",
    "revoked_reason": "the table does not remember why a session was ended",
    "address": "the client's address is not kept: no event when it changes",
    "user_agent": "the User-Agent header is not kept: a list of sessions names no browser",
    "user_agent_hash": "no digest of the User-Agent header is kept: no event when it"
    " changes",
    "fingerprint": "no fingerprint of the device is kept",
    "location": "no location is kept",
    "level": "there are no trust levels: auth.require(level=…) and step_up() are off",
}
_AT_REST: Mapping[str, str] = {
    "digest": "the column holds SHA-256 digests in hex",
    "prefixed": "the column holds digests with sha256: in front",
    "plain": "rows may still hold tokens in clear: they are honoured, and replaced by"
    " digests at their first use",
}
_NEW_ID: Mapping[str, str] = {
    "ulid": "ids are ULIDs, made by handstamp",
    "uuid": "ids are UUIDs, made by handstamp",
    "database": "ids come from the column's own default",
}
_CAPABILITIES: Mapping[str, str] = {
    "refresh": "refresh tokens that rotate",
    "sliding": "an expiry that moves with activity",
    "activity": "last activity and idle limit",
    "absolute": "absolute limit from the sign-in",
    "user_status": "a disabled user's sessions end",
    "password_change": "a changed password can end sessions",
    "level": "trust levels and step-up",
    "fingerprint": "device fingerprint",
    "plain": "tokens in clear are honoured and replaced",
}


def as_python(shape: TableShape, *, decided: bool = True) -> str:
    """``shape`` as Python that makes it, imports and all.

    Where it is not decided how tokens are stored, the Python raises until somebody says so.
    """
    preset = next((n for key, n in NAMES.items() if PRESETS[key] == shape), None)
    if preset is not None and decided:
        return f"from handstamp import {preset}\n\nshape = {preset}\n"
    open_question: dict[str, object] = {} if decided else {"at_rest": ...}
    remark = "" if decided else '# at_rest= is for you to say: see "tokens" below.\n'
    for key, name in NAMES.items():
        changed = _changed(shape, PRESETS[key]) | open_question
        if len(changed) <= 2 and "users" not in changed:
            given = ", ".join(f"{k}={_literal(v)}" for k, v in changed.items())
            return (
                "from dataclasses import replace\n\n"
                f"from handstamp import {name}\n\n"
                f"{remark}shape = replace({name}, {given})\n"
            )
    default = TableShape()
    names = ["TableShape"] + ([] if shape.users is None else ["UsersTable"])
    if shape.users == default.users:
        names = ["TableShape"]
    lines = [
        f"    {field.name}={_literal(open_question.get(field.name, value))},"
        for field in fields(shape)
        if (value := getattr(shape, field.name)) != getattr(default, field.name)
        or field.name in ("table", *NEEDED, *open_question)
    ]
    head = f"from handstamp import {', '.join(names)}"
    return "\n".join([head, "", f"{remark}shape = TableShape(", *lines, ")", ""])


def _changed(shape: TableShape, preset: TableShape) -> dict[str, object]:
    pairs = (
        (f.name, getattr(shape, f.name), getattr(preset, f.name)) for f in fields(shape)
    )
    return {name: ours for name, ours, theirs in pairs if ours != theirs}


def _literal(value: object) -> str:
    if value is ...:
        return "..."
    if not isinstance(value, UsersTable):
        return "None" if value is None else f'"{value}"'
    default = UsersTable()
    given = ", ".join(
        f"{field.name}={_literal(own)}"
        for field in fields(value)
        if (own := getattr(value, field.name)) != getattr(default, field.name)
    )
    return f"UsersTable({given})"


def differences(shape: TableShape, preset: str, *, decided: bool = True) -> list[Finding]:
    """How ``shape`` differs from the preset, in words; without ``at_rest`` where that is
    not decided."""
    other = PRESETS[preset]
    ours, theirs = columns_of(shape), columns_of(other)
    found = [Finding(Level.NOTICE, f, _WITHOUT[f]) for f in theirs if f not in ours]
    found = [finding for finding in found if finding.text]
    found += [
        Finding(Level.OK, f, f"here {ours[f]}, in {NAMES[preset]} {theirs.get(f, 'none')}")
        for f in ours
        if ours[f] != theirs.get(f)
    ]
    if decided and shape.at_rest != other.at_rest:
        found.append(Finding(Level.OK, "at_rest", _AT_REST[shape.at_rest]))
    if shape.new_id != other.new_id:
        found.append(Finding(Level.OK, "new_id", _NEW_ID[shape.new_id]))
    return found + _ending(shape) + _users_as_python(shape, other)


def _ending(shape: TableShape) -> list[Finding]:
    if shape.is_active or shape.revoked_at:
        return []
    text = "neither a flag nor a date ends a session: handstamp ends it by deleting the row"
    return [Finding(Level.NOTICE, "revocation", text)]


def _users_as_python(shape: TableShape, other: TableShape) -> list[Finding]:
    if other.users is None or shape.users == other.users:
        return []
    if shape.users is None:
        text = (
            "no table of users is read: a user whom your code disables keeps every session"
            " until you call sessions.revoke_user()"
        )
        return [Finding(Level.NOTICE, "users", text)]
    ours, theirs = columns_of(shape.users), columns_of(other.users)
    return [
        Finding(Level.NOTICE, "users", f"{shape.users.table} has no {field}")
        for field in theirs
        if field not in ours
    ]


def capabilities(shape: TableShape) -> dict[str, bool]:
    """What a table of this shape can do, in words."""
    able = capabilities_of(shape)
    return {words: bool(getattr(able, name)) for name, words in _CAPABILITIES.items()}
