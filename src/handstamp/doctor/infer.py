"""From a catalog to a proposed shape: which column of a table probably holds what.

Rule 1. Names decide, and types must allow it. Names are compared without underscores and
capitals: ``expiresAt`` is ``expires_at``. If the column of tokens has the name of the
nearest preset's, the preset's other names come first.
Rule 2. Whether a column holds tokens or digests is decided by ``at_rest``, if it is given;
by the column's name; or by its rows, if none of them could be a digest. Otherwise it is not
decided: if digests were taken for tokens, anyone who can read the table could sign in.
Rule 3. Every guess that may be wrong is a finding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from handstamp.doctor import Finding, Level
from handstamp.errors import ConfigError
from handstamp.stores.plaintext import SHA256, Rows
from handstamp.stores.resolve import Column, Table, types_of
from handstamp.stores.shapes import (
    PREFIX,
    ULID_HASHED,
    UUID_PLAIN,
    AtRest,
    NewId,
    TableShape,
    UsersTable,
    quoted,
)

PRESETS: Mapping[str, TableShape] = {"ulid": ULID_HASHED, "uuid": UUID_PLAIN}
NAMES: Mapping[str, str] = {"ulid": "ULID_HASHED", "uuid": "UUID_PLAIN"}
NEEDED = ("id", "user_id", "token", "expires_at")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}")
_DIGEST = 64
_NO_COLUMNS = frozenset({"table", "at_rest", "new_id", "users"})

_FIELDS: Mapping[str, str] = {
    "token": "session_token_hash session_token_digest hashed_session_token token_hash"
    " token_digest hashed_token session_hash session_digest session_token token"
    " session_key secret access_token sid",
    "id": "id session_id sid uuid pk key",
    "user_id": "user_id account_id member_id customer_id owner_id person_id login_id"
    " identity_id principal_id subject_id authenticatable_id user",
    "expires_at": "expires_at expires expires_on expiry expiry_at expiry_date expire_date"
    " expire_at expiration expiration_date expires_date valid_until not_after",
    "refresh_token": "refresh_token_hash refresh_token_digest refresh_hash refresh_digest"
    " hashed_refresh_token refresh_token",
    "refresh_expires_at": "refresh_expires_at refresh_token_expires_at refresh_expires"
    " refresh_token_expires refresh_expiry refresh_valid_until",
    "created_at": "created_at created created_on date_created creation_date inserted_at"
    " opened_at started_at issued_at signed_in_at logged_in_at login_at login_time",
    "last_activity_at": "last_activity_at last_activity last_active_at last_active"
    " last_seen_at last_seen last_used_at last_used last_accessed_at last_access"
    " accessed_at touched_at active_at refreshed_at updated_at updated modified_at",
    "is_active": "is_active active is_valid valid is_enabled enabled",
    "revoked_at": "revoked_at ended_at terminated_at invalidated_at logged_out_at"
    " signed_out_at logout_at closed_at discarded_at deleted_at",
    "revoked_reason": "revoked_reason revoke_reason revocation_reason ended_reason"
    " end_reason logout_reason",
    "address": "ip_address ip remote_ip client_ip remote_addr remote_address ip_addr"
    " login_ip address",
    "user_agent": "user_agent ua browser user_agent_string",
    "user_agent_hash": "user_agent_hash user_agent_digest ua_hash user_agent_sha256",
    "fingerprint": "device_fingerprint fingerprint device_hash device_id browser_id",
    "location": "location geo_location geo place city country",
    "level": "trust_level level auth_level assurance_level security_level",
}
FIELDS: Mapping[str, tuple[str, ...]] = {
    field: tuple(names.split()) for field, names in _FIELDS.items()
}
"""For each field of a shape the usual names of its column, best first. A field that comes
earlier chooses first."""

USER_FIELDS: Mapping[str, tuple[str, ...]] = {
    "is_active": ("is_active", "active", "is_enabled", "enabled"),
    "locked_until": ("locked_until", "locked_out_until", "lockout_end", "lockout_until"),
    "password_changed_at": (
        *("last_password_change", "password_changed_at", "password_updated_at"),
        *("password_set_at", "password_modified_at", "password_last_changed"),
    ),
}

_ENDS = (
    "revoked isrevoked invalidated isinvalid disabled isdisabled blocked isblocked closed"
    " isclosed terminated isterminated loggedout isloggedout signedout deleted isdeleted"
    " expired isexpired"
)
_BANS = (
    "banned isbanned bannedat banneduntil blocked isblocked disabled isdisabled"
    " disabledat suspended issuspended suspendedat deleted isdeleted deletedat"
    " deactivatedat archivedat"
)
ENDS = frozenset(_ENDS.split())
"""Flags with which applications end a session, and which handstamp does not read."""
BANS = frozenset(_BANS.split())
"""Columns with which applications lock a user out, and which handstamp does not read."""
_WITHOUT: Mapping[str, str] = {
    "refresh_token": "nothing rotates: a session keeps one token",
    "refresh_expires_at": "",
    "created_at": "no column says when a session began: it has no absolute limit, and its"
    " expiry stays as it was at the sign-in",
    "last_activity_at": "activity is not recorded: there is no idle limit, and a list of"
    " sessions cannot show when each was last used",
    "is_active": "there is no flag of a live session",
    "revoked_at": "the table does not keep when a session was ended",
    "revoked_reason": "the table does not keep why a session was ended",
    "address": "the client's address is not kept: there is no event when it changes",
    "user_agent": "the User-Agent header is not kept: a list of sessions shows no browser",
    "user_agent_hash": "no digest of the User-Agent header is kept: there is no event when"
    " it changes",
    "fingerprint": "no fingerprint of the device is kept",
    "location": "no location is kept",
    "level": "there are no trust levels: auth.require(level=…) and step_up() are off",
}
_AT_REST: Mapping[str, str] = {
    "digest": "the column holds SHA-256 digests in hex",
    "prefixed": "the column holds digests with sha256: in front",
    "plain": "rows may still hold plaintext tokens: they are accepted, and replaced by"
    " digests at their first use",
}
_NEW_ID: Mapping[str, str] = {
    "ulid": "ids are ULIDs, made by handstamp",
    "uuid": "ids are UUIDs, made by handstamp",
    "database": "ids come from the column's own default",
}


def plain(name: str) -> str:
    """``name`` without underscores and capitals."""
    return name.replace("_", "").lower()


def columns_of(shape: TableShape | UsersTable) -> dict[str, str]:
    """The columns that a shape names, by field."""
    values = {f.name: getattr(shape, f.name) for f in fields(shape)}
    return {f: c for f, c in values.items() if f not in _NO_COLUMNS and c is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Users:
    """The table that the sessions' user_id refers to, and its column of ids."""

    name: str
    id: str
    table: Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A shape for a table, the preset that it is nearest to, and the doubts about it.

    ``decided`` is False if only a person can say how tokens are stored. ``shape.at_rest``
    is then the guess with which no stored text opens a session.
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
    """Propose a shape for the table that is called ``name``.

    ``rows`` describes the column that :func:`choose_token` returns; None if the rows were
    not counted. ``preset`` is the one to start from, ``at_rest`` how tokens are stored, if
    that is known. Raises :class:`ConfigError` if a needed column is not found.
    """
    preset = preset or nearest(table)
    chosen = _choose(table, PRESETS[preset])
    lacks = [field for field in NEEDED if field not in chosen]
    if lacks:
        raise ConfigError(_not_found(name, table, lacks, set(chosen.values())))
    token = table.columns[chosen["token"]]
    doubt: tuple[Finding, ...] = ()
    digests = any(word in plain(token.name) for word in ("hash", "digest", "sha256"))
    if at_rest is None and digests:
        at_rest = "prefixed" if rows is not None and _only_ours(rows) else "digest"
    if at_rest is None:
        documented = set(columns_of(PRESETS[preset]).values()) <= set(table.columns)
        is_plain = documented and PRESETS[preset].at_rest == "plain"
        separate = chosen["id"] != chosen["token"]
        at_rest, doubt = _by_rows(token, rows, is_plain and separate)
    missing: dict[str, str | None] = dict.fromkeys(set(FIELDS) - set(chosen))
    shape = TableShape(
        table=name,
        **missing | chosen,  # type: ignore[arg-type]
        at_rest=at_rest,
        new_id=_new_id(table.columns[chosen["id"]]),
        users=_users(users),
    )
    doubts = (*doubt, *_unread_columns(shape, table, users))
    return Proposal(shape=shape, preset=preset, doubts=doubts, decided=not doubt)


def choose_token(table: Table, preset: str | None = None) -> str | None:
    """The column of the table that probably holds tokens; None if there is none."""
    return _choose(table, PRESETS[preset or nearest(table)]).get("token")


def _choose(table: Table, preset: TableShape) -> dict[str, str]:
    """The columns of the table, by the field of a shape."""
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
    # A table whose id is the token, or whose token is the key, names one column twice.
    if "token" not in chosen and "id" in chosen:
        own = table.columns[chosen["id"]]
        if own.type in types_of("token") and own.default is None:
            chosen["token"] = own.name
    elif "id" not in chosen:
        keys = [n for (n, *more) in sorted(table.unique) if not more and _NAME.fullmatch(n)]
        usable = types_of("id") - {"text"}
        ids = [n for n in keys if table.columns[n].type in usable]
        ids = [n for n in ids if n not in chosen.values()]
        if ids or "token" in chosen:
            chosen["id"] = ids[0] if ids else chosen["token"]
    return chosen


def _first(names: list[str], field: str, table: Table) -> str | None:
    """The best name whose type is allowed; for a needed field, else the best name."""
    usable = [n for n in names if table.columns[n].type in types_of(field)]
    if usable or field not in NEEDED:
        return usable[0] if usable else None
    return names[0] if names else None


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


def _only_ours(rows: Rows) -> bool:
    """Whether every row holds a digest of handstamp's; a sample does not prove it."""
    return bool(rows.ours) and not rows.unhashed and not rows.about


def _by_rows(
    token: Column, rows: Rows | None, is_plain: bool
) -> tuple[AtRest, tuple[Finding, ...]]:
    """How tokens are stored, by the rows; and the doubt, if the rows do not prove it.

    ``is_plain``: this is the documented table with plaintext tokens.
    """
    room = token.length is None or token.length >= _DIGEST + len(PREFIX)
    safe: AtRest = "prefixed" if room else "digest"
    if rows is None:
        why = "the rows were not counted"
    elif rows.ambiguous:
        if set(rows.forms) <= {SHA256}:
            safe = "digest"
        about = "about " if rows.about else ""
        why = f"{about}{Rows(forms=rows.ambiguous)}: such texts may be digests"
    elif _only_ours(rows) or not (rows.forms or is_plain):
        return safe, ()
    else:
        return "plain", ()
    text = (
        f"it cannot be seen whether {token.name} holds tokens or digests ({why})."
        " Compare the cookie of one of your own sessions with its row. If they are the same"
        ' text, your code stores the token itself: at_rest="plain". If not, and the row has'
        ' 64 hex digits in small letters: at_rest="digest". Otherwise: at_rest="prefixed",'
        " and the sessions that are in the table end. If you are not sure, do not choose"
        ' "plain": with it, anyone who can read a table of digests can sign in. Repeat this'
        " command with --at-rest"
    )
    return safe, (Finding(Level.WARNING, "tokens", text),)


def _new_id(column: Column) -> NewId:
    if column.type == "uuid":
        return "uuid"
    default = column.default or ""
    if column.type.startswith("int") or (default and "ulid" not in default):
        return "database"
    room = column.length
    return "uuid" if room is not None and 36 <= room < 40 else "ulid"


def _users(users: Users | None) -> UsersTable | None:
    """The columns of users that handstamp reads; None if the table has none of them."""
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


def _unread_columns(shape: TableShape, table: Table, users: Users | None) -> list[Finding]:
    """Columns that look as if they meant something that handstamp does not read."""
    named = columns_of(shape)
    left = [c for name, c in table.columns.items() if name not in named.values()]
    found = []
    mend = f"alter table {quoted(shape.table)} add column revoked_at timestamptz"
    for column in left:
        if plain(column.name) in ENDS and column.type == "bool":
            text = (
                f"{column.name} looks like a flag that ends a session, and handstamp does"
                " not read it: a session that your code ends with it alone stays valid."
                " Let your code set revoked_at too, or instead"
            )
            has_end = shape.revoked_at or shape.is_active
            found.append(Finding(Level.DANGER, "revocation", text, "" if has_end else mend))
    for column in left:
        if plain(column.name) in map(plain, FIELDS["revoked_at"]):
            text = (
                f"{column.name} looks like the end of a session too, and handstamp reads"
                f" only {shape.revoked_at}: end sessions with that column"
            )
            found.append(Finding(Level.WARNING, "revocation", text))
    for field in (name for name in FIELDS if name not in named):
        names = set(map(plain, FIELDS[field][:4]))
        for column in left:
            if plain(column.name) in names:
                wanted = ", ".join(sorted(types_of(field)))
                text = f"{column.name} looks like {field}, but its type is {column.type}"
                found.append(Finding(Level.NOTICE, field, f"{text}, not one of {wanted}"))
    if users is None:
        return found
    used = set() if shape.users is None else set(columns_of(shape.users).values())
    return found + [
        Finding(
            Level.WARNING,
            "users",
            f"{users.name}.{name} looks as if it locked a user out, and handstamp does not"
            " read it: call sessions.revoke_user() where your code sets it",
        )
        for name in users.table.columns
        if plain(name) in BANS and name not in used
    ]


def differences(shape: TableShape, preset: str, *, decided: bool = True) -> list[Finding]:
    """How ``shape`` differs from the preset, in words.

    Without ``at_rest``, if it is not ``decided``.
    """
    other = PRESETS[preset]
    ours, theirs = columns_of(shape), columns_of(other)
    found = [
        Finding(Level.NOTICE, field, _WITHOUT[field])
        for field in theirs
        if field not in ours and _WITHOUT[field]
    ]
    found += [
        Finding(Level.OK, f, f"here {ours[f]}, in {NAMES[preset]} {theirs.get(f, 'none')}")
        for f in ours
        if ours[f] != theirs.get(f)
    ]
    if decided and shape.at_rest != other.at_rest:
        found.append(Finding(Level.OK, "at_rest", _AT_REST[shape.at_rest]))
    if shape.new_id != other.new_id:
        found.append(Finding(Level.OK, "new_id", _NEW_ID[shape.new_id]))
    if not shape.is_active and not shape.revoked_at:
        text = "there is no flag and no date that ends a session: handstamp deletes the row"
        found.append(Finding(Level.NOTICE, "revocation", text))
    if other.users is None or shape.users == other.users:
        return found
    if shape.users is None:
        text = (
            "no table of users is read: a user whom your code disables keeps every session"
            " until you call sessions.revoke_user()"
        )
        return [*found, Finding(Level.NOTICE, "users", text)]
    has, needs = columns_of(shape.users), columns_of(other.users)
    return found + [
        Finding(Level.NOTICE, "users", f"{shape.users.table} has no {field}")
        for field in needs
        if field not in has
    ]
