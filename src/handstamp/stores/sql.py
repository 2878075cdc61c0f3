"""The SQL expressions of one table: what is read, compared, joined and assigned.

Templates name the fields of a shape in braces. A field without a column is read as NULL of
its type, and is left out of what is written. A time that Python cannot represent is read as
the nearest one that it can; ``kept_`` before the name reads it as it is.
"""

from __future__ import annotations

import re

from handstamp.core.models import EARLIEST, LATEST
from handstamp.core.tokens import LONGEST_ID
from handstamp.stores.resolve import ColumnRef, ResolvedTable
from handstamp.stores.shapes import PREFIX, quoted

_WITHIN = (
    f"least(greatest({{0}}, '{EARLIEST.date()} 00:00+00'), '{LATEST.date()} 00:00+00')"
)
FINITE = f"case when {{0}} is not null then {_WITHIN} end"
"""A time as the nearest one that Python can represent (:mod:`handstamp.core.models`)."""

# A rotation must not be dated before activity that is already recorded (it may have waited
# for a lock), nor follow a timestamp that is far ahead for another reason.
_DATE = "greatest(now(), least(coalesce({active}, now()), now() + interval '1 minute'))"

# A duration is bound as an interval of seconds only. Otherwise its days would be days of
# the connection's time zone, and some of those have 23 or 25 hours.
_DURATION = re.compile(r"(\$[0-9]+)::duration")
_SECONDS = r"(extract(epoch from \1::interval) * interval '1 second')"

# The end of a session, with or without a refresh token.
_END = (
    "case when {refresh_token} is null then {expires_at}"
    " else coalesce({refresh_expires_at}, {expires_at}) end"
)
# The mark of a rotation, until the next activity (rule 5 of the contract).
_MARK = (
    "({last_activity_at} < {expires_at} and extract(microseconds from"
    " {expires_at} - {last_activity_at})::bigint % 1000000 = 0)"
)
# The new expiry after activity: $4 ahead, but no further than $6 after the sign-in, or $5
# for a session that is not remembered. Its first expiry shows that it is not, with a second
# of tolerance, because columns may round. NULL if the time of the sign-in is unknown.
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
"""Texts that may be unknown: "" if the column is NOT NULL."""
FIRST = {"revoked_reason": "''", "level": "0"}
"""The first values of columns that are NOT NULL."""
_USER_READ = {
    "id": "text",
    "is_active": "bool",
    "locked_until": "timestamptz",
    "password_changed_at": "timestamptz",
}


class SqlBuilder:
    """The expressions of one table. ``_bare`` is a column as it is, ``_one`` and ``_many``
    a parameter of its type; ``_fill`` fills in a template."""

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
        assert self.resolved.shape.users is not None  # noqa: S101 - since _users is not
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
        """The condition that a row is a session: it has a user and an end, its id is short
        enough for a token, and is no plaintext token."""
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
        """The right side of an assignment: in UTC if the column has no time zone, cut to
        the length of the column."""
        column = self._columns[name]
        if column.naive:
            return f"({value}) at time zone 'utc'"
        if column.length is not None and name not in ("id", "user_id", "token"):
            value = f"left({value}, {column.length})"
        if column.required and name in _BLANK:
            value = f"coalesce({value}, '')"
        cast = "" if column.cast in ("timestamptz", "bool") else f"::{column.cast}"
        return f"({value}){cast}"

    def _assign(self, **values: str) -> str:
        return ", ".join(
            f"{self._columns[name].name} = {self._set(name, value)}"
            for name, value in values.items()
            if name in self._columns
        )


def _reading(alias: str, field: str, column: ColumnRef | None, type: str) -> str:
    """The expression that reads a column; NULL of its type if there is no column.

    A time that Python cannot represent is read as the nearest one that it can. Otherwise
    one such row would be an error for all rows of a query, and adding a duration to it an
    error of the database.
    """
    value = _as_it_is(alias, field, column, type)
    if column is None or type != "timestamptz":
        return value
    # The join with users is an outer one: even a NOT NULL column of it can be null.
    never_null = column.required and alias == "s"
    return (_WITHIN if never_null else FINITE).format(value)


def _as_it_is(alias: str, field: str, column: ColumnRef | None, type: str) -> str:
    """The same without a change of any time, for values that are written back."""
    if column is None:
        return f"null::{type}"
    value = f"{alias}.{column.name}"
    if column.required and field in _BLANK:
        return f"nullif({value}::text, '')"
    if column.naive:
        return f"({value} at time zone 'utc')"
    if type in ("text", "int8") and column.cast != type:
        return f"{value}::{type}"
    return value
