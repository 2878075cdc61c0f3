"""What `handstamp doctor` finds in a database of Supabase Auth, whose tables are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from handstamp.cli.diagnosis import Diagnosis, Offer
from handstamp.cli.indexes import look_at_indexes
from handstamp.cli.surroundings import look_around
from handstamp.core.supabase_rules import SupabaseRules
from handstamp.errors import ConfigError
from handstamp.stores.doctor.examining import read_facts
from handstamp.stores.doctor.findings import Finding, Level
from handstamp.stores.doctor.supabase_examining import read_tables
from handstamp.stores.doctor.supabase_features import able, columns_remarks
from handstamp.stores.doctor.supabase_granting import role_remarks
from handstamp.stores.doctor.supabase_samples import supabase_samples
from handstamp.stores.doctor.supabase_triggering import read_hearing, trigger_remarks
from handstamp.stores.supabase.schema import (
    ABSENT,
    Found,
    Schema,
    absences,
    read_schema,
    spelled,
)
from handstamp.stores.supabase.statements import SupabaseStatements

if TYPE_CHECKING:
    from handstamp.cli.connecting import Connection

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
    table = spelled(name, "sessions")
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
    around = await look_around(connection, listening, facts, covered=covered)
    return Diagnosis(
        table=table,
        facts=facts,
        offer=offer,
        bound=around.bound,
        findings=(*findings, *around.findings),
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
        *await look_at_indexes(connection, samples),
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
