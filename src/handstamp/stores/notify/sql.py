"""The payload of a notification, and the trigger that makes every writer send one.

A payload is a kind and an id, far below PostgreSQL's limit of 8000 bytes. It holds no
token, no digest and no address: a listener learns ids and no secret. Every role that may
connect to the database can send one, so a notification proves nothing. It says what to
read again.

============= =========================================================
``s:<id>``    the session with this id has ended
``d:<id>``    it has not ended, but what is known of it is out of date
``u:<id>``    sessions of the user with this id have ended
``all``       any session may have ended
``c:<nonce>`` a probe of the channel: no session has ended
============= =========================================================

The trigger:

Rule 1. It fires for what can end a session early, and never for activity or rotation.
A new token ends the session, with two exceptions: the digest of the old token, and a
rotation, which alone moves the expiry at the same time.
Rule 2. The WHEN clause alone decides which UPDATE fires it. A list of columns (UPDATE OF)
would be compared with the statement, and would miss what a BEFORE trigger of the
application changes.
Rule 3. There are three functions, the same for every table. The name of the id column is
an argument of the trigger. The functions run with the rights of the writer, so they have
a fixed search path and name the schema of everything that they call.
Rule 4. The session function sends nothing in a transaction that has set
``handstamp.skip_notify`` to its own number, because that transaction sends its own
notification. Any other value has no effect.
Rule 5. ``init``, ``init --print``, the doctor and the listener all use this description.

Conditions are written as PostgreSQL prints them, so that
:mod:`handstamp.stores.notify.check` can compare them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from handstamp.core.tokens import LONGEST_ID
from handstamp.stores.base import Notification
from handstamp.stores.resolve import ColumnRef, ResolvedTable
from handstamp.stores.shapes import PREFIX, quoted

CHANNEL = "handstamp"
EVERYTHING = "all"
"""The payload that means: any session may have ended."""


class Kind(StrEnum):
    """The kinds of payloads that name something."""

    SESSION_ENDED = "s"
    SESSION_CHANGED = "d"
    USER = "u"
    PROBE = "c"

    def payload(self, value: str) -> str:
        """The payload of this kind about ``value``."""
        return f"{self}:{value}"

    def notify_sql(self, value: str) -> str:
        """The SQL expression that sends this payload; ``value`` is SQL of type text."""
        return f"pg_notify('{CHANNEL}', '{self}:' || {value})"


@dataclass(frozen=True, slots=True)
class Probe:
    """A payload that tests whether the channel delivers."""

    nonce: str

    @property
    def payload(self) -> str:
        """The text to send."""
        return Kind.PROBE.payload(self.nonce)


def read_payload(payload: str) -> Notification | Probe:
    """Parse a payload.

    A malformed one means that anything may have ended: reading too much again is the
    harmless mistake, and a newer version may have a kind that this one does not have. An
    id is at most ``LONGEST_ID`` characters long, as every id is.
    """
    kind, _, value = payload.partition(":")
    if kind == Kind.PROBE:
        return Probe(value)
    if 0 < len(value) <= LONGEST_ID:
        if kind in (Kind.SESSION_ENDED, Kind.SESSION_CHANGED):
            return Notification(session_id=value)
        if kind == Kind.USER:
            return Notification(user_id=value)
    return Notification(understood=payload == EVERYTHING)


SEARCH_PATH = "pg_catalog, pg_temp"
SKIP_TRIGGER = (
    "select set_config('handstamp.skip_notify', pg_current_xact_id()::text, true)"
)
"""Within a transaction that sends its own notification: the session function of the
trigger then sends none (rule 4)."""

SESSION, USER, ALL = (
    "handstamp_notify_session",
    "handstamp_notify_user",
    "handstamp_notify_all",
)
# A longer id is none of handstamp's. A payload that is too long would fail the writer.
_SEND = f"""\
execute pg_catalog.format('select pg_catalog.left(($1).%I::text, {LONGEST_ID})', tg_argv[0])
            into id using {{row}};
        perform pg_catalog.{{notify}};"""
BODIES: Mapping[str, str] = {
    SESSION: f"""
declare
    id text;
begin
    if pg_catalog.current_setting('handstamp.skip_notify', true)
        is distinct from pg_catalog.pg_current_xact_id()::text
    then
        {_SEND.format(row="old", notify=Kind.SESSION_ENDED.notify_sql("id"))}
    end if;
    return null;
end
""",
    USER: f"""
declare
    id text;
begin
    if tg_op <> 'INSERT' then
        {_SEND.format(row="old", notify=Kind.USER.notify_sql("id"))}
    end if;
    if tg_op <> 'DELETE' then
        {_SEND.format(row="new", notify=Kind.USER.notify_sql("id"))}
    end if;
    return null;
end
""",
    ALL: f"""
begin
    perform pg_catalog.pg_notify('{CHANNEL}', '{EVERYTHING}');
    return null;
end
""",
}
"""The functions, by name."""

ROW, INSERT, DELETE, UPDATE, TRUNCATE = 1, 4, 8, 16, 32
"""Bits of ``pg_trigger.tgtype``."""
_EVENTS = {INSERT: "insert", DELETE: "delete", UPDATE: "update", TRUNCATE: "truncate"}


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifyTrigger:
    """One trigger.

    ``table`` is SQL. ``type`` has the bits of ``pg_trigger.tgtype``. ``condition`` is
    empty where every event fires it. ``argument`` names the column of ids, if the function
    takes one.
    """

    name: str
    table: str
    type: int
    function: str
    condition: str = ""
    argument: str | None = None

    def sql(self, schema: str = "", *, replace: bool = False) -> str:
        """The CREATE TRIGGER statement; its function is in ``schema``, which is SQL."""
        events = " or ".join(word for bit, word in _EVENTS.items() if self.type & bit)
        each = "row" if self.type & ROW else "statement"
        when = f"when ({self.condition})\n" if self.condition else ""
        argument = (self.argument or "").replace("'", "''")
        arguments = "" if self.argument is None else f"'{argument}'"
        function = f"{schema}.{self.function}" if schema else self.function
        return (
            f"create {'or replace ' if replace else ''}trigger {self.name}\n"
            f"after {events} on {self.table} for each {each}\n"
            f"{when}execute function {function}({arguments})"
        )


def function_sql(name: str, schema: str = "", *, replace: bool = False) -> str:
    """The CREATE FUNCTION statement of one function, in ``schema``, which is SQL."""
    place = f"{schema}.{name}" if schema else name
    return (
        f"create {'or replace ' if replace else ''}function {place}() returns trigger\n"
        f"language plpgsql\nset search_path = {SEARCH_PATH}\n"
        f"as $body${BODIES[name]}$body$"
    )


def functions_of(triggers: Sequence[NotifyTrigger]) -> list[str]:
    """The names of the functions that these triggers call, each once."""
    called = {trigger.function for trigger in triggers}
    return [name for name in BODIES if name in called]


def tables_of(triggers: Sequence[NotifyTrigger]) -> list[str]:
    """The tables of these triggers, each once."""
    return list(dict.fromkeys(trigger.table for trigger in triggers))


def trigger_script(triggers: Sequence[NotifyTrigger], *, before: Sequence[str] = ()) -> str:
    """The SQL that creates all of them, and may be run again; no semicolon at the end.

    ``before`` are statements to run first. All of it is one transaction: if a function
    was refused, no trigger may be made, because it would call another function of that
    name. A superuser who replaces somebody else's function does not become its owner, so
    the script changes the owner.
    """
    functions = [
        sql
        for name in functions_of(triggers)
        for sql in (
            function_sql(name, replace=True),
            f"alter function {name}() owner to current_user",
        )
    ]
    created = [trigger.sql(replace=True) for trigger in triggers]
    return ";\n\n".join(["begin", *before, *functions, *created, "commit"])


def session_triggers(
    table: str, id: str, changed: str, was_live: str = ""
) -> list[NotifyTrigger]:
    """The triggers of a table of sessions.

    ``changed`` is the condition under which an UPDATE fires, ``was_live`` the condition
    under which a DELETE does; empty means always.
    """
    row = partial(NotifyTrigger, table=table, function=SESSION, argument=id)
    return [
        row(name="handstamp_session_changed", type=ROW | UPDATE, condition=changed),
        row(name="handstamp_session_deleted", type=ROW | DELETE, condition=was_live),
        truncate_trigger("handstamp_sessions_truncated", table),
    ]


def user_triggers(table: str, id: str, changed: str) -> list[NotifyTrigger]:
    """The triggers of a table of users; ``changed`` as in :func:`session_triggers`."""
    row = partial(NotifyTrigger, table=table, function=USER, argument=id)
    return [
        row(name="handstamp_user_changed", type=ROW | UPDATE, condition=changed),
        row(name="handstamp_user_deleted", type=ROW | DELETE),
        truncate_trigger("handstamp_users_truncated", table),
    ]


def truncate_trigger(name: str, table: str) -> NotifyTrigger:
    """The trigger for TRUNCATE, which has no rows, so it names no id."""
    return NotifyTrigger(name=name, table=table, type=TRUNCATE, function=ALL)


def triggers_of(resolved: ResolvedTable) -> tuple[NotifyTrigger, ...]:
    """All triggers for this table and its table of users."""
    shape, columns = resolved.shape, _names(resolved.columns)
    changed, was_live = any_of(list(_changes(resolved, columns))), _was_live(resolved)
    if shape.id_is_token:  # an id in plaintext must not appear in a payload
        prefix = "" if shape.at_rest == "digest" else PREFIX
        is_digest = f"(old.{columns['id']} ~ '^{prefix}[0-9a-f]{{64}}$')"
        changed = f"({is_digest} AND {changed})"
        was_live = f"({is_digest} AND {was_live})"
    found = session_triggers(quoted(shape.table), shape.id, changed, was_live)
    if shape.users is not None and resolved.users is not None:
        users = _names(resolved.users)
        fields = ("id", "is_active", "password_changed_at")
        changes = [differs(users[field]) for field in fields if field in users]
        table, id = quoted(shape.users.table), shape.users.id
        found += user_triggers(table, id, any_of(changes))
    return tuple(found)


def _changes(resolved: ResolvedTable, columns: Mapping[str, str]) -> Iterator[str]:
    """The changes of a row that can end its session (rule 1)."""
    for field in ("id", "is_active", "revoked_at", "user_id"):
        if field in columns:
            yield differs(columns[field])
    for field in ("expires_at", "refresh_expires_at", "created_at"):
        if field in columns:
            yield from moves_back(columns[field])
    if "level" in columns:
        level = columns["level"]
        yield f"(COALESCE(new.{level}, 0) < COALESCE(old.{level}, 0))"
    if resolved.shape.id_is_token:
        return
    token, expiry = columns["token"], columns["expires_at"]
    if resolved.shape.rotates:
        same_expiry = f"(NOT (old.{expiry} IS DISTINCT FROM new.{expiry}))"
        yield f"({differs(token)} AND {same_expiry})"
    elif resolved.shape.at_rest == "plain":
        digest = f"encode(sha256(convert_to(old.{token}, 'UTF8')), 'hex')"
        no_digest = f"(new.{token} IS DISTINCT FROM ('{PREFIX}' || {digest}))"
        yield f"({differs(token)} AND {no_digest})"
    else:
        yield differs(token)


def _was_live(resolved: ResolvedTable) -> str:
    """Whether a deleted row was live: pruning notifies nobody."""
    columns, names = resolved.columns, _names(resolved.columns)
    ends = [
        f"timezone('utc', old.{names[field]})"
        if columns[field].naive
        else f"old.{names[field]}"
        for field in ("refresh_expires_at", "expires_at")
        if field in columns
    ]
    end = f"GREATEST({', '.join(ends)})" if len(ends) > 1 else ends[0]
    rules = [f"({end} > now())"]
    if "revoked_at" in names:
        rules.insert(0, f"(old.{names['revoked_at']} IS NULL)")
    if "is_active" in names:
        rules.insert(0, f"old.{names['is_active']}")
    return f"({' AND '.join(rules)})" if len(rules) > 1 else rules[0]


def _names(columns: Mapping[str, ColumnRef]) -> dict[str, str]:
    """The columns as PostgreSQL prints them after ``old.``: quoted only where needed."""
    plain = re.compile(r'"([a-z_][a-z0-9_$]*)"')
    return {field: plain.sub(r"\1", column.name) for field, column in columns.items()}


def any_of(rules: Sequence[str]) -> str:
    """The rules, joined by OR."""
    return f"({' OR '.join(rules)})" if len(rules) > 1 else rules[0]


def differs(column: str) -> str:
    """The condition for any change of a column."""
    return f"(old.{column} IS DISTINCT FROM new.{column})"


def moves_back(column: str) -> tuple[str, str]:
    """The conditions for an earlier time, or a time that was removed."""
    return (
        f"(new.{column} < old.{column})",
        f"((new.{column} IS NULL) AND (old.{column} IS NOT NULL))",
    )


def shortens(column: str) -> tuple[str, str]:
    """The conditions for an earlier limit, or a limit where there was none."""
    return (
        f"(new.{column} < old.{column})",
        f"((old.{column} IS NULL) AND (new.{column} IS NOT NULL))",
    )
