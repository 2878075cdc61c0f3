"""The trigger that makes every writer notify, for one table and its own columns.

Rule 1. It fires for what can end a session early, and never for activity or rotation.
Another token ends the one before, but for its digest, and for a rotation, which alone moves
the expiry with it.
Rule 2. Its functions are those of ``handstamp init --trigger``, but for the name of the
column of ids, which is an argument of the trigger: so one function serves every table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from handstamp.stores.fitting import Fitted, Spelling
from handstamp.stores.shapes import PREFIX, quoted

_FUNCTION = """\
create or replace function {name}() returns trigger
language plpgsql
as $body$
begin
    {body}
    return null;
end
$body$"""
_ID = "rtrim(to_jsonb(old) ->> coalesce(tg_argv[0], 'id'))"
_SESSION = f"""\
if current_setting('handstamp.quietly', true) is distinct from 'on' then
        perform pg_notify('handstamp', 's:' || {_ID});
    end if;"""
_USER = f"perform pg_notify('handstamp', 'u:' || {_ID});"
_ALL = "perform pg_notify('handstamp', 'all');"

_ANY_CHANGE = ("is_active", "revoked_at", "user_id")
_BACKWARDS = ("expires_at", "refresh_expires_at", "created_at")
WATCHED = (*_ANY_CHANGE, *_BACKWARDS, "level")
"""The fields of a session whose change can end it early; the token too, unless it is what
names the row."""
USER_WATCHED = ("is_active", "password_changed_at")

TRIGGERS = """
    select w.name as table, t.tgname::text as name,
        t.tgenabled in ('O', 'A') as enabled, t.tgtype::int as type,
        array(select a.attname::text from unnest(t.tgattr::int2[]) as k(attnum)
            join pg_attribute a on a.attrelid = t.tgrelid and a.attnum = k.attnum)
            as columns,
        pg_get_triggerdef(t.oid) as definition
    from unnest($1::text[], $2::oid[]) as w(name, oid)
    join pg_trigger t on t.tgrelid = w.oid join pg_proc p on p.oid = t.tgfoid
    where not t.tgisinternal and p.proname in ('handstamp_notify_session',
        'handstamp_notify_user', 'handstamp_notify_factor', 'handstamp_notify_all')
    order by t.tgname"""

_UPDATE, _DELETE, _TRUNCATE = 16, 8, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """One trigger of ours as it is in the catalog."""

    table: str
    name: str
    enabled: bool
    type: int
    columns: Sequence[str]
    definition: str


def trigger_sql(fitted: Fitted) -> str:
    """The functions and triggers for this table, as a script that may be run again."""
    shape = fitted.shape
    table, own = quoted(shape.table), _argument(shape.id)
    parts = [
        _FUNCTION.format(name="handstamp_notify_session", body=_SESSION),
        _FUNCTION.format(name="handstamp_notify_all", body=_ALL),
        f"create or replace trigger handstamp_session_changed\n"
        f"after update of {_names(fitted.columns, _watched(fitted))}\n"
        f"on {table} for each row\nwhen ({_changes(fitted)})\n"
        f"execute function handstamp_notify_session({own})",
        f"create or replace trigger handstamp_session_deleted\n"
        f"after delete on {table} for each row\nwhen ({_lived(fitted.columns)})\n"
        f"execute function handstamp_notify_session({own})",
        f"create or replace trigger handstamp_sessions_truncated\n"
        f"after truncate on {table} for each statement\n"
        "execute function handstamp_notify_all()",
    ]
    if shape.users is not None and fitted.users is not None:
        parts += _users(quoted(shape.users.table), shape.users.id, fitted.users)
    return "".join(f"{part};\n\n" for part in parts).rstrip("\n") + "\n"


def _users(table: str, id: str, columns: Mapping[str, Spelling]) -> list[str]:
    own, watched = _argument(id), [n for n in USER_WATCHED if n in columns]
    parts = [_FUNCTION.format(name="handstamp_notify_user", body=_USER)]
    if watched:
        changes = "\n    or ".join(_differs(columns[name].name) for name in watched)
        parts.append(
            f"create or replace trigger handstamp_user_changed\n"
            f"after update of {_names(columns, USER_WATCHED)}\n"
            f"on {table} for each row\nwhen ({changes})\n"
            f"execute function handstamp_notify_user({own})"
        )
    return [
        *parts,
        f"create or replace trigger handstamp_user_deleted\n"
        f"after delete on {table} for each row\n"
        f"execute function handstamp_notify_user({own})",
        f"create or replace trigger handstamp_users_truncated\n"
        f"after truncate on {table} for each statement\n"
        "execute function handstamp_notify_all()",
    ]


def lacking(fitted: Fitted, triggers: Sequence[Trigger]) -> list[str]:
    """What would go unheard, in words; empty where the trigger is there and complete."""
    shape = fitted.shape
    lacks = unheard(shape.table, triggers, _plain(fitted.columns, _watched(fitted)))
    if shape.users is not None and fitted.users is not None:
        lacks += unheard(shape.users.table, triggers, _plain(fitted.users, USER_WATCHED))
    return lacks


def unheard(table: str, triggers: Sequence[Trigger], columns: Sequence[str]) -> list[str]:
    """What would go unheard of one table, of which these columns are to be watched."""
    own = [t for t in triggers if t.table == table]
    live = [t for t in own if t.enabled]
    lacks = [f"trigger {t.name} is disabled" for t in own if not t.enabled]
    heard = {name for name in columns if any(_hears(t, name) for t in live)}
    lacks += [f"a change of {table}.{name}" for name in columns if name not in heard]
    if not any(t.type & _DELETE for t in live):
        lacks.append(f"a deletion from {table}")
    if not any(t.type & _TRUNCATE for t in live):
        lacks.append(f"a truncation of {table}")
    return lacks


def _plain(columns: Mapping[str, Spelling], fields: Sequence[str]) -> list[str]:
    return [columns[field].name.strip('"') for field in fields if field in columns]


def _hears(trigger: Trigger, column: str) -> bool:
    """Whether an UPDATE of the column fires it: it is listed, and the condition asks."""
    if not trigger.type & _UPDATE or (trigger.columns and column not in trigger.columns):
        return False
    _, when, condition = trigger.definition.partition(" WHEN ")
    named = rf"\.{re.escape(column)}(?![\w$])"
    return not when or bool(re.search(named, condition.replace('"', "")))


def _watched(fitted: Fitted) -> tuple[str, ...]:
    shape = fitted.shape
    return WATCHED if shape.id_is_token else (*WATCHED, "token")


def _changes(fitted: Fitted) -> str:
    columns = fitted.columns
    rules = [_differs(columns[name].name) for name in _ANY_CHANGE if name in columns]
    rules += [
        f"new.{columns[name].name} < old.{columns[name].name}"
        for name in _BACKWARDS
        if name in columns
    ]
    if "level" in columns:
        level = columns["level"].name
        rules.append(f"coalesce(new.{level}, 0) < coalesce(old.{level}, 0)")
    if "token" in _watched(fitted):
        rules.append(_another(fitted))
    return "\n    or ".join(rules)


def _another(fitted: Fitted) -> str:
    """Whether the token is another one, by no rotation of ours, and not the same in the
    form of its digest."""
    token, expiry = fitted.columns["token"].name, fitted.columns["expires_at"].name
    if fitted.shape.rotates:
        return f"{_differs(token)}\n    and old.{expiry} is not distinct from new.{expiry}"
    if fitted.shape.at_rest != "plain":
        return _differs(token)
    digest = f"encode(sha256(convert_to(old.{token}::text, 'UTF8')), 'hex')"
    return (
        f"{_differs(token)}\n"
        f"    and new.{token}::text is distinct from '{PREFIX}' || {digest}"
    )


def _lived(columns: Mapping[str, Spelling]) -> str:
    """Whether a row that goes was alive: pruning says nothing."""
    ends = [columns[n] for n in ("refresh_expires_at", "expires_at") if n in columns]
    end = ", ".join(map(_instant, ends))
    rules = [f"{f'coalesce({end})' if len(ends) > 1 else end} > now()"]
    if "revoked_at" in columns:
        rules.insert(0, f"old.{columns['revoked_at'].name} is null")
    if "is_active" in columns:
        rules.insert(0, f"old.{columns['is_active'].name}")
    return "\n    and ".join(rules)


def _instant(column: Spelling) -> str:
    return f"old.{column.name}" + (" at time zone 'utc'" if column.naive else "")


def _differs(column: str) -> str:
    return f"old.{column} is distinct from new.{column}"


def _names(columns: Mapping[str, Spelling], fields: Sequence[str]) -> str:
    return ", ".join(columns[name].name for name in fields if name in columns)


def _argument(column: str) -> str:
    return "" if column == "id" else f"'{column}'"
