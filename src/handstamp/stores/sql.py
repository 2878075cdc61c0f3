"""Between rows of a table of sessions and values of ours: what is bound, what is read.

How a fitted table is spelled in SQL: what is read, compared, joined and assigned.

Templates name the fields of a shape in braces; a field without a column reads as NULL of
its type, and is left out of what is written. A time beyond what Python has is read as the
nearest date that it has; with ``kept_`` in front it stays what it is.
"""

from __future__ import annotations

import hashlib
import re

import asyncpg

from handstamp.core.models import EARLIEST, LATEST, Record
from handstamp.core.tokens import LONGEST_ID
from handstamp.stores.base import Capabilities, Ended
from handstamp.stores.resolve import ColumnRef, ResolvedTable
from handstamp.stores.shapes import PREFIX, AtRest, quoted

NOWHERE = "0.0.0.0"  # noqa: S104 - no address to bind: it stands for "unknown"
"""What stands in a NOT NULL address column for a client without an address."""
LONGEST_REASON = 100
LONGEST_HASH = 64
_UNSTORABLE = re.compile("[\\x00\\ud800-\\udfff]")


def record_of(row: asyncpg.Record, at_rest: AtRest, able: Capabilities) -> Record:
    """A row as it was read; the token in it as its digest, however it stands there."""
    values = dict(row)
    values.pop("said", None)
    token = str(values["token_digest"])
    if at_rest != "digest":
        in_clear = not token.startswith(PREFIX)
        token = digest_of(token) if in_clear else token.removeprefix(PREFIX)
    values["token_digest"] = token
    values["address"] = address_of(values["address"])
    return Record(**values, slides=able.sliding, dateless=not able.absolute)


def address_of(value: object) -> str | None:
    """An address as a record has it: one that stands for none is none."""
    text = None if value is None else str(value).partition("/")[0]
    return None if text == NOWHERE else text


def ended_of(row: asyncpg.Record) -> Ended:
    """A row that says which session ended."""
    return Ended(id=str(row["id"]), user_id=str(row["user_id"]))


def digest_of(token: str) -> str:
    """What is stored of a token, in hex."""
    return hashlib.sha256(token.encode()).hexdigest()


def reason_of(text: str) -> str:
    """A reason, cut to what the documented column takes."""
    return storable(text)[:LONGEST_REASON]


def storable(text: str) -> str:
    """``text`` without what PostgreSQL takes in no text at all: NUL and half a pair."""
    return _UNSTORABLE.sub("?", text)


def bindable(value: object) -> object:
    """``value`` as it can be bound, whatever text a client sent."""
    if isinstance(value, list):
        return [storable(item) for item in value]
    return storable(value) if isinstance(value, str) else value


def count_of(status: str) -> int:
    """How many rows a command tag tells of."""
    return int(status.rpartition(" ")[2])


_WITHIN = (
    f"least(greatest({{0}}, '{EARLIEST.date()} 00:00+00'), '{LATEST.date()} 00:00+00')"
)
FINITE = f"case when {{0}} is not null then {_WITHIN} end"
"""A time as every Python date can show it (:mod:`handstamp.core.models`)."""

# A rotation must not date itself before activity that is already recorded (it waited for
# a lock meanwhile), nor follow a timestamp that is far ahead for another reason.
_DATE = "greatest(now(), least(coalesce({active}, now()), now() + interval '1 minute'))"

# A bound duration becomes an interval of seconds alone. Bound as it is, its days would be
# days of the connection's time zone, of which some have 23 or 25 hours.
_DURATION = re.compile(r"(\$[0-9]+)::duration")
_SECONDS = r"(extract(epoch from \1::interval) * interval '1 second')"

# Where the life of a row ends, for rows with and without a refresh token.
_END = (
    "case when {refresh_token} is null then {expires_at}"
    " else coalesce({refresh_expires_at}, {expires_at}) end"
)
# What a rotation leaves until the next activity (contract, rule 5).
_MARK = (
    "({last_activity_at} < {expires_at} and extract(microseconds from"
    " {expires_at} - {last_activity_at})::bigint % 1000000 = 0)"
)
# Where activity moves an expiry that slides: $4 ahead, but no further than $6 from the
# sign-in, or $5 for a session that is not remembered, whose first expiry tells it. A
# second more or less tells nothing: columns may round. NULL without a sign-in.
_SLID = (
    "case when {created_at} is not null then least(locked.at + $4::duration,"
    " {created_at} + case when {expires_at} > {created_at} + $5::duration"
    " + interval '1 second' then $6::duration else $5::duration end) end"
)

_READ = {
    "id": "text",
    "user_id": "text",
    "token": "text",
    "refresh_token": "text",
    "created_at": "timestamptz",
    "expires_at": "timestamptz",
    "refresh_expires_at": "timestamptz",
    "last_activity_at": "timestamptz",
    "revoked_at": "timestamptz",
    "revoked_reason": "text",
    "address": "text",
    "user_agent": "text",
    "user_agent_hash": "text",
    "fingerprint": "text",
    "location": "text",
    "level": "int8",
    "is_active": "bool",
}
INTEGERS = frozenset({"int2", "int4", "int8"})
_AS = {"token": "token_digest", "refresh_token": "refresh_digest"}
_BLANK = frozenset(
    {"user_agent", "user_agent_hash", "fingerprint", "location", "revoked_reason"}
)
"""Texts about which nothing may be known; "" stands for that where NULL may not."""
FIRST = {"revoked_reason": "''", "level": "0"}
"""What a new row says where it must say something."""
_USER_READ = {
    "id": "text",
    "is_active": "bool",
    "locked_until": "timestamptz",
    "password_changed_at": "timestamptz",
}


class SqlBuilder:
    """The vocabulary of one table."""

    def __init__(self, resolved: ResolvedTable) -> None:
        self.resolved = resolved
        self._columns = resolved.columns
        self._users = resolved.users
        self._table = quoted(resolved.shape.table)
        self._read = {
            n: _reading("s", n, self._columns.get(n), t) for n, t in _READ.items()
        }
        self._kept = {
            f"kept_{n}": _as_it_is("s", n, self._columns.get(n), t)
            for n, t in _READ.items()
        }
        users = resolved.users or {}
        self._read |= {
            f"u_{n}": _reading("u", n, users.get(n), t) for n, t in _USER_READ.items()
        }

    def _fill(self, text: str) -> str:
        shape = self.resolved.shape
        text = text.format(
            **self._read,
            **self._kept,
            sessions=self._table,
            users=quoted(shape.users.table) if shape.users else "",
            join=self._join(),
            record=self._record(),
            live=self._is_live(),
            admissible="coalesce({u_is_active}, false)".format(**self._read)
            if self._has_user("is_active")
            else "true",
            date=_DATE.format(active=self._read["last_activity_at"]),
            end=_END.format(**self._read),
            mark=_MARK.format(**self._read),
            slid=_SLID.format(**self._read),
        )
        return _DURATION.sub(_SECONDS, text)

    def _is_required(self, name: str) -> bool:
        return name in self._columns and self._columns[name].required

    def _has_user(self, name: str) -> bool:
        return self._users is not None and name in self._users

    def _bare(self, name: str) -> str:
        return f"s.{self._columns[name].name}"

    def _one(self, n: int, name: str) -> str:
        return f"${n}::text::{self._columns[name].cast}"

    def _many(self, n: int, name: str) -> str:
        return f"${n}::text[]::{self._columns[name].cast}[]"

    def _join(self) -> str:
        if self._users is None:
            return ""
        assert self.resolved.shape.users is not None  # noqa: S101 - users are its spelling
        table = quoted(self.resolved.shape.users.table)
        own, theirs = self._columns["user_id"], self._users["id"]
        mine = f"s.{own.name}"
        if own.is_text and theirs.is_text:
            return f"left join {table} u on u.{theirs.name} = {mine}::{theirs.cast}"
        # Ids of two kinds (a bigint and its text) are compared as text.
        alike = own.cast == theirs.cast or {own.cast, theirs.cast} <= INTEGERS
        cast = "" if alike else "::text"
        return f"left join {table} u on u.{theirs.name}{cast} = {mine}{cast}"

    def _is_live(self) -> str:
        rules = []
        if "is_active" in self._columns:
            rules.append(self._bare("is_active"))
        if "revoked_at" in self._columns:
            rules.append(f"{self._bare('revoked_at')} is null")
        return f"({' and '.join(rules)})" if rules else "true"

    def _is_whole(self) -> str:
        """A row of nobody, or without an end, is no session of ours; nor one with an id
        that no token can carry, or whose id may be a token in clear."""
        rules = [
            f"{self._bare(name)} is not null"
            for name in ("user_id", "expires_at")
            if not self._columns[name].required
        ]
        rules += [
            f"length({self._bare(name)}) <= {LONGEST_ID}"
            for name in self.resolved.unbounded_ids
        ]
        if self.resolved.shape.id_is_token:
            rules.append(self._is_digest_id())
        return "".join(f"{rule} and " for rule in rules)

    def _is_digest_id(self) -> str:
        """Whether an id that is the token is a digest in the form of this table."""
        prefix = "" if self.resolved.shape.at_rest == "digest" else PREFIX
        text = f"{self._bare('id')}::text"
        length = len(prefix) + 64
        return f"(length({text}) = {length} and {text} ~ '^{prefix}[0-9a-f]+$')"

    def _record(self) -> str:
        columns = [
            f"{self._read[name]} as {_AS.get(name, name)}"
            for name in _READ
            if name != "is_active"
        ]
        admissible = "{u_is_active} is true" if self._has_user("is_active") else "true"
        columns += [
            f"({self._is_live()}) is true as is_active",
            f"{admissible.format(**self._read)} as user_is_active",
            f"{self._read['u_password_changed_at']} as password_changed_at",
            "now() as read_at",
        ]
        return ", ".join(columns)

    def _select(self, where: str) -> str:
        return self._fill(
            "select {record} from {sessions} s {join} where " + self._is_whole() + where
        )

    def _set(self, name: str, value: str) -> str:
        """The right side of an assignment: in UTC where the column has no zone, cut to
        what the column takes."""
        spelling = self._columns[name]
        if spelling.naive:
            return f"({value}) at time zone 'utc'"
        if spelling.length is not None and name not in ("id", "user_id", "token"):
            value = f"left({value}, {spelling.length})"
        if spelling.required and name in _BLANK:
            value = f"coalesce({value}, '')"
        cast = "" if spelling.cast in ("timestamptz", "bool") else f"::{spelling.cast}"
        return f"({value}){cast}"

    def _assign(self, **values: str) -> str:
        return ", ".join(
            f"{self._columns[name].name} = {self._set(name, value)}"
            for name, value in values.items()
            if name in self._columns
        )


def _reading(alias: str, field: str, spelling: ColumnRef | None, type: str) -> str:
    """A column as an expression that reads it; NULL of its type where there is none.

    Times are read as dates that Python has, so that no row is an error for all the others,
    and no sum of a time and a duration an error of the database.
    """
    column = _as_it_is(alias, field, spelling, type)
    if spelling is None or type != "timestamptz":
        return column
    # Of a row beside which no user stands even a column that is never null is null.
    never_null = spelling.required and alias == "s"
    return (_WITHIN if never_null else FINITE).format(column)


def _as_it_is(alias: str, field: str, spelling: ColumnRef | None, type: str) -> str:
    """The same with every time as it stands: for what is written back."""
    if spelling is None:
        return f"null::{type}"
    column = f"{alias}.{spelling.name}"
    if spelling.required and field in _BLANK:
        return f"nullif({column}::text, '')"
    if spelling.naive:
        return f"({column} at time zone 'utc')"
    if type in ("text", "int8") and spelling.cast != type:
        return f"{column}::{type}"
    return column
