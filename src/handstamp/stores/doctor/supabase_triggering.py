"""Whether GoTrue's own writes are heard: the trigger on Supabase Auth's tables."""

from __future__ import annotations

from dataclasses import dataclass, replace

import asyncpg

from handstamp.stores.doctor.findings import Finding, Level
from handstamp.stores.doctor.triggering import Hearing, listen_for, trigger_findings
from handstamp.stores.lanes import Connection
from handstamp.stores.notify_trigger import script
from handstamp.stores.supabase.notify_trigger import ALWAYS, WATCHED, supabase_triggers
from handstamp.stores.supabase.schema import Schema

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
