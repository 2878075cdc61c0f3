"""The trigger on Supabase Auth's tables: what ends a session there, as data.

GoTrue deletes sessions when somebody signs out or changes a password. A refresh moves other
columns, or these ones forward, and never fires it. Columns that an older database does not
have are left out: nothing depends on them there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

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
    session_triggers,
    shortens,
    truncation,
    user_triggers,
)
from handstamp.stores.shapes import quoted

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
