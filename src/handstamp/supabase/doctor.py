"""What each younger column of Supabase Auth's tables is for, and what is off without it.

What the role may not do with Supabase Auth's tables, and which feature needs it.

Rule 1. The rules of the application are not known here: what a rule makes necessary is a
notice, and everything else is what the default rules need.
Rule 2. Where one privilege to write is missing, nothing is written at all, so none of them
is less bad than the others. To look sessions up takes the privileges to read alone.

The frequent statements on Supabase Auth's tables, and the indexes that serve them.

What ``handstamp doctor`` asks about Supabase Auth's tables. Nothing here writes.

The catalog answers, which any role may read: one without a single grant must be told so.

What `handstamp doctor` finds in a database of Supabase Auth, whose tables are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import asyncpg

from handstamp.doctor import Diagnosis, Finding, Level, Offer
from handstamp.doctor.check import Index, Sample, TriggerState, read_facts, read_triggers
from handstamp.doctor.report import index_findings, server_findings, trigger_findings
from handstamp.errors import ConfigError
from handstamp.stores.connection import Connection
from handstamp.stores.notify.sql import trigger_script
from handstamp.supabase.rules import SupabaseRules
from handstamp.supabase.schema import (
    ABSENT,
    ALWAYS,
    AMR,
    INSPECT,
    TABLES,
    V2,
    WATCHED,
    Columns,
    Found,
    Grant,
    Needs,
    Schema,
    absences,
    bypass_sql,
    display_name,
    grant_sql,
    hidden_tables,
    lacking_grants,
    needs,
    read_schema,
    supabase_triggers,
)
from handstamp.supabase.sql import SupabaseStatements


@dataclass(frozen=True, slots=True)
class Feature:
    """``able`` says what these columns of a table make possible, ``without`` what is so
    where one of them is missing. Without ``columns`` it is the table itself."""

    table: str
    columns: tuple[str, ...]
    able: str
    without: str


FEATURES = (
    Feature(
        "sessions",
        V2,
        "refresh tokens with a counter (v2)",
        "new sessions get v1 refresh tokens, whatever algorithm_version says",
    ),
    Feature(
        "sessions",
        ("aal",),
        "assurance levels",
        "every session is of level 1, and require(level=2) lets nobody in",
    ),
    Feature(
        "mfa_amr_claims",
        AMR,
        "how a user signed in (amr)",
        "access tokens made here say no amr, and are aal1",
    ),
    Feature(
        "mfa_factors",
        (),
        "the rule allow_low_aal",
        "allow_low_aal changes nothing",
    ),
    Feature(
        "users",
        ("banned_until",),
        "a banned user's sessions end",
        "nobody can be banned",
    ),
    Feature(
        "users",
        ("deleted_at",),
        "a softly deleted user's sessions end",
        "a user is there or gone; nobody can be deleted softly",
    ),
    Feature(
        "sessions",
        ("not_after",),
        "an end of its own for a session",
        "no session can be given an end of its own",
    ),
    Feature(
        "sessions",
        ("refreshed_at",),
        "when a session was last refreshed",
        "the rule inactivity goes by the refresh tokens, and lists by the sign-in",
    ),
    Feature(
        "sessions",
        ("user_agent", "ip"),
        "the client's browser and address in lists",
        "what is missing of them is not in lists of sessions",
    ),
    Feature(
        "sessions",
        ("tag",),
        "the rule tags",
        "tags change nothing: with single_per_user it is one session for each user",
    ),
    Feature(
        "sessions",
        ("oauth_client_id",),
        "sessions of OAuth clients",
        "there are no sessions of OAuth clients",
    ),
    Feature(
        "users",
        ("is_anonymous",),
        "anonymous users are told apart",
        "access tokens made here call nobody anonymous",
    ),
    Feature(
        "users",
        ("phone",),
        "users with a phone number",
        "access tokens made here name no phone number",
    ),
    Feature(
        "users",
        ("is_sso_user",),
        "the audit log knows who came by SSO",
        "the audit log says of nobody that they came by SSO",
    ),
    Feature(
        "audit_log_entries",
        (),
        "the audit log",
        "sign-ins, refreshes and logouts are not logged there",
    ),
)


def able(schema: Schema) -> dict[str, bool]:
    """What these tables can do, in words."""
    return {f.able: schema.has(f.table, *f.columns) for f in FEATURES}


def columns_remarks(name: str, schema: Schema) -> Iterator[Finding]:
    """What is missing and what is off for that, or that nothing is."""
    for feature in FEATURES:
        lacking = [c for c in feature.columns if not schema.has(feature.table, c)]
        place = display_name(name, feature.table)
        if feature.table not in schema.columns:
            text = f"there is no {place}: {feature.without}"
        elif lacking:
            text = f"{place} has no {', '.join(lacking)}: {feature.without}"
        else:
            continue
        yield Finding(Level.NOTICE, "columns", text)
    if not schema.missing:
        text = "every column that handstamp knows of is there"
        yield Finding(Level.OK, "columns", text)


_READS, _WRITES = needs(SupabaseRules())
_LOW_AAL, _ = needs(SupabaseRules(allow_low_aal=timedelta(hours=1)))
_BY_RULE: Needs = {t: wanted for t, wanted in _LOW_AAL.items() if t not in _READS}
_RULE = "with SupabaseRules(allow_low_aal=…) everything"
_FEATURES: Mapping[tuple[str, str], str] = {
    ("sessions", "insert"): "sign-in",
    ("sessions", "update"): "refresh",
    ("sessions", "delete"): "revocation",
    ("users", "select"): "sign-in (and refresh)",
    ("users", "update"): "sign-in (and refresh)",
    ("refresh_tokens", "select"): "refresh",
    ("refresh_tokens", "insert"): "sign-in (and refresh)",
    ("refresh_tokens", "usage"): "sign-in (and refresh)",
    ("refresh_tokens", "update"): "refresh",
    ("refresh_tokens", "delete"): "refresh (and pruning)",
    ("mfa_amr_claims", "select"): "refresh",
    ("mfa_amr_claims", "insert"): "sign-in",
    ("audit_log_entries", "insert"): "the audit log (off with SupabaseRules(audit=False))",
}


def role_remarks(name: str, found: Found) -> list[Finding]:
    """Everything about the role: what it sees, and what it may do."""
    role = str(found["sessions"]["role"])
    grants = lacking_grants(name, found, _READS)
    reads = [_lack("everything", grant, role) for grant in grants]
    grants = (g for g in lacking_grants(name, found, _beyond(_WRITES, _READS)) if g.table)
    writes = [_lack(_FEATURES[g.table, g.privilege], g, role) for g in grants]
    grants = (g for g in lacking_grants(name, found, _BY_RULE) if g.table)
    by_rule = [_lack(_RULE, grant, role, Level.NOTICE) for grant in grants]
    unseen = list(_unseen(name, found, role))
    well = [] if reads or unseen else [_summary(role, may_write=not writes)]
    return [*unseen, *reads, *writes, *by_rule, *well]


def _lack(feature: str, grant: Grant, role: str, level: Level = Level.DANGER) -> Finding:
    names = f" ({', '.join(grant.columns)})" if grant.columns else ""
    text = f"{feature} needs {grant.privilege.upper()}{names} on {grant.place}"
    return Finding(level, "grants", text, grant_sql(grant, role))


def _beyond(wanted: Needs, less: Needs) -> Needs:
    """What is wanted and not among ``less``; rows that are deleted have no columns."""

    def left(table: str, privilege: str, columns: Columns) -> Columns:
        had = less.get(table, {}).get(privilege, ())
        return tuple(column for column in columns if column not in had)

    return {
        table: {privilege: left(table, privilege, c) for privilege, c in privileges.items()}
        for table, privileges in wanted.items()
    }


def _unseen(name: str, found: Found, role: str) -> Iterator[Finding]:
    """What row level security hides from the role."""
    always = (*_READS, *_WRITES)
    hidden = _listed(name, hidden_tables(found, dict.fromkeys(always), policied=False))
    if hidden:
        text = (
            f"row level security hides every row of {hidden} from the role {role}, so"
            " handstamp answers nobody. Connect as the tables' owner, or let the role pass"
        )
        yield Finding(Level.DANGER, "grants", text, bypass_sql(role))
    elif hidden_tables(found, _BY_RULE, policied=False):
        tables = _listed(name, _BY_RULE)
        text = f"{_RULE} needs the rows of {tables}, which row level security hides"
        yield Finding(Level.NOTICE, "grants", text, bypass_sql(role))
    policied = _listed(name, hidden_tables(found, found, policied=True))
    if policied:
        text = (
            f"row level security applies to this role on {policied}: rows its policies"
            " hide do not exist"
        )
        yield Finding(Level.WARNING, "grants", text)


def _listed(name: str, tables: Iterable[str]) -> str:
    return ", ".join(display_name(name, table) for table in tables)


def _summary(role: str, *, may_write: bool) -> Finding:
    if may_write:
        text = f"the role {role} may do all that is needed"
        return Finding(Level.OK, "grants", text)
    text = (
        f"what the role {role} may do is enough to look sessions up; nothing is written"
        " until it has all of the rest"
    )
    return Finding(Level.NOTICE, "grants", text)


_TRIGGER_RULE = "with SupabaseRules(allow_low_aal=…) the trigger is not complete"
_LATE = "within max_staleness (5 s)"
_COMPLETE = (
    "the trigger is there and complete: GoTrue's own logouts are heard, and every other"
    " writer"
)
_NO_TRIGGER = (
    "there is no trigger: what GoTrue itself ends (a logout there, a ban) and what other"
    f" writers end is noticed {_LATE}. The tables' owner may make it"
)
_INIT = ", with handstamp init --shape supabase --trigger"
_TRIGGER_UNSEEN = (
    "the role may not enter the schema, so handstamp cannot see whether there is a"
    f" trigger: what GoTrue ends is noticed {_LATE}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthHearing:
    """What was found: ``always`` counts under every rule, ``by_rule`` with a limit for a
    low level of assurance."""

    always: TriggerState
    by_rule: TriggerState


async def read_hearing(
    connection: Connection, name: str, schema: Schema
) -> AuthHearing | None:
    """The triggers in the schema ``name``; None where the role may not ask."""

    async def look(*tables: str) -> TriggerState:
        triggers = supabase_triggers(name, schema.columns, tables)
        return await read_triggers(connection, triggers)

    try:
        return AuthHearing(always=await look(*ALWAYS), by_rule=await look(*WATCHED))
    except asyncpg.InsufficientPrivilegeError:
        return None


def trigger_remarks(
    name: str, schema: Schema, hearing: AuthHearing | None
) -> tuple[list[Finding], bool]:
    """What there is to say of it; and whether every writer of the tables is heard."""
    if hearing is None:
        mend = trigger_script(supabase_triggers(name, schema.columns, WATCHED))
        return [Finding(Level.NOTICE, "trigger", _TRIGGER_UNSEEN, mend)], False
    always, by_rule = hearing.always, hearing.by_rule
    absent = _NO_TRIGGER + (_INIT if name == "auth" else "")
    found = trigger_findings(always, complete=_COMPLETE, absent=absent)
    if always.lacks:
        # One script makes all of it.
        return [replace(finding, mend=by_rule.mend) for finding in found], False
    if by_rule.lacks:
        text = f"{_TRIGGER_RULE}: {'; '.join(by_rule.lacks)}"
        found.append(Finding(Level.NOTICE, "trigger", text, by_rule.mend))
    return found, True


_NOBODY = "00000000-0000-0000-0000-000000000000"
_BY_ID: Mapping[str, str] = {"sessions": "id", "users": "id"}
_BY_SESSION: Mapping[str, str] = {
    "refresh_tokens": "session_id",
    "mfa_amr_claims": "session_id",
}


def supabase_samples(name: str, sql: SupabaseStatements) -> list[Sample]:
    """All of them. The last two stand for the deletion of a session, too, which takes its
    refresh tokens and claims with it."""
    asked: list[tuple[str, str, object, Mapping[str, str]]] = [
        ("the look-up of a session", sql.find_many, [_NOBODY], _BY_ID),
        (
            "a list of a user's sessions",
            sql.list_for_user,
            _NOBODY,
            {**_BY_ID, "sessions": "user_id"},
        ),
        ("a refresh", sql.find_v1, "-", {**_BY_ID, "refresh_tokens": "token"}),
        ("a refresh", sql.read_session, _NOBODY, {**_BY_ID, **_BY_SESSION}),
        ("a refresh", sql.active, _NOBODY, _BY_SESSION),
    ]
    return [
        Sample(
            feature=feature,
            sql=statement,
            values=[value],
            indexes={t: Index(display_name(name, t), c) for t, c in columns.items()},
        )
        for feature, statement, value, columns in asked
    ]


async def read_tables(connection: Connection, name: str) -> Found:
    """The tables in the schema ``name``, their columns and the role's privileges."""
    rows = await connection.fetch(INSPECT, name, list(TABLES))
    return {row["name"]: row for row in rows}


_RULES = SupabaseRules()
_UNSEEN = (
    "columns, grants, indexes and the trigger were not looked at. If it is a table of your"
    " own, say --shape ulid or --shape uuid"
)


async def diagnose_supabase(
    connection: Connection, listening: Connection, name: str
) -> Diagnosis:
    """Look at everything in the schema ``name``. ``listening`` is where the bus would
    listen.

    Raises :class:`ConfigError` where there is no table of sessions.
    """
    found = await read_tables(connection, name)
    table = display_name(name, "sessions")
    if "sessions" not in found:
        raise ConfigError(f"there is no table {table}")
    facts = await read_facts(connection, found["sessions"]["oid"])
    missing = absences(name, found)
    covered, offer = False, None
    if missing:
        findings = _no_supabase(missing)
    else:
        schema = read_schema(name, list(found.values()), _RULES)
        findings, covered = await _look(connection, name, found, schema)
        offer = _offer(name, schema)
    bound, around = await server_findings(
        connection, listening, facts, all_writers_notify=covered
    )
    return Diagnosis(
        table=table,
        facts=facts,
        offer=offer,
        bound=bound,
        findings=(*findings, *around),
    )


def _no_supabase(missing: Sequence[str]) -> list[Finding]:
    found = [Finding(Level.DANGER, "table", f"{place} {ABSENT}") for place in missing]
    return [*found, Finding(Level.NOTICE, "doctor", _UNSEEN)]


async def _look(
    connection: Connection, name: str, found: Found, schema: Schema
) -> tuple[list[Finding], bool]:
    samples = supabase_samples(name, SupabaseStatements(name, schema, _RULES))
    hearing = await read_hearing(connection, name, schema)
    trigger, covered = trigger_remarks(name, schema, hearing)
    findings = [
        *columns_remarks(name, schema),
        *role_remarks(name, found),
        *await index_findings(connection, samples),
        *trigger,
    ]
    return findings, covered


def _offer(name: str, schema: Schema) -> Offer:
    place = "" if name == "auth" else f', schema="{name}"'
    return Offer(
        preset="SUPABASE",
        title="The tables of Supabase Auth",
        python=(
            "from handstamp.supabase import SupabaseSessions\n\n"
            f"sessions = SupabaseSessions(dsn, url=url, jwt_secret=jwt_secret{place})\n"
        ),
        capabilities=able(schema),
    )
