"""The trigger on Supabase Auth's tables: what ends a session there, as data.

GoTrue deletes sessions when somebody signs out or changes a password. A refresh moves other
columns, or these ones forward, and never fires it. Columns that an older database does not
have are left out: nothing depends on them there.

Whether GoTrue's own writes are heard: the trigger on Supabase Auth's tables.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import asyncpg

from handstamp.doctor.check import Hearing, listen_for, trigger_findings
from handstamp.doctor.columns import Finding, Level
from handstamp.stores.connection import Connection
from handstamp.stores.notify_trigger import (
    DELETE,
    INSERT,
    ROW,
    UPDATE,
    USER,
    NotifyTrigger,
    any_of,
    differs,
    moves_back,
    script,
    session_triggers,
    shortens,
    truncation,
    user_triggers,
)
from handstamp.stores.shapes import quoted
from handstamp.supabase.schema import Schema

ALWAYS = ("sessions", "users")
"""The tables on which the life of a session depends under every rule."""
FACTORS = "mfa_factors"
"""The table on which it depends with ``SupabaseRules(allow_low_aal=…)``."""
WATCHED = (*ALWAYS, FACTORS)

_SESSION_CHANGES: Mapping[str, Callable[[str], str | tuple[str, str]]] = {
    "id": differs,
    "user_id": differs,
    "aal": differs,
    "oauth_client_id": differs,
    "not_after": shortens,
    "created_at": moves_back,
    "refreshed_at": moves_back,
}
_USER_CHANGES = {"id": differs, "banned_until": differs, "deleted_at": differs}
_FACTOR_CHANGES = {"user_id": differs, "status": differs}


def supabase_triggers(
    name: str, columns: Mapping[str, Collection[str]], tables: Sequence[str]
) -> tuple[NotifyTrigger, ...]:
    """The triggers for those of ``tables`` in the schema ``name`` that there are, where
    ``columns`` are those of each table."""
    made: list[NotifyTrigger] = []
    for table in tables:
        if table in columns:
            place = f"{quoted(name)}.{quoted(table)}"
            made += _MADE[table](place, columns[table])
    return tuple(made)


def _sessions(place: str, columns: Collection[str]) -> list[NotifyTrigger]:
    return session_triggers(place, "id", _changed(_SESSION_CHANGES, columns))


def _users(place: str, columns: Collection[str]) -> list[NotifyTrigger]:
    return user_triggers(place, "id", _changed(_USER_CHANGES, columns))


def _factors(place: str, columns: Collection[str]) -> list[NotifyTrigger]:
    return [
        NotifyTrigger(
            name="handstamp_factor_changed",
            table=place,
            type=ROW | UPDATE,
            function=USER,
            condition=_changed(_FACTOR_CHANGES, columns),
            argument="user_id",
        ),
        NotifyTrigger(
            name="handstamp_factor_added_or_removed",
            table=place,
            type=ROW | INSERT | DELETE,
            function=USER,
            argument="user_id",
        ),
        truncation("handstamp_factors_truncated", place),
    ]


_MADE = {"sessions": _sessions, "users": _users, FACTORS: _factors}


def _changed(
    rules: Mapping[str, Callable[[str], str | tuple[str, str]]], columns: Collection[str]
) -> str:
    found: list[str] = []
    for column, rule in rules.items():
        if column in columns:
            made = rule(column)
            found += [made] if isinstance(made, str) else made
    return any_of(found)


_BY_RULE = "with SupabaseRules(allow_low_aal=…) the trigger is not complete"
_LATE = "within max_staleness (5 s)"
_COMPLETE = (
    "the trigger is there and complete: GoTrue's own logouts are heard, and every other"
    " writer"
)
_ABSENT = (
    "there is no trigger: what GoTrue itself ends (a logout there, a ban) and what other"
    f" writers end is noticed {_LATE}. The tables' owner may make it"
)
_INIT = ", with handstamp init --shape supabase --trigger"
_UNSEEN = (
    "the role may not enter the schema, so handstamp cannot see whether there is a"
    f" trigger: what GoTrue ends is noticed {_LATE}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthHearing:
    """What was found: ``always`` counts under every rule, ``by_rule`` with a limit for a
    low level of assurance."""

    always: Hearing
    by_rule: Hearing


async def read_hearing(
    connection: Connection, name: str, schema: Schema
) -> AuthHearing | None:
    """The triggers in the schema ``name``; None where the role may not ask."""

    async def look(*tables: str) -> Hearing:
        triggers = supabase_triggers(name, schema.columns, tables)
        return await listen_for(connection, triggers)

    try:
        return AuthHearing(always=await look(*ALWAYS), by_rule=await look(*WATCHED))
    except asyncpg.InsufficientPrivilegeError:
        return None


def trigger_remarks(
    name: str, schema: Schema, hearing: AuthHearing | None
) -> tuple[list[Finding], bool]:
    """What there is to say of it; and whether every writer of the tables is heard."""
    if hearing is None:
        mend = script(supabase_triggers(name, schema.columns, WATCHED))
        return [Finding(Level.NOTICE, "trigger", _UNSEEN, mend)], False
    always, by_rule = hearing.always, hearing.by_rule
    absent = _ABSENT + (_INIT if name == "auth" else "")
    found = trigger_findings(always, complete=_COMPLETE, absent=absent)
    if always.lacks:
        # One script makes all of it.
        return [replace(finding, mend=by_rule.mend) for finding in found], False
    if by_rule.lacks:
        text = f"{_BY_RULE}: {'; '.join(by_rule.lacks)}"
        found.append(Finding(Level.NOTICE, "trigger", text, by_rule.mend))
    return found, True
