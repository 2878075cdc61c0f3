"""What a database of Supabase Auth has, what our role may do with it, and the triggers on
it.

Rule 1. The tables changed over years. A column that is missing switches a feature off.
Rule 2. Row level security is on, without a policy: a role that is neither the tables' owner
nor BYPASSRLS sees empty tables, without an error. To believe that every session is over
would sign everybody out. So this is an error of its own, and so is a missing grant.
Rule 3. The trigger fires on what ends a session: GoTrue deletes sessions when a user signs
out or changes the password. A refresh writes other columns, or moves these forward, and
never fires it. Columns that an older database lacks are left out of its condition.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import asyncpg

from handstamp.stores.base import Capabilities
from handstamp.stores.connection import Connection
from handstamp.stores.install import Outcome, install_triggers
from handstamp.stores.notify.sql import (
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
    trigger_script,
    truncate_trigger,
    user_triggers,
)
from handstamp.stores.shapes import quoted
from handstamp.supabase.rules import SupabaseRules

Columns = tuple[str, ...]
HIDDEN = "row level security hides the sessions"
ABSENT = "is missing: this is no database of Supabase Auth since 2022"

REFRESH_INFO: Columns = ("refreshed_at", "user_agent", "ip")
V2: Columns = ("refresh_token_hmac_key", "refresh_token_counter")
_SESSION: Columns = ("id", "user_id", "created_at", "updated_at")
_SESSION_LATER: Columns = (
    *("aal", "not_after", *REFRESH_INFO),
    *("tag", "oauth_client_id", *V2),
)
_TOKEN: Columns = (
    *("instance_id", "id", "token", "user_id", "revoked"),
    *("created_at", "updated_at", "parent", "session_id"),
)
_USER: Columns = (
    *("id", "instance_id", "aud", "role", "email", "raw_app_meta_data"),
    *("raw_user_meta_data", "created_at", "updated_at", "last_sign_in_at"),
)
_USER_LATER: Columns = (
    *("banned_until", "deleted_at", "phone", "is_anonymous", "is_sso_user"),
)
AMR: Columns = ("id", "session_id", "created_at", "updated_at", "authentication_method")
_AUDIT: Columns = ("instance_id", "id", "payload", "created_at", "ip_address")
_FACTOR: Columns = ("user_id", "status")

WHOLE = Capabilities(
    refresh=False, activity=False, password_change=False, fingerprint=False, level=True
)
"""What the tables can do where no column is missing; GoTrue's rules refresh, not ours."""
SESSION_COLUMNS = (*_SESSION, *_SESSION_LATER)
USER_COLUMNS = (*_USER, *_USER_LATER)
_NOT_PRIVATE = ("sessions", "refresh_tokens", "mfa_amr_claims", "audit_log_entries")
"""Tables of which we read or write nearly every column; the others hold more."""
REQUIRED: Mapping[str, Columns] = {
    "sessions": _SESSION,
    "refresh_tokens": _TOKEN,
    "users": _USER,
}
TABLES = (*REQUIRED, "mfa_amr_claims", "mfa_factors", "audit_log_entries")

NEWEST: Mapping[str, Columns] = {
    "sessions": SESSION_COLUMNS,
    "users": USER_COLUMNS,
    "mfa_factors": _FACTOR,
}
"""The columns of a complete database on which the validity of a session depends."""

_PLAIN = re.compile("[a-z_][a-z0-9_]*")

INSPECT = """
    select c.relname as name, c.oid, current_user::text as role,
        has_schema_privilege(n.oid, 'usage') as enters,
        row_security_active(c.oid) as hidden,
        exists (select from pg_policy p where p.polrelid = c.oid and p.polpermissive
            and exists (select from unnest(p.polroles) as r (id)
                where r.id = 0 or pg_has_role(r.id, 'usage'))) as policied,
        has_table_privilege(c.oid, 'delete') as deletes,
        coalesce((select has_sequence_privilege(d.objid, 'usage') from pg_depend d
            join pg_class q on q.oid = d.objid and q.relkind = 'S'
            where d.refobjid = c.oid and d.classid = 'pg_class'::regclass limit 1),
            true) as numbers,
        a.columns, a.select, a.insert, a.update
    from pg_class c join pg_namespace n on n.oid = c.relnamespace,
    lateral (select array_agg(attname::text) as columns,
        array_agg(attname::text) filter
            (where has_column_privilege(c.oid, attnum, 'select')) as select,
        array_agg(attname::text) filter
            (where has_column_privilege(c.oid, attnum, 'insert')) as insert,
        array_agg(attname::text) filter
            (where has_column_privilege(c.oid, attnum, 'update')) as update
        from pg_attribute
        where attrelid = c.oid and attnum > 0 and not attisdropped) a
    where n.nspname = $1 and c.relname = any($2::text[]) and c.relkind in ('r', 'p')"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """What the database has. ``unreadable`` and ``unwritable`` say what must be corrected
    before sessions can be read, or written; None where nothing must."""

    columns: Mapping[str, frozenset[str]] = field(repr=False)
    unreadable: str | None
    unwritable: str | None
    guarded: bool
    """Whether row level security applies to no table, so that each statement can ask
    whether that is still so."""

    @property
    def capabilities(self) -> Capabilities:
        """The features that a database without the newer columns still has."""
        return replace(
            WHOLE,
            user_status=any(self.has("users", c) for c in ("banned_until", "deleted_at")),
            level=self.has("sessions", "aal"),
        )

    def has(self, table: str, *columns: str) -> bool:
        """Whether ``table`` exists and has all of these."""
        return table in self.columns and self.columns[table].issuperset(columns)

    @property
    def missing(self) -> tuple[str, ...]:
        """The columns and tables that a newer Supabase has; each one switches a feature
        off."""
        later = {"sessions": _SESSION_LATER, "users": _USER_LATER}
        lacking = [t for t in TABLES if t not in self.columns]
        if "mfa_amr_claims" in self.columns:
            later["mfa_amr_claims"] = AMR
        for table, columns in later.items():
            lacking += [f"{table}.{c}" for c in columns if not self.has(table, c)]
        return tuple(lacking)


Needs = dict[str, dict[str, Columns]]
Found = Mapping[str, asyncpg.Record]
"""The result of :data:`INSPECT`, by the names of the tables."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A privilege that the role lacks. ``table`` is "" for the schema itself; without
    ``columns`` it is for the whole of ``place``."""

    table: str
    privilege: str
    place: str
    columns: Columns = ()

    def __str__(self) -> str:
        names = f" ({', '.join(self.columns)})" if self.columns else ""
        return f"{self.privilege}{names} on {self.place}"


def grant_sql(grant: Grant, role: str) -> str:
    """Returns the statement that grants it to ``role``."""
    return f"grant {grant} to {_always_quoted(role)}"


def bypass_sql(role: str) -> str:
    """Returns the statement after which row level security does not apply to ``role``."""
    return f"alter role {_always_quoted(role)} bypassrls"


def read_schema(name: str, rows: Sequence[asyncpg.Record], rules: SupabaseRules) -> Schema:
    """Judges the result of :data:`INSPECT` by what ``rules`` make necessary."""
    found = {row["name"]: row for row in rows}
    reads, writes = needs(rules)
    absent = absences(name, found)
    unreadable = f"{absent[0]} {ABSENT}" if absent else None
    unreadable = unreadable or _hidden(name, found, reads) or _ungranted(name, found, reads)
    writes = {**reads, **writes}
    return Schema(
        columns={table: frozenset(row["columns"]) for table, row in found.items()},
        unreadable=unreadable,
        unwritable=unreadable
        or _hidden(name, found, writes)
        or _ungranted(name, found, writes),
        guarded=not any(row["hidden"] for row in rows),
    )


def needs(rules: SupabaseRules) -> tuple[Needs, Needs]:
    """Returns the columns that reading needs, and those that writing needs, by table and
    privilege; () for rows that are deleted."""
    reads: Needs = {
        "sessions": {"select": SESSION_COLUMNS},
        "users": {"select": ("id", "instance_id", "banned_until", "deleted_at")},
    }
    if rules.allow_low_aal is not None:
        reads["mfa_factors"] = {"select": _FACTOR}
    if rules.inactivity is not None:
        reads["refresh_tokens"] = {"select": ("session_id", "updated_at")}
    writes: Needs = {
        "sessions": {
            "select": SESSION_COLUMNS,
            "insert": (*_SESSION, "aal", "user_agent", "ip", *V2),
            "update": ("updated_at", *REFRESH_INFO, *V2),
            "delete": (),
        },
        "users": {
            "select": USER_COLUMNS,
            "update": ("last_sign_in_at", "updated_at"),
        },
        "refresh_tokens": {
            "select": _TOKEN,
            "insert": tuple(c for c in _TOKEN if c != "id"),
            "update": ("revoked", "updated_at"),
            "delete": (),
        },
        "mfa_amr_claims": {"select": AMR, "insert": AMR},
    }
    if rules.audit:
        writes["audit_log_entries"] = {"insert": _AUDIT}
    return reads, writes


def absences(name: str, found: Found) -> list[str]:
    """Returns the missing tables and columns without which nothing works."""
    return [
        display_name(name, table)
        if table not in found
        else f"{display_name(name, table)}.{column}"
        for table, columns in REQUIRED.items()
        for column in (columns if table in found else columns[:1])
        if table not in found or column not in found[table]["columns"]
    ]


def hidden_tables(found: Found, tables: Iterable[str], *, policied: bool) -> list[str]:
    """Returns those of ``tables`` to which row level security applies, with policies for
    the role or without."""
    rows = {table: found[table] for table in tables if table in found}
    return [t for t, r in rows.items() if r["hidden"] and r["policied"] is policied]


def lacking_grants(name: str, found: Found, wanted: Needs) -> Iterator[Grant]:
    """Yields the wanted privileges that the role does not have."""
    if not all(row["enters"] for row in found.values()):
        yield Grant("", "usage", f"schema {display_name(name)}")
    for table, privileges in wanted.items():
        for privilege, columns in privileges.items():
            if table in found:
                place = display_name(name, table)
                yield from _grants(table, place, found[table], privilege, columns)


def display_name(*names: str) -> str:
    """Returns a name as people write it: quoted only where it must be."""
    return ".".join(n if _PLAIN.fullmatch(n) else _always_quoted(n) for n in names)


def _always_quoted(name: str) -> str:
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def _hidden(name: str, found: Found, tables: Iterable[str]) -> str | None:
    for table in hidden_tables(found, tables, policied=False):
        role = found[table]["role"]
        return (
            f"row level security hides {display_name(name, table)} from the role {role}: "
            f"connect as the tables' owner, supabase_auth_admin, or run {bypass_sql(role)}"
        )
    return None


def _ungranted(name: str, found: Found, wanted: Needs) -> str | None:
    first = next(lacking_grants(name, found, wanted), None)
    role = next((row["role"] for row in found.values()), "")
    return None if first is None else grant_sql(first, role)


def _grants(
    table: str, place: str, row: asyncpg.Record, privilege: str, columns: Columns
) -> Iterator[Grant]:
    """Yields the grant that ``privilege`` needs. It is for the whole table where all of it
    is missing and the table holds nothing private, and otherwise for the columns."""
    if privilege == "delete":
        if not row["deletes"]:
            yield Grant(table, privilege, place)
        return
    wanted = [c for c in columns if c in row["columns"]]
    lacking = tuple(c for c in wanted if c not in (row[privilege] or []))
    if lacking:
        whole = len(lacking) == len(wanted) and privilege in ("select", "insert")
        columns = () if whole and table in _NOT_PRIVATE else lacking
        yield Grant(table, privilege, place, columns)
    if privilege == "insert" and not row["numbers"]:
        yield Grant(table, "usage", f"sequence {place}_id_seq")


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
    """Returns the triggers for those of ``tables`` that the schema ``name`` has.
    ``columns`` are those of each table that it has."""
    made: list[NotifyTrigger] = []
    for table in (each for each in tables if each in columns):
        place, have = f"{quoted(name)}.{quoted(table)}", columns[table]
        if table == "sessions":
            made += session_triggers(place, "id", _changed(_SESSION_CHANGES, have))
        elif table == "users":
            made += user_triggers(place, "id", _changed(_USER_CHANGES, have))
        else:
            changed = NotifyTrigger(
                name="handstamp_factor_changed",
                table=place,
                type=ROW | UPDATE,
                function=USER,
                condition=_changed(_FACTOR_CHANGES, have),
                argument="user_id",
            )
            added_or_removed = NotifyTrigger(
                name="handstamp_factor_added_or_removed",
                table=place,
                type=ROW | INSERT | DELETE,
                function=USER,
                argument="user_id",
            )
            truncated = truncate_trigger("handstamp_factors_truncated", place)
            made += (changed, added_or_removed, truncated)
    return tuple(made)


def _changed(
    rules: Mapping[str, Callable[[str], str | tuple[str, str]]], columns: Collection[str]
) -> str:
    found: list[str] = []
    for column, rule in rules.items():
        if column in columns:
            made = rule(column)
            found += [made] if isinstance(made, str) else made
    return any_of(found)


async def install_supabase_trigger(
    connection: Connection, name: str = "auth"
) -> list[Outcome]:
    """Create the trigger on the tables of the schema ``name``, as far as it is missing.

    Returns one outcome for each statement; a table that an older database does not have
    is skipped. Raises as :func:`handstamp.stores.install.install` does.
    """
    rows = await connection.fetch(INSPECT, name, list(TABLES))
    columns = {row["name"]: row["columns"] for row in rows}
    triggers = supabase_triggers(name, columns, WATCHED)
    documented = supabase_triggers(name, NEWEST, WATCHED)
    return await install_triggers(connection, triggers, documented)


def supabase_trigger_script(name: str = "auth") -> str:
    """The SQL that creates the trigger on the newest tables of the schema ``name``."""
    return f"{trigger_script(supabase_triggers(name, NEWEST, WATCHED))};\n"
