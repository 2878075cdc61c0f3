"""What a database of Supabase Auth has, and what our role may do with it.

Its tables grew over years, and a column that is missing switches a feature off. Row level
security is on without a policy: a role that is neither the tables' owner nor BYPASSRLS sees
empty tables, without any error. To take that for "every session is over" would sign
everybody out, so it is a complaint of its own, and so is a missing grant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import asyncpg

from handstamp.core.supabase_rules import SupabaseRules

Columns = tuple[str, ...]
HIDDEN = "row level security hides the sessions"

REFRESH_INFO: Columns = ("refreshed_at", "user_agent", "ip")
V2: Columns = ("refresh_token_hmac_key", "refresh_token_counter")
_SESSION: Columns = ("id", "user_id", "created_at", "updated_at")
_SESSION_LATER: Columns = (
    *("factor_id", "aal", "not_after", *REFRESH_INFO),
    *("tag", "oauth_client_id", "scopes", *V2),
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
_AMR: Columns = ("id", "session_id", "created_at", "updated_at", "authentication_method")
_AUDIT: Columns = ("instance_id", "id", "payload", "created_at", "ip_address")
_FACTOR: Columns = ("user_id", "status")

SESSION_COLUMNS = (*_SESSION, *_SESSION_LATER)
USER_COLUMNS = (*_USER, *_USER_LATER)
REQUIRED: Mapping[str, Columns] = {
    "sessions": _SESSION,
    "refresh_tokens": _TOKEN,
    "users": _USER,
}
TABLES = (*REQUIRED, "mfa_amr_claims", "mfa_factors", "audit_log_entries")

LOOK = """
    select c.relname as name, current_user::text as role,
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
    """What is there. ``unreadable`` and ``unwritable`` say what is to be mended before
    sessions can be read, or written; None where all is well."""

    columns: Mapping[str, frozenset[str]] = field(repr=False)
    unreadable: str | None
    unwritable: str | None
    guarded: bool
    """Whether row level security is out of the way altogether, so that it may be asked
    along with each question whether it still is."""

    def has(self, table: str, *columns: str) -> bool:
        """Whether ``table`` exists and has all of these."""
        return table in self.columns and self.columns[table].issuperset(columns)

    @property
    def missing(self) -> tuple[str, ...]:
        """The columns and tables a newer Supabase has; each switches something off."""
        later = {"sessions": _SESSION_LATER, "users": _USER_LATER}
        lacking = [t for t in TABLES if t not in self.columns]
        for table, columns in later.items():
            lacking += [f"{table}.{c}" for c in columns if not self.has(table, c)]
        return tuple(lacking)


def read_schema(name: str, rows: Sequence[asyncpg.Record], rules: SupabaseRules) -> Schema:
    """The answer to :data:`LOOK`, judged for what ``rules`` make necessary."""
    found = {row["name"]: row for row in rows}
    reads, writes = _needs(rules)
    unreadable = _absent(name, found) or _hidden(name, found, reads)
    unreadable = unreadable or _ungranted(name, found, reads)
    writes = {**reads, **writes}
    return Schema(
        columns={table: frozenset(row["columns"]) for table, row in found.items()},
        unreadable=unreadable,
        unwritable=unreadable
        or _hidden(name, found, writes)
        or _ungranted(name, found, writes),
        guarded=not any(row["hidden"] for row in rows),
    )


Needs = dict[str, dict[str, Columns]]


def _needs(rules: SupabaseRules) -> tuple[Needs, Needs]:
    """Which columns are read, inserted and updated; () for rows that are deleted."""
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
            "insert": SESSION_COLUMNS,
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
        "mfa_amr_claims": {"select": _AMR, "insert": _AMR},
    }
    if rules.audit:
        writes["audit_log_entries"] = {"insert": _AUDIT}
    return reads, writes


def _absent(name: str, found: Mapping[str, asyncpg.Record]) -> str | None:
    lacking = [
        f"{name}.{table}" if table not in found else f"{name}.{table}.{column}"
        for table, columns in REQUIRED.items()
        for column in columns
        if table not in found or column not in found[table]["columns"]
    ]
    if not lacking:
        return None
    return f"{lacking[0]} is missing: this is no database of Supabase Auth since 2022"


def _hidden(
    name: str, found: Mapping[str, asyncpg.Record], tables: Iterable[str]
) -> str | None:
    for table in tables:
        row = found.get(table)
        if row is not None and row["hidden"] and not row["policied"]:
            return (
                f"row level security hides {name}.{table} from the role {row['role']}: "
                f"connect as the tables' owner, supabase_auth_admin, or run "
                f'alter role "{row["role"]}" bypassrls'
            )
    return None


def _ungranted(name: str, found: Mapping[str, asyncpg.Record], needs: Needs) -> str | None:
    grants: list[str] = []
    role = next((f'"{row["role"]}"' for row in found.values()), "")
    if not all(row["enters"] for row in found.values()):
        grants.append(f"usage on schema {name}")
    for table, privileges in needs.items():
        if table not in found:
            continue
        for privilege, columns in privileges.items():
            grants += _grants(f"{name}.{table}", found[table], privilege, columns)
    return f"grant {grants[0]} to {role}" if grants else None


def _grants(table: str, row: asyncpg.Record, privilege: str, columns: Columns) -> list[str]:
    if privilege == "delete":
        return [] if row["deletes"] else [f"delete on {table}"]
    wanted = [c for c in columns if c in row["columns"]]
    given = row[privilege] or []
    lacking = [c for c in wanted if c not in given]
    if privilege == "insert" and not lacking and not row["numbers"]:
        return [f"usage on sequence {table}_id_seq"]
    if len(lacking) == len(wanted):
        return [f"{privilege} on {table}"]
    return [f"{privilege} ({', '.join(lacking)}) on {table}"] if lacking else []
