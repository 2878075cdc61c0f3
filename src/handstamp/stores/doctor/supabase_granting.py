"""What the role may not do with Supabase Auth's tables, and which feature needs it.

Rule 1. The rules of the application are not known here: what a rule makes necessary is a
notice, and everything else is what the default rules need.
Rule 2. Where one privilege to write is missing, nothing is written at all, so none of them
is less bad than the others. To look sessions up takes the privileges to read alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta

from handstamp.core.supabase_rules import SupabaseRules
from handstamp.stores.doctor.findings import Finding, Level
from handstamp.stores.supabase.schema import (
    Columns,
    Found,
    Grant,
    Needs,
    bypass_sql,
    grant_sql,
    hidden_tables,
    lacking_grants,
    needs,
    spelled,
)

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
    return ", ".join(spelled(name, table) for table in tables)


def _summary(role: str, *, may_write: bool) -> Finding:
    if may_write:
        text = f"the role {role} may do all that is needed"
        return Finding(Level.OK, "grants", text)
    text = (
        f"what the role {role} may do is enough to look sessions up; nothing is written"
        " until it has all of the rest"
    )
    return Finding(Level.NOTICE, "grants", text)
