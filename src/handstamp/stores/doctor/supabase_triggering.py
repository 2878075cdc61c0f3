"""Whether GoTrue's own writes are heard: the trigger on Supabase Auth's tables.

What it is to watch is read from the very SQL that makes it. A database that lacks a column
gets the other triggers; what those leave out is then nobody's mistake.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from handstamp.core.supabase_rules import SupabaseRules
from handstamp.stores.doctor.findings import Finding, Level
from handstamp.stores.doctor.triggering import Trigger, unheard
from handstamp.stores.sql import Statement, statements
from handstamp.stores.supabase.schema import Schema, spelled
from handstamp.stores.supabase.statements import Watched

_HERE = "auth."
"""The schema that the SQL names."""
_IN_AUTH = re.compile(r"\bauth\.")
_UPDATE_OF = re.compile(r"\bupdate of (\w+(?:, \w+)*)")
_ALWAYS = ("sessions", "users")
"""What the bus asks for under every rule."""
_BY_RULE = "with SupabaseRules(allow_low_aal=…) the trigger is not complete"
_LATE = "within max_staleness (5 s)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hearing:
    """What is there: the triggers of ours, by the tables' spelled names, and whether the
    bus relies on them; None where the role may not ask."""

    triggers: Sequence[Trigger]
    relied: bool | None


def watched_of(name: str) -> Watched:
    """What the bus asks under the default rules."""
    return Watched.of(name, SupabaseRules())


def trigger_remarks(
    name: str, schema: Schema, hearing: Hearing
) -> tuple[list[Finding], bool]:
    """What there is to say of it; and whether every writer of the tables is heard."""
    triggers = hearing.triggers
    steps, lacked = _possible(schema)
    mend = _script(name, steps)
    factors = spelled(name, "mfa_factors")
    if all(trigger.table == factors for trigger in triggers):
        return [_absent(name, mend)], False
    lacks = [lack for t in _ALWAYS for lack in _unheard(name, t, steps, triggers)]
    by_rule = []
    if schema.has("mfa_factors"):
        by_rule = _unheard(name, "mfa_factors", steps, triggers)
    found = [_incomplete(lacks, mend, hearing)] if lacks else [_complete(hearing, lacked)]
    if by_rule:
        text = f"{_BY_RULE}: unheard would be {', '.join(by_rule)}"
        found.append(Finding(Level.NOTICE, "trigger", text, mend))
    return found, not lacks and bool(hearing.relied)


def _possible(schema: Schema) -> tuple[list[Statement], list[str]]:
    """The steps that make sense in this database; and what it lacks for the others."""
    possible, lacked = [], []
    for step in statements("supabase", trigger=True):
        needed = [(table.removeprefix(_HERE), column) for table, column in step.needs]
        missing = [f"{t}.{c}" for t, c in needed if not schema.has(t, c)]
        if not missing:
            possible.append(step)
        if step.relation in [f"{_HERE}{table}" for table in _ALWAYS]:
            lacked += missing
    return possible, lacked


def _unheard(
    name: str, table: str, steps: Sequence[Statement], triggers: Sequence[Trigger]
) -> list[str]:
    own = [step.sql for step in steps if step.relation == f"{_HERE}{table}"]
    lists = [found[1].split(", ") for sql in own if (found := _UPDATE_OF.search(sql))]
    return unheard(spelled(name, table), triggers, [c for names in lists for c in names])


def _script(name: str, steps: Sequence[Statement]) -> str:
    """As a script that may be run again, by the tables' owner. It enables, too."""
    again = [step.sql.replace("create ", "create or replace ", 1) for step in steps]
    return ";\n\n".join(_IN_AUTH.sub(lambda _: f"{spelled(name)}.", sql) for sql in again)


def _absent(name: str, mend: str) -> Finding:
    text = (
        "there is no trigger: what GoTrue itself ends (a logout there, a ban) and what"
        f" other writers end is noticed {_LATE}. The tables' owner may make it"
    )
    if name == "auth":
        text += ", with handstamp init --shape supabase --trigger"
    return Finding(Level.NOTICE, "trigger", text, mend)


def _incomplete(lacks: Sequence[str], mend: str, hearing: Hearing) -> Finding:
    relied = bool(hearing.relied)
    said = "and handstamp relies on it" if relied else "so handstamp does not rely on it"
    text = f"the trigger is not complete, {said}: unheard would be {', '.join(lacks)}"
    return Finding(Level.DANGER if relied else Level.WARNING, "trigger", text, mend)


def _complete(hearing: Hearing, lacked: Sequence[str]) -> Finding:
    if hearing.relied:
        text = (
            "the trigger is there and complete: GoTrue's own logouts are heard, and every"
            " other writer"
        )
        return Finding(Level.OK, "trigger", text)
    reason = f"for want of {', '.join(lacked)} it cannot watch everything"
    if hearing.relied is None:
        reason = "the role may not enter the schema, so handstamp cannot see it"
    text = f"the trigger is there, but {reason}: what GoTrue ends is noticed {_LATE}"
    return Finding(Level.NOTICE, "trigger", text)
