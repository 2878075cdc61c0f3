"""What ``handstamp doctor`` reports about the tables of Supabase Auth.

Nothing here writes. The catalog is read, which any role may read: also a role without a
single grant gets a report.

Rule 1. The rules of the application are not known here. What only a rule needs is a notice;
everything else is what the default rules need.
Rule 2. Where one privilege to write is missing, nothing is written at all, so none of them
is less severe than the others. To read sessions, the privileges to read are enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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

_NO_ID = "00000000-0000-0000-0000-000000000000"
_BY_ID: Mapping[str, str] = {"sessions": "id", "users": "id"}
_BY_SESSION: Mapping[str, str] = {
    "refresh_tokens": "session_id",
    "mfa_amr_claims": "session_id",
}

_RULES = SupabaseRules()
_READS, _WRITES = needs(_RULES)
_LOW_AAL, _ = needs(SupabaseRules(allow_low_aal=timedelta(hours=1)))
_BY_RULE: Needs = {t: wanted for t, wanted in _LOW_AAL.items() if t not in _READS}
_RULE = "with SupabaseRules(allow_low_aal=…) everything"
_NEEDED_BY: Mapping[tuple[str, str], str] = {
    ("sessions", "insert"): "sign-in",
    ("sessions", "update"): "refresh",
    ("sessions", "delete"): "revocation",
    ("users", "select"): "sign-in (and refresh)",
    ("users", "update"): "sign-in (and refresh)",
    ("refresh_tokens", "select"): "refresh",
    ("refresh_tokens", "insert"): "sign-in (and refresh)",
    ("refresh_tokens", "usage"): "sign-in (and refresh)",
    ("refresh_tokens", "update"): "refresh",
    ("refresh_tokens", "delete"): "refresh",
    ("mfa_amr_claims", "select"): "refresh",
    ("mfa_amr_claims", "insert"): "sign-in",
    ("audit_log_entries", "insert"): "the audit log (off with SupabaseRules(audit=False))",
}

_LATE = "within max_staleness (5 s)"
_TRIGGER_COMPLETE = (
    "the trigger is there and complete: GoTrue's own logouts, and all other writers, notify"
)
_TRIGGER_ABSENT = (
    "there is no trigger: what GoTrue itself ends (a logout there, a ban) and what other"
    f" writers end is noticed {_LATE}. The tables' owner may create it"
)
_TRIGGER_UNKNOWN = (
    "the role may not enter the schema, so handstamp cannot see whether there is a"
    f" trigger: what GoTrue ends is noticed {_LATE}"
)
_TRIGGER_BY_RULE = "with SupabaseRules(allow_low_aal=…) the trigger is not complete"
_INIT = ", with handstamp init --shape supabase --trigger"
_OTHER_TABLE = (
    "columns, grants, indexes and the trigger were not examined. If it is a table of your"
    " own, give --shape ulid or --shape uuid"
)


@dataclass(frozen=True, slots=True)
class Feature:
    """What some columns of a table are for, or the table itself where there are none.

    ``able`` names the feature, ``without`` says what is off where a column is missing.
    """

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
        "every session is of level 1, and require(level=2) refuses everybody",
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
        "a user exists or not; nobody can be deleted softly",
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
        "anonymous users are marked",
        "access tokens issued here mark no user as anonymous",
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
        "the audit log marks no sign-in as SSO",
    ),
    Feature(
        "audit_log_entries",
        (),
        "the audit log",
        "sign-ins, refreshes and logouts are not logged there",
    ),
)


async def diagnose_supabase(
    connection: Connection, listening: Connection, name: str
) -> Diagnosis:
    """Examines the tables in the schema ``name``. ``listening`` is a connection as the
    notification listener would have it.

    Raises :class:`ConfigError` where there is no table of sessions.
    """
    rows = await connection.fetch(INSPECT, name, list(TABLES))
    found: Found = {row["name"]: row for row in rows}
    table = display_name(name, "sessions")
    if "sessions" not in found:
        raise ConfigError(f"there is no table {table}")
    facts = await read_facts(connection, found["sessions"]["oid"])
    missing = absences(name, found)
    all_notify, offer = False, None
    if missing:
        findings = [
            Finding(Level.DANGER, "table", f"{place} {ABSENT}") for place in missing
        ]
        findings.append(Finding(Level.NOTICE, "doctor", _OTHER_TABLE))
    else:
        schema = read_schema(name, rows, _RULES)
        samples = supabase_samples(name, SupabaseStatements(name, schema, _RULES))
        of_trigger, all_notify = await _trigger_findings(connection, name, schema)
        findings = [
            *_column_findings(name, schema),
            *_role_findings(name, found),
            *await index_findings(connection, samples),
            *of_trigger,
        ]
        offer = _offer(name, schema)
    bound, around = await server_findings(
        connection, listening, facts, all_writers_notify=all_notify
    )
    return Diagnosis(
        table=table,
        facts=facts,
        offer=offer,
        bound=bound,
        findings=(*findings, *around),
    )


def _offer(name: str, schema: Schema) -> Offer:
    place = "" if name == "auth" else f', schema="{name}"'
    return Offer(
        preset="SUPABASE",
        title="The tables of Supabase Auth",
        python=(
            "from handstamp.supabase import SupabaseSessions\n\n"
            f"sessions = SupabaseSessions(dsn, url=url, jwt_secret=jwt_secret{place})\n"
        ),
        capabilities={f.able: schema.has(f.table, *f.columns) for f in FEATURES},
    )


def _column_findings(name: str, schema: Schema) -> Iterator[Finding]:
    """Which columns are missing, and which features are off without them."""
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
        text = "every column that handstamp uses is there"
        yield Finding(Level.OK, "columns", text)


def _role_findings(name: str, found: Found) -> list[Finding]:
    """What the role sees, and what it may do."""
    role = str(found["sessions"]["role"])
    grants = lacking_grants(name, found, _READS)
    reads = [_lack("everything", grant, role) for grant in grants]
    grants = (g for g in lacking_grants(name, found, _without(_WRITES, _READS)) if g.table)
    writes = [_lack(_NEEDED_BY[g.table, g.privilege], g, role) for g in grants]
    grants = (g for g in lacking_grants(name, found, _BY_RULE) if g.table)
    by_rule = [_lack(_RULE, grant, role, Level.NOTICE) for grant in grants]
    hidden = list(_hidden_findings(name, found, role))
    findings = [*hidden, *reads, *writes, *by_rule]
    if not reads and not hidden:
        findings.append(
            Finding(
                Level.NOTICE,
                "grants",
                f"what the role {role} may do is enough to read sessions; nothing is"
                " written until it has all other grants",
            )
            if writes
            else Finding(Level.OK, "grants", f"the role {role} may do all that is needed")
        )
    return findings


def _lack(feature: str, grant: Grant, role: str, level: Level = Level.DANGER) -> Finding:
    names = f" ({', '.join(grant.columns)})" if grant.columns else ""
    text = f"{feature} needs {grant.privilege.upper()}{names} on {grant.place}"
    return Finding(level, "grants", text, grant_sql(grant, role))


def _without(wanted: Needs, less: Needs) -> Needs:
    """Returns what is wanted and not in ``less``; a privilege to delete has no columns."""

    def left(table: str, privilege: str, columns: Columns) -> Columns:
        had = less.get(table, {}).get(privilege, ())
        return tuple(column for column in columns if column not in had)

    return {
        table: {privilege: left(table, privilege, c) for privilege, c in privileges.items()}
        for table, privileges in wanted.items()
    }


def _hidden_findings(name: str, found: Found, role: str) -> Iterator[Finding]:
    """What row level security hides from the role."""
    always = (*_READS, *_WRITES)
    hidden = _names(name, hidden_tables(found, dict.fromkeys(always), policied=False))
    if hidden:
        text = (
            f"row level security hides every row of {hidden} from the role {role}, so no"
            " session can be read. Connect as the tables' owner, or let the role bypass it"
        )
        yield Finding(Level.DANGER, "grants", text, bypass_sql(role))
    elif hidden_tables(found, _BY_RULE, policied=False):
        tables = _names(name, _BY_RULE)
        text = f"{_RULE} needs the rows of {tables}, which row level security hides"
        yield Finding(Level.NOTICE, "grants", text, bypass_sql(role))
    policied = _names(name, hidden_tables(found, found, policied=True))
    if policied:
        text = (
            f"row level security applies to this role on {policied}: rows its policies"
            " hide do not exist"
        )
        yield Finding(Level.WARNING, "grants", text)


def _names(name: str, tables: Iterable[str]) -> str:
    return ", ".join(display_name(name, table) for table in tables)


async def _trigger_findings(
    connection: Connection, name: str, schema: Schema
) -> tuple[list[Finding], bool]:
    """Returns the findings about the trigger, and whether every writer notifies."""

    async def read(*tables: str) -> TriggerState:
        triggers = supabase_triggers(name, schema.columns, tables)
        return await read_triggers(connection, triggers)

    try:
        always, by_rule = await read(*ALWAYS), await read(*WATCHED)
    except asyncpg.InsufficientPrivilegeError:
        mend = trigger_script(supabase_triggers(name, schema.columns, WATCHED))
        return [Finding(Level.NOTICE, "trigger", _TRIGGER_UNKNOWN, mend)], False
    absent = _TRIGGER_ABSENT + (_INIT if name == "auth" else "")
    findings = trigger_findings(always, complete=_TRIGGER_COMPLETE, absent=absent)
    if always.lacks:
        # One script creates all of it.
        return [replace(finding, mend=by_rule.mend) for finding in findings], False
    if by_rule.lacks:
        text = f"{_TRIGGER_BY_RULE}: {'; '.join(by_rule.lacks)}"
        findings.append(Finding(Level.NOTICE, "trigger", text, by_rule.mend))
    return findings, True


def supabase_samples(name: str, sql: SupabaseStatements) -> list[Sample]:
    """Returns the frequent statements, with the indexes that they need. The last two also
    check the deletion of a session, which deletes its refresh tokens and claims."""
    statements: list[tuple[str, str, object, Mapping[str, str]]] = [
        ("the read of a session", sql.find_many, [_NO_ID], _BY_ID),
        (
            "a list of a user's sessions",
            sql.list_for_user,
            _NO_ID,
            {**_BY_ID, "sessions": "user_id"},
        ),
        ("a refresh", sql.find_v1, "-", {**_BY_ID, "refresh_tokens": "token"}),
        ("a refresh", sql.read_session, _NO_ID, {**_BY_ID, **_BY_SESSION}),
        ("a refresh", sql.active, _NO_ID, _BY_SESSION),
    ]
    return [
        Sample(
            feature=feature,
            sql=statement,
            values=[value],
            indexes={t: Index(display_name(name, t), c) for t, c in columns.items()},
        )
        for feature, statement, value, columns in statements
    ]
