"""The trigger that makes every writer of a table notify: its SQL, made from the table.

Rule 1. It fires for what can end a session early, and never for activity or rotation.
Another token ends the one before, but for its digest, and for a rotation, which alone moves
the expiry with it.
Rule 2. The WHEN clause alone says which UPDATE fires it. A list of columns would be that of
the statement, and miss what a BEFORE trigger of the application changes.
Rule 3. There are three functions, the same for every table: the column of ids is an
argument of the trigger. They run with the rights of whoever writes, so they have a search
path of their own and name the schema of what they call.
Rule 4. A session is kept quiet only in a transaction that has set ``handstamp.quietly`` to
its own number, because it says itself what ends. Any other value silences nothing.
Rule 5. What installs this, prints it or relies on it goes by this description.

Conditions are written as PostgreSQL prints them, so that
:mod:`handstamp.stores.notify_check` can compare them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from handstamp.core.tokens import LONGEST_ID
from handstamp.stores.base import CHANNEL
from handstamp.stores.resolve import ColumnRef, ResolvedTable
from handstamp.stores.shapes import PREFIX, quoted

SEARCH_PATH = "pg_catalog, pg_temp"
QUIETLY = "select set_config('handstamp.quietly', pg_current_xact_id()::text, true)"
"""Within a transaction: it says itself which sessions end, so the trigger need not."""

SESSION, USER, ALL = (
    "handstamp_notify_session",
    "handstamp_notify_user",
    "handstamp_notify_all",
)
# A longer id is no session of ours, and must not make a payload that fails the writer.
_SAID = f"""\
execute pg_catalog.format('select pg_catalog.left(($1).%I::text, {LONGEST_ID})', tg_argv[0])
            into id using {{row}};
        perform pg_catalog.pg_notify('{CHANNEL}', '{{kind}}:' || id);"""
BODIES: Mapping[str, str] = {
    SESSION: f"""
declare
    id text;
begin
    if pg_catalog.current_setting('handstamp.quietly', true)
        is distinct from pg_catalog.pg_current_xact_id()::text
    then
        {_SAID.format(kind="s", row="old")}
    end if;
    return null;
end
""",
    USER: f"""
declare
    id text;
begin
    if tg_op <> 'INSERT' then
        {_SAID.format(kind="u", row="old")}
    end if;
    if tg_op <> 'DELETE' then
        {_SAID.format(kind="u", row="new")}
    end if;
    return null;
end
""",
    ALL: f"""
begin
    perform pg_catalog.pg_notify('{CHANNEL}', 'all');
    return null;
end
""",
}
"""The functions, by name."""

ROW, INSERT, DELETE, UPDATE, TRUNCATE = 1, 4, 8, 16, 32
"""Bits of ``pg_trigger.tgtype``."""
_EVENTS = {INSERT: "insert", DELETE: "delete", UPDATE: "update", TRUNCATE: "truncate"}

_ANY_CHANGE = ("id", "is_active", "revoked_at", "user_id")
_BACKWARDS = ("expires_at", "refresh_expires_at", "created_at")
_USER_CHANGES = ("id", "is_active", "password_changed_at")
_PLAIN_NAME = re.compile(r'"([a-z_][a-z0-9_$]*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifyTrigger:
    """One trigger. ``table`` is SQL, ``type`` are the bits of ``pg_trigger.tgtype``,
    ``condition`` is empty where every event fires it, and ``argument`` names the column
    of ids, if the function takes one."""

    name: str
    table: str
    type: int
    function: str
    condition: str = ""
    argument: str | None = None

    def sql(self, schema: str = "", *, replace: bool = False) -> str:
        """The statement that makes it, with its function from ``schema``, which is SQL."""
        events = " or ".join(word for bit, word in _EVENTS.items() if self.type & bit)
        each = "row" if self.type & ROW else "statement"
        when = f"when ({self.condition})\n" if self.condition else ""
        given = "" if self.argument is None else _literal(self.argument)
        function = f"{schema}.{self.function}" if schema else self.function
        return (
            f"create {'or replace ' if replace else ''}trigger {self.name}\n"
            f"after {events} on {self.table} for each {each}\n"
            f"{when}execute function {function}({given})"
        )


def function_sql(name: str, schema: str = "", *, replace: bool = False) -> str:
    """The statement that makes one of the functions, in ``schema``, which is SQL."""
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
    """The tables that these triggers are on, each once."""
    return list(dict.fromkeys(trigger.table for trigger in triggers))


def script(triggers: Sequence[NotifyTrigger], *, before: Sequence[str] = ()) -> str:
    """All of it as one transaction that may be run again, without the last semicolon.

    ``before`` are statements to run first. It is one transaction because a trigger must
    not be made after a function was refused: it would call another one of that name. And
    a superuser replaces somebody else's function without becoming its owner.
    """
    functions = [
        sql
        for name in functions_of(triggers)
        for sql in (
            function_sql(name, replace=True),
            f"alter function {name}() owner to current_user",
        )
    ]
    made = [trigger.sql(replace=True) for trigger in triggers]
    return ";\n\n".join(["begin", *before, *functions, *made, "commit"])


def session_triggers(
    table: str, id: str, changed: str, lived: str = ""
) -> list[NotifyTrigger]:
    """Those of a table of sessions: ``changed`` is the condition under which an UPDATE is
    heard, ``lived`` that under which a deletion is."""
    row = partial(NotifyTrigger, table=table, function=SESSION, argument=id)
    return [
        row(name="handstamp_session_changed", type=ROW | UPDATE, condition=changed),
        row(name="handstamp_session_deleted", type=ROW | DELETE, condition=lived),
        truncation("handstamp_sessions_truncated", table),
    ]


def user_triggers(table: str, id: str, changed: str) -> list[NotifyTrigger]:
    """Those of a table of users."""
    row = partial(NotifyTrigger, table=table, function=USER, argument=id)
    return [
        row(name="handstamp_user_changed", type=ROW | UPDATE, condition=changed),
        row(name="handstamp_user_deleted", type=ROW | DELETE),
        truncation("handstamp_users_truncated", table),
    ]


def truncation(name: str, table: str) -> NotifyTrigger:
    """The trigger for a TRUNCATE, of whose rows none has a name."""
    return NotifyTrigger(name=name, table=table, type=TRUNCATE, function=ALL)


def triggers_of(resolved: ResolvedTable) -> tuple[NotifyTrigger, ...]:
    """Everything for this table and its table of users."""
    shape, columns = resolved.shape, _names(resolved.columns)
    changed, lived = any_of(list(_changes(resolved, columns))), _lived(resolved)
    if shape.id_is_token:  # which is never shown, where it is in clear
        changed, lived = (
            f"({_is_digest(resolved)} AND {rule})" for rule in (changed, lived)
        )
    found = session_triggers(quoted(shape.table), shape.id, changed, lived)
    if shape.users is not None and resolved.users is not None:
        known = _names(resolved.users)
        changes = [differs(known[name]) for name in _USER_CHANGES if name in known]
        table, id = quoted(shape.users.table), shape.users.id
        found += user_triggers(table, id, any_of(changes))
    return tuple(found)


def _changes(resolved: ResolvedTable, columns: Mapping[str, str]) -> Iterator[str]:
    for name in _ANY_CHANGE:
        if name in columns:
            yield differs(columns[name])
    for name in _BACKWARDS:
        if name in columns:
            yield from moves_back(columns[name])
    if "level" in columns:
        level = columns["level"]
        yield f"(COALESCE(new.{level}, 0) < COALESCE(old.{level}, 0))"
    if not resolved.shape.id_is_token:
        yield _another_token(resolved, columns)


def _another_token(resolved: ResolvedTable, columns: Mapping[str, str]) -> str:
    """Whether the token is another one, by no rotation of ours, and not the same in the
    form of its digest."""
    token, expiry = columns["token"], columns["expires_at"]
    if resolved.shape.rotates:
        same = f"(NOT (old.{expiry} IS DISTINCT FROM new.{expiry}))"
        return f"({differs(token)} AND {same})"
    if resolved.shape.at_rest != "plain":
        return differs(token)
    digest = f"encode(sha256(convert_to(old.{token}, 'UTF8')), 'hex')"
    hashed = f"(new.{token} IS DISTINCT FROM ('{PREFIX}' || {digest}))"
    return f"({differs(token)} AND {hashed})"


def _is_digest(resolved: ResolvedTable) -> str:
    prefix = "" if resolved.shape.at_rest == "digest" else PREFIX
    return f"(old.{name_of(resolved.columns['id'].name)} ~ '^{prefix}[0-9a-f]{{64}}$')"


def _lived(resolved: ResolvedTable) -> str:
    """Whether a row that goes was alive: pruning says nothing."""
    columns, names = resolved.columns, _names(resolved.columns)
    ends = [
        _instant(names[name], columns[name])
        for name in ("refresh_expires_at", "expires_at")
        if name in columns
    ]
    end = f"GREATEST({', '.join(ends)})" if len(ends) > 1 else ends[0]
    rules = [f"({end} > now())"]
    if "revoked_at" in names:
        rules.insert(0, f"(old.{names['revoked_at']} IS NULL)")
    if "is_active" in names:
        rules.insert(0, f"old.{names['is_active']}")
    return f"({' AND '.join(rules)})" if len(rules) > 1 else rules[0]


def _instant(name: str, column: ColumnRef) -> str:
    return f"timezone('utc', old.{name})" if column.naive else f"old.{name}"


def _names(columns: Mapping[str, ColumnRef]) -> dict[str, str]:
    """The columns as they stand behind ``old.``, quoted only where they must be."""
    return {field: name_of(column.name) for field, column in columns.items()}


def name_of(quoted_name: str) -> str:
    """A quoted name of a column, without the quotes if it is the same without."""
    return _PLAIN_NAME.sub(r"\1", quoted_name)


def any_of(rules: Sequence[str]) -> str:
    """The rules, joined by OR."""
    return f"({' OR '.join(rules)})" if len(rules) > 1 else rules[0]


def differs(column: str) -> str:
    """Any change."""
    return f"(old.{column} IS DISTINCT FROM new.{column})"


def moves_back(column: str) -> tuple[str, str]:
    """An earlier time, or none any more."""
    return (
        f"(new.{column} < old.{column})",
        f"((new.{column} IS NULL) AND (old.{column} IS NOT NULL))",
    )


def shortens(column: str) -> tuple[str, str]:
    """An earlier limit, or one where there was none."""
    return (
        f"(new.{column} < old.{column})",
        f"((old.{column} IS NULL) AND (new.{column} IS NOT NULL))",
    )


def _literal(text: str) -> str:
    doubled = text.replace("'", "''")
    return f"'{doubled}'"
